"""How the weights of a network are distributed."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from noisykernels._util.arguments import check_arguments

__all__ = ["WeightStatistics", "bimodality", "two_means", "weight_statistics"]


# ----------------------------------------------------------------------------------------------------------- weights


class WeightStatistics(NamedTuple):
    """Size and shape of one weight tensor."""

    weight: str  # its name in the model
    kind: str  # class of the layer that holds it
    values: int
    l2: float
    max_abs: float
    mean_abs: float
    extremes: float  # share of weights of at least 0.9 max_abs
    bimodality: float  # see `bimodality`
    two_means: float  # see `two_means`


def weight_statistics(model: nn.Module) -> list[WeightStatistics]:
    r"""Norms and shape of every weight: does the network grow its weights against the noise, do they become binary?

    .. math::
        \lVert w \rVert_2 = \sqrt{\textstyle\sum w^2}, \qquad \max |w|, \qquad \operatorname{mean} |w|, \qquad
        \text{extremes} = \operatorname{mean}[\,|w| \ge 0.9 \max |w|\,]

    Args:
        model: any model. Its weights are the parameters whose name contains "weight", batch norms' too; a shared one
            counts once.

    Returns:
        A `WeightStatistics` for each, in the model's order. ``pandas.DataFrame`` takes the list.

    Source: Walking Noise (arXiv 2212.10430) for the norms.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> _ = layer.weight.data.copy_(torch.tensor([[3.0, -4.0], [0.0, 0.0]]))
        >>> found = weight_statistics(layer)[0]
        >>> found.weight, found.l2, found.max_abs, found.mean_abs, found.extremes
        ('weight', 5.0, 4.0, 1.75, 0.25)
    """
    check_arguments(weight_statistics, locals())
    records = []
    for name, weight in model.named_parameters():
        path, _, own = name.rpartition(".")
        if "weight" not in own:
            continue
        size = weight.detach().double().abs()
        largest = float(size.max()) if size.numel() else 0.0
        records.append(
            WeightStatistics(
                weight=name,
                kind=type(model.get_submodule(path)).__name__,
                values=size.numel(),
                l2=float(torch.linalg.vector_norm(size)),
                max_abs=largest,
                mean_abs=float(size.mean()),
                extremes=float((size >= 0.9 * largest).double().mean()) if largest > 0 else math.nan,
                bimodality=bimodality(weight),
                two_means=two_means(weight),
            )
        )
    return records


def _centred(values: Tensor) -> Tensor:
    """The values less their mean, at most 1 in magnitude; empty where they are all the same."""
    x = values.detach().double().flatten()
    if x.numel() == 0 or bool((x == x[0]).all()):
        return x[:0]
    x = x / x.abs().max()
    x = x - x.mean()
    return x / x.abs().max()


def bimodality(values: Tensor) -> float:
    r"""Sarle's coefficient of bimodality, corrected for the finite sample: 1/3 for a normal law, 5/9 for a uniform one,
    1 for two equally likely values.

    .. math::
        \frac{g_1^2 + 1}{g_2 + 3 \frac{(n-1)^2}{(n-2)(n-3)}}

    with :math:`g_1` the unbiased skewness and :math:`g_2` the unbiased excess kurtosis,

    .. math::
        g_1 = \frac{\sqrt{n(n-1)}}{n-2} \frac{m_3}{m_2^{3/2}}, \qquad
        g_2 = \frac{n-1}{(n-2)(n-3)} \left((n+1) \left(\frac{m_4}{m_2^2} - 3\right) + 6\right), \qquad
        m_k = \frac1n \sum (x - \bar x)^k.

    More than 5/9 speaks for two heads, or for a heavy skew: look at `two_means` too.

    Args:
        values: any shape and floating-point dtype.

    Returns:
        The coefficient; NaN for fewer than 4 values, and where all are the same.

    Source: the bimodality coefficient of the SAS/STAT manual (CLUSTER procedure).

    Example:
        >>> round(bimodality(torch.tensor([-1.0, 1.0] * 500)), 3)
        0.995
    """
    check_arguments(bimodality, locals())
    x = _centred(values)
    n = x.numel()
    if n < 4:
        return math.nan
    m2, m3, m4 = (float(x.pow(k).mean()) for k in (2, 3, 4))
    skewness: float = math.sqrt(n * (n - 1)) / (n - 2) * m3 / m2**1.5
    kurtosis = (n - 1) / ((n - 2) * (n - 3)) * ((n + 1) * (m4 / m2**2 - 3) + 6)
    return (skewness**2 + 1) / (kurtosis + 3 * (n - 1) ** 2 / ((n - 2) * (n - 3)))


def two_means(values: Tensor) -> float:
    r"""Share of the variance that the best split into two groups explains: 1 for binary values, 3/4 for a uniform law,
    2/pi for a normal one.

    .. math:: \max_k \frac{n}{k (n - k)} \Big(\sum_{i \le k} (x_{(i)} - \bar x)\Big)^2 \Big/ \sum_i (x_i - \bar x)^2

    over the sorted values: two-means clustering, exact in one dimension.

    Args:
        values: any shape and floating-point dtype.

    Returns:
        The share, in (0, 1]; NaN where all values are the same.

    Source: the definition of two-means clustering.

    Example:
        >>> two_means(torch.tensor([-2.0, 3.0, 3.0, -2.0]))
        1.0
    """
    check_arguments(two_means, locals())
    x = _centred(values).sort().values
    n = x.numel()
    if n == 0:
        return math.nan
    k = torch.arange(1, n, dtype=torch.float64, device=x.device)
    between = x.cumsum(0)[:-1].square() * n / (k * (n - k))
    return min(1.0, float(between.max() / x.square().sum()))
