"""From an `nn.Module` to a flat graph: `torch.export`, then everything that speaks of the user's machine is dropped."""

from __future__ import annotations

import copy
import warnings

import torch
from torch import fx, nn

from datafree.graph.computed import store_computed_weights
from datafree.graph.regions import write_out_regions
from datafree.spec import InputSpec, Refusal

_KEPT_META = ("nn_module_stack", "val")
_ATEN = torch.ops.aten
_OF_ANY_LAYOUT = {
    _ATEN.view.default: _ATEN.reshape.default,
    _ATEN._unsafe_view.default: _ATEN.reshape.default,
    _ATEN.view_as.default: _ATEN.reshape_as.default,
}
"""`x.view(n, -1)` refuses values that lie channels-last, which is how networks run fast; these take them."""


def export_flat(model: nn.Module, inputs: InputSpec) -> fx.GraphModule:
    """Flat, inference-mode graph with a dynamic batch.

    Raises Refusal when the model cannot be exported, takes several inputs, holds NaN or infinite weights, or none at
    all (on the meta device).
    """
    refuse_broken_weights(model)
    model = copy.deepcopy(model).eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return flatten(export_program(model, inputs))


def export_program(model: nn.Module, inputs: InputSpec) -> torch.export.ExportedProgram:
    """`torch.export` with a dynamic batch: non-strict first, strict when that fails."""
    example = (torch.zeros(2, *inputs.shape),)
    batch = ({0: torch.export.Dim("batch", min=1)},)
    first: Exception | None = None
    for strict in (False, True):
        try:
            with warnings.catch_warnings(), torch.no_grad():
                warnings.simplefilter("ignore")
                return torch.export.export(model, example, dynamic_shapes=batch, strict=strict)
        except Exception as error:  # the exporter raises many kinds; its reason is passed on
            first = first or error
    reason = " ".join(str(first).split("\n\n")[0].split())[:400]
    raise Refusal(
        f"{type(model).__name__} cannot be traced with one input of shape [N, {', '.join(map(str, inputs.shape))}]",
        why=f"torch.export says: {type(first).__name__}: {reason}",
        remedy="check --input, or remove control flow that depends on values from the model's forward",
    ) from first


def flatten(program: torch.export.ExportedProgram) -> fx.GraphModule:
    """The program's module without guards, and with no stack traces or file names in its nodes."""
    placeholders = program.graph_signature.user_inputs
    if len(placeholders) != 1:
        raise Refusal(
            f"a network with {len(placeholders)} inputs cannot be served",
            why="the graph must take exactly one tensor",
            remedy="wrap the model in a module that builds the other inputs itself",
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = program.module(check_guards=False)  # guards are compiled from source text that a file may bring
    write_out_regions(module)
    for node in list(module.graph.nodes):
        if node.target is torch.ops.aten._assert_tensor_metadata.default:  # holds wherever the graph was exported
            module.graph.erase_node(node)
            continue
        node.meta = {key: value for key, value in node.meta.items() if key in _KEPT_META}
        node.target = _OF_ANY_LAYOUT.get(node.target, node.target)
    assert isinstance(module, fx.GraphModule)
    module._forward_pre_hooks.clear()  # they refuse other batches than the exported one; shapes are ours to keep
    module._forward_pre_hooks_with_kwargs.clear()
    module.graph.eliminate_dead_code()
    store_computed_weights(module)
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    return module


def refuse_broken_weights(model: nn.Module) -> None:
    """NaN or infinite weights cannot be compressed: every closed form would spread them. Nor can variances below 0."""
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_meta:
            raise Refusal(
                f"{name} holds no values",
                why="it lies on the meta device, where tensors have shapes and no numbers",
                remedy="give --checkpoint, or load the weights before the model is opened",
            )
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise Refusal(
                f"{name} holds values that are not finite",
                why=f"{int((~torch.isfinite(tensor)).sum())} of its {tensor.numel()} numbers are NaN or infinite",
                remedy="use a checkpoint from before training diverged",
            )
        if name.endswith("running_var") and bool((tensor < 0).any()):
            raise Refusal(
                f"{name} holds variances below zero",
                why=f"the least is {float(tensor.min()):.1e}, and its square root is taken",
                remedy="use a checkpoint whose BatchNorm statistics are whole",
            )
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and not bool(parameter.float().square().sum().isfinite()):
            raise Refusal(
                f"{name} holds values of up to {float(parameter.detach().abs().max()):.1e}",
                why="their squares are more than float32 can hold, and every closed form adds up squares",
                remedy="use a checkpoint from before training diverged",
            )
