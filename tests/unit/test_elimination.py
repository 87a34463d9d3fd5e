"""Backward elimination against brute force; the reader of the kept columns against least squares."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from datafree.functional.elimination import (
    Elimination,
    SharedElimination,
    elimination_losses,
    inverse_of,
    loaded_cholesky,
    nearest_covariance,
    solve_kept,
)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def covariance(size: int, seed: int = 0) -> Tensor:
    mix = draw(size, 2 * size, seed=seed)
    return mix @ mix.T / size


def residual(weight: Tensor, gram: Tensor, importance: Tensor, kept: Tensor) -> float:
    """Importance-weighted variance of y - V' a_K for the best V'."""
    best = torch.linalg.solve(gram[kept][:, kept], (weight @ gram[:, kept]).T).T
    rest = weight.clone()
    rest[:, kept] -= best
    return float((importance * ((rest @ gram) * rest).sum(1)).sum())


@settings(max_examples=15, deadline=None)
@given(channels=st.integers(2, 5), width=st.integers(1, 4), outputs=st.integers(1, 6), extra=st.integers(0, 2),
       seed=st.integers(0, 999))  # fmt: skip
def test_costs_equal_brute_force_least_squares(channels, width, outputs, extra, seed):
    size = channels * width + extra  # the extra columns belong to no channel of the group and always stay
    weight, gram, importance = draw(outputs, size, seed=seed), covariance(size, seed), draw(outputs, seed=seed).exp()
    columns = torch.randperm(size, generator=torch.Generator().manual_seed(seed))[: channels * width].reshape(
        channels, -1
    )
    reader = Elimination(weight, gram, importance, columns, ridge=0.0)
    kept, before = torch.ones(size, dtype=torch.bool), 0.0
    for _ in range(channels - 1 if not extra else channels):
        costs = reader.costs()
        for channel in costs.isfinite().nonzero().flatten().tolist():
            without = kept.clone()
            without[columns[channel]] = False
            wanted = residual(weight, gram, importance, without.nonzero().flatten()) - before
            assert float(costs[channel]) == pytest.approx(wanted, rel=1e-5, abs=1e-8)
        channel = int(costs.argmin())
        before += float(costs[channel])
        kept[columns[channel]] = False
        reader.remove(channel)


@settings(max_examples=10, deadline=None)
@given(channels=st.integers(3, 8), outputs=st.integers(1, 6), seed=st.integers(0, 999))
def test_shared_elimination_is_exact_for_one_column_a_channel(channels, outputs, seed):
    weight, gram, importance = draw(outputs, channels, seed=seed), covariance(channels, seed), draw(outputs).exp()
    exact = Elimination(weight, gram, importance, torch.arange(channels)[:, None])
    shared = SharedElimination(inverse_of(gram, 1e-3), (weight * importance[:, None]).T @ weight, exact.energy)
    for _ in range(channels - 1):
        assert torch.allclose(exact.costs(), shared.costs(), rtol=1e-6)
        channel = int(exact.costs().argmin())
        exact.remove(channel)
        shared.remove(channel)


def test_shared_elimination_is_exact_for_a_separable_covariance():
    channels, taps, outputs = 5, 4, 6
    between, among = covariance(channels, 1), covariance(taps, 2)
    weight, importance = draw(outputs, channels, taps), draw(outputs).exp()
    exact = Elimination(weight.flatten(1), torch.kron(between, among), importance,
                        torch.arange(channels * taps).reshape(channels, taps), 0.0)  # fmt: skip
    coupling = torch.einsum("o,ocu,uv,odv->cd", importance, weight, among, weight)
    assert float((coupling * between).sum()) == pytest.approx(exact.energy)
    shared = SharedElimination(inverse_of(between, 0.0), coupling, exact.energy)
    for _ in range(channels - 1):
        assert torch.allclose(exact.costs(), shared.costs(), rtol=1e-5)
        channel = int(exact.costs().argmin())
        exact.remove(channel)
        shared.remove(channel)


def test_losses_rise_in_the_greedy_order_and_depth_keeps_its_start():
    def readers() -> list[Elimination]:
        columns = torch.arange(18).reshape(6, 3)
        return [Elimination(draw(4, 18, seed=s), covariance(18, s), torch.ones(4), columns) for s in (1, 2)]

    whole, part = elimination_losses(readers(), 6), elimination_losses(readers(), 6, depth=0.5)
    order = whole.argsort()
    assert torch.equal(order[:4], part.argsort()[:4])
    assert torch.allclose(whole[order[:4]], part[order[:4]])
    assert float(part[order[4:]].min()) >= float(part[order[3]])
    assert float(whole.max()) == pytest.approx(1.0, rel=1e-2)  # with everything gone, all energy is lost


def test_solve_kept_equals_lstsq():
    samples, weight = draw(400, 12, seed=3), draw(5, 12, seed=4)
    kept = torch.tensor([0, 2, 3, 7, 11])
    wanted = torch.linalg.lstsq(samples[:, kept], samples @ weight.T).solution.T
    assert torch.allclose(solve_kept(weight, samples.T @ samples / 400, kept, 0.0), wanted)
    tall = draw(40, 12, seed=5)  # more outputs than columns removed: the other order of products
    wanted = torch.linalg.lstsq(samples[:, kept], samples @ tall.T).solution.T
    assert torch.allclose(solve_kept(tall, samples.T @ samples / 400, kept, 0.0), wanted)


def test_what_loses_nothing_is_left_alone_whatever_the_ridge():
    weight = draw(5, 12)
    kept = torch.tensor([0, 2, 3, 7, 11])
    gone = torch.ones(12, dtype=torch.bool)
    gone[kept] = False
    weight[:, gone] = 0.0
    assert torch.equal(solve_kept(weight, covariance(12), kept, 0.5), weight[:, kept])


def test_an_indefinite_covariance_gets_the_ridge_it_needs():
    gram = torch.diag(torch.tensor([1.0, 1.0, -0.05])).double()
    factor = loaded_cholesky(gram, 1e-3)
    assert bool(factor.isfinite().all())
    assert torch.equal(loaded_cholesky(torch.zeros(2, 2), 1e-3) > 0, torch.eye(2).bool())
    with pytest.raises(ValueError, match="not finite"):
        loaded_cholesky(torch.full((2, 2), torch.nan), 1e-3)


def test_what_is_no_covariance_becomes_the_nearest_one():
    gram = covariance(12)
    assert nearest_covariance(gram) is gram
    values, vectors = torch.linalg.eigh(gram)
    values[:3] -= 2 * values[2]
    broken = (vectors * values) @ vectors.T
    found = nearest_covariance(broken)
    told = torch.linalg.eigvalsh(found)
    assert float(told[0]) > 0
    torch.testing.assert_close(told[3:], values[3:], rtol=1e-6, atol=1e-9)
    assert float((found - broken).norm()) <= float(values[:3].abs().sum()) + 1e-3 * float(values[-1])
