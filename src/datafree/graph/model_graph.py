"""Every model becomes one flat graph of ATen operators, with the user's own parameter names."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from datafree.graph.operators import LAYERS, kind
from datafree.graph.shapes import meta_values
from datafree.spec import InputSpec, Refusal


@dataclass(frozen=True)
class Layer:
    """One call of a convolution or linear operator.

    node: name of the call's node; path: module path in the user's model (several calls may share one weight)
    weight, bias: parameter names; kind: 'conv', 'conv_transpose' or 'linear'
    """

    node: str
    path: str
    kind: str
    weight: str
    bias: str | None
    groups: int = 1


@dataclass(frozen=True)
class BatchNorm:
    """One call of `batch_norm` in evaluation mode: y = (x - running_mean) / sqrt(running_var + eps) * weight + bias.

    weight and bias are None when the module has no affine part.
    """

    node: str
    path: str
    input: str
    weight: str | None
    bias: str | None
    running_mean: str
    running_var: str
    eps: float


@dataclass(eq=False)  # two graphs are the same only if they are one: what is known of a graph is remembered by it
class ModelGraph:
    """A network as one flat `fx` graph of ATen operators.

    module: the executable graph; its parameters and buffers keep the names of the user's model
    inputs: what it eats
    kept: rows of the teacher's parameters that a pruned graph still holds: (name, dim) -> sorted indices
    anchors: for every node whose per-channel Gaussian (mean, std) is known exactly (a BatchNorm's output, also after
        folding): node name -> (mean [C], std [C])
    notes: what the door it came through changed, in sentences

    Verbs (`fold_batchnorm`, `prune`, `quantize` ...) take a graph and return another; `set_tensor` and surgery on
    `module` are for the copy you own.
    """

    module: fx.GraphModule
    inputs: InputSpec
    kept: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    anchors: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @classmethod
    def trace(cls, model: nn.Module, inputs: InputSpec) -> ModelGraph:
        """Export `model` (in evaluation mode, dynamic batch) to a flat graph. The model itself is left as it was.

        Raises Refusal with the exporter's own reason when the model cannot be exported.
        """
        from datafree.graph.trace import export_flat  # the exporter is slow to import; a saved graph never needs it

        return cls(module=export_flat(model, inputs), inputs=inputs)

    def copy(self) -> ModelGraph:
        """A graph that shares nothing with this one."""
        # Empty containers are most of what `deepcopy` would spend its time on: a dozen empty dicts of hooks in each.
        memo: dict[int, Any] = {}
        for child in self.module.children():
            _copy_container(child, memo)
        return ModelGraph(
            module=copy.deepcopy(self.module, memo), inputs=self.inputs, kept=dict(self.kept),
            anchors=dict(self.anchors), notes=self.notes,
        )  # fmt: skip

    def to(self, device: str) -> ModelGraph:
        """A copy whose tensors lie on the device, and which makes new ones there; this graph where it does already."""
        wanted = torch.device(device)
        if all(tensor.device.type == wanted.type for tensor in self.state_dict().values()):
            return self
        made = self.copy()
        made.module.to(wanted)
        made.anchors = {name: (mean.to(wanted), std.to(wanted)) for name, (mean, std) in self.anchors.items()}
        for node in made.module.graph.nodes:
            if "device" in node.kwargs:
                node.kwargs = {**node.kwargs, "device": wanted}
        made.module.recompile()
        return made

    def __call__(self, x: Tensor) -> Any:
        """Run the graph. x: [N, C, H, W], normalised."""
        return self.module(x)

    @property
    def nodes(self) -> dict[str, fx.Node]:
        """Nodes by name, in execution order."""
        return {node.name: node for node in self.module.graph.nodes}

    @property
    def layers(self) -> list[Layer]:
        """Convolutions and linear layers in execution order; a weight that is not a stored tensor is no layer."""
        found = []
        for node in self.module.graph.nodes:
            what = kind(node)
            if what not in LAYERS:
                continue
            weight = self.source(node.args[1])
            bias = self.source(node.args[2] if len(node.args) > 2 else node.kwargs.get("bias"))
            if weight is not None:
                found.append(Layer(node.name, path_of(node), what, weight, bias, groups_of(node)))
        return found

    @property
    def batchnorms(self) -> list[BatchNorm]:
        """Inference-mode BatchNorms in execution order."""
        found = []
        for node in self.module.graph.nodes:
            if kind(node) == "batch_norm":
                x, weight, bias, mean, var = node.args[:5]
                gamma, beta, mean, var = (self.source(value) for value in (weight, bias, mean, var))
                if mean is not None and var is not None:
                    epsilon = float(node.args[7])
                    found.append(BatchNorm(node.name, path_of(node), x.name, gamma, beta, mean, var, epsilon))
        return found

    def source(self, value: Any) -> str | None:
        """Name of the stored tensor behind an argument, seen through quantizers; None when it is computed."""
        while isinstance(value, fx.Node) and kind(value) == "quantizer":
            value = value.args[0]
        return str(value.target) if isinstance(value, fx.Node) and value.op == "get_attr" else None

    def tensor(self, name: str) -> Tensor:
        """A stored parameter or buffer, detached (it shares memory)."""
        owner, leaf = self._owner(name)
        return getattr(owner, leaf).detach()

    def set_tensor(self, name: str, value: Tensor) -> None:
        """Replace a stored parameter or buffer, whatever its shape; a new name becomes a buffer."""
        owner, leaf = self._owner(name, create=True)
        value = value.detach().contiguous()
        if isinstance(getattr(owner, leaf, None), nn.Parameter):
            setattr(owner, leaf, nn.Parameter(value, requires_grad=False))
        elif leaf in owner._buffers:
            owner._buffers[leaf] = value
        else:
            owner.register_buffer(leaf, value)

    def state_dict(self) -> dict[str, Tensor]:
        return dict(self.module.state_dict())

    def observe(self, x: Tensor, nodes: Iterable[str]) -> dict[str, Tensor]:
        """Values of the named nodes for input x, gradients kept. Stops after the last one asked for."""
        wanted = set(nodes)
        unknown = wanted - set(self.nodes)
        if unknown:
            raise ValueError(f"no such nodes: {sorted(unknown)}")
        return _Observer(self.module, wanted).collect(x)

    def shapes(self, batch: int = 2) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor-valued node for the given batch size; computes shapes only."""
        values = meta_values(self.module, (batch, *self.inputs.shape))
        return {name: tuple(int(s) for s in value.shape) for name, value in values.items() if isinstance(value, Tensor)}

    def clean(self) -> None:
        """Drop dead nodes and unused tensors, and recompile, after surgery on `module.graph`."""
        self.module.graph.eliminate_dead_code()
        self.module.graph.lint()
        self.module.delete_all_unused_submodules()
        used = {str(n.target) for n in self.module.graph.nodes if n.op == "get_attr"}
        quantized = tuple(f"{n.target}." for n in self.module.graph.nodes if n.op == "call_module")
        for name in [*dict(self.module.named_parameters()), *dict(self.module.named_buffers())]:
            if name not in used and not name.startswith(quantized):
                owner, leaf = self._owner(name)
                delattr(owner, leaf)
        self.module.recompile()

    def _owner(self, name: str, create: bool = False) -> tuple[nn.Module, str]:
        *path, leaf = name.split(".")
        owner: nn.Module = self.module
        for part in path:
            if create and part not in owner._modules:
                owner.add_module(part, nn.Module())
            owner = owner._modules[part]  # type: ignore[assignment]
        return owner, leaf


class _Observer(fx.Interpreter):
    """Runs the graph and keeps the values asked for (all when `wanted` is None)."""

    def __init__(self, module: fx.GraphModule, wanted: set[str] | None) -> None:
        super().__init__(module, garbage_collect_values=wanted is not None)
        self.wanted = wanted
        self.seen: dict[str, Any] = {}
        self.extra_traceback = False

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if self.wanted is None or n.name in self.wanted:
            self.seen[n.name] = value
            if self.wanted is not None and len(self.seen) == len(self.wanted):
                raise _AllSeen
        return value

    def collect(self, x: Tensor) -> dict[str, Any]:
        with contextlib.suppress(_AllSeen):
            # The exported graph flattens its inputs by a pytree spec; values go in by placeholder.
            self.run(x, enable_io_processing=False)
        return self.seen


class _AllSeen(Exception):
    pass


def _copy_container(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """What `copy.deepcopy` makes of a module; quick for a plain container of tensors and modules, without hooks."""
    if id(module) in memo:
        found: nn.Module = memo[id(module)]
        return found
    if type(module) is not nn.Module or module.__dict__.keys() != _EMPTY.keys() or _hooked(module):
        return copy.deepcopy(module, memo)
    made = memo[id(module)] = nn.Module()
    made.training = module.training
    made._parameters = {name: copy.deepcopy(tensor, memo) for name, tensor in module._parameters.items()}
    made._buffers = {name: copy.deepcopy(tensor, memo) for name, tensor in module._buffers.items()}
    made._non_persistent_buffers_set = set(module._non_persistent_buffers_set)
    for name, child in module._modules.items():
        made._modules[name] = None if child is None else _copy_container(child, memo)
    return made


_EMPTY = dict(nn.Module().__dict__)
"""What a container holds that nothing was put into."""


def _hooked(module: nn.Module) -> bool:
    return any(module.__dict__[name] for name in _EMPTY if name.endswith("hooks"))


def path_of(node: fx.Node) -> str:
    """Module path of the user's model in which the node was called ('' at the top)."""
    stack = node.meta.get("nn_module_stack")
    return list(stack.values())[-1][0] if stack else ""


def groups_of(node: fx.Node) -> int:
    """`groups` of a convolution node; 1 for a linear."""
    if kind(node) == "linear":
        return 1
    # Convolutions and their transposes keep groups at the same place: x, weight, bias, stride, padding,
    # dilation|output_padding.
    value = node.args[6] if len(node.args) > 6 else node.kwargs.get("groups", 1)
    if not isinstance(value, int):
        raise Refusal(
            f"{node.name} cannot be read",
            why="its groups are computed at run time",
            remedy="export with constant groups",
        )
    return value
