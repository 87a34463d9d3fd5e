"""A whole student made trainable: latent weights, learned steps, biases, and back to a graph on its grids.

BatchNorms that are still in place learn their scales and shifts; asked for, they also take the statistics of batches
while the module trains (`nn.batch_statistics`), and what they then remember is the student's.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from datafree.graph import ModelGraph
from datafree.graph.operators import LAYERS, kind
from datafree.graph.strides import stride_before_pointwise
from datafree.graph.watch import watched
from datafree.nn import LearnedStep, Quantizer
from datafree.nn.batch_statistics import BatchStatistics

_NORMS = {"batch_norm": 1, "layer_norm": 2, "group_norm": 2}
"""Where the affine parameters of a normalisation begin among its arguments."""


class WholeStudent:
    """A student of which everything may learn.

    module: returns (answer before a softmax, [asked[node](value) ...]); the student it was made from is never written
    weights: latent tensors with their size, the root mean square that one learning rate is a share of; steps: the
        logarithms of all quantizers' scales
    """

    def __init__(
        self,
        student: ModelGraph,
        asked: Mapping[str, Callable[[Tensor], Any]],
        *,
        batch_statistics: bool = False,
        learned: Collection[str] = (),
    ) -> None:
        """batch_statistics: BatchNorms normalise by the batch while `module` is in training mode

        learned: stored tensors that learn beside weights, biases and steps, whatever operator reads them
        """
        self.student = student
        self.module: fx.GraphModule = watched(student, asked, logits=True)
        stride_before_pointwise(self.module)
        self.learned: dict[str, LearnedStep] = {}
        for name, module in list(self.module.named_modules()):
            if isinstance(module, Quantizer):
                self.learned[name] = LearnedStep(module)
                self._put(name, self.learned[name])
        self.tensors: dict[str, nn.Parameter] = {}
        self.sizes: dict[str, float] = {}
        for node in self.module.graph.nodes:
            if kind(node) in LAYERS:
                self._free(node, 1, 2)
            elif kind(node) in _NORMS:
                self._free(node, _NORMS[kind(node)], _NORMS[kind(node)] + 1)
        for name in learned:
            if name not in self.tensors:
                self._learn(name, max(float(student.tensor(name).float().square().mean().sqrt()), 1e-8))
        self.remembered: tuple[str, ...] = ()
        if batch_statistics:
            self._normalise_by_batches()
        for parameter in self.module.parameters():
            parameter.requires_grad_(False)
        for parameter in (*self.tensors.values(), *self.steps):
            parameter.requires_grad_(True)

    @property
    def steps(self) -> list[nn.Parameter]:
        """Logarithms of the factors on all scales."""
        return [learned.log_factor for learned in self.learned.values()]

    def settled(self) -> ModelGraph:
        """The student with what was learned: weights on their grids, plain quantizers."""
        graph = self.student.copy()
        for name, learned in self.learned.items():
            grid = learned.settled()
            for leaf, value in (("scale", grid.scale), ("zero_point", grid.zero_point)):
                graph.set_tensor(f"{name}.{leaf}", value.to(graph.tensor(f"{name}.{leaf}").device, copy=True))
        for name, parameter in self.tensors.items():
            graph.set_tensor(name, parameter.detach().to(graph.tensor(name).device, copy=True))
        held = self.module.state_dict()
        for name in self.remembered:
            graph.set_tensor(name, held[name].to(graph.tensor(name).device, copy=True))
        for node in graph.module.graph.nodes:
            if kind(node) == "quantizer" and (source := graph.source(node)) is not None:
                quantizer = graph.module.get_submodule(str(node.target))
                with torch.no_grad():
                    graph.set_tensor(source, quantizer(graph.tensor(source)))
        graph.module.recompile()
        return graph

    def _free(self, node: fx.Node, weight: int, bias: int) -> None:
        """Make the tensors at these places of a node's arguments parameters. A bias of zeros has its weight's size."""
        size = 0.0
        for place in (weight, bias):
            value = node.args[place] if len(node.args) > place else None
            name = self.student.source(value)
            if name is None or name in self.tensors:
                continue
            tensor = self.student.tensor(name)
            size = max(float(tensor.float().square().mean().sqrt()), 0.1 * size, 1e-8)
            self._learn(name, size)

    def _learn(self, name: str, size: float) -> None:
        self.tensors[name], self.sizes[name] = nn.Parameter(self.student.tensor(name).clone()), size
        self._put(name, self.tensors[name])

    def _normalise_by_batches(self) -> None:
        """Put a BatchStatistics in the place of every BatchNorm call."""
        remembered: dict[str, None] = {}  # a module that is called twice remembers once
        names = {norm.node: norm for norm in self.student.batchnorms}
        for place, node in enumerate(list(self.module.graph.nodes)):
            if node.name not in names:
                continue
            norm, (momentum, eps) = names[node.name], node.args[6:8]
            self.module.add_submodule(f"batch_statistics_{place}", BatchStatistics(float(eps), float(momentum)))
            with self.module.graph.inserting_before(node):
                made = self.module.graph.call_module(f"batch_statistics_{place}", tuple(node.args[:5]))
            node.replace_all_uses_with(made)
            self.module.graph.erase_node(node)
            remembered |= {norm.running_mean: None, norm.running_var: None}
        self.remembered = tuple(remembered)
        self.module.recompile()

    def _put(self, name: str, value: nn.Module | nn.Parameter) -> None:
        owner, _, leaf = name.rpartition(".")
        holder = self.module.get_submodule(owner)
        delattr(holder, leaf)
        if isinstance(value, nn.Module):
            holder.add_module(leaf, value)
        else:
            holder.register_parameter(leaf, value)
