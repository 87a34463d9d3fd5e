"""The plainest quantization there is, for tests of what comes after it: ranges observed on random inputs."""

from __future__ import annotations

import torch
from torch import Tensor

from datafree.functional.affine import qparams_from_range
from datafree.graph import ModelGraph, activation_sites, fold_batchnorm
from datafree.graph.place import insert_activation_quantizer, insert_weight_quantizer, weight_nodes
from datafree.nn import Quantizer
from datafree.spec import Scheme, Target
from datafree.spec.target import ONNXRUNTIME


def random_inputs(graph: ModelGraph, count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, *graph.inputs.shape, generator=torch.Generator().manual_seed(seed))


def quantize_observed(
    graph: ModelGraph,
    *,
    weights: Scheme | int | None = 8,
    activations: Scheme | int | None = 8,
    target: Target = ONNXRUNTIME,
    fold: bool = True,
) -> ModelGraph:
    """Min-max grids for weights (per row of axis 0) and activations (over 8 random inputs); None leaves them in
    float.
    """
    graph = fold_batchnorm(graph) if fold else graph.copy()
    sites = activation_sites(graph, target) if activations is not None else []
    observed = graph.observe(random_inputs(graph, 8), [site.node for site in sites]) if sites else {}
    if weights is not None:
        kinds = {layer.weight: layer.kind for layer in graph.layers}
        for name in weight_nodes(graph):
            scheme = target.weights_of(kinds[name], weights) if isinstance(weights, int) else weights
            weight = graph.tensor(name)
            rows = weight.flatten(1) if scheme.granularity == "channel" else weight.flatten()
            grid = qparams_from_range(rows.amin(-1), rows.amax(-1), scheme)
            insert_weight_quantizer(graph, name, grid)
            graph.set_tensor(name, Quantizer(grid)(weight))
    if activations is not None:
        scheme = target.activations.with_bits(activations) if isinstance(activations, int) else activations
        for site in sites:
            value = observed[site.node]
            grid = None if site.shares else Quantizer(qparams_from_range(value.min(), value.max(), scheme))
            insert_activation_quantizer(graph, site, grid)
    graph.clean()
    return graph
