"""The model as one graph: doors, folding, channels, places for quantizers, cost."""

from datafree.graph.cost import Cost, cost
from datafree.graph.fold import fold_batchnorm
from datafree.graph.model_graph import BatchNorm, Layer, ModelGraph
from datafree.graph.place import Site, activation_sites, quantizers

__all__ = ["BatchNorm", "Cost", "Layer", "ModelGraph", "Site", "activation_sites", "cost", "fold_batchnorm", "quantizers"]
