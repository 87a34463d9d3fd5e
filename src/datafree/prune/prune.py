"""The verb: how many channels each group loses, which ones, and away with all of them at once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Literal

import torch
from torch import Tensor

from datafree.graph import ModelGraph
from datafree.graph.channels import ChannelGroup, channel_groups
from datafree.graph.removal import remove_channels, round_width
from datafree.prune.criterion import Criterion
from datafree.run import Run
from datafree.spec import Refusal, name_of

Scope = Literal["inner", "all"]
Allocation = Literal["uniform", "global"]


def prune(
    graph: ModelGraph,
    *,
    ratio: float,
    criterion: Criterion,
    run: Run,
    scope: Scope = "inner",
    allocation: Allocation = "uniform",
    multiple: int = 1,
    most: float = 0.8,
    group_ratios: Mapping[str, float] | None = None,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
) -> ModelGraph:
    """A copy without the lowest-scored channels.

    ratio: share of the channels of every served group to remove, [0, 1)
    scope: 'inner' serves channels that one layer makes (first convolutions of residual blocks: the papers' protocol);
        'all' serves coupled ones too (residual streams)
    allocation: 'uniform' takes the same share of every group; 'global' removes as many parameters as that would, but
        takes the channels with the lowest scores of the whole network
    multiple: widths are rounded to a multiple of this
    most: with 'global', no group loses more than this share of its channels, lest a layer become a bottleneck that no
        criterion for single channels can foresee
    group_ratios: shares of single groups by glob of group name, in place of `ratio`; the last match wins
    include, exclude: globs over group names

    Raises ValueError for values out of range, Refusal when nothing can be removed, and for shares of groups that are
    not there or that 'global' would have to overrule.
    """
    own = group_ratios or {}
    if bad := [share for share in (ratio, *own.values()) if not 0 <= share < 1]:
        raise ValueError(f"ratio is the share removed, at least 0 and below 1; got {bad[0]}")
    if not 0 < most < 1:
        raise ValueError(f"most is a share between 0 and 1, got {most}")
    if scope not in ("inner", "all") or allocation not in ("uniform", "global"):
        raise ValueError(f"scope {scope!r} must be 'inner' or 'all', allocation {allocation!r} 'uniform' or 'global'")
    with run.step("prune", criterion=name_of(criterion), ratio=ratio, scope=scope, allocation=allocation):
        groups = channel_groups(graph)
        if ratio == 0 and not any(own.values()):
            return graph.copy()
        served = [group for group in served_groups(groups, scope) if _named(group, include, exclude)]
        if not served:
            raise _nothing_to_prune(groups, scope)
        _refuse_strangers(own, served, allocation)
        counts = {group.name: removed_of(group.size, ratio_of(group, ratio, own), multiple) for group in served}
        asked = [group for group in served if counts[group.name] or allocation == "global"]
        scores = {group.name: criterion.score(graph, group).double() for group in asked}
        if allocation == "global":
            budget = removed_parameters(graph, _lowest(scores, counts), served)
            counts = _globally(graph, served, scores, budget, multiple, most, getattr(criterion, "comparable", False))
        removed = {name: places for name, places in _lowest(scores, counts).items() if places.numel()}
        if not removed:
            widths = sorted({group.size for group in served})
            raise Refusal(
                f"ratio {ratio} removes no channel",
                why=f"the groups have {widths} channels and widths are rounded to multiples of {multiple}",
                remedy="ask for a larger ratio or a smaller multiple",
            )
        for group in groups:
            gone = removed.get(group.name, torch.zeros(0, dtype=torch.long))
            why = None if group in served else group.fixed or "outside the scope asked for"
            run.log("pruned", group=group.name, channels=group.size, removed=gone.tolist(), left_because=why)
        return remove_channels(graph, removed)


def removed_parameters(graph: ModelGraph, removed: Mapping[str, Tensor], groups: Sequence[ChannelGroup]) -> int:
    """How many stored numbers go with these channels, exactly: a tensor may lose rows of several dimensions."""
    left: dict[str, dict[int, int]] = {}
    for group in groups:
        for piece in group.slices:
            kept = left.setdefault(piece.name, {})
            size = kept.get(piece.dim, graph.tensor(piece.name).shape[piece.dim])
            # Two groups never own the same row, so their rows of one dimension simply add up.
            gone = piece.index[removed[group.name]].unique().numel() if group.name in removed else 0
            kept[piece.dim] = size - gone
    total = 0
    for name, kept in left.items():
        shape = graph.tensor(name).shape
        total += math.prod(shape) - math.prod(kept.get(dim, side) for dim, side in enumerate(shape))
    return total


def _named(group: ChannelGroup, include: Sequence[str], exclude: Sequence[str]) -> bool:
    matches = [any(fnmatchcase(group.name, glob) for glob in globs) for globs in (include, exclude)]
    return matches[0] and not matches[1]


def served_groups(groups: Sequence[ChannelGroup], scope: Scope) -> list[ChannelGroup]:
    """The groups that may lose channels in this scope."""
    return [group for group in groups if group.fixed is None and (scope == "all" or not group.coupled)]


def ratio_of(group: ChannelGroup, ratio: float, group_ratios: Mapping[str, float]) -> float:
    """The share that a group is to lose: its own, by the last glob that matches its name, else `ratio`."""
    return next((own for glob, own in reversed(list(group_ratios.items())) if fnmatchcase(group.name, glob)), ratio)


def removed_of(size: int, ratio: float, multiple: int) -> int:
    """Channels to remove, none at ratio 0; halves are rounded down, so that at least half of two channels stays."""
    if ratio == 0:
        return 0
    keep = min(size, max(1, math.floor(size * (1 - ratio) + 0.5)))
    return size - round_width(size, keep, multiple)


def _lowest(scores: Mapping[str, Tensor], counts: Mapping[str, int]) -> dict[str, Tensor]:
    """Places of the lowest scores of each group; of equal scores the first go."""
    return {name: score.sort(stable=True).indices[: counts[name]] for name, score in scores.items()}


def _globally(
    graph: ModelGraph,
    groups: Sequence[ChannelGroup],
    scores: Mapping[str, Tensor],
    budget: int,
    multiple: int,
    most: float,
    comparable: bool,
) -> dict[str, int]:
    """Counts for one threshold on all scores, the least one that removes `budget` parameters."""
    values, owners = [], []
    for place, group in enumerate(groups):
        score = scores[group.name]
        mean = score.mean()
        ordered = score.sort().values if comparable or mean <= 0 else score.sort().values / mean
        allowed = min(group.size - 1, math.floor(most * group.size))
        values.append(ordered[:allowed])
        owners.append(torch.full((allowed,), place))
    order = torch.cat(values).sort(stable=True).indices
    owner = torch.cat(owners)[order]

    def counts(first: int) -> dict[str, int]:
        taken = torch.bincount(owner[:first], minlength=len(groups)).tolist()
        return {g.name: g.size - round_width(g.size, g.size - n, multiple) for g, n in zip(groups, taken)}

    low, high = 0, len(owner)
    while low < high:
        middle = (low + high) // 2
        if removed_parameters(graph, _lowest(scores, counts(middle)), groups) >= budget:
            high = middle
        else:
            low = middle + 1
    return counts(low)


def _refuse_strangers(own: Mapping[str, float], served: Sequence[ChannelGroup], allocation: str) -> None:
    if own and allocation == "global":
        raise Refusal(
            "group_ratios cannot stand beside allocation 'global'",
            why="it chooses every group's share by one threshold",
            remedy="leave group_ratios out, or ask for allocation 'uniform'",
        )
    names = [group.name for group in served]
    for glob in own:
        if not any(fnmatchcase(name, glob) for name in names):
            raise Refusal(
                f"group_ratios names no group that may lose channels: {glob!r}",
                why=f"those that may are {', '.join(names[:4])}{' ...' if len(names) > 4 else ''}",
                remedy="name one of them or a pattern such as 'layer1.*'; scope 'all' serves residual streams too",
            )


def _nothing_to_prune(groups: Sequence[ChannelGroup], scope: str) -> Refusal:
    reasons = sorted({group.fixed for group in groups if group.fixed})
    coupled = sum(group.coupled and group.fixed is None for group in groups)
    if coupled and scope == "inner":
        return Refusal(
            "no channel can be removed within scope 'inner'",
            why=f"all {coupled} free groups are coupled through residual adds, or excluded by name",
            remedy="ask for scope 'all', or widen include and exclude",
        )
    return Refusal(
        "no channel of this network can be removed",
        why="; ".join(reasons) or "no group's name passes include and exclude",
        remedy="widen include and exclude, or quantize without pruning",
    )
