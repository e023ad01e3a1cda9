"""Noise of a contraction's inputs and of its weights, which have kernels of their own. For the list ``hardware=``."""

from __future__ import annotations

import copy
import re

import torch
from torch import Tensor

from noisykernels._util.arguments import check_arguments
from noisykernels._util.checks import one_of, shown
from noisykernels.hardware.contraction import Contraction, largest_of, largest_of_rows
from noisykernels.hardware.device import Device, Draw
from noisykernels.hardware.panels import Cells, Parts, largest_of_all, level_of_rows
from noisykernels.noise.arguments import Key, level_tensor
from noisykernels.noise.contract import OPERANDS, STATISTICS
from noisykernels.noise.description import Noise
from noisykernels.noise.units import in_units

__all__ = ["InputNoise", "WeightNoise"]

_ops = torch.ops.noisykernels


_PART = re.compile(r"(group|tile):([1-9]\d{0,8})")


def part_sizes(part: str, most: int, inputs: int) -> list[int]:
    """How many inputs of an output feature each group or tile has.

    Example:
        >>> part_sizes("group", 4, 9), part_sizes("tile", 4, 9)
        ([4, 4, 1], [3, 3, 3])
    """
    count = -(-inputs // most)
    if part == "tile":
        return [inputs // count + (i < inputs % count) for i in range(count)]
    return [min(most, inputs - i * most) for i in range(count)]


def _one_term(name: str, noise: Noise) -> Noise:
    if noise.mode in ("mul_add", "add_mul"):
        raise ValueError(f"{name}: give add or mul, or both with fold=True, got {noise!r}")
    return noise


class InputNoise(Device):
    """Noise on what goes into a contraction: ``x + a*eps`` or ``x * (1 + m*eps)``, new for every row.

    Args:
        add, mul, kind, fold: as for `Noise`; both levels only with ``fold=True``.
        relative: None, or ``"rms"``, ``"max"`` or ``"std"`` of each row of the input, as for `Noise`.

    Example:
        >>> InputNoise(add=0.1)
        InputNoise(add=0.1)
    """

    operands = ("input",)

    def __init__(
        self,
        add: float | Tensor = 0.0,
        mul: float | Tensor = 0.0,
        *,
        kind: str = "gaussian",
        fold: bool = False,
        relative: str | None = None,
    ) -> None:
        if relative is not None:
            one_of("InputNoise", "relative", relative, STATISTICS)
        self.noise = _one_term("InputNoise", Noise(add, mul, kind=kind, fold=fold, relative=relative))

    def scaled(self, factor: float | Tensor) -> InputNoise:
        """This noise with its levels multiplied."""
        made = copy.copy(self)
        made.noise = self.noise.scaled(factor)
        return made

    def input(self, x: Tensor, draw: Draw) -> Tensor:
        """x with noise."""
        return self.perturbed(x, draw.key, False)

    def perturbed(self, x: Tensor, key: Key, shared: bool) -> Tensor:
        """x (rows, ...) with the noise of several draws."""
        add = level_tensor("input", "add", self.noise.add, x, self.noise.trusted)
        mul = level_tensor("input", "mul", self.noise.mul, x, self.noise.trusted)
        add = in_units("InputNoise", self.noise, add, x, key, shared)
        return _perturb(x, self.noise, "input", (add, mul), key, shared)

    def __repr__(self) -> str:
        return f"Input{self.noise!r}"


class WeightNoise(Cells):
    r"""Noise on the weights, drawn once for each draw and shared by all rows and positions: a draw is a chip.

    .. math:: W + a s \epsilon \qquad\text{or}\qquad W (1 + m \epsilon)

    with *s* = 1, or the largest magnitude of the weights in the same part of the layer.

    Args:
        add: level *a*: in units of the weights, or of what ``relative`` says.
        mul: level *m*.
        relative: None; ``"layer"``: *a* is a share of max|W| of the layer; ``"channel"``: of that of each output
            channel; ``"group:128"``: of that of each 128 weights of an output channel, as they are multiplied with one
            input after the other (the last group may be smaller), as weights are often quantised; ``"tile:512"``: the
            same where an array takes at most 512 inputs, and those of a layer are dealt out to as few arrays as evenly
            as can be. The maximum takes part in no gradient.
        kind, fold: as for `Noise`; both levels only with ``fold=True``.

    Raises:
        ValueError: bad levels, or an unknown ``relative``.

    Source: Joshi et al. 2020 (Nature Communications) for levels relative to max|W|; SAMSON (arXiv 2211.11561); Analog
    Foundation Models (arXiv 2505.09663) for those of channels and tiles.

    Example:
        >>> import noisykernels as nk
        >>> w = torch.eye(3)
        >>> y = nk.linear(torch.eye(3).repeat(2, 1), w, hardware=[WeightNoise(add=0.1, relative="layer")], seed=1)
        >>> bool((y[:3] == y[3:]).all())  # all rows see the same weights
        True
    """

    operands = ("weight",)
    of_array = True
    takes = (2, 4)

    def __init__(
        self,
        add: float | Tensor = 0.0,
        mul: float | Tensor = 0.0,
        *,
        relative: str | None = None,
        kind: str = "gaussian",
        fold: bool = False,
    ) -> None:
        self._hold(Noise(add, mul, kind=kind, fold=fold), relative)

    def _hold(self, noise: Noise, relative: str | None) -> None:
        part = _PART.fullmatch(relative) if isinstance(relative, str) else None
        if relative not in (None, "layer", "channel") and part is None:
            raise ValueError(
                "WeightNoise: relative must be None, 'layer', 'channel', or 'group:N' or 'tile:N' with a number of "
                f"inputs, got {shown(relative)}"
            )
        if relative is not None and noise.add is None:
            raise ValueError(f"WeightNoise: relative={relative!r} is about the level add, which is not given")
        self.noise, self.relative = _one_term("WeightNoise", noise), relative
        self._part = None if part is None else (part[1], int(part[2]))
        if self.by_part:  # a level for each weight
            self.takes = (5, 7)

    @classmethod
    def of(cls, noise: Noise, relative: str | None = None) -> WeightNoise:
        """Weights with a noise of one term.

        Example:
            >>> WeightNoise.of(Noise(mul=0.1))
            WeightNoise(mul=0.1)
        """
        check_arguments(WeightNoise.of, locals())
        made = object.__new__(cls)
        made._hold(noise, relative)
        return made

    def scaled(self, factor: float | Tensor) -> WeightNoise:
        """This noise with its levels multiplied."""
        made = copy.copy(self)
        made.noise = self.noise.scaled(factor)
        return made

    def levels(self, contraction: Contraction, weight: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Levels as the operators take them for a weight."""
        return self._levels(contraction, weight, largest_of(weight) if self.relative == "layer" else None)

    def _levels(
        self, contraction: Contraction, weight: Tensor, largest: Tensor | None, first: int = 0
    ) -> tuple[Tensor | None, Tensor | None]:
        """See `levels`; for the rows of a weight from `first` on, the largest of which is known."""
        noise = self.noise
        add = level_tensor(contraction.name, "add", noise.add, weight, noise.trusted)
        mul = level_tensor(contraction.name, "mul", noise.mul, weight, noise.trusted)
        add, mul = (None if level is None else level_of_rows(level, first, len(weight)) for level in (add, mul))
        if add is None or self.relative is None:
            return add, mul
        if largest is not None:
            return add * (largest.double() if largest.dim() == 0 else largest.double().unsqueeze(0)), mul
        if self.by_part:
            of_each = self._of_parts(contraction, weight)
        else:
            of_each = contraction.beside_weight(contraction.largest(weight), weight)
        return add * of_each.to(torch.float64).unsqueeze(0), mul

    def _of_parts(self, contraction: Contraction, weight: Tensor) -> Tensor:
        """max|W| of the group or tile of each weight."""
        assert self._part is not None
        matrix = contraction.by_feature(weight.detach())
        parts = matrix.split(part_sizes(*self._part, matrix.shape[1]), 1) if matrix.shape[1] else (matrix,)
        of_each = torch.cat([largest_of_rows(part).unsqueeze(1).expand_as(part) for part in parts], 1)
        return contraction.as_stored(of_each, weight)

    @property
    def by_channel(self) -> bool:
        """See `Cells`."""
        return self.relative == "channel"

    @property
    def by_part(self) -> bool:
        """See `Cells`."""
        return self._part is not None

    def measure(self, parts: Parts) -> Tensor | None:
        """See `Cells`: max|W|, for levels that are relative to it; parts of a feature each tell their own."""
        return None if self.relative is None or self.by_part else largest_of_all(parts, self.relative)

    def cells(self, weight: Tensor, draw: Draw, known: Tensor | None) -> Tensor:
        """The weight with noise."""
        levels = self._levels(draw.contraction, weight, known, draw.first)
        return _perturb(weight, self.noise, "weight", levels, draw.chip.of_rows(draw.first, len(weight)), True)

    def __repr__(self) -> str:
        inner = repr(self.noise).removeprefix("Noise(").removesuffix(")")
        return f"WeightNoise({inner}{f', relative={self.relative!r}' if self.relative else ''})"


def _perturb(
    x: Tensor, noise: Noise, operand: str, levels: tuple[Tensor | None, Tensor | None], key: Key, shared: bool
) -> Tensor:
    number = OPERANDS.index(operand)
    out: Tensor = _ops.perturb.default(x, number, *levels, *key, noise.mode_index, noise.kind_index, shared)
    return out
