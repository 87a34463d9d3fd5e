"""The fourteen real networks: traced exactly, and as accurate as their source says on pictures prepared here."""

from __future__ import annotations

import math

import pytest
import torch
from benchmarks.manifest import NETWORKS, data_folder, dataset, load, module

from datafree.evaluate import evaluate

pytestmark = pytest.mark.real


@pytest.fixture(autouse=True, scope="module")
def folder():
    try:
        return data_folder()
    except FileNotFoundError as reason:
        pytest.skip(str(reason))


@pytest.mark.parametrize("name", NETWORKS)
def test_traced_exactly_and_as_accurate_as_published(name):
    entry, original = load(name), module(name)
    sample = entry.dataset.sample(400, seed=0)  # `benchmarks.manifest` measures all
    x, _ = next(sample.batches(entry.inputs, 5))
    with torch.no_grad():
        assert torch.equal(entry.graph(x), original(x)), "the graph computes what the author's class computes"
    found = evaluate(entry.graph, sample)
    share = entry.published / 100
    # Drawn without replacement from the published set of pictures: four standard errors, nothing where all are drawn.
    unseen = 1 - found.count / len(dataset(name))
    tolerance = 400 * math.sqrt(share * (1 - share) / found.count * unseen) + 0.06
    assert abs(found.top1 - entry.published) <= tolerance
