"""Means with 95% confidence intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Band", "bin_means", "mean_interval", "mean_over_runs", "success_interval", "window_means"]

Array = NDArray[np.float64]

NORMAL = 1.96
STUDENT = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)
"""The 97.5% quantile of Student's t with 1 to 30 degrees of freedom."""


class Band(NamedTuple):
    """A curve with an interval.

    Attributes:
        x: (N,) positions.
        mean: (N,) means.
        half: (N,) half the width of the interval; NaN where there is nothing to compute it from.
    """

    x: Array
    mean: Array
    half: Array


def mean_interval(
    values: Sequence[float] | Array, weights: Sequence[float] | Array | None = None
) -> tuple[float, float]:
    """A weighted mean of independent values, and half the width of its 95% confidence interval.

    With weights w_i that add up to 1, the standard error is sqrt(n / (n − 1) · Σ w_i² (x_i − mean)²), which is that of
    the mean for equal weights. It is multiplied by the quantile of Student's t with n − 1 degrees of freedom.

    Args:
        values: at least one.
        weights: such as the number of episodes that each value is the mean of; equal where None.

    Returns:
        the mean and half the width, which is NaN for one value.
    """
    x = np.asarray(values, dtype=np.float64)
    w = np.ones_like(x) if weights is None else np.asarray(weights, dtype=np.float64)
    w = w / w.sum()
    mean, n = float((w * x).sum()), len(x)
    if n < 2:
        return mean, float("nan")
    error = np.sqrt(n / (n - 1) * (w**2 * (x - mean) ** 2).sum())
    return mean, float(_quantile(n - 1) * error)


def success_interval(rate: float, episodes: float) -> tuple[float, float]:
    """Wilson's 95% confidence interval of a success rate.

    Args:
        rate: observed, from 0 to 1.
        episodes: number of them.

    Returns:
        its lower and upper end.
    """
    z2 = NORMAL**2 / episodes
    center = (rate + z2 / 2) / (1 + z2)
    half = NORMAL * np.sqrt(rate * (1 - rate) / episodes + z2 / (4 * episodes)) / (1 + z2)
    return float(max(0.0, center - half)), float(min(1.0, center + half))


def window_means(x: Array, values: Array, weights: Array, window: int) -> Band:
    """Means over windows of consecutive values, one for each value.

    The interval treats the values of a window as independent measurements of one mean. A trend within a window makes
    it wider, not narrower.

    Args:
        x: (N,) positions.
        values: (N,) values.
        weights: (N,) numbers of episodes that the values are means of.
        window: values in a window, which is centred. At both ends it is cut off.
    """
    half = window // 2
    windows = [slice(max(0, i - half), i + half + 1) for i in range(len(values))]
    means = [mean_interval(values[each], weights[each]) for each in windows]
    return Band(x, np.array([m for m, _ in means]), np.array([h for _, h in means]))


def bin_means(x: Array, values: Array, bins: int) -> Band:
    """Means of the values in bins of equal width from 0 to the last position. Empty bins are left out.

    Args:
        x: (N,) positions, above 0.
        values: (N,) one for each episode.
        bins: number of bins.

    Returns:
        means at the mean positions of the bins.
    """
    last = float(x.max())
    index = np.minimum((x / last * bins).astype(int), bins - 1) if last > 0 else np.zeros(len(x), int)
    used = [index == each for each in np.unique(index)]
    means = [mean_interval(values[where]) for where in used]
    return Band(
        np.array([x[where].mean() for where in used]), np.array([m for m, _ in means]), np.array([h for _, h in means])
    )


def mean_over_runs(bands: Sequence[Band], points: int = 100) -> Band | None:
    """The mean of several runs' curves where all of them are, with its interval over runs; None if that is nowhere.

    Args:
        bands: at least two curves, each with increasing positions.
        points: of the result.
    """
    start, stop = max(band.x[0] for band in bands), min(band.x[-1] for band in bands)
    if stop < start:
        return None
    x = np.linspace(start, stop, points)
    values = np.stack([np.interp(x, band.x, band.mean) for band in bands])
    means = [mean_interval(column) for column in values.T]
    return Band(x, np.array([m for m, _ in means]), np.array([h for _, h in means]))


def _quantile(degrees: int) -> float:
    return STUDENT[degrees - 1] if degrees <= len(STUDENT) else NORMAL
