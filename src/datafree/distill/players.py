"""The two sides of the game, each with what moves it: generators, and students that learn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from datafree.distill.play import Play
from datafree.distill.rules import Answer, Looks
from datafree.functional.bounds import clamp_returning
from datafree.functional.scores import scores
from datafree.graph import ModelGraph
from datafree.graph.marginal import told_input
from datafree.graph.watch import lay_channels_last, make_on
from datafree.graph.whole_student import WholeStudent
from datafree.nn import Quantizer
from datafree.nn.generator import COARSE, Generator

_FUSED = {"cpu", "cuda"}
_RATE = 0.1  # of students begun anew


class Artist:
    """A generator of images as the teacher eats them: inside the bounds of pixels, or spread as features are.

    x = low + (high - low) sigmoid(.)                      where it ends in a sigmoid
    x = clamp(mean + std n, low, high), n normalised       otherwise, and always for features (which have no bounds)
    """

    def __init__(self, teacher: ModelGraph, settings: Play, device: str, generator: torch.Generator) -> None:
        self.settings, self.shape, self.device = settings, teacher.inputs.shape, device
        self.bounded = teacher.inputs.pixels
        told = told_input(teacher)
        planes = [told.mean.float(), told.std.float()]
        if self.bounded:
            planes += [torch.tensor(bound) for bound in teacher.inputs.bounds()]
        self.mean, self.std, *self.bounds = (plane.reshape(1, -1, 1, 1).to(device) for plane in planes)
        self.net = self._made(generator).to(device).to(memory_format=torch.channels_last)
        self.forward: Callable[[Tensor], Tensor] = self.net
        self.optimizer = self._optimizer()

    def __call__(self, z: Tensor) -> Tensor:
        """z: [N, latent] -> images [N, C, H, W], float32, normalised"""
        made = self.forward(z).float()
        if not self.bounds:
            return self.mean + self.std * made
        low, high = self.bounds
        if self.settings.ends == "sigmoid":
            return low + (high - low) * made
        return clamp_returning(self.mean + self.std * made, low, high)

    def restart(self, generator: torch.Generator) -> None:
        """New weights and an optimizer that remembers nothing."""
        self.net.load_state_dict(self._made(generator).state_dict())
        self.optimizer = self._optimizer()

    def live(self) -> dict[str, Tensor]:
        """All that training moves, by name."""
        return {**self.net.state_dict(), **_moments(self.optimizer)}

    def _made(self, generator: torch.Generator) -> Generator:
        width, side = self.settings.width, max(self.shape[1:])
        return Generator(
            self.settings.latent, self.shape, generator, finest=width, widest=4 * width,
            coarse=max(1, min(COARSE, -(-side // 4))), ends=self.settings.ends if self.bounded else "normal",
        )  # fmt: skip

    def _optimizer(self) -> torch.optim.Optimizer:
        betas = (self.settings.generator_beta, 0.999)
        optimizer = torch.optim.Adam(self.net.parameters(), lr=self.settings.generator_rate, betas=betas)
        return _started(optimizer)


class Learner:
    """A student that learns. `module` is the trainable form, `whole` leads back to a graph."""

    def __init__(self, student: ModelGraph, settings: Play, looks: Looks, device: str) -> None:
        mine = dict.fromkeys(looks.student, torch.Tensor.float)
        float_weights = not any(isinstance(module, Quantizer) for module in student.module.modules())
        wanted = settings.batch_statistics
        self.batch_statistics = wanted == "always" or (wanted == "auto" and float_weights)
        self.whole = WholeStudent(student, mine, batch_statistics=self.batch_statistics, learned=looks.learned)
        if looks.module is not None:
            looks.module(self.whole)
        self.module = self.whole.module.to(device)
        make_on(self.whole.module, device)
        lay_channels_last(self.module)
        self.forward: Callable[[Tensor], Any] = self.module
        rate = (settings.rate or _RATE) if float_weights else settings.quantized_rate
        tensors, sizes = self.whole.tensors, self.whole.sizes
        groups = []
        for heavy in (True, False):
            names = [name for name, tensor in tensors.items() if (tensor.ndim > 1) == heavy]
            common = {"weight_decay": settings.decay if heavy else 0.0}
            if settings.relative:
                groups += [{"params": [tensors[name]], "lr": rate * sizes[name], **common} for name in names]
            elif names:
                groups.append({"params": [tensors[name] for name in names], "lr": rate, **common})
        self.optimizers = [_started(_optimizer(settings.optimizer, groups, device))]
        if settings.step_rate and self.whole.steps:
            self.optimizers.append(_started(torch.optim.Adam(self.whole.steps, lr=settings.step_rate)))

    @property
    def parameters(self) -> list[Tensor]:
        """Everything an optimizer moves."""
        return [p for optimizer in self.optimizers for group in optimizer.param_groups for p in group["params"]]

    def answer(self, images: Tensor, *, training: bool) -> Answer:
        """training: BatchNorms normalise by the batch, where they may"""
        self.module.train(training)
        logits, values = self.forward(images)
        return Answer(scores(logits.float()), values)

    def held(self) -> dict[str, Tensor]:
        """What makes the student: latent tensors, steps, remembered statistics and whatever else its module stores."""
        return dict(self.module.state_dict())

    def live(self) -> dict[str, Tensor]:
        """All that training moves, by name."""
        live = self.held()
        for number, optimizer in enumerate(self.optimizers):
            live |= {f"{number}.{name}": value for name, value in _moments(optimizer).items()}
        return live


def rates(optimizers: Sequence[torch.optim.Optimizer], share: float) -> None:
    """Set every learning rate to this share of its first value."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group.setdefault("first", group["lr"]) * share


def _optimizer(name: str, groups: list[dict[str, Any]], device: str) -> torch.optim.Optimizer:
    fused = torch.device(device).type in _FUSED
    if name == "adam":
        return torch.optim.Adam(groups, lr=1e-3, fused=fused)
    return torch.optim.SGD(groups, lr=1e-3, momentum=0.9, nesterov=True, fused=fused)


def _started(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """With its moments in place, zeros, as after its first step: so that a kept state has where to go."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if isinstance(optimizer, torch.optim.SGD):
                optimizer.state[parameter] = {"momentum_buffer": torch.zeros_like(parameter)}
                continue
            count = torch.zeros((), dtype=torch.float32, device=parameter.device if group.get("fused") else "cpu")
            optimizer.state[parameter] = {
                "step": count,
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
    return optimizer


def _moments(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return {
        f"{index}:{name}": value
        for index, parameter in enumerate(parameters)
        for name, value in optimizer.state[parameter].items()
        if isinstance(value, Tensor)
    }


def finite(module: nn.Module) -> bool:
    """Whether all numbers of a module are."""
    return all(bool(v.isfinite().all()) for v in module.state_dict().values() if v.is_floating_point())
