"""The size of each site of a model over data: what levels of noise can be shares of, the same for all rows."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from noisykernels._util.arguments import check_arguments
from noisykernels._util.checks import SHARE, in_range, one_of
from noisykernels._util.data import Data
from noisykernels._util.inputs import Call, Output
from noisykernels._util.runtime import unwrap
from noisykernels.injection.observer import Seen, watch
from noisykernels.injection.state import is_injected, state_of
from noisykernels.nn.modules import NoisyLayer
from noisykernels.noise.ranges import Ranges
from noisykernels.noise.units import row_scale

__all__ = ["calibrate"]

DROPPED = 16  # bits of a float32 that do not tell a bin of a quantile: what is left resolves 1/128
BINS = 1 << (32 - 1 - DROPPED)


class _Size(ABC):
    """The size of a site, from its values, rows in order."""

    @abstractmethod
    def add(self, x: Tensor) -> None:
        """Values (rows, ...)."""

    @abstractmethod
    def value(self) -> float:
        """Of all values so far."""


class _Max(_Size):
    def __init__(self) -> None:
        self.most = 0.0

    def add(self, x: Tensor) -> None:
        self.most = max([self.most, *row_scale(x, "max").tolist()])

    def value(self) -> float:
        return self.most


class _Rms(_Size):
    """Of all elements; sums over rows are rounded once, at the end."""

    def __init__(self) -> None:
        self.squares: list[float] = []
        self.count = 0

    def add(self, x: Tensor) -> None:
        counts = x.isfinite().view(len(x), -1).sum(1)
        self.squares += (row_scale(x, "rms").square() * counts).tolist()
        self.count += int(counts.sum())

    def value(self) -> float:
        return math.sqrt(math.fsum(self.squares) / max(1, self.count))


class _Moving(_Size):
    """The deviation of a row, each new one with this weight beside those before."""

    def __init__(self, momentum: float) -> None:
        self.momentum, self.found = momentum, math.nan

    def add(self, x: Tensor) -> None:
        for size in row_scale(x, "std").tolist():
            self.found = size if math.isnan(self.found) else self.found + self.momentum * (size - self.found)

    def value(self) -> float:
        return 0.0 if math.isnan(self.found) else self.found


class _Quantile(_Size):
    """Magnitudes are counted in bins, which no order of them changes."""

    def __init__(self, share: float) -> None:
        self.share, self.most, self.counts = share, _Max(), torch.zeros(BINS, dtype=torch.int64)

    def add(self, x: Tensor) -> None:
        self.most.add(x)
        sizes = x[x.isfinite()].abs().float().clamp(max=torch.finfo(torch.float32).max)
        self.counts += torch.bincount(sizes.view(torch.int32) >> DROPPED, minlength=BINS).cpu()

    def value(self) -> float:
        total = int(self.counts.sum())
        if total == 0:
            return 0.0
        wanted = min(total, math.ceil(self.share * total))
        found = int(torch.searchsorted(self.counts.cumsum(0), max(1, wanted)))
        above = torch.tensor((found + 1) << DROPPED, dtype=torch.int32).view(torch.float32)  # of the bin's largest
        return min(float(above), self.most.value())


METHODS = {"max": _Max, "rms": _Rms, "quantile": _Quantile, "moving": _Moving}
SHARES = {"quantile": 0.999, "moving": 0.01}  # what is taken where none is given


def calibrate(
    model: nn.Module,
    data: Data,
    *,
    method: str = "max",
    share: float | None = None,
    batch_size: int = 500,
    forward: Callable[..., Any] | None = None,
    output: Output = None,
) -> Ranges:
    """The size of the value at every site of a model, over data in evaluation mode and without noise.

    ``Noise(add=0.05, relative=calibrate(model, data))`` is noise of a twentieth of each site's largest magnitude: a
    fixed range, as converters have it, where ``relative="max"`` would follow each row.

    Args:
        model: without noise; with ``inject(model, None, detail=True)`` the products of attention have sizes as well.
        data: in any of the forms of ``docs/guides/data.md``; labels are not used.
        method: ``"max"``: the largest magnitude; ``"rms"``: the root mean square of all elements; ``"quantile"``: what
            a share of all magnitudes do not exceed, to within 1/128 above; ``"moving"``: the moving average of the
            standard deviation of each row, rows in order, of which each new one has a share.
        share: that share, in [0, 1]: None: 0.999 of a quantile, 0.01 of a moving average; others have none.
        batch_size: rows of a batch, where `data` are no batches. How rows are cut into batches changes nothing but how
            the model itself rounds.
        forward, output: how the model is called, and which tensor is its output, as for `walk`.

    Returns:
        A number for each site that has rows, see `Ranges`. Elements that are infinite or NaN do not count.

    Raises:
        ValueError: an unknown method, a share out of range or of a method that has none, a model that draws noise, or
            no data.

    Source: the calibrations of input ranges in IBM's aihwkit-lightning: maximum, quantile, moving deviation.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 1, bias=False), nn.ReLU())
        >>> _ = nn.init.ones_(model[0].weight)
        >>> dict(calibrate(model, torch.tensor([[1.0, 2.0], [-4.0, 1.0]])))
        {'input': 4.0, '0:linear#0': 3.0, '1:relu#0': 3.0}
    """
    check_arguments(calibrate, locals())
    one_of("calibrate", "method", method, tuple(METHODS))
    if share is not None and method not in SHARES:
        raise ValueError(f"calibrate: share goes with method {' or '.join(map(repr, SHARES))}, got {method!r}")
    given = SHARES.get(method) if share is None else in_range("calibrate", "share", share, SHARE)
    of_method = [] if given is None else [given]
    if any(isinstance(m, NoisyLayer) and m.noisy for m in model.modules()) or _draws(unwrap(model)):
        raise ValueError("calibrate: model must draw no noise: remove() it, and inject() it with the ranges after")
    call, sizes = Call("calibrate", forward, output), dict[str, _Size]()

    def look(seen: Seen) -> None:
        if seen.site not in sizes:
            sizes[seen.site] = METHODS[method](*of_method)
        if len(seen.clean):
            sizes[seen.site].add(seen.clean.detach())

    watch(call, model, data, look, seed=None, level=None, batch_size=batch_size)
    return Ranges({site: size.value() for site, size in sizes.items()}, " ".join([method, *map(str, of_method)]))


def _draws(model: nn.Module) -> bool:
    return is_injected(model) and state_of(model).draws_noise
