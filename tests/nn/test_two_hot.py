"""Tests of symlog and of two-hot encoding and decoding."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from delta_iris.nn.two_hot import SymexpTwoHot, SymlogTwoHot, UnitGaussian, symexp, symlog

floats = st.floats(-1e6, 1e6, width=32)


@given(st.lists(floats, min_size=1, max_size=20))
def test_symexp_inverts_symlog(values: list[float]) -> None:
    x = torch.tensor(values, dtype=torch.float64)
    # In float64, exp and log of numbers up to 14 have a relative error of about 14 · 2^-52.
    torch.testing.assert_close(symexp(symlog(x)), x, rtol=1e-13, atol=1e-15)


@given(st.lists(floats, min_size=1, max_size=20), st.integers(2, 300))
def test_two_hot_is_a_distribution_over_two_neighbouring_bins(values: list[float], num_bins: int) -> None:
    codec = SymlogTwoHot(num_bins)
    probabilities = codec.two_hot(torch.tensor(values))
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(len(values)))
    assert (probabilities >= 0).all()
    for row in probabilities:
        used = row.nonzero().flatten()
        assert len(used) <= 2
        assert int(used[-1] - used[0]) <= 1


@given(st.lists(floats, min_size=1, max_size=20))
def test_mean_of_two_hot_is_the_value(values: list[float]) -> None:
    codec, x = SymlogTwoHot(), torch.tensor(values)
    # A position up to 254 is rounded by up to 2^-18 bins of 0.16 symlog. The differences of neighbouring float32 bins,
    # 17% of their values, have a relative error of 2^-24 / 0.17.
    torch.testing.assert_close(codec.mean(codec.two_hot(x).log()), x, rtol=2e-6, atol=1e-6)


def test_mean_of_averaged_two_hots_is_the_average_value() -> None:
    codec, values = SymlogTwoHot(), torch.tensor([0.0, 1.0, 9.0, -30.0])
    mixture = codec.two_hot(values).mean(0)
    torch.testing.assert_close(codec.mean(mixture.log()), values.mean(), rtol=2e-6, atol=0)


@given(st.lists(floats, min_size=1, max_size=20))
def test_mean_of_two_hot_in_symlog_space_is_the_value(values: list[float]) -> None:
    codec, x = SymlogTwoHot(symlog_mean=True), torch.tensor(values)
    # Symlogs up to 20 are sums of rounded terms, to some 2^-19; symexp makes that a relative error of the value.
    torch.testing.assert_close(codec.mean(codec.two_hot(x).log()), x, rtol=1e-5, atol=1e-5)


def test_in_symlog_space_the_mean_of_a_mixture_is_below_the_average_value() -> None:
    values = torch.tensor([1.0, 9.0])
    codec = SymlogTwoHot(symlog_mean=True)
    found = codec.mean(codec.two_hot(values).mean(0).log())
    torch.testing.assert_close(found, symexp(symlog(values).mean()), rtol=1e-5, atol=0)
    assert 3.4 < float(found) < 3.5


def test_initial_logits_have_mean_zero_and_small_tails() -> None:
    codec = SymlogTwoHot()
    # The bins of one sign add up to a mean of 0.1, summed in float32.
    assert abs(float(codec.mean(codec.initial_logits()))) < 1e-6
    assert float(codec.initial_logits().softmax(-1)[codec.bins.abs() > 100].sum()) < 1e-7


def test_values_out_of_range_are_encoded_as_the_outermost_bin() -> None:
    codec = SymlogTwoHot(5, limit=2.0)
    assert codec.two_hot(torch.tensor([1e9, -1e9])).tolist() == [[0, 0, 0, 0, 1], [1, 0, 0, 0, 0]]


def test_cross_entropy_equals_pytorchs_with_two_hot_targets() -> None:
    codec, logits = SymlogTwoHot(7, 3.0), torch.randn(4, 7)
    values = torch.tensor([0.0, 1.5, -2.0, 100.0])
    expected = torch.nn.functional.cross_entropy(logits, codec.two_hot(values), reduction="none")
    torch.testing.assert_close(codec.cross_entropy(logits, values), expected)


def test_uniform_logits_have_a_mean_of_exactly_zero() -> None:
    assert SymexpTwoHot().mean(torch.zeros(3, 255)).tolist() == [0.0] * 3


def test_both_orders_of_summation_agree() -> None:
    codec, plain = SymexpTwoHot(), SymlogTwoHot()
    values = torch.tensor([0.0, 1e-3, -0.5, 7.0, -300.0])
    logits = codec.two_hot(values).log()
    torch.testing.assert_close(codec.mean(logits), values)
    torch.testing.assert_close(codec.mean(logits), plain.mean(logits))


def test_an_even_number_of_bins_is_refused() -> None:
    with pytest.raises(ValueError, match="num_bins"):
        SymexpTwoHot(254)


def test_a_unit_gaussian_is_the_squared_error() -> None:
    codec = UnitGaussian()
    outputs, values = torch.randn(4, 3, 1), torch.randn(4, 3)
    assert torch.equal(codec.mean(outputs), outputs[..., 0])
    density = torch.distributions.Normal(outputs[..., 0], 1.0).log_prob(values)
    constant = 0.5 * torch.log(torch.tensor(2 * torch.pi))
    torch.testing.assert_close(codec.cross_entropy(outputs, values), -density - constant)
