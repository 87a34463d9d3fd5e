"""Teacher and student as one chain: which parts are trained, in which order, and what may move in each."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, fx

from datafree.graph import ModelGraph, cost
from datafree.graph.blocks import Block, blocks, cut_out
from datafree.graph.counterparts import Counterparts
from datafree.graph.operators import kind
from datafree.graph.shapes import meta_values
from datafree.spec import Refusal

_ACTIVATIONS = ("relu", "relu6", "leaky_relu", "silu", "hardswish", "gelu")


@dataclass(frozen=True)
class Part:
    """What is trained together: a block, or a layer of one with its activation.

    source, output: nodes of the student; answer: the teacher's node of the output
    work: multiply-accumulates for one image, what time is shared out by
    """

    name: str
    source: str
    output: str
    answer: str
    work: float


class Chain:
    """The blocks of the teacher in execution order, and the parts of each in the student.

    teacher: BatchNorms folded
    left: layers that cannot be trained alone, because their values are no rows of images: positions before images, as
        in attention that is written sequence first
    """

    def __init__(self, student: ModelGraph, teacher: ModelGraph, *, layerwise: bool) -> None:
        self.student, self.teacher = student, teacher
        self.counterparts = Counterparts(student, teacher)
        self.blocks = blocks(teacher)
        self._macs = {layer.node: layer.macs for layer in cost(student).layers}
        self._readers = _readers(student)
        self.left: list[str] = []
        rows = [_in_rows(graph) for graph in (student, teacher)] if layerwise else []
        self.parts = [self._layers(block, *rows) if layerwise else [self._whole(block)] for block in self.blocks]

    def __len__(self) -> int:
        return len(self.blocks)

    def own(self, name: str) -> str:
        """The student's node for a teacher's. Raises Refusal when it has none."""
        found = self.counterparts.node(name)
        if found is None:
            raise Refusal(
                "student and teacher cannot be compared",
                why=f"the student has no value {name}",
                remedy="reconstruct a student that was made from this teacher",
            )
        return found

    def theirs(self, block: Block) -> fx.GraphModule:
        """The teacher's block, runnable."""
        return cut_out(self.teacher, block.input, block.output)

    def mine(self, block: Block) -> fx.GraphModule:
        """The student's block as it is now, runnable."""
        return cut_out(self.student, self.own(block.input), self.own(block.output))

    def share(self, block: int, part: int) -> float:
        """Work of one part, as a share of all work from it on."""
        left = sum(p.work for p in self.parts[block][part:])
        left += sum(p.work for parts in self.parts[block + 1 :] for p in parts)
        return self.parts[block][part].work / left

    def free(self, module: fx.GraphModule, settled: set[str]) -> set[str]:
        """Stored tensors and quantizers of a part that may be trained there.

        A tensor that other parts read too stays as it is: what serves one would harm the other. A quantizer that stands
        on several edges (before and behind a max-pool) is trained where it is met first.
        """
        inside = {node.name for node in module.graph.nodes}
        found = set()
        for node in module.graph.nodes:
            name = str(node.target)
            if (node.op == "call_module" and name not in settled) or (
                node.op == "get_attr" and self._readers[name] <= inside
            ):
                found.add(name)
        return found

    def _whole(self, block: Block) -> Part:
        return self._part(block.name, self.own(block.input), block.output)

    def _layers(self, block: Block, mine_in_rows: set[str], theirs_in_rows: set[str]) -> list[Part]:
        theirs, mine = self.teacher.nodes, self.student.nodes
        inside = {node.name for node in cut_out(self.teacher, block.input, block.output).graph.nodes}
        found = []
        for layer in self.teacher.layers:
            if layer.node in inside and layer.node in mine:
                users = list(theirs[layer.node].users)
                answer = users[0] if len(users) == 1 and kind(users[0]) in _ACTIVATIONS else theirs[layer.node]
                source = mine[layer.node].args[0]
                while kind(source) == "quantizer":
                    source = source.args[0]
                if source.name in mine_in_rows and answer.name in theirs_in_rows:
                    found.append(self._part(layer.path or layer.node, source.name, answer.name))
                else:
                    self.left.append(layer.path or layer.node)
        return found

    def _part(self, name: str, source: str, answer: str) -> Part:
        output = self.own(answer)
        module = cut_out(self.student, source, output)
        return Part(
            name, source, output, answer, 1.0 + sum(self._macs.get(node.name, 0) for node in module.graph.nodes)
        )


def _in_rows(graph: ModelGraph) -> set[str]:
    """Values with as many rows for every image, so that images can be run in any number at a time."""
    twos, threes = (meta_values(graph.module, (batch, *graph.inputs.shape)) for batch in (2, 3))
    return {
        name for name, two in twos.items()
        if isinstance(two, Tensor) and two.ndim and 3 * two.shape[0] == 2 * threes[name].shape[0]
        and two.shape[1:] == threes[name].shape[1:]
    }  # fmt: skip


def _readers(graph: ModelGraph) -> dict[str, set[str]]:
    """Stored tensor -> names of the nodes that read it, directly or behind its quantizer."""
    found: dict[str, set[str]] = {}
    for node in graph.module.graph.nodes:
        if node.op == "get_attr":
            users = [*node.users]
            users += [further for user in users if kind(user) == "quantizer" for further in user.users]
            found.setdefault(str(node.target), set()).update(user.name for user in users)
    return found
