"""One part of a student made trainable: what may move in it, how far it is from its teacher, and what it became."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from datafree.graph.operators import LAYERS, kind
from datafree.graph.strides import stride_before_pointwise
from datafree.nn import LearnedRounding, LearnedStep, Quantizer
from datafree.reconstruct.training import Training

_NORMS = ("batch_norm", "layer_norm", "group_norm")
_LEAN = 0.25  # of a step: where an unknown float weight is thought to lie, on the side its gradient points to


class TrainablePart:
    """A part of a student whose quantizers learn.

    module: the part, cut out of the student (`graph.blocks.cut_out`); its own tensors are replaced, the student's are
        never written
    mine: names of stored tensors and of quantizer modules that no other part has settled or still needs
    reference: a weight's float values by name, or None when nothing tells them
    """

    def __init__(
        self,
        module: fx.GraphModule,
        training: Training,
        mine: set[str],
        reference: Callable[[str], Tensor | None],
        generator: torch.Generator,
        example: tuple[Tensor, Tensor],
    ) -> None:
        stride_before_pointwise(module)
        self.module, self.training = module, training
        self.roundings: dict[str, tuple[str, LearnedRounding]] = {}
        self.steps: dict[str, LearnedStep] = {}
        self.tensors: dict[str, tuple[nn.Parameter, float]] = {}
        weights, activations = _quantizers(module)
        weights = {name: target for name, target in weights.items() if name in mine} if training.rounding else {}
        references = {name: self._near(name, target, reference(name)) for name, target in weights.items()}
        unknown = [name for name, value in references.items() if value is None]
        leaning = self._leaning(unknown, weights, example) if unknown else {}
        for name, target in weights.items():
            known = references[name]
            quantizer = module.get_submodule(target)
            assert isinstance(quantizer, Quantizer)
            rounding = LearnedRounding(_get(module, name), quantizer, leaning[name] if known is None else known)
            rounding.log_factor.requires_grad_(training.scales > 0)
            self.roundings[target] = (name, rounding)
            _put(module, target, rounding)
        for target in activations:
            quantizer = module.get_submodule(target)
            trained = target in mine and training.ranges > 0
            if isinstance(quantizer, Quantizer) and (trained or training.drop):
                step = LearnedStep(quantizer, training.drop, generator)
                step.log_factor.requires_grad_(trained)
                self.steps[target] = step
                _put(module, target, step)
        for name, rate in self._free_tensors(mine).items():
            value = _get(module, name)
            parameter = nn.Parameter(value.detach().clone().float())
            self.tensors[name] = (parameter, rate * float(value.float().square().mean().sqrt().clamp(min=1e-3)))
            _put(module, name, parameter)

    @property
    def trainable(self) -> bool:
        return bool(self.groups())

    def groups(self) -> list[dict[str, Any]]:
        """Parameter groups for Adam; `constant` ones keep their learning rate, the others follow a cosine."""
        found: list[dict[str, Any]] = []
        if self.roundings:
            values = [rounding.v for _, rounding in self.roundings.values()]
            found.append({"params": values, "lr": self.training.rounding, "constant": True})
        scales = [r.log_factor for _, r in self.roundings.values() if r.log_factor.requires_grad]
        if scales:
            found.append({"params": scales, "lr": self.training.scales, "constant": False})
        ranges = [step.log_factor for step in self.steps.values() if step.log_factor.requires_grad]
        if ranges:
            found.append({"params": ranges, "lr": self.training.ranges, "constant": False})
        found += [{"params": [value], "lr": rate, "constant": False} for value, rate in self.tensors.values()]
        return found

    def harden(self, hard: bool) -> None:
        """hard: compute as the stored part will, choices made and nothing dropped."""
        for _, rounding in self.roundings.values():
            rounding.hard = hard
        for step in self.steps.values():
            step.hard = hard

    def indecision(self, beta: float) -> Tensor:
        """See `LearnedRounding.indecision`; the sum over all weights of the part."""
        return torch.stack([rounding.indecision(beta) for _, rounding in self.roundings.values()]).sum()

    def settled(self) -> dict[str, Tensor]:
        """What the student's tensors should become, by name: weights on their grids, scales, biases."""
        changes: dict[str, Tensor] = {}
        for target, (name, rounding) in self.roundings.items():
            weight, grid = rounding.settled()
            changes[name] = weight.to(_get(self.module, name).dtype)
            changes[f"{target}.scale"] = grid.scale
        for target, step in self.steps.items():
            if step.log_factor.requires_grad:
                changes[f"{target}.scale"] = step.settled().scale
        for name, (parameter, _) in self.tensors.items():
            changes[name] = parameter.detach()
        return {name: value.detach().clone().contiguous() for name, value in changes.items()}

    def _near(self, name: str, target: str, reference: Tensor | None) -> Tensor | None:
        """The reference, when the stored weight is a rounding of it and not of something else."""
        weight, quantizer = _get(self.module, name), self.module.get_submodule(target)
        if reference is None or reference.shape != weight.shape:
            return None
        assert isinstance(quantizer, Quantizer)
        scale = quantizer.scale
        if scale.ndim:
            scale = scale.reshape([-1 if dim == quantizer.axis else 1 for dim in range(weight.ndim)])
        return reference if float(((reference - weight) / scale).abs().median()) < 0.75 else None

    def _leaning(self, names: list[str], weights: dict[str, str], example: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """Stand-ins for float weights nobody remembers: from the stored ones, the way the loss falls."""
        stored = {name: _get(self.module, name) for name in names}
        leaves = {name: nn.Parameter(value.detach().clone()) for name, value in stored.items()}
        for name, leaf in leaves.items():
            _put(self.module, name, leaf)
        loss = (self.module(example[0]) - example[1]).square().mean()
        slopes = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        found = {}
        for (name, value), slope in zip(stored.items(), slopes):
            _put(self.module, name, value)
            quantizer = self.module.get_submodule(weights[name])
            assert isinstance(quantizer, Quantizer)
            scale = quantizer.scale
            if scale.ndim:
                scale = scale.reshape([-1 if dim == quantizer.axis else 1 for dim in range(value.ndim)])
            direction = torch.zeros_like(value) if slope is None else slope.sign()
            found[name] = value - _LEAN * scale * direction
        return found

    def _free_tensors(self, mine: set[str]) -> dict[str, float]:
        """Learning rates of stored tensors that carry no quantizer: layers' weights, biases, affine parameters."""
        found: dict[str, float] = {}
        for node in self.module.graph.nodes:
            if kind(node) in LAYERS:
                places = ((1, self.training.weights), (2, self.training.biases))
            elif kind(node) in _NORMS:
                first = 1 if kind(node) == "batch_norm" else 2
                places = ((first, self.training.biases), (first + 1, self.training.biases))
            else:
                continue
            for place, rate in places:
                value = node.args[place] if len(node.args) > place else None
                if rate and isinstance(value, fx.Node) and value.op == "get_attr" and str(value.target) in mine:
                    found[str(value.target)] = rate
        return found


def _quantizers(module: fx.GraphModule) -> tuple[dict[str, str], list[str]]:
    """Quantizer modules on weights, by the weight's name, and on activations."""
    weights: dict[str, str] = {}
    activations: dict[str, None] = {}
    for node in module.graph.nodes:
        if node.op == "call_module":
            source = node.args[0]
            if isinstance(source, fx.Node) and source.op == "get_attr":
                weights[str(source.target)] = str(node.target)
            else:
                activations[str(node.target)] = None
    return weights, list(activations)


def _get(module: nn.Module, name: str) -> Tensor:
    owner, _, leaf = name.rpartition(".")
    value = getattr(module.get_submodule(owner), leaf)
    assert isinstance(value, Tensor)
    return value


def _put(module: nn.Module, name: str, value: Tensor | nn.Module) -> None:
    """Replace a tensor or a submodule, whatever it was."""
    owner, _, leaf = name.rpartition(".")
    holder = module.get_submodule(owner)
    delattr(holder, leaf)
    if isinstance(value, nn.Parameter):
        holder.register_parameter(leaf, value)
    elif isinstance(value, nn.Module):
        holder.add_module(leaf, value)
    else:
        holder.register_buffer(leaf, value)
