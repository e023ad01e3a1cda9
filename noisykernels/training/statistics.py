"""What the values at the sites of a network look like, with and without noise."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from noisykernels._util.arguments import check_arguments
from noisykernels._util.data import Data
from noisykernels._util.inputs import Call, Output
from noisykernels.injection.observer import Seen, watch
from noisykernels.injection.site import kind_of
from noisykernels.noise.description import Noise
from noisykernels.noise.units import row_scale

__all__ = ["SiteStatistics", "site_statistics"]


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
    if not isinstance(seen.noise, Noise):
        raise ValueError(
            f"site_statistics: noise must be a Noise, whose power is known, got a function at {seen.site!r}"
        )

    def squared(level: Tensor | None) -> Tensor | float:
        if level is None:
            return 0.0
        level = level.to(device=x.device, dtype=torch.float64)
        return (level if level.dim() == 0 else level[0]).square()  # dimension 0 counts draws, of which there is one

    a, m = squared(seen.noise.add), squared(seen.noise.mul)
    if isinstance(seen.noise.relative, str):
        a = a * row_scale(seen.clean, seen.noise.relative).square().view(-1, *[1] * (x.dim() - 1))
    variance = m * x.square() + a + (a * m if seen.noise.mode == "add_mul" else 0.0)
    return float(variance.expand(x.shape).sum()) / seen.repeats


def site_statistics(
    model: nn.Module, data: Data, *, seed: int | Tensor | None = None, level: Any = None, batch_size: int = 500,
    forward: Callable[..., Any] | None = None, output: Output = None,
) -> list[SiteStatistics]:  # fmt: skip
    r"""Signal, noise power and their ratio at every site, over data in evaluation mode, with its noise.

    .. math::
        \text{SNR} = \operatorname{Var}(x) / P, \qquad
        P = a^2 + m^2 \operatorname{E}[x^2] \quad (+\, a^2 m^2 \text{ for order add\_mul}), \qquad
        \text{dB} = 10 \log_{10} \text{SNR}

    *x* is the value that reaches the noise of a site, with the noise of earlier sites in it; Var and E are taken over
    all rows and all elements, Var around the one mean of all of them. *P* is the expected power of the site's own noise
    given *x*, for every kind of noise, and for additive noise just :math:`\sigma^2`; `repeats`,
    `normalize_to_input_size`, units and levels of any shape are accounted for, *P* being the mean where they differ.
    The share of exact zeros is the pattern that multiplicative noise leaves alone: what a self-binarised network
    computes with.

    Args:
        model: injected, with noisy layers, or without noise (then the ratio is infinite).
        data: in any of the forms of ``docs/guides/data.md``; labels are not used. Rows count on through all batches.
        seed: 64-bit seed of the noise; None draws from torch's default generator.
        level: factor of all noise, as for `noise_state`; a vector fits a single batch only.
        batch_size: rows of a batch, where `data` are no batches.
        forward: how the model is called, as for `walk`; what the function itself computes beside it is no site.
        output: what of its result is the output, as for `walk`; the statistics do not depend on it.

    Returns:
        A `SiteStatistics` for every site that has rows, in execution order. ``pandas.DataFrame`` takes the list.

    Raises:
        TypeError: a batch that is no tensor and does not begin with one.
        ValueError: no data, or a function of the value in place of a noise.

    Source: Walking Noise (arXiv 2212.10430), which logs Var(signal) / sigma^2; the power of multiplicative and mixed
    noise by its definition.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU())
        >>> with nk.inject(model, nk.Noise(add=0.5), where="0"):
        ...     records = site_statistics(model, torch.randn(100, 4), seed=1)
        >>> [(r.site, round(r.noise_power, 2)) for r in records]
        [('input', 0.0), ('0:linear#0', 0.25), ('1:relu#0', 0.0)]
    """
    check_arguments(site_statistics, locals())
    call = Call("site_statistics", forward, output)
    sums: dict[str, _Sums] = {}

    def look(seen: Seen) -> None:
        sums.setdefault(seen.site, _Sums()).add(seen)

    watch(call, model, data, look, seed=seed, level=level, batch_size=batch_size)
    return [one.record(site, index) for index, (site, one) in enumerate(sums.items())]
