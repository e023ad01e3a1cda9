"""What noise-aware training does to a network: signal and noise at its sites, its weights, and logs of both."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from noisykernels._optional import optional
from noisykernels.sites import kind_of
from noisykernels.watching import Data, Seen, watch

__all__ = [
    "MetricLog",
    "SiteStatistics",
    "WeightStatistics",
    "bimodality",
    "site_statistics",
    "two_means",
    "weight_statistics",
]

# ------------------------------------------------------------------------------------------------------------- sites


class SiteStatistics(NamedTuple):
    """The signal at a site, before its noise, over all rows and elements; and the noise that it gets there."""

    site: str
    site_index: int  # in execution order
    kind: str
    values: int  # rows x elements of a row
    mean: float
    variance: float
    power: float  # E[x^2]
    zeros: float  # share of values that are exactly 0
    noise_power: float  # in units of the value, squared
    snr: float  # variance / noise_power
    snr_db: float


class _Sums:
    """Running count, mean and squared deviations of a site's values, and sums of what else is asked for."""

    def __init__(self) -> None:
        self.count, self.mean, self.deviations, self.zeros, self.noise = 0, 0.0, 0.0, 0, 0.0

    def add(self, seen: Seen) -> None:
        x = seen.clean.detach().double()
        n, mean = x.numel(), float(x.mean())
        if n == 0:
            return
        shift, total = mean - self.mean, self.count + n
        self.deviations += float((x - mean).square().sum()) + shift**2 * self.count * n / total
        self.mean += shift * n / total
        self.count = total
        self.zeros += int((x == 0).sum())
        self.noise += noise_power(seen, x)

    def record(self, site: str, index: int) -> SiteStatistics:
        variance, noise = self.deviations / self.count, self.noise / self.count
        snr = variance / noise if noise > 0 else math.inf if variance > 0 else math.nan
        return SiteStatistics(
            site=site,
            site_index=index,
            kind=kind_of(site),
            values=self.count,
            mean=self.mean,
            variance=variance,
            power=variance + self.mean**2,
            zeros=self.zeros / self.count,
            noise_power=noise,
            snr=snr,
            snr_db=10 * math.log10(snr) if snr > 0 else -math.inf if snr == 0 else math.nan,
        )


def noise_power(seen: Seen, x: Tensor) -> float:
    """Sum over the values x of the variance that their noise has: a^2 + m^2 x^2, and a^2 m^2 with order `add_mul`."""
    if seen.noise is None:
        return 0.0

    def squared(level: Tensor | None) -> Tensor | float:
        if level is None:
            return 0.0
        level = level.to(device=x.device, dtype=torch.float64)
        return (level if level.dim() == 0 else level[0]).square()  # dimension 0 counts draws, of which there is one

    a, m = squared(seen.noise.add), squared(seen.noise.mul)
    variance = m * x.square() + a + (a * m if seen.noise.mode == "add_mul" else 0.0)
    return float(variance.expand(x.shape).sum()) / seen.repeats


def site_statistics(
    model: nn.Module, data: Data, *, seed: int | Tensor | None = None, level: Any = None, batch_size: int = 500
) -> list[SiteStatistics]:
    r"""Signal, noise power and their ratio at every site, over data in evaluation mode, with its noise.

    .. math::
        \text{SNR} = \operatorname{Var}(x) / P, \qquad
        P = a^2 + m^2 \operatorname{E}[x^2] \quad (+\, a^2 m^2 \text{ for order add\_mul}), \qquad
        \text{dB} = 10 \log_{10} \text{SNR}

    *x* is the value that reaches the noise of a site, with the noise of earlier sites in it; Var and E are taken over
    all rows and all elements, Var around the one mean of all of them. *P* is the expected power of the site's own noise
    given *x*, for every kind of noise, and for additive noise just :math:`\sigma^2`; `repeats`,
    `normalize_to_input_size` and levels of any shape are accounted for, *P* being the mean where levels differ. The
    share of exact zeros is the pattern that multiplicative noise leaves alone: what a self-binarised network computes
    with.

    Args:
        model: injected, with noisy layers, or without noise (then the ratio is infinite).
        data: inputs or (inputs, labels), tensors; or any other iterable of batches, each likewise. The labels are not
            used. Rows are numbered through all batches.
        seed: 64-bit seed of the noise; None draws from torch's default generator.
        level: factor of all noise, as for `noise_state`; a vector fits a single batch only.
        batch_size: rows of a batch, where `data` are tensors.

    Returns:
        A `SiteStatistics` for every site that has rows, in execution order. ``pandas.DataFrame`` takes the list.

    Raises:
        TypeError: a batch that is no tensor and does not begin with one.
        ValueError: no data.

    Source: Walking Noise (arXiv 2212.10430), which logs Var(signal) / sigma^2; the power of multiplicative and mixed
    noise by its definition.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU())
        >>> with nk.inject(model, nk.Noise(add=0.5), where="0"):
        ...     records = site_statistics(model, torch.randn(100, 4), seed=1)
        >>> [(r.site, round(r.noise_power, 2)) for r in records]
        [('input', 0.0), ('0:linear#0', 0.25), ('1:relu#0', 0.0)]
    """
    sums: dict[str, _Sums] = {}

    def look(seen: Seen) -> None:
        sums.setdefault(seen.site, _Sums()).add(seen)

    watch("site_statistics", model, data, look, seed=seed, level=level, batch_size=batch_size)
    return [one.record(site, index) for index, (site, one) in enumerate(sums.items())]


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
    x = _centred(values)
    n = x.numel()
    if n < 4:
        return math.nan
    m2, m3, m4 = (float(x.pow(k).mean()) for k in (2, 3, 4))
    skewness = math.sqrt(n * (n - 1)) / (n - 2) * m3 / m2**1.5
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
    x = _centred(values).sort().values
    n = x.numel()
    if n == 0:
        return math.nan
    k = torch.arange(1, n, dtype=torch.float64, device=x.device)
    between = x.cumsum(0)[:-1].square() * n / (k * (n - k))
    return min(1.0, float(between.max() / x.square().sum()))


# --------------------------------------------------------------------------------------------------------------- log


class MetricLog:
    """Keeps what given measures say after each epoch; an `on_epoch` of `train`, or for a loop of your own.

    Args:
        **measures: functions without arguments that return records (named tuples), by name.

    Raises:
        TypeError: a measure that cannot be called.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 3))
        >>> log = MetricLog(weights=lambda: nk.weight_statistics(model))
        >>> for epoch in (1, 2):  # or train(..., on_epoch=log)
        ...     log({"epoch": epoch})
        >>> [(record["epoch"], record["weight"]) for record in log.records["weights"]]
        [(1, '0.weight'), (2, '0.weight')]
    """

    def __init__(self, **measures: Callable[[], Iterable[Any]]) -> None:
        for name, measure in measures.items():
            if not callable(measure):
                raise TypeError(f"MetricLog: {name} must be a function that measures, got {type(measure).__name__}")
        self.measures = measures
        self.records: dict[str, list[dict[str, Any]]] = {name: [] for name in measures}

    def __call__(self, epoch: Mapping[str, float]) -> None:
        """Measures; `epoch["epoch"]` says when that is."""
        for name, measure in self.measures.items():
            self.records[name] += [{"epoch": epoch["epoch"], **record._asdict()} for record in measure()]

    def to_pandas(self, name: str) -> Any:
        """The records of one measure as a table: a row for each epoch and site or weight.

        Raises:
            KeyError: no such measure.
            ModuleNotFoundError: pandas is not installed.
        """
        if name not in self.records:
            raise KeyError(f"MetricLog.to_pandas: expected one of {', '.join(self.records)}, got {name!r}")
        return optional("pandas", "table").DataFrame(self.records[name])
