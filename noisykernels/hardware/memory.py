"""Models of what holds the weights: pairs of conductances, phase-change memory. For the list ``hardware=``.

Each is a few lines of plain torch over `Draw`. Arithmetic is float32 for half types and the data's own type otherwise.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from noisykernels._util.checks import flag, in_range, one_of, whole
from noisykernels._util.tensors import constructed, kept_type, number, or_one, straight_through
from noisykernels.hardware.device import Draw
from noisykernels.hardware.grid import ROUNDINGS, Grid
from noisykernels.hardware.panels import Cells, Parts, largest_of_all

__all__ = ["PCM", "DifferentialPair"]


OVER = ("layer", "channel")
ALMOST = 1e-6  # of a step: a weight that is on the grid but for its last bits is not rounded down


# ------------------------------------------------------------------------------------------- weights


class DifferentialPair(Cells):
    r"""Each weight as the difference of two noisy conductances that cannot be negative.

    .. math::
        G^+ = \max(0,\; c W 1_{W>0} + \sigma\epsilon^+) \qquad G^- = \max(0,\; c |W| 1_{W<0} + \sigma\epsilon^-)
        \qquad \tilde W = (G^+ - G^-) / c \qquad c = G_{max} / W_{max}

    with both devices of a pair noisy, also the one that holds nothing. With ``levels`` *N* the weight is first put on
    a grid of :math:`\Delta = G_{max}/N`: :math:`W \leftarrow \lfloor cW/\Delta \rfloor \Delta / c`. As published, the
    sign is part of what is rounded down: 0.1 steps become none, and -0.1 steps become -1.

    Args:
        sigma: standard deviation of a conductance, in the unit of ``g_max``.
        g_max: the conductance that stands for the largest weight.
        levels: number *N* of steps up to ``g_max``; None: no quantisation.
        over: ``"layer"`` or output ``"channel"``: what :math:`W_{max} = \max|W|` is taken over.
        clip: whether conductances stop at 0. Without, the noise of a weight is Gaussian with a standard deviation of
            :math:`\sqrt 2\, \sigma W_{max} / G_{max}`.
        rounding: ``"floor"``, or ``"nearest"`` (ties to even), which treats both signs alike.

    The gradient passes straight through the rounding, and not where the device that holds the weight is clipped.
    :math:`W_{max}` takes part in no gradient. Weights that are all zero stay zero.

    Raises:
        ValueError, TypeError: a negative ``sigma``, a ``g_max`` that is not positive, fewer than 1 level, or an unknown
            ``over`` or ``rounding``.

    Source: MemSE (Kern et al. 2022, arXiv 2205.01707), by the group of SAMSON (arXiv 2211.11561).

    Example:
        >>> import noisykernels as nk
        >>> w = torch.tensor([[1.0, -0.3], [0.5, 0.0]])
        >>> nk.linear(torch.eye(2), w, hardware=[DifferentialPair(sigma=0.0, levels=4)], seed=1).T
        tensor([[ 1.0000, -0.5000],
                [ 0.5000,  0.0000]])
    """

    operands = ("g_plus", "g_minus")
    of_array = True
    takes = (9, 9)
    level_names = ("sigma",)

    def __init__(
        self,
        sigma: float | Tensor,
        *,
        g_max: float | Tensor = 1.0,
        levels: int | None = None,
        over: str = "layer",
        clip: bool = True,
        rounding: str = "floor",
    ) -> None:
        self.sigma = number("DifferentialPair", "sigma", sigma)
        self.g_max = number("DifferentialPair", "g_max", g_max, positive=True)
        self.levels = None if levels is None else in_range("DifferentialPair", "levels", levels, whole(1, 2**24))
        self.over = one_of("DifferentialPair", "over", over, OVER)
        self.rounding = one_of("DifferentialPair", "rounding", rounding, ROUNDINGS)
        self.clip = flag("DifferentialPair", "clip", clip)

    @property
    def by_channel(self) -> bool:
        """See `Cells`."""
        return bool(self.over == "channel")

    def measure(self, parts: Parts) -> Tensor | None:
        """See `Cells`."""
        return largest_of_all(parts, self.over)

    def cells(self, weight: Tensor, draw: Draw, known: Tensor | None) -> Tensor:
        """The weight as its pairs hold it. Everything is in units of weights: conductances divided by c."""
        kept = kept_type(weight)
        held = weight.to(kept)
        largest = draw.largest(held, self.over) if known is None else known.to(kept)
        if self.levels is not None:
            steps = held.double() / or_one(largest) * self.levels
            steps = torch.floor(steps + ALMOST) if self.rounding == "floor" else torch.round(steps)
            grid = Grid(largest, -self.levels, self.levels, weight.dtype)
            held = straight_through(grid.value(grid.beside(held.detach(), steps.detach().to(kept))), held)
        spread = (self.sigma / self.g_max).to(held.device, kept) * largest
        plus = torch.where(held >= 0, held, 0) + spread * draw.fixed(held.shape, "g_plus", dtype=kept)
        minus = torch.where(held < 0, -held, 0) + spread * draw.fixed(held.shape, "g_minus", dtype=kept)
        if self.clip:
            plus, minus = plus.clamp(min=0), minus.clamp(min=0)
        return (plus - minus).to(weight.dtype)

    def __repr__(self) -> str:
        return constructed("DifferentialPair", vars(self))


class PCM(Cells):
    r"""Weights in phase-change memory: programmed inexactly, drifting, and read with 1/f noise.

    With :math:`g = G_T / 25\,\mu S = |W| / \max|W|` the target of a device, in microsiemens, and *t* the seconds since
    the first reading, 20 s after programming:

    .. math::
        G_P &= \max(0, G_T + \sigma_P \epsilon_P) &\quad \sigma_P &= 0.26348 + 1.9650\,g - 1.1731\,g^2 \\
        G_D &= G_P \left(\tfrac{t + 20}{20}\right)^{-\nu} &\quad \nu &= |\mu_\nu + \sigma_\nu \epsilon_D| \\
        G_R &= \max(0, G_D + G_D Q s \epsilon_R)
            &\quad s^2 &= \ln \frac{t + 20 + t_r}{2 t_r}, \quad t_r = 250\,\text{ns}

    with :math:`\mu_\nu` = -0.0155 ln g + 0.0244 in [0.049, 0.1], :math:`\sigma_\nu` = -0.0125 ln g - 0.0059 in
    [0.008, 0.045], and Q = 0.0088 / (G_P / 25)^0.65, at most 0.2. A weight is the difference of two such devices, both
    programmed and read: :math:`(G_R^+ - G_R^-) \max|W| / 25` with the targets max(0, W) and max(0, -W). So a weight of
    zero is noisy, too. With ``pair=False`` it is one device with the weight's sign: the other one is left alone, and a
    weight of zero stays zero.

    Args:
        time: *t* in seconds; 0: the first reading, nothing has drifted, but there is the noise of reading.
        over: ``"layer"`` or output ``"channel"``: what max|W| is taken over.
        programming, drift, read: factors of :math:`\sigma_P`, :math:`\nu` and Q; 0 switches a stage off.
        pair: whether both devices of each weight are programmed, or only the one that holds it.
        compensate: multiply all weights by :math:`\sum G_P / \sum G_R`, what all devices of the layer together
            conducted when programmed over what they conduct now.

    A chip has one noise of each stage: at another ``time`` it is the same chip, with the same programmed conductances,
    drift coefficients and eps of the reading. The gradient is that of the formulas with eps held, none where something
    is clipped; max|W| and the compensation take part in none.

    Raises:
        ValueError, TypeError: a negative ``time`` or factor, or an unknown ``over``.

    Source: the fits to measured devices by Nandakumar et al. 2019 (ICECS) and Joshi et al. 2020 (Nature
    Communications), with the constants of IBM's aihwkit; global compensation of the drift after Joshi et al.

    Example:
        >>> import noisykernels as nk
        >>> x, w = torch.eye(3), torch.full((1, 3), -1.0)
        >>> year = PCM(time=3.15e7, programming=0.0, read=0.0)
        >>> bool((nk.linear(x, w, hardware=[year], seed=1) > -0.7).all())  # what is left of -1
        True
    """

    operands = ("programming", "drift", "read")
    of_array = True
    takes = (33, 61)
    level_names = ("programming", "drift", "read")
    largest_conductance = 25.0  # microsiemens
    first_reading = 20.0  # seconds after programming
    reading = 250e-9  # seconds that one takes

    def __init__(
        self,
        time: float | Tensor = 0.0,
        *,
        over: str = "layer",
        programming: float | Tensor = 1.0,
        drift: float | Tensor = 1.0,
        read: float | Tensor = 1.0,
        pair: bool = True,
        compensate: bool = False,
    ) -> None:
        self.time = number("PCM", "time", time)
        self.over = one_of("PCM", "over", over, OVER)
        self.programming = number("PCM", "programming", programming)
        self.drift = number("PCM", "drift", drift)
        self.read = number("PCM", "read", read)
        self.pair, self.compensate = flag("PCM", "pair", pair), flag("PCM", "compensate", compensate)

    @property
    def by_channel(self) -> bool:
        """See `Cells`."""
        return bool(self.over == "channel")

    def measure(self, parts: Parts) -> tuple[Tensor | None, Tensor | None]:
        """See `Cells`: max|W|, and the factor that makes up for the drift."""
        largest = largest_of_all(parts, self.over)
        if not self.compensate:
            return largest, None
        sums = []  # of each row, so that they do not depend on how many are added up together
        for weight, draw in parts():
            target, of_each = self._targets(weight, draw, largest)
            share = ((target != 0) | self.pair) / or_one(of_each)
            found = self._devices(target, of_each, draw)
            sums.append(torch.stack([(share * g).flatten(1).sum(1, dtype=torch.float64) for g in found]))
        before, now = torch.cat(sums, 1).sum(1)
        return largest, before / or_one(now)

    def cells(self, weight: Tensor, draw: Draw, known: tuple[Tensor | None, Tensor | None]) -> Tensor:
        """The weight as it is read. Conductances are in units of weights: times max|W| / 25."""
        largest, factor = known
        target, of_each = self._targets(weight, draw, largest)
        _, found = self._devices(target, of_each, draw)
        if factor is not None:
            found = found * factor.to(found.dtype)
        if self.pair:
            return (found[:, 0] - found[:, 1]).to(weight.dtype)
        return (found[:, 0] * weight.detach().sign()).to(weight.dtype)

    def _targets(self, weight: Tensor, draw: Draw, largest: Tensor | None) -> tuple[Tensor, Tensor]:
        """What the devices of each row are to hold, (rows, 1 or 2, ...), and the weight that is their largest."""
        kept = kept_type(weight)
        held = weight.to(kept)
        of_all = draw.largest(held, self.over) if largest is None else largest.to(kept)
        of_all = of_all if of_all.dim() == 0 else of_all.unsqueeze(1)
        if not self.pair:
            return held.abs().unsqueeze(1), of_all
        return torch.stack([torch.where(held >= 0, held, 0), torch.where(held < 0, -held, 0)], 1), of_all

    def _devices(self, target: Tensor, largest: Tensor, draw: Draw) -> tuple[Tensor, Tensor]:
        """Conductances of devices with these targets as they were programmed, and as they are read."""
        place, kept = target.device, target.dtype

        def eps(operand: str) -> Tensor:
            return draw.fixed(target.shape, operand, dtype=kept)

        unit, g_max = or_one(largest), self.largest_conductance
        g = target / unit
        sigma = (0.26348 + g * (1.9650 - 1.1731 * g)) / g_max * self.programming.to(place, kept)
        programmed = (target + largest * sigma * eps("programming")).clamp(min=0)

        log_g = _exact(torch.log, g.clamp(min=1e-7))  # beyond the bounds of mu and sigma long before
        mu, sigma = (-0.0155 * log_g + 0.0244).clamp(0.049, 0.1), (-0.0125 * log_g - 0.0059).clamp(0.008, 0.045)
        nu = (mu + sigma * eps("drift")).abs() * self.drift.to(place, kept)
        drifted = programmed * _exact(torch.exp, -nu * (self.time / self.first_reading).log1p().to(place, kept))

        since = self.time + self.first_reading
        s = ((since + self.reading) / (2 * self.reading)).log().sqrt()
        root = _exact(lambda share: share**0.65, (programmed / unit).clamp(min=1e-7))
        q = (0.0088 / root).clamp(max=0.2) * (self.read * s).to(place, kept)
        return programmed, (drifted + drifted * q * eps("read")).clamp(min=0)

    def __repr__(self) -> str:
        return constructed("PCM", vars(self))


def _exact(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """A function that is rounded once: in float32 its last bit depends on where a value lies in memory and on
    the number of threads, since vectors and what is left over have code of their own.
    """
    return function(x.double()).to(x.dtype)
