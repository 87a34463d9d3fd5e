"""Roundings against slow, literal twins: SQuant kernel by kernel, GPTQ column by column with a fresh inverse each."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from datafree.functional.kronecker import kronecker_gptq, kronecker_product
from datafree.functional.rounding import Rows, descend, error, gain, gptq, inverse_factor, squant
from datafree.spec import Scheme

SYMMETRIC = Scheme(bits=4, signed=True, symmetric=True, granularity="channel")
ASYMMETRIC = Scheme(bits=4, signed=True, granularity="channel")


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def covariance(size: int, seed: int = 0, factors: int = 4) -> Tensor:
    """A few strong factors and independent noise."""
    a = draw(size, factors, seed=seed)
    return a @ a.T / factors + torch.diag(0.1 + draw(size, seed=seed + 1).abs())


# -- SQuant ---------------------------------------------------------------------------------------------------------


def flip_literally(q: list[float], e: list[float], able: list[int], low: int, high: int) -> list[int]:
    """Flip the largest errors of the sum's sign, in place -> the one place offered to the next step."""
    total = sum(e)
    sign = 1 if total > 0 else -1
    order = [i for i in able if e[i] * sign > 0 and (q[i] > low if sign > 0 else q[i] < high)]
    order.sort(key=lambda i: -abs(e[i]))
    count = min(round(abs(total)), len(order))
    for i in order[:count]:
        q[i] -= sign
        e[i] -= sign
    over = count >= abs(total)
    return order[count - 1 : count] if over and count else ([] if over else order[count : count + 1])


def squant_literally(weight: Tensor, rows: Rows, taps: int) -> Tensor:
    """One channel after the other, one kernel after the other: SQuant-K, then SQuant-C among what the kernels offer."""
    out = torch.empty_like(weight)
    for r in range(len(weight)):
        u = (weight[r] / rows.scale[r] + rows.zero[r]).tolist()
        q = [float(min(max(round(v), rows.low), rows.high)) for v in u]
        e = [a - b for a, b in zip(q, u)]
        offered = list(range(len(u)))
        if taps > 1:
            offered = []
            for start in range(0, len(u), taps):
                kernel = slice(start, start + taps)
                own_q, own_e = q[kernel], e[kernel]
                nominated = flip_literally(own_q, own_e, list(range(taps)), rows.low, rows.high)
                q[kernel], e[kernel] = own_q, own_e
                offered += [start + i for i in nominated]
        flip_literally(q, e, offered, rows.low, rows.high)
        out[r] = torch.tensor(q)
    return out


@pytest.mark.parametrize("scheme", [SYMMETRIC, ASYMMETRIC, SYMMETRIC.with_bits(2), ASYMMETRIC.with_bits(8)])
@pytest.mark.parametrize(("inputs", "taps"), [(16, 9), (40, 1), (1, 9), (5, 4)])
@pytest.mark.parametrize("ratio", [1.0, 0.6])
def test_squant_is_its_literal_twin(scheme, inputs, taps, ratio):
    weight = draw(7, inputs * taps, seed=inputs)
    rows = Rows.clipped(weight, scheme, ratio)
    assert torch.equal(squant(weight, rows, taps), squant_literally(weight, rows, taps))


@settings(deadline=None, derandomize=True, max_examples=50)
@given(st.integers(0, 10_000), st.integers(1, 12), st.sampled_from([1, 4, 9]), st.integers(2, 8))
def test_squant_leaves_half_a_step_of_every_sum(seed, inputs, taps, bits):
    weight = draw(3, inputs * taps, seed=seed)
    # A grid that reaches one step beyond the weights, so that every element may flip both ways.
    scheme = Scheme(bits=bits, signed=True, symmetric=True, granularity="channel")
    rows = Rows.clipped(weight, scheme, scheme.qmax / (scheme.qmax - 0.5) if bits > 2 else 2.1)
    q = squant(weight, rows, taps)
    e = (rows.values(q) - weight) / rows.scale[:, None]
    assert float(e.abs().max()) <= 1 + 1e-4, "only the two neighbours of a weight are used"
    assert float(e.sum(1).abs().max()) <= 0.5 + 1e-3, "each channel's errors cancel"
    if taps > 1:
        # The channel step flips at most one element of each kernel whose own sum was within one half before.
        kernels = e.reshape(3, inputs, taps).sum(2).abs()
        assert float(kernels.max()) <= 1.0 + 1e-3


# -- GPTQ -----------------------------------------------------------------------------------------------------------


def obq_literally(weight: Tensor, rows: Rows, gram: Tensor, damping: float) -> Tensor:
    """Optimal brain compression in GPTQ's order: invert H over the free columns, round one, let the others answer."""
    size = weight.shape[1]
    loaded = gram.double() + damping * gram.diagonal().double().mean() * torch.eye(size, dtype=torch.float64)
    order = gram.diagonal().argsort(descending=True).tolist()
    free, q = weight.double().clone(), torch.empty_like(weight)
    for place, j in enumerate(order):
        left = order[place:]
        inverse = torch.linalg.inv(loaded[left][:, left])
        q[:, j] = (free[:, j] / rows.scale + rows.zero).round().clamp(rows.low, rows.high).to(weight)
        off = free[:, j] - (q[:, j] - rows.zero) * rows.scale
        free[:, left] -= torch.outer(off, inverse[0] / inverse[0, 0])
    return q


@pytest.mark.parametrize("scheme", [SYMMETRIC, ASYMMETRIC, SYMMETRIC.with_bits(2)])
@pytest.mark.parametrize("size", [1, 5, 64, 65, 150])
def test_gptq_in_blocks_is_the_column_by_column_twin(scheme, size):
    weight, gram = draw(6, size, seed=size), covariance(size, seed=size)
    rows = Rows.clipped(weight, scheme)
    fast, slow = gptq(weight, rows, gram, 0.01), obq_literally(weight, rows, gram, 0.01)
    # A tie decided by the last bit of float32 sends the rest of its row another way: nearly all rows are equal.
    equal = (fast == slow).all(1)
    assert int(equal.sum()) >= len(weight) - 1
    torch.testing.assert_close(error(weight, fast, rows, gram)[equal], error(weight, slow, rows, gram)[equal])


def test_gptq_beats_nearest_where_inputs_are_correlated():
    weight, gram = draw(32, 72), covariance(72, factors=3)
    rows = Rows.clipped(weight, SYMMETRIC)
    nearest = error(weight, rows.integers(weight), rows, gram).mean()
    assert float(error(weight, gptq(weight, rows, gram), rows, gram).mean()) < 0.7 * float(nearest)


def test_without_correlation_gptq_is_nearest():
    weight = draw(8, 30)
    rows = Rows.clipped(weight, ASYMMETRIC)
    assert torch.equal(gptq(weight, rows, torch.eye(30)), rows.integers(weight))


def test_the_inverse_factor_is_one():
    gram = covariance(20).double()
    upper = inverse_factor(gram, 0.05)
    loaded = gram + 0.05 * gram.diagonal().mean() * torch.eye(20)
    torch.testing.assert_close(upper.T @ upper @ loaded, torch.eye(20, dtype=torch.float64), rtol=0, atol=1e-6)
    assert torch.equal(upper, upper.triu())


def loaded_kronecker(channels: Tensor, taps: Tensor, damping: float) -> Tensor:
    """C (x) R as the fast version damps it: each factor on its own."""
    c = channels + damping * channels.diagonal().mean() * torch.eye(len(channels))
    r = taps + 1e-4 * taps.diagonal().mean() * torch.eye(len(taps))
    return torch.kron(c, r)


@pytest.mark.parametrize(("inputs", "size"), [(6, 4), (33, 9), (70, 4), (12, 1)])
def test_kronecker_gptq_is_dense_gptq_on_the_product(inputs, size):
    channels, taps = covariance(inputs, seed=1), covariance(size, seed=2)
    weight = draw(5, inputs, size)
    rows = Rows.clipped(weight.flatten(1), SYMMETRIC)
    fast = kronecker_gptq(weight, rows, channels, taps, 0.01).flatten(1)
    # The dense twin in the same order: channels by falling variance, the taps of each as they stand.
    order = channels.diagonal().argsort(descending=True)
    columns = (order[:, None] * size + torch.arange(size)).flatten()
    gram = loaded_kronecker(channels, taps, 0.01)
    slow = torch.empty_like(fast)
    slow[:, columns] = in_order(weight.flatten(1)[:, columns], rows, gram[columns][:, columns])
    assert int((fast == slow).all(1).sum()) >= len(weight) - 1


def in_order(weight: Tensor, rows: Rows, gram: Tensor) -> Tensor:
    """Optimal brain compression, first column first, nothing added to H."""
    free, q = weight.double().clone(), torch.empty_like(weight)
    for j in range(weight.shape[1]):
        inverse = torch.linalg.inv(gram[j:, j:].double())
        q[:, j] = (free[:, j] / rows.scale + rows.zero).round().clamp(rows.low, rows.high).to(weight)
        free[:, j:] -= torch.outer(free[:, j] - (q[:, j] - rows.zero) * rows.scale, inverse[0] / inverse[0, 0])
    return q


def test_the_kronecker_product_is_never_formed_and_yet_exact():
    channels, taps, weight = covariance(7, seed=1), covariance(4, seed=2), draw(3, 7, 4)
    dense = weight.flatten(1) @ torch.kron(channels, taps)
    torch.testing.assert_close(kronecker_product(weight, channels, taps).flatten(1), dense)


# -- what comes after -----------------------------------------------------------------------------------------------


@settings(deadline=None, derandomize=True, max_examples=40)
@given(st.integers(0, 10_000), st.integers(1, 80), st.integers(2, 5), st.integers(1, 4))
def test_descent_never_loses_and_ends_where_no_single_step_helps(seed, size, bits, sweeps):
    weight, gram = draw(4, size, seed=seed), covariance(size, seed=seed)
    rows = Rows.clipped(weight, SYMMETRIC.with_bits(bits), 0.8)
    start = rows.integers(weight)
    before = error(weight, start, rows, gram)
    some = error(weight, descend(weight, start, rows, gram, sweeps), rows, gram)
    assert bool((some <= before * (1 + 1e-5) + 1e-6).all())
    settled = descend(weight, start, rows, gram, 500)
    least = error(weight, settled, rows, gram)
    for j in range(size):
        for step in (-1, 1):
            moved = settled.clone()
            moved[:, j] = (moved[:, j] + step).clamp(rows.low, rows.high)
            assert bool((error(weight, moved, rows, gram) >= least * (1 - 1e-4) - 1e-5).all())


def test_gain_gives_the_row_its_strength_back():
    weight, gram = draw(9, 40), covariance(40)
    rows = Rows.clipped(weight, SYMMETRIC.with_bits(2), 0.9)
    q = gptq(weight, rows, gram)
    stretched = rows.scaled(gain(weight, q, rows, gram)).values(q)
    torch.testing.assert_close(((weight @ gram) * stretched).sum(1), ((weight @ gram) * weight).sum(1))


def test_gain_does_not_stretch_noise():
    weight = torch.tensor([[1.0, 0.01, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    rows = Rows.clipped(weight, SYMMETRIC)
    q = torch.tensor([[0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])  # next to nothing of the first row is left
    assert gain(weight, q, rows, torch.eye(4)).tolist() == [1.0, 1.0]
