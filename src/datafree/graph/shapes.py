"""What every node would hold, without computing a number: the graph runs on tensors that have shapes only."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_map


def meta_values(module: fx.GraphModule, shape: tuple[int, ...]) -> dict[str, Any]:
    """Value of every node for an input of this shape [N, C, H, W]: tensors on the meta device, numbers as they are."""
    runner = _MetaRunner(module)
    stored = [*module.parameters(), *module.buffers()]
    dtype = next((tensor.dtype for tensor in stored if tensor.is_floating_point()), torch.float32)
    with torch.no_grad():
        # The exported graph flattens its inputs by a pytree spec; values go in by placeholder.
        runner.run(torch.empty(shape, dtype=dtype, device="meta"), enable_io_processing=False)
    return runner.values


_SHAPE_KEEPING = {torch.ops.aten.batch_norm.default, torch.ops.aten.relu.default}
"""They keep their input's shape and type; their meta kernels take milliseconds to say so."""


class _MetaRunner(fx.Interpreter):
    """Runs on the meta device, about six times as fast as with fake tensors; the stored tensors are not copied."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.extra_traceback = False
        self.values: dict[str, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        self.values[n.name] = value
        return value

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        value = super().get_attr(target, args, kwargs)
        return torch.empty_like(value, device="meta") if isinstance(value, Tensor) else value

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if target in _SHAPE_KEEPING:
            return torch.empty_like(args[0])
        args, kwargs = tree_map(_on_meta, (args, kwargs))  # `zeros(device=cpu)`, `to(cpu)`
        return super().call_function(target, args, kwargs)

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        return args[0]  # a quantizer keeps its input's shape


def _on_meta(value: Any) -> Any:
    return torch.device("meta") if isinstance(value, torch.device) else value
