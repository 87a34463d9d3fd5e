"""Activation ranges from generated images: what a quantizer sees between its least and its greatest value.

Legend: l_b, h_b least and greatest value of batch b.      range = [mean over b of l_b, mean over b of h_b]

Means over batches, as a moving average would give, because one batch's outlier would set the step of all.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from datafree.functional.affine import qparams_from_range
from datafree.graph.whole_student import WholeStudent
from datafree.nn import LearnedStep

_BATCH = 64


@torch.no_grad()
def calibrate(learner: WholeStudent, images: Tensor) -> None:
    """Give every activation quantizer the range of its values on the images, in place; the network's input keeps its
    own. Values are those of the quantized network.

    images: [N, C, H, W], on the module's device
    """
    graph = learner.student
    names = {
        str(node.target): node.all_input_nodes[0].op
        for node in reversed(graph.module.graph.nodes)
        if str(node.target) in learner.learned and node.op == "call_module" and graph.source(node) is None
    }
    found: dict[str, list[Tensor]] = {name: [] for name, source in names.items() if source != "placeholder"}

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def see(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            found[name].append(torch.stack(arguments[0].float().aminmax()))

        return see

    hooks = [learner.learned[name].register_forward_pre_hook(watch(name)) for name in found]
    learner.module.eval()
    for part in images.split(_BATCH):
        learner.module(part.contiguous(memory_format=torch.channels_last))
    for hook in hooks:
        hook.remove()
    for name, seen in found.items():
        _set(learner.learned[name], *torch.stack(seen).mean(0))


def _set(step: LearnedStep, low: Tensor, high: Tensor) -> None:
    grid = qparams_from_range(low, high, step.scheme)
    step.scale.copy_(grid.scale)
    step.zero_point.copy_(grid.zero_point)
    step.log_factor.zero_()
