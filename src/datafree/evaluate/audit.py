"""What synthetic images give away, as far as distances can tell: copies among themselves, and nearness to real images.

A probe is a set of real images that the user has, best those the network was trained on. Nothing of it is kept but
distances and places. How near is near is told by the probe itself: the distance from each of its images to the nearest
other one. A control, real images the network was not trained on, turns nearness into a test (Meehan, Chaudhuri and
Dasgupta 2020): where training images were copied, synthetic images lie nearer to them than the control does.

These are indicators. A copy that is found is a fact; finding none proves nothing (docs/privacy.md).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datafree.evaluate.datasets import Dataset
from datafree.evaluate.nearest import Nearest, nearest, spaces
from datafree.graph import ModelGraph
from datafree.spec import InputSpec, Refusal

NEAR = 0.2
"""Distance of shapes from which two images count as near duplicates: a correlation of 0.98."""
CLOSE = 0.01
"""Share of the probe's images that lie nearer to another one than this quantile: what `close` expects of strangers."""
SHOWN = 10
_BATCH = 256


def audit(
    batches: Iterable[Tensor],
    inputs: InputSpec,
    *,
    classes: Tensor | None = None,
    probe: Dataset | None = None,
    control: Dataset | None = None,
    network: ModelGraph | None = None,
    most: int = 4096,
) -> dict[str, Any]:
    """Look for copies among synthetic images, and for real images that they come near to.

    batches: the synthetic images, [n, C, H, W], normalised as `inputs` says
    classes: what the teacher takes each for, int64 [N]
    probe: real images to look for; control: real images the network cannot have seen
    network: adds distances between what its last layer reads
    most: images of the probe and of the control that are looked at, drawn at random where there are more

    Returns plain data; docs/privacy.md says what each key means. Raises Refusal when sets are too small, or do not fit.
    """
    hashes: list[str] = []
    own = spaces(_hashed(batches, hashes), network)
    if len(hashes) < 3:
        raise Refusal(
            "a pack this small cannot be audited", why=f"it has {len(hashes)} images", remedy="make at least 3"
        )
    found: dict[str, Any] = {"images": len(hashes), "duplicates": _duplicates(hashes, nearest(own["shapes"]))}
    if probe is None:
        if control is not None:
            raise Refusal("a control is of no use alone", why="nothing is compared with it", remedy="add --probe")
        return found
    drawn = np.sort(np.random.default_rng(0).permutation(len(probe))[:most])
    probe, control = probe.take(drawn), None if control is None else control.sample(most)
    labels = torch.from_numpy(probe.labels)
    theirs = {name: spaces(_images(held, inputs, name), network) for name, held in _given(probe, control).items()}
    found["probe"] = {"name": probe.name, "images": len(probe), "classes": int(labels.unique().numel())}
    if control is not None:
        found["control"] = {"name": control.name, "images": len(control)}
    found["spaces"] = {
        name: _space(name, points, theirs["probe"][name], theirs.get("control", {}).get(name), inputs)
        for name, points in own.items()
    }
    for pair in [pair for space in found["spaces"].values() for pair in space["nearest"]]:
        pair["probe"] = int(drawn[pair["probe"]])  # its place in the set as the user has it
    if classes is not None:
        space = "features" if network is not None else "shapes"
        found["classes"] = {"space": space, "rows": _by_class(own[space], theirs["probe"][space], classes, labels)}
    return found


def _hashed(batches: Iterable[Tensor], hashes: list[str]) -> Iterator[Tensor]:
    for images in batches:
        hashes.extend(hashlib.sha256(image.contiguous().numpy().tobytes()).hexdigest() for image in images)
        yield images


def _given(probe: Dataset, control: Dataset | None) -> dict[str, Dataset]:
    return {"probe": probe} if control is None else {"probe": probe, "control": control}


def _images(held: Dataset, inputs: InputSpec, what: str) -> Iterator[Tensor]:
    if len(held) < 3:
        raise Refusal(f"{held.name} is too small a {what}", why=f"it has {len(held)} images", remedy="give at least 3")
    return (images for images, _ in held.batches(inputs, _BATCH))


def _duplicates(hashes: list[str], found: Nearest) -> dict[str, Any]:
    copies = sum(count - 1 for count in Counter(hashes).values())
    near = found.distance <= NEAR
    order = found.distance.argsort()[:SHOWN].tolist()
    return {
        "exact": copies,
        "near": int(near.sum()),
        "near_below": NEAR,
        "median_distance": float(found.distance.median()),
        "nearest": [_pair("other", image, found) for image in order if near[image]],
    }


def _pair(what: str, image: int, found: Nearest) -> dict[str, Any]:
    return {"image": image, what: int(found.place[image]), "distance": float(found.distance[image])}


def _space(name: str, own: Tensor, probe: Tensor, control: Tensor | None, inputs: InputSpec) -> dict[str, Any]:
    """Nearness in one space. own: [N, d]; probe, control: [n, d]"""
    found, within = nearest(own, probe), nearest(probe)
    close = float(within.distance.double().quantile(CLOSE))
    told: dict[str, Any] = {
        "median": float(found.distance.median()),
        "least": float(found.distance.min()),
        "median_within_probe": float(within.distance.median()),
        "median_ratio_to_second": float(found.ratio.median()),
        "close_below": close,
        "close": float((found.distance < close).double().mean()),
        "nearest": [_pair("probe", image, found) for image in found.distance.argsort()[:SHOWN].tolist()],
    }
    if name == "pixels":
        step = 1 / 255 / min(inputs.std) if inputs.pixels else 1e-3
        told["copies"] = int((found.distance <= step / 2).sum())
    if control is not None:
        told["control"] = _tested(found.distance, nearest(control, probe).distance, nearest(own, control).distance)
    return told


def _tested(to_probe: Tensor, control_to_probe: Tensor, to_control: Tensor) -> dict[str, Any]:
    """The three-sample test: are synthetic images nearer to the probe than the control's are?"""
    from scipy.stats import mannwhitneyu

    result = mannwhitneyu(to_probe.double(), control_to_probe.double(), alternative="less", method="asymptotic")
    pairs = len(to_probe) * len(control_to_probe)
    return {
        "median_to_probe": float(control_to_probe.median()),
        "nearer_than_control": 1 - float(result.statistic) / pairs,
        "p_value": float(result.pvalue),
        "nearer_to_probe": float((to_probe < to_control).double().mean()),
    }


def _by_class(own: Tensor, probe: Tensor, classes: Tensor, labels: Tensor) -> list[dict[str, Any]]:
    """For each class its synthetic images' distances to the probe's images of it, over the usual one among these."""
    rows = []
    for label in labels.unique().tolist():
        mine, theirs = own[classes == label], probe[labels == label]
        row: dict[str, Any] = {"class": label, "images": len(mine), "probe_images": len(theirs)}
        if len(mine) and len(theirs) > 2:
            within = nearest(theirs).distance.median().clamp(min=1e-12)
            ratio = nearest(mine, theirs).distance / within
            row |= {"median": float(ratio.median()), "least": float(ratio.min())}
        rows.append(row)
    return rows
