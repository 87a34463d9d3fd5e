"""A teacher made ready for thousands of forwards: folded, in the machine's fastest numbers, telling its statistics.

Folding takes out operators that cost as much time as the convolutions they follow; channels-last is the layout in
which convolutions and sums over positions are fastest; bfloat16 halves the bytes and doubles the multiplications of
processors that have instructions for it. `docs/synthesis.md` has what each brings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, fx
from torch.fx.node import map_aggregate

from datafree.functional.moments import image_moments
from datafree.functional.scores import scores
from datafree.graph import ModelGraph, fold_batchnorm
from datafree.graph.arguments import bind, op_name
from datafree.graph.operators import kind
from datafree.graph.statistics import Statistics, deviations, known_statistics
from datafree.graph.watch import lay_channels_last, make_on, watched
from datafree.nn.swing import Swing
from datafree.spec import InputSpec, Refusal

Precision = Literal["auto", "float32", "bfloat16"]


@dataclass(frozen=True)
class PreparedTeacher:
    """A network whose weights get no gradient, with what is known of its activations.

    module: x -> (output, [answer, ...]), moments of `known` first, then what else was asked, in order
    """

    module: Callable[[Tensor], Any]
    known: tuple[Statistics, ...]
    dtype: torch.dtype

    def __call__(self, images: Tensor) -> tuple[Any, list[Tensor], list[Any]]:
        """images: [N, C, H, W], float32 -> scores [N, ..., K >= 2] (float32; an output that is no tensor as it is),
        moments [2, N, C] of every known value, other answers.
        """
        x = images.to(self.dtype).contiguous(memory_format=torch.channels_last)
        output, answers = self.module(x)
        if isinstance(output, Tensor):
            output = scores(output.float())
        return output, answers[: len(self.known)], answers[len(self.known) :]

    def deviation(self, moments: Sequence[Tensor]) -> Tensor:
        """The statistics loss of a batch as a whole, [] (`statistics.deviations`, mean over layers)."""
        return deviations([value.mean(1) for value in moments], self.known).mean()


def prepare(
    teacher: ModelGraph,
    *,
    device: str,
    precision: Precision = "auto",
    statistics: bool = True,
    asked: Mapping[str, Callable[[Tensor], Any]] | None = None,
    swing: torch.Generator | None = None,
) -> PreparedTeacher:
    """A copy of the teacher for this device. A softmax or sigmoid at its end is left out: targets are compared with
    scores.

    statistics: whether to tell moments of what its BatchNorms remember; a teacher without any is then refused
    asked: further questions, node name -> function of its value (`graph.watch`); nodes of the folded graph
    swing: strided convolutions read shifted inputs (`nn.swing`), shifts drawn from this generator
    """
    folded = fold_batchnorm(teacher)
    known = known_statistics(folded) if statistics else []
    questions: list[tuple[str, Callable[[Tensor], Any]]] = [(target.node, image_moments) for target in known]
    module = watched(folded, [*questions, *(asked or {}).items()], logits=True)
    if swing is not None:
        _swing(module, swing)
    make_on(module, device)
    module.requires_grad_(False)
    dtype = number_type(precision, device)
    exact = {
        name for norm in folded.batchnorms for name in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    }
    _cast(module, dtype, device, exact)
    if dtype != torch.float32:
        _made_in(module, dtype)
    moved = tuple(Statistics(s.node, s.mean.to(device), s.std.to(device), s.eps) for s in known)
    return PreparedTeacher(module, moved, dtype)


def _swing(module: fx.GraphModule, generator: torch.Generator) -> None:
    """Put a Swing before every two-dimensional convolution with a stride."""
    module.add_submodule("swing", Swing(generator))
    for node in list(module.graph.nodes):
        if kind(node) != "conv" or "conv2d" not in op_name(node):
            continue
        stride = bind(node)["stride"]
        if max([stride] if isinstance(stride, int) else stride) > 1:
            with module.graph.inserting_before(node):
                shifted = module.graph.call_module("swing", (node.args[0],))
            node.update_arg(0, shifted)
    module.recompile()


def number_type(precision: Precision, device: str) -> torch.dtype:
    """What convolutions compute in. auto: bfloat16 where the processor multiplies in it, float32 elsewhere: without the
    instructions a step in bfloat16 takes seven times as long (ResNet-20, AVX2).
    """
    if precision != "auto":
        dtype: torch.dtype = getattr(torch, precision)
        return dtype
    if device.startswith("cuda"):
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    asks = [getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")]
    has = device == "cpu" and any(ask() for ask in asks if ask is not None)
    return torch.bfloat16 if has else torch.float32


def _cast(module: fx.GraphModule, dtype: torch.dtype, device: str, exact: set[str | None]) -> None:
    """Move weights to the device and to `dtype`, those of BatchNorms left in float32: they subtract what may be many
    standard deviations.
    """
    kept = {name: tensor.float() for name, tensor in module.state_dict().items() if name in exact}
    module.to(device=device, dtype=dtype)
    for name, tensor in kept.items():
        owner, _, leaf = name.rpartition(".")
        holder = module.get_submodule(owner)
        table = holder._parameters if leaf in holder._parameters else holder._buffers
        value = tensor.to(device)
        table[leaf] = torch.nn.Parameter(value, requires_grad=False) if table is holder._parameters else value
    lay_channels_last(module)


def _made_in(module: fx.GraphModule, dtype: torch.dtype) -> None:
    """Let no float32 come up on the way, in place: a layer of other numbers refuses it. What the network makes out of
    nothing (ones, positions) is cast where values read it, and what it would cast to float32 becomes `dtype`.
    """
    made = set[fx.Node]()
    for node in list(module.graph.nodes):
        if node.op == "call_function" and (op_name(node) == "sym_size" or made.issuperset(node.all_input_nodes)):
            made.add(node)
            continue
        node.args, node.kwargs = (map_aggregate(part, partial(_lowered, dtype)) for part in (node.args, node.kwargs))
        for one in [one for one in node.all_input_nodes if one in made and op_name(one) != "sym_size"]:
            with module.graph.inserting_before(node):
                node.replace_input_with(one, module.graph.call_function(_floats_in, (one, dtype)))
    module.recompile()


def _lowered(dtype: torch.dtype, argument: Any) -> Any:
    return dtype if argument is torch.float32 else argument


def _floats_in(value: Any, dtype: torch.dtype) -> Any:
    """Positions in integers stay what they are."""
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def check_teachers(teachers: Sequence[ModelGraph], inputs: InputSpec, *, classes: bool = False) -> None:
    """Raises Refusal unless all teachers eat what `inputs` says; classes: and tell the same number of classes."""
    if not teachers:
        raise ValueError("no teacher was given")
    for teacher in teachers:
        if teacher.inputs.shape != inputs.shape:
            raise Refusal(
                f"a teacher that reads {_sizes(teacher.inputs)} cannot share images of {_sizes(inputs)}",
                why="all teachers of one batch see the same images",
                remedy="synthesize with teachers of one input shape",
            )
    if classes:
        told = sorted({classes_of(teacher) for teacher in teachers})
        if len(told) > 1:
            raise Refusal(
                f"teachers of {' and '.join(map(str, told))} classes cannot share class targets",
                why="a label must mean the same to all of them",
                remedy="use teachers of one task, or a setting that draws no labels",
            )


def classes_of(teacher: ModelGraph) -> int:
    """Classes of a classifier: the width of its output, two where that is a single logit.

    Raises Refusal when the network's output is no single vector.
    """
    output = next(node for node in reversed(teacher.module.graph.nodes) if node.op == "output")
    shapes = teacher.shapes()
    told = [shapes.get(source.name, ()) for source in output.all_input_nodes]
    if len(told) != 1 or len(told[0]) != 2:
        raise Refusal(
            "class targets need a classifier",
            why=f"this network puts out {' and '.join(map(str, told)) or 'nothing'}, not one [N, classes]",
            remedy="use a synthesizer that reads statistics only, such as `moment_matching`",
        )
    return max(2, told[0][1])


def _sizes(inputs: InputSpec) -> str:
    return " x ".join(map(str, inputs.shape))
