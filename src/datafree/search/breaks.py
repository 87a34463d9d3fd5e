"""What 8 bits break: activations that no range holds are left in float, until the answers are the original's again.

At 8 bits a network should answer as before. Where it does not, it is mostly a few values that do it: one channel a
hundred times as large as its neighbours takes the whole range, and the others fall on a handful of codes. Weights have
a scale for each channel, activations one for all, so such a value is left unquantized: the operators that make and read
it compute in float, on weights that stay 8-bit integers in the file.

Answers are compared with those of the same student whose activations are all in float, on the job's images or on
pictures of nothing: what pruning and few bits of weights cost is not looked at here. Each value is left out alone; then
they are left out together, the most telling first, as few as bring the error under `BROKEN`.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from torch import fx

from datafree.graph import ModelGraph
from datafree.graph.biases import quantizer_of
from datafree.run import Run
from datafree.search.answers import Answers
from datafree.spec import Target

BROKEN = 0.05
"""Squared error of the answers, as a share of their energy: about where the forecast's law expects a point of top-1 to
be lost. Of seven sound real networks at 8 bits the error was 0.0002 to 0.0067, so none comes near it.
"""
SHARE = 0.25
"""Of all values, how many may be left in float: beyond that it is no longer an 8-bit network."""
_WHOLE = 8
"""Bits at which a loss is a fault; whoever asks for fewer has asked for some."""


def values_of(student: ModelGraph) -> dict[str, list[fx.Node]]:
    """Quantizer -> its calls, of all activations that have 8 bits, in execution order. Calls that share a quantizer
    pass one value on (through a pool, a flattening), and are left out together.
    """
    found: dict[str, list[fx.Node]] = {}
    for node in student.nodes.values():
        quantizer = quantizer_of(student, node)
        if quantizer is not None and quantizer.scheme.bits >= _WHOLE and student.source(node) is None:
            found.setdefault(str(node.target), []).append(node)
    return found


def without(student: ModelGraph, names: set[str]) -> ModelGraph:
    """A copy without the quantizers of these names: what they rounded passes as it is."""
    made = student.copy()
    for name, calls in values_of(made).items():
        for node in calls if name in names else []:
            before = node.args[0]
            assert isinstance(before, fx.Node)
            node.replace_all_uses_with(before)
    made.clean()
    return made


def leave_what_breaks(student: ModelGraph, target: Target, run: Run) -> ModelGraph:
    """The student, with those activations in float that break its answers; the same student where none do.

    The ledger gets `broken` (error before and after, of how many values) and one `left_float` for each value that is
    left.
    """
    found = values_of(student)
    if not found:
        return student
    answers = Answers.asked(without(student, set(found)), run)
    before = answers.error(student)
    if not before > BROKEN:
        return student
    with run.step("find what 8 bits break"):
        alone: dict[str, float] = {}
        for place, name in enumerate(found):
            alone[name] = answers.error(without(student, {name}))
            run.advance((place + 1) / len(found))
        order = [name for name in sorted(alone, key=alone.__getitem__) if alone[name] < before]
        most = max(1, int(SHARE * len(found)))
        made, after, left = student, before, 0
        for count in range(1, min(most, len(order)) + 1):
            tried = without(student, set(order[:count]))
            error = answers.error(tried)
            if error < after:
                made, after, left = tried, error, count
            if after <= BROKEN:
                break
    kept = after <= before / 2
    run.log("broken", error_before=before, error_after=after if kept else before, values=len(found),
            left=left if kept else 0, enough=after <= BROKEN)  # fmt: skip
    if not kept:
        text = f"8-bit activations change the answers much (error {before:.2g} of their energy on pictures that are no "
        text += "data), and leaving a few in float does not help: compare the fidelity, and see datafree doctor."
        run.log("note", text=text)
        return student
    added = _bytes(made, target) - _bytes(student, target)
    for name in order[:left]:
        where = str(found[name][0].args[0])
        why = f"8 bits break it: left in float alone it takes the answers' error from {before:.2g} to {alone[name]:.2g}"
        run.log("left_float", group=where, operators=len(_touched(found[name])), why=why)
    names = ", ".join(str(found[name][0].args[0]) for name in order[:left])
    text = f"Left in float, because 8 bits break the answers there: {names}. Error {before:.2g} to {after:.2g} of the "
    run.log("note", text=f"{text}answers' energy, {added:+,} bytes; the latency below is with them.")
    return made


def _touched(calls: list[fx.Node]) -> set[str]:
    """Operators that compute in float for it: the value's maker, and its readers."""
    makers = {str(node.args[0]) for node in calls}
    return makers | {user.name for node in calls for user in node.users}


def _bytes(student: ModelGraph, target: Target) -> int:
    from datafree.export import export_onnx  # slow to import

    with tempfile.TemporaryDirectory(prefix="datafree-") as scratch:
        return int(export_onnx(student, Path(scratch) / "student.onnx", target)["bytes"])
