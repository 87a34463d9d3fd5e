"""The settings of the game, which every method of the family shares; each sets its own defaults."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from datafree.graph.prepared import Precision
from datafree.spec import method


@method
class Play:
    """One min-max game: generators show images, students answer as their teacher does."""

    rounds: int = Field(default=1000, ge=0)
    """Rounds, each of some generator steps and some student steps; fewer where the time is short."""
    warm_up: int = Field(default=0, ge=0)
    """Generator steps before the game, on the generator's own terms alone."""
    generator_steps: int = Field(default=1, ge=0)
    """Steps of every generator in a round."""
    student_steps: int = Field(default=10, ge=1)
    """Steps of every student in a round."""
    batch: int = Field(default=128, ge=2)
    """Images in a step."""
    fresh: bool = True
    """Draw latents for every step; otherwise once a round, and its students' steps share a batch."""

    generators: int = Field(default=1, ge=1)
    """Generators; students learn from the mixture of their images."""
    students: int = Field(default=1, ge=1)
    """Students that learn side by side; generators play against all, the nearest to the teacher is handed back."""
    latent: int = Field(default=256, ge=1)
    """Numbers each image is made from."""
    width: int = Field(default=64, ge=1)
    """Channels of a generator at full resolution; twice and four times as many on coarser grids."""
    ends: Literal["normal", "sigmoid"] = "sigmoid"
    """How a generator ends: every channel of a batch normalised, or pixels between their bounds."""
    generator_rate: float = Field(default=1e-3, gt=0)
    """First learning rate of the generators (Adam)."""
    generator_beta: float = Field(default=0.5, ge=0, lt=1)
    """Adam's first decay rate for the generators; the second is 0.999."""
    reset_every: int = Field(default=0, ge=0)
    """Rounds after which the generators start anew; 0: never."""

    optimizer: Literal["sgd", "adam"] = "sgd"
    """Of the students: SGD with Nesterov's momentum, or Adam."""
    rate: float | None = Field(default=None, gt=0)
    """First learning rate of students in float. None: 0.1; of those that come with trained weights 0.02 of each
    tensor's size, with Adam, and where they have L > 20 layers 20 / L of it.
    """
    quantized_rate: float = Field(default=1e-3, gt=0)
    """First learning rate of quantized students."""
    relative: bool = False
    """Learning rates are shares of each tensor's root mean square (for Adam)."""
    step_rate: float = Field(default=0.0, ge=0)
    """Learning rate of the logarithms of quantizers' scales (Adam); 0 leaves scales as they are."""
    decay: float = Field(default=0.0, ge=0)
    """Weight decay of the students' weights."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """How learning rates go over the rounds."""
    clip: float = Field(default=0.0, ge=0)
    """Greatest norm of a network's gradient; 0 leaves it as it is."""
    student_mode: Literal["eval", "train"] = "eval"
    """How students' BatchNorms normalise in generator steps: by what they remember, or by the batch."""
    batch_statistics: Literal["auto", "always", "never"] = "auto"
    """Whether BatchNorms normalise by the batch in student steps; auto: of students in float."""

    momentum: float = Field(default=0.0, ge=0, lt=1)
    """Share of earlier batches in the statistics that are matched: small batches then need not match alone."""
    pool: int = Field(default=0, ge=0)
    """Generated images that are kept and shown again; 0: none."""
    replay: float = Field(default=0.5, ge=0, le=1)
    """Share of a student's batch that comes from the pool."""
    augment: bool = True
    """Shift and mirror images of the pool."""

    precision: Precision = "auto"
    """Numbers convolutions compute in; auto: bfloat16 where the processor multiplies in it."""
    compile: Literal["auto", "always", "never"] = "auto"
    """Compile networks before the game; auto: where it is long enough to pay."""
    minutes: float | None = Field(default=None, gt=0)
    """How long it may take; none: as long as the rounds need, or the job has left."""
    judge_every: int = Field(default=0, ge=0)
    """Rounds between judgements of the students; 0: a twentieth of all."""
    collapse: float = Field(default=0.1, ge=0, lt=1)
    """A generator has collapsed when the teacher's mean answer holds less than this share of log(classes); 0: never."""
