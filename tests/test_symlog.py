"""Symlog and two-hot coding: round trips."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from delta_iris.nn.two_hot import SymlogTwoHot, symexp, symlog

floats = st.floats(-1e6, 1e6, width=32)


@given(st.lists(floats, min_size=1, max_size=20))
def test_symexp_inverts_symlog(values: list[float]) -> None:
    x = torch.tensor(values, dtype=torch.float64)
    # float64: exp and log of numbers up to 14 lose some 14 · 2^-52 relative.
    torch.testing.assert_close(symexp(symlog(x)), x, rtol=1e-13, atol=1e-15)


@given(st.lists(floats, min_size=1, max_size=20), st.integers(2, 300))
def test_two_hot_sums_to_one_over_two_neighbours(values: list[float], bins: int) -> None:
    codec = SymlogTwoHot(bins)
    spread = codec.two_hot(torch.tensor(values))
    torch.testing.assert_close(spread.sum(-1), torch.ones(len(values)))
    assert (spread >= 0).all()
    for row in spread:
        used = row.nonzero().flatten()
        assert len(used) <= 2
        assert int(used[-1] - used[0]) <= 1


@given(st.lists(floats, min_size=1, max_size=20))
def test_the_mean_of_a_two_hot_is_the_value(values: list[float]) -> None:
    codec, x = SymlogTwoHot(), torch.tensor(values)
    # A position up to 254 is rounded by up to 2^-18 bins of 0.16 symlog; the differences of neighbouring float32 bins,
    # 17% of them, carry 2^-24 / 0.17.
    torch.testing.assert_close(codec.mean(codec.two_hot(x).log()), x, rtol=2e-6, atol=1e-6)


def test_what_varies_is_worth_its_mean() -> None:
    codec, values = SymlogTwoHot(), torch.tensor([0.0, 1.0, 9.0, -30.0])
    mixed = codec.two_hot(values).mean(0)
    torch.testing.assert_close(codec.mean(mixed.log()), values.mean(), rtol=2e-6, atol=0)


def test_the_first_scalar_is_zero() -> None:
    codec = SymlogTwoHot()
    # The bins of one sign sum to 0.1; summed in float32.
    assert abs(float(codec.mean(codec.first_logits()))) < 1e-6
    assert float(codec.first_logits().softmax(-1)[codec.bins.abs() > 100].sum()) < 1e-7


def test_values_beyond_the_bins_take_the_outermost() -> None:
    codec = SymlogTwoHot(5, limit=2.0)
    assert codec.two_hot(torch.tensor([1e9, -1e9])).tolist() == [[0, 0, 0, 0, 1], [1, 0, 0, 0, 0]]


def test_cross_entropy_is_that_of_the_two_hot() -> None:
    codec, logits = SymlogTwoHot(7, 3.0), torch.randn(4, 7)
    values = torch.tensor([0.0, 1.5, -2.0, 100.0])
    expected = torch.nn.functional.cross_entropy(logits, codec.two_hot(values), reduction="none")
    torch.testing.assert_close(codec.cross_entropy(logits, values), expected)
