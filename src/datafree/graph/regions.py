"""Regions of a graph that the exporter wraps: code under `torch.no_grad`, or under `torch.autocast` switched off.

They arrive as one call of a nested graph, which no rule could look into. What they switch changes nothing in a network
that runs in inference and in one precision, so the nested operators are written out in place of the call.
"""

from __future__ import annotations

import operator

from torch import fx

from datafree.spec import Refusal

_BODY = {"wrap_with_set_grad_enabled": 1, "wrap_with_autocast": 4}
"""Name of the wrapping operator -> place of the nested graph among its arguments; the graph's inputs follow."""


def write_out_regions(module: fx.GraphModule) -> None:
    """Replace every wrapped region by its operators, in place, nested ones too.

    Raises Refusal when autocast is switched on: the network would run in two precisions.
    """
    waiting = [node for node in module.graph.nodes if _wrapped(node)]
    while waiting:
        node = waiting.pop()
        place = _BODY[_wrapped(node)]
        if _wrapped(node) == "wrap_with_autocast" and node.args[2]:
            raise Refusal(
                f"{node.name} cannot be served",
                why="part of the network runs under torch.autocast, in another precision",
                remedy="switch autocast off inside the model's forward",
            )
        body = module.get_submodule(str(node.args[place].target))
        assert isinstance(body, fx.GraphModule)
        copied: dict[fx.Node, fx.Node] = {}
        inputs = iter(node.args[place + 1 :])
        with module.graph.inserting_before(node):
            for inner in body.graph.nodes:
                if inner.op == "placeholder":
                    copied[inner] = next(inputs)
                elif inner.op == "output":
                    results = inner.args[0]
                else:
                    copied[inner] = module.graph.node_copy(inner, lambda n, copied=copied: copied[n])
                    if inner.op == "get_attr":  # a region nested in this one
                        module.add_submodule(copied[inner].name, body.get_submodule(str(inner.target)))
                        copied[inner].target = copied[inner].name
                    if _wrapped(copied[inner]):
                        waiting.append(copied[inner])
        for user in list(node.users):
            assert user.target is operator.getitem, "a region's results are read one by one"
            user.replace_all_uses_with(copied[results[user.args[1]]])
            module.graph.erase_node(user)
        module.graph.erase_node(node)
    module.graph.eliminate_dead_code()


def _wrapped(node: fx.Node) -> str:
    """Name of the wrapping operator, '' for others."""
    name = getattr(node.target, "__name__", "") if node.op == "call_function" else ""
    return name if name in _BODY else ""
