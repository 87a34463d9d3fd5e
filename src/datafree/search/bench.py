"""Where candidates are made, written, run and compared with the original."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datafree.export import export_onnx
from datafree.graph import ModelGraph, fold_batchnorm
from datafree.graph.channels import channel_groups
from datafree.prune import prune
from datafree.prune.prune import ratio_of, removed_of, served_groups
from datafree.quantize import Nearest, quantize
from datafree.recipes.closed_form import ClosedForm
from datafree.recipes.request import Request
from datafree.run import Run
from datafree.search.answers import Answers
from datafree.search.sensitivity import COARSE, Choice, choices, paths_of
from datafree.search.sizes import Sizes
from datafree.search.widths import Shapes, Widths
from datafree.spec import TARGETS, Refusal

Clock = Callable[[Mapping[str, Path]], Mapping[str, float]]
"""Files by name -> milliseconds of one input by name, measured side by side."""


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """One candidate. request: the settings; coarse: module paths of the layers in 4 bits; size: bytes of the file;
    macs: share of the original's; error: share of the answer's energy, None before it is measured; milliseconds: of
    one input, where the budget asks; written: whether size and time are those of a file, or forecast
    """

    request: Any
    coarse: tuple[str, ...]
    size: int
    macs: float
    error: float | None = None
    milliseconds: float | None = None
    written: bool = False

    @property
    def uniform(self) -> bool:
        """Whether all groups lose the same share."""
        return not self.request.group_ratios


@dataclass
class Bench:
    """One network and one request at work; files: a folder for what is written on the way.

    bits: whether layers may be put into 4 bits
    """

    teacher: ModelGraph
    request: Request
    run: Run
    files: Path
    bits: bool
    answers: Answers = field(init=False)
    _told: dict[Any, tuple[float, float] | Refusal] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.target = TARGETS[self.request.target]
        self.folded = fold_batchnorm(self.teacher)
        self.groups = served_groups(channel_groups(self.teacher), self.request.scope)
        self.widths = Widths.of(self.folded, [group.name for group in self.groups])
        self.macs = max(self.widths.macs(self.widths.shapes({})), 1.0)
        self.answers = Answers.asked(self.teacher, self.run)
        plain = self._rounded(self.folded, {})
        export_onnx(plain, self.files / "plain.onnx", self.target)
        self.choices: dict[str, Choice] = {}
        if self.bits and self.request.weights == 2 * COARSE:
            self.choices = choices(plain, self.target.weights.bits)
        coarse = None
        if self.choices:
            bits = dict.fromkeys(paths_of(self.choices, self.choices), COARSE)
            coarse = self.files / "coarse.onnx"
            export_onnx(self._rounded(self.folded, bits), coarse, self.target)
        self.sizes = Sizes.read(self.files / "plain.onnx", self.folded, coarse)

    def kept(self, request: Request) -> dict[str, int]:
        """Channels left of each group."""
        if request.allocation == "global" and request.prunes:
            small = prune(self.teacher, ratio=request.ratio, criterion=ClosedForm.asked_by(request).criterion,
                          run=self._quiet(), scope=request.scope, allocation="global",
                          multiple=request.multiple)  # fmt: skip
            return {group.name: group.size for group in channel_groups(small)}
        return {
            group.name: group.size
            - removed_of(group.size, ratio_of(group, request.ratio, request.group_ratios), request.multiple)
            for group in self.groups
        }

    def candidate(self, taken: frozenset[str], **changes: Any) -> Fitted:
        """With its size and operations as they follow from its widths. taken: names of the choices in 4 bits"""
        coarse = paths_of(taken, self.choices)
        bits = {**self.request.layer_bits, **dict.fromkeys(coarse, COARSE)}
        request = dataclasses.replace(self.request, layer_bits=bits, **changes)
        shapes = self.widths.shapes(self.kept(request))
        weights = {weight for name in taken for weight in self.choices[name].weights}
        return Fitted(request=request, coarse=coarse, size=round(self.sizes.of(shapes, weights)),
                      macs=self.widths.macs(shapes) / self.macs)  # fmt: skip

    def measured(self, one: Fitted) -> Fitted:
        """The candidate with its error. Raises Refusal where it cannot be made."""
        return dataclasses.replace(one, error=self._compared(one)[0])

    def roughly(self, one: Fitted, losses: Mapping[str, float]) -> Fitted:
        """The candidate with the error of its widths, and on top what each of its layers in 4 bits costs alone: its
        layers are not rounded. losses: of each choice. Raises Refusal likewise.
        """
        added = sum(loss for name, loss in losses.items() if set(self.choices[name].paths) & set(one.coarse))
        return dataclasses.replace(one, error=self._compared(dataclasses.replace(one, coarse=()))[0] + added)

    def agreement(self, one: Fitted) -> float:
        """Percent of the pictures on which its first answer is the original's. Raises Refusal likewise."""
        return self._compared(one)[1]

    def _compared(self, one: Fitted) -> tuple[float, float]:
        asked = one.request
        key = (asked.ratio, tuple(asked.group_ratios.items()), asked.multiple, frozenset(one.coarse))
        if key not in self._told:
            try:
                made = self.made(asked, dict.fromkeys(one.coarse, COARSE))
                self._told[key] = self.answers.compare(made)
            except Refusal as refusal:
                self._told[key] = refusal
        found = self._told[key]
        if isinstance(found, Refusal):
            raise found
        return found

    def made(self, asked: Request, bits: Mapping[str, int] | None = None, **changes: Any) -> ModelGraph:
        """Pruned and repaired in the closed form, activations in float, and so are weights that would have 8 bits."""
        weights = None if asked.weights == 2 * COARSE else asked.weights
        recipe = ClosedForm.asked_by(asked, weights=weights, activations=None,
                                     layer_bits={**self.request.layer_bits, **(bits or {})}, **changes)  # fmt: skip
        return fold_batchnorm(recipe.compress(self.teacher, self.teacher.inputs, self._quiet()))

    def shapes(self, one: Fitted) -> Shapes:
        """Shapes of all tensors of a candidate."""
        return self.widths.shapes(self.kept(one.request))

    def write(self, one: Fitted, name: str = "student.onnx") -> tuple[Path, int]:
        """The candidate's file, rounded to nearest, as large as with any rounding; and its bytes."""
        asked = one.request
        recipe = ClosedForm.asked_by(asked, weights=None, activations=None, layer_bits={}, keep_float=(),
                                     correction=None)  # fmt: skip
        small = fold_batchnorm(recipe.compress(self.teacher, self.teacher.inputs, self._quiet()))
        path = self.files / name
        return path, int(export_onnx(self._rounded(small, asked.layer_bits), path, self.target)["bytes"])

    def _rounded(self, small: ModelGraph, bits: Mapping[str, int]) -> ModelGraph:
        """With the biases that correction adds: layers before an addition or a BatchNorm often come without one."""
        made = quantize(small, target=self.target, run=self._quiet(), weights=self.request.weights,
                        activations=self.request.activations, rounding=Nearest(),
                        layer_bits={**self.request.layer_bits, **bits}, keep_float=self.request.keep_float)  # fmt: skip
        correction = getattr(self.request, "correction", ClosedForm().correction)
        return made if correction is None else correction.compensate(made, small, self._quiet())

    def _quiet(self) -> Run:
        """What candidates log is not the job's."""
        return Run(seed=self.run.seed, device=self.run.device)


def bundles(names: Sequence[str], count: int) -> list[list[str]]:
    """Names in at most `count` bundles of neighbours."""
    count = min(count, len(names))
    return [[name for place, name in enumerate(names) if place * count // len(names) == own] for own in range(count)]
