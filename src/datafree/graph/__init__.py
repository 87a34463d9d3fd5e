"""The model as one graph: doors, folding, channels, places for quantizers, cost."""

from datafree.graph.channels import ChannelGroup, ChannelMap, Slice, channel_groups, channel_map, channels_at
from datafree.graph.cost import Cost, cost
from datafree.graph.fold import fold_batchnorm
from datafree.graph.model_graph import BatchNorm, Layer, ModelGraph
from datafree.graph.place import Site, activation_sites, quantizers
from datafree.graph.removal import remove_channels, round_width, silence_channels

__all__ = [
    "BatchNorm",
    "ChannelGroup",
    "ChannelMap",
    "Cost",
    "Layer",
    "ModelGraph",
    "Site",
    "Slice",
    "activation_sites",
    "channel_groups",
    "channel_map",
    "channels_at",
    "cost",
    "fold_batchnorm",
    "quantizers",
    "remove_channels",
    "round_width",
    "silence_channels",
]
