"""Channel pruning's second half: every layer that lost inputs is solved anew, on what reaches it on images.

For a layer with inputs a (whole patches, in the pruned network as it is by then) and the teacher's output y there:

    min over W', b' of  E |y - W' a - b'|^2 + ridge |W' - W|^2,    W what the layer has,
    W' = W + C_ra (C_aa + ridge)^-1,  r = y - W a - b,             b' restores the mean.

Layers are solved in execution order, so that each makes good what the ones before it left (He et al. 2017 solve the
same problem, asymmetric in student and teacher, on real images). The ridge pulls towards the present weight and not
towards zero: what too few images cannot tell stays as the closed form had it. A layer whose error does not fall on
images held back stays as it was.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, fx

from datafree.functional.least_squares import ridge_solve
from datafree.graph import Layer, ModelGraph, fold_batchnorm, quantizers
from datafree.graph.arguments import bind
from datafree.graph.counterparts import Counterparts
from datafree.graph.fold import set_bias
from datafree.graph.operators import kind
from datafree.run import Run, held_back
from datafree.spec import Paper, Refusal, method

_CHUNK = 32
_WIDEST = 8192
"""Inputs times taps of the largest system that is solved: its matrix takes 512 MB."""


@method
class ChannelPruning:
    """Least squares from images for every layer that lost inputs."""

    images: int = Field(default=256, ge=16)
    """Images to look at."""
    samples: float = Field(default=4.0, gt=0)
    """Positions looked at, for each unknown of an output channel; at least 4,096."""
    ridge: float = Field(default=1e-3, ge=0)
    """Pull towards the present weights, as a share of the inputs' mean variance."""

    paper: ClassVar[Paper] = Paper(
        key="he2017",
        title="Channel Pruning for Accelerating Very Deep Neural Networks",
        authors="He, Zhang, Sun",
        year=2017,
        venue="ICCV",
        arxiv="1707.06168",
    )

    def reconstruct(self, student: ModelGraph, teacher: ModelGraph, images: Tensor, run: Run) -> ModelGraph:
        """student: pruned, not quantized -> a copy, BatchNorms folded, whose thinned layers are solved anew.

        Grouped and transposed layers, and layers of more unknowns than memory has room for, stay as they are.

        Raises Refusal for a quantized student: its weights would leave their grids.
        """
        if quantizers(student):
            raise Refusal(
                "a quantized student cannot be solved anew",
                why="its weights would leave their grids",
                remedy="repair before quantizing, or use genie_m or qat",
            )
        student, teacher = fold_batchnorm(student), fold_batchnorm(teacher)
        images = images[: self.images]
        counterparts = Counterparts(student, teacher)
        layers = [layer for layer in student.layers if layer.kind != "conv_transpose" and layer.groups == 1]
        thinned = [layer for layer in layers if (layer.weight, 1) in student.kept]
        with torch.no_grad(), run.step("solve layers anew", method="channel_pruning"):
            for place, layer in enumerate(thinned):
                if student.tensor(layer.weight)[0].numel() <= _WIDEST:
                    self._solve(student, teacher, counterparts, layer, images, run)
                run.advance((place + 1) / len(thinned))
        student.module.recompile()
        return student

    def _solve(
        self, student: ModelGraph, teacher: ModelGraph, pair: Counterparts, layer: Layer, images: Tensor, run: Run
    ) -> None:
        weight = student.tensor(layer.weight).flatten(1)  # [O, I taps]
        wanted = max(4096, int(self.samples * weight.shape[1]))
        node = student.nodes[layer.node]
        drawn = run.generator(f"channel_pruning/{layer.node}")
        inputs, targets = _pairs(student, teacher, pair, node, images, wanted, drawn)
        bias = student.tensor(layer.bias) if layer.bias else torch.zeros(len(weight))
        missing = targets - inputs @ weight.T - bias
        judges = torch.zeros(len(inputs), dtype=torch.bool)
        judges[held_back(torch.arange(len(inputs)))] = True
        x, r = inputs[~judges].double(), missing[~judges].double()
        mean_x, mean_r = x.mean(0), r.mean(0)
        x, r = x - mean_x, r - mean_r
        change = ridge_solve(x.T @ x / len(x), x.T @ r / len(x), self.ridge).T.to(weight)  # [O, I taps]
        shift = (mean_r - change.double() @ mean_x).to(weight)
        before = float(missing[judges].square().sum())
        after = float((missing[judges] - inputs[judges] @ change.T - shift).square().sum())
        kept = after < before
        run.log("solved", layer=layer.path, samples=len(x), error_before=before, error_after=after, kept=kept)
        if kept:
            student.set_tensor(layer.weight, (weight + change).reshape(student.tensor(layer.weight).shape))
            set_bias(student, node, bias + shift)
            student.module.recompile()


def _pairs(
    student: ModelGraph,
    teacher: ModelGraph,
    pair: Counterparts,
    node: fx.Node,
    images: Tensor,
    wanted: int,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """What a layer reads in the student and should answer, at random positions: [M, I taps], [M, O], image by image."""
    source, each = node.all_input_nodes[0].name, -(-wanted // len(images))
    kernel = tuple(student.tensor(str(student.source(node.args[1]))).shape[2:])
    inputs, targets = [], []
    for x in images.split(_CHUNK):
        reads = _patches(student.observe(x, [source])[source], node, kernel)  # [N, L, I taps]
        answer = pair.narrowed(teacher.observe(x, [node.name])[node.name], node.name)
        rows_last = answer.flatten(2).transpose(1, 2) if kind(node) == "conv" else answer
        answer = rows_last.reshape(len(reads), -1, rows_last.shape[-1])  # [N, L, O]
        places = torch.randint(reads.shape[1], (len(reads), min(each, reads.shape[1])), generator=generator)
        rows = torch.arange(len(reads))[:, None]
        inputs.append(reads[rows, places].flatten(0, 1))
        targets.append(answer[rows, places].flatten(0, 1))
    return torch.cat(inputs), torch.cat(targets)


def _patches(x: Tensor, node: fx.Node, kernel: tuple[int, ...]) -> Tensor:
    """What a layer multiplies with its weight, one row for each output position. -> [N, L, I taps]"""
    if kind(node) == "linear":
        return x.reshape(len(x), -1, x.shape[-1])
    asked = bind(node)
    stride, dilation = (_sides(asked[name], len(kernel)) for name in ("stride", "dilation"))
    reach = [d * (k - 1) for d, k in zip(dilation, kernel)]
    if asked["padding"] == "same":  # what cannot be halved goes to the end
        before, after = [r // 2 for r in reach], [r - r // 2 for r in reach]
    else:
        before = after = [0] * len(kernel) if asked["padding"] == "valid" else _sides(asked["padding"], len(kernel))
    x = F.pad(x, [side for pair in zip(reversed(before), reversed(after)) for side in pair])
    if len(kernel) == 1:
        x, kernel, dilation, stride = x[..., None, :], (1, *kernel), [1, *dilation], [1, *stride]
    return F.unfold(x, kernel, tuple(dilation), 0, tuple(stride)).transpose(1, 2)


def _sides(value: object, count: int) -> list[int]:
    """One number for each side of a map."""
    values = [int(side) for side in value] if isinstance(value, (list, tuple)) else [int(str(value))]
    return values * count if len(values) == 1 else values
