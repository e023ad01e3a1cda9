"""What noise: the `Noise` description, its levels, and the helpers that shape them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from noisykernels._util.arguments import check_arguments
from noisykernels._util.checks import Range, flag, in_range, one_of, shown
from noisykernels._util.tensors import can_look
from noisykernels.noise.contract import KINDS, MODES, STATISTICS
from noisykernels.noise.ranges import Ranges

__all__ = ["Noise", "per_channel", "per_draw", "per_row", "single_level"]


class Noise:
    r"""Additive, multiplicative or mixed noise of a given kind and level.

    .. math::
        \text{add:}\; x + a\,\epsilon_a \qquad \text{mul:}\; x\,(1 + m\,\epsilon_m) \qquad
        \text{mul\_add:}\; x\,(1 + m\,\epsilon_m) + a\,\epsilon_a \qquad
        \text{add\_mul:}\; (x + a\,\epsilon_a)(1 + m\,\epsilon_m)

    with :math:`\epsilon` of mean 0 and variance 1. Which terms are there is fixed at construction: a level that is the
    number 0 leaves its term out, a tensor keeps it whatever its value.

    Args:
        add: level *a*, in units of the value; a number, or a tensor that is 0-d or of rank ``1 + value.ndim``
            broadcasting to (draws, rows, *item) (see `per_draw`, `per_row`, `per_channel`).
        mul: level *m*, relative; likewise.
        order: ``"mul_add"`` (the paper's default) or ``"add_mul"``; matters where both terms are there.
        kind: ``"gaussian"``, ``"uniform"`` or ``"laplace"``.
        fold: draw Gaussian ``mul_add`` noise as the single term :math:`\sqrt{m^2x^2 + a^2}\,\epsilon_a`: the same
            distribution from half the random numbers, but other noise, and without a gradient. Only mixed noise
            changes. An infinite *x* becomes NaN where the eps is negative.

    Raises:
        ValueError: a negative, NaN or infinite level, an unknown order or kind, or a fold that does not exist.
        TypeError: a level that is neither a number nor a floating-point tensor.

    Source: Walking Noise (arXiv 2212.10430). Two are equal that are the same noise: of one mode and kind, with the same
    numbers as levels; levels that are tensors, which may change, equal tensors that hold the same now.

    Example:
        >>> Noise(add=0.1)
        Noise(add=0.1)
        >>> Noise(add=0.1) == Noise(add=0.1), len({Noise(add=0.1), Noise(add=0.1), Noise(add=0.2)})
        (True, 2)
        >>> Noise.amplitude(2.0, ratio=0.25)
        Noise(add=0.5, mul=1.5)
        >>> import noisykernels as nk
        >>> nk.perturb(torch.tensor([[0.0, 0.0], [3.0, 4.0]]), Noise(add=0.1, relative="max"), seed=1)[0]
        tensor([0., 0.])
    """

    def __init__(
        self,
        add: float | Tensor = 0.0,
        mul: float | Tensor = 0.0,
        *,
        order: str = "mul_add",
        kind: str = "gaussian",
        fold: bool = False,
        relative: str | Ranges | None = None,
    ) -> None:
        one_of("Noise", "order", order, ("mul_add", "add_mul"))
        one_of("Noise", "kind", kind, KINDS)
        flag("Noise", "fold", fold)
        if fold and (order != "mul_add" or kind != "gaussian"):
            raise ValueError("Noise: fold exists for gaussian noise of order 'mul_add' only")
        self.order, self.kind, self.fold = order, kind, bool(fold)
        self.add = _level("add", add)
        self.mul = _level("mul", mul)
        self.relative = _unit(relative, self.add)
        if self.mul is None:
            self.mode = "add"  # also no noise at all: level 0
            self.add = _constant(0.0) if self.add is None else self.add
        elif self.add is None:
            self.mode = "mul"
        else:
            self.mode = "fold" if fold else order
        self.mode_index = MODES.index(self.mode)
        self.kind_index = KINDS.index(kind)
        # Levels made here from numbers are known to be good; a caller's tensor is looked at whenever it is used.
        self.trusted = not (isinstance(add, Tensor) or isinstance(mul, Tensor))
        self.largest = float(max(add, mul)) if self.trusted else 0.0  # what is known of them without a look

    @classmethod
    def amplitude(
        cls,
        A: float | Tensor,
        ratio: float | Tensor,
        *,
        order: str = "mul_add",
        kind: str = "gaussian",
        fold: bool = False,
        relative: str | Ranges | None = None,
    ) -> Noise:
        """The published amplitude form: ``add = A * ratio``, ``mul = A * (1 - ratio)``, ratio in [0, 1].

        Example:
            >>> Noise.amplitude(1.0, ratio=1.0)
            Noise(add=1.0)
        """
        if not isinstance(ratio, Tensor):
            in_range("Noise.amplitude", "ratio", ratio)
        if not isinstance(A, Tensor):
            in_range("Noise.amplitude", "A", A, Range(0))
        unit = None if not isinstance(ratio, Tensor) and ratio == 0 else relative  # of the term that is not there
        return cls(A * ratio, A * (1 - ratio), order=order, kind=kind, fold=fold, relative=unit)

    def scaled(self, factor: float | Tensor) -> Noise:
        """This noise with both levels multiplied by ``factor``, as a walk does with its levels.

        A number factor multiplies number levels; terms that are there stay there, also at factor 0.

        Example:
            >>> Noise(add=0.5, mul=1.0).scaled(2.0)
            Noise(add=1.0, mul=2.0)
        """
        if not isinstance(factor, Tensor):
            in_range("Noise.scaled", "factor", factor, Range(0))
        scaled = object.__new__(Noise)
        scaled.__dict__.update(self.__dict__)
        scaled.add = None if self.add is None else self.add * factor
        scaled.mul = None if self.mul is None else self.mul * factor
        # Compiled code knows nothing of numbers: it would be made anew for others.
        scaled.trusted = self.trusted and not isinstance(factor, Tensor) and not torch.compiler.is_compiling()
        if scaled.trusted:
            assert not isinstance(factor, Tensor)
            scaled.largest = self.largest * factor
            if not math.isfinite(scaled.largest):
                raise ValueError(f"Noise.scaled: level {self.largest} times factor {factor} is not finite")
        return scaled

    def at(self, site: str) -> Noise:
        """This noise at a site of a model: in units of the value, where it is relative to the site's range.

        Raises:
            ValueError: the ranges know no such site.

        Example:
            >>> Noise(add=0.5, relative=Ranges({"input": 4.0}, method="max")).at("input")
            Noise(add=2.0)
        """
        if not isinstance(site, str):
            raise TypeError(f"Noise.at: site must be a name, got {shown(site)}")
        if not isinstance(self.relative, Ranges):
            return self
        assert self.add is not None
        made = object.__new__(Noise)
        made.__dict__.update(self.__dict__)
        size = self.relative.at(site)
        made.add, made.relative = self.add * size, None
        made.largest = max(made.largest, self.largest * size)
        if not math.isfinite(made.largest):
            raise ValueError(f"Noise: level {self.largest} times the range {size} of site {site!r} is not finite")
        return made

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Noise):
            return NotImplemented
        if self is other:
            return True
        said = ("mode", "kind", "relative", "trusted")
        if any(getattr(self, name) != getattr(other, name) for name in said):
            return False
        return _same(self.add, other.add) and _same(self.mul, other.mul)

    def __hash__(self) -> int:
        numbers = [None if t is None else t.item() for t in (self.add, self.mul)] if self.trusted else []
        return hash((self.mode, self.kind, self.relative, *numbers))  # tensors may change

    def __repr__(self) -> str:
        parts = [
            f"{name}={t.item()!r}" if t.dim() == 0 and can_look(t) else f"{name}=<{list(t.shape)}>"
            for name, t in (("add", self.add), ("mul", self.mul))
            if t is not None
        ]
        if self.mode == "add_mul":
            parts.append("order='add_mul'")
        if self.kind != "gaussian":
            parts.append(f"kind={self.kind!r}")
        if self.fold:
            parts.append("fold=True")
        if self.relative is not None:
            parts.append(f"relative={self.relative!r}")
        return f"Noise({', '.join(parts)})"


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    """Whether two levels hold the same; of those that cannot be looked at only one and the same do."""
    if one is other or one is None or other is None or one.shape != other.shape:
        return one is other
    if not (one.is_cpu and other.is_cpu):
        if not (type(one) is type(other) is Tensor) or "meta" in (one.device.type, other.device.type):
            return False
        one, other = one.cpu(), other.cpu()
    return can_look(one) and can_look(other) and bool((one == other).all())


def _level(name: str, value: float | Tensor) -> Tensor | None:
    """A level as a float64 tensor (autocast leaves float64 alone), or None where the term is absent."""
    if isinstance(value, Tensor):
        if not value.dtype.is_floating_point:
            raise TypeError(f"Noise: {name} must be a floating-point tensor, got {value.dtype}")
        if value.requires_grad:
            raise ValueError(
                f"Noise: {name} requires grad, but there is no gradient with respect to a level; detach it"
            )
        return value
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"Noise: {name} must be a number or a tensor, got {type(value).__name__}")
    if value not in Range(0):
        raise ValueError(f"Noise: {name} must be finite and not negative, got {shown(value)}")
    return None if value == 0 else _constant(value)


def _unit(relative: object, add: Tensor | None) -> str | Ranges | None:
    """What additive levels are relative to, checked."""
    if relative is None:
        return None
    if not isinstance(relative, Ranges) and (not isinstance(relative, str) or relative not in STATISTICS):
        raise ValueError(
            f"Noise: relative must be None, {', '.join(map(repr, STATISTICS))} or Ranges, got {shown(relative)}"
        )
    if add is None:
        raise ValueError(f"Noise: relative={relative!r} is about the level add, which is not given")
    return relative


def single_level(owner: str, name: str, value: float | Tensor) -> Tensor | None:
    """A level that is one number, as a 0-d float64 tensor; None for the number 0."""
    try:
        level = Noise(value).add
    except (ValueError, TypeError) as error:
        raise type(error)(str(error).replace("Noise: add", f"{owner}: {name}")) from None
    assert level is not None
    if level.dim() != 0:
        raise ValueError(f"{owner}: {name} must be a number or a 0-d tensor, got shape {list(level.shape)}")
    return None if not isinstance(value, Tensor) and value == 0 else level.double()


def _constant(value: float) -> Tensor:
    """A level on the CPU, whatever the default device: operators move it, and `meta` would lose it."""
    return torch.tensor(value, dtype=torch.float64, device="cpu")


def _shaped(values: Tensor | Sequence[float], dim: int, ndim: int, name: str) -> Tensor:
    t = torch.as_tensor(values, dtype=torch.float64)
    if t.dim() != 1:
        raise ValueError(f"{name}: values must be a vector, got shape {list(t.shape)}")
    if ndim < dim:
        raise ValueError(f"{name}: ndim must be at least {dim}, got {ndim}")
    shape = [1] * (1 + ndim)
    shape[dim] = -1
    return t.reshape(shape)


def per_draw(values: Tensor | Sequence[float], ndim: int) -> Tensor:
    """Levels that differ from draw to draw, for a value of ``ndim`` dimensions: shape (D, 1, ...), rank ``1 + ndim``.

    Example:
        >>> per_draw([0.1, 0.2], ndim=2).shape
        torch.Size([2, 1, 1])
    """
    check_arguments(per_draw, locals())
    return _shaped(values, 0, ndim, "per_draw")


def per_row(values: Tensor | Sequence[float], ndim: int) -> Tensor:
    """Levels that differ from row to row (image to image), for a value of ``ndim`` dimensions: (1, B, 1, ...).

    Example:
        >>> per_row([0.1, 0.2, 0.3], ndim=4).shape
        torch.Size([1, 3, 1, 1, 1])
    """
    check_arguments(per_row, locals())
    return _shaped(values, 1, ndim, "per_row")


def per_channel(values: Tensor | Sequence[float], ndim: int) -> Tensor:
    """Levels that differ along dimension 1 of the value (channels, features): (1, 1, C, 1, ...), rank ``1 + ndim``.

    Example:
        >>> per_channel([0.1, 0.2, 0.3], ndim=4).shape
        torch.Size([1, 1, 3, 1, 1])
    """
    check_arguments(per_channel, locals())
    return _shaped(values, 2, ndim, "per_channel")
