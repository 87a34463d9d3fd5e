"""Convolutions that pad for themselves.

ATen pads a convolution alike on both sides; where a network pads unevenly (MobileNets that came from TensorFlow) it has
a Pad before the convolution. ONNX's Conv takes any padding, and pads with the zero point: the same codes, in one
operator instead of two.
"""

from __future__ import annotations

import onnx_ir as ir


def fold_padding(graph: ir.Graph) -> int:
    """Give every Pad of codes with their zero point, read by convolutions alone, to those; in place.

    Returns how many there were.
    """
    folded = 0
    for pad in [node for node in graph if node.op_type == "Pad"]:
        dequantized = _only_reader(pad)
        amounts = _amounts(pad)
        if dequantized is None or dequantized.op_type != "DequantizeLinear" or amounts is None:
            continue
        if pad.inputs[2] is not dequantized.inputs[2]:  # another value than the code of 0
            continue
        uses = list(dequantized.outputs[0].uses())
        if not uses or not all(node.op_type == "Conv" and place == 0 and _is_plain(node) for node, place in uses):
            continue
        for convolution, _ in uses:
            before = convolution.attributes.get("pads")
            own = list(before.as_ints()) if before is not None else [0] * len(amounts)
            convolution.attributes["pads"] = ir.AttrInt64s("pads", [a + b for a, b in zip(own, amounts)])
        dequantized.replace_input_with(0, pad.inputs[0])
        told = pad.inputs[1]
        graph.remove(pad, safe=True)
        if told is not None and told.is_initializer() and not told.uses():
            del graph.initializers[str(told.name)]
        folded += 1
    return folded


def _only_reader(node: ir.Node) -> ir.Node | None:
    """What reads a node's value, if one node does and it is no answer."""
    uses = list(node.outputs[0].uses())
    return uses[0][0] if len(uses) == 1 and not node.outputs[0].is_graph_output() else None


def _amounts(pad: ir.Node) -> list[int] | None:
    """Added before and behind each side, as a Conv has them; None where other dimensions grow, something is cut off, or
    what is added is not one value.
    """
    mode, told = pad.attributes.get("mode"), pad.inputs[1]
    axes = pad.inputs[3] if len(pad.inputs) > 3 else None
    if (mode is not None and mode.as_string() != "constant") or axes is not None or len(pad.inputs) < 3:
        return None
    if told is None or told.const_value is None:
        return None
    amounts = [int(amount) for amount in told.const_value.numpy()]
    half = len(amounts) // 2
    before, behind = amounts[:half], amounts[half:]
    if any(before[:2] + behind[:2]) or min(amounts) < 0:
        return None
    return before[2:] + behind[2:]


def _is_plain(convolution: ir.Node) -> bool:
    automatic = convolution.attributes.get("auto_pad")
    return automatic is None or automatic.as_string() == "NOTSET"
