"""What noise: the `Noise` description, its levels, and the helpers that shape levels, seeds and ids
for the operators.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from noisykernels import _C

__all__ = ["Noise", "per_channel", "per_draw", "per_row"]

KINDS: tuple[str, ...] = tuple(_C.noise_kinds())
OPERANDS: tuple[str, ...] = tuple(_C.operands())
MODES = ("add", "mul", "mul_add", "add_mul", "fold")  # the order of `Mode` in noise.h
ID_LIMIT = 2**32  # draws and rows are 32-bit counter words


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

    Source: Walking Noise (arXiv 2212.10430). Two `Noise` objects are equal only if they are the same object.

    Example:
        >>> Noise(add=0.1)
        Noise(add=0.1)
        >>> Noise.amplitude(2.0, ratio=0.25)
        Noise(add=0.5, mul=1.5)
    """

    def __init__(
        self,
        add: float | Tensor = 0.0,
        mul: float | Tensor = 0.0,
        *,
        order: str = "mul_add",
        kind: str = "gaussian",
        fold: bool = False,
    ) -> None:
        if order not in ("mul_add", "add_mul"):
            raise ValueError(f"Noise: order must be 'mul_add' or 'add_mul', got {order!r}")
        if kind not in KINDS:
            raise ValueError(f"Noise: kind must be one of {', '.join(KINDS)}, got {kind!r}")
        if fold and (order != "mul_add" or kind != "gaussian"):
            raise ValueError("Noise: fold exists for gaussian noise of order 'mul_add' only")
        self.order, self.kind, self.fold = order, kind, bool(fold)
        self.add = _level("add", add)
        self.mul = _level("mul", mul)
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
    ) -> Noise:
        """The published amplitude form: ``add = A * ratio``, ``mul = A * (1 - ratio)``, ratio in [0, 1].

        Example:
            >>> Noise.amplitude(1.0, ratio=1.0)
            Noise(add=1.0)
        """
        if not isinstance(ratio, Tensor) and not 0 <= ratio <= 1:
            raise ValueError(f"Noise.amplitude: ratio must lie in [0, 1], got {ratio}")
        return cls(A * ratio, A * (1 - ratio), order=order, kind=kind, fold=fold)

    def scaled(self, factor: float | Tensor) -> Noise:
        """This noise with both levels multiplied by ``factor``, as a walk does with its levels.

        A number factor multiplies number levels; terms that are there stay there, also at factor 0.

        Example:
            >>> Noise(add=0.5, mul=1.0).scaled(2.0)
            Noise(add=1.0, mul=2.0)
        """
        if not isinstance(factor, Tensor) and not (factor >= 0 and math.isfinite(factor)):
            raise ValueError(f"Noise.scaled: factor must be finite and not negative, got {factor}")
        scaled = object.__new__(Noise)
        scaled.__dict__.update(self.__dict__)
        scaled.add = None if self.add is None else self.add * factor
        scaled.mul = None if self.mul is None else self.mul * factor
        scaled.trusted = self.trusted and not isinstance(factor, Tensor)
        if scaled.trusted:
            assert not isinstance(factor, Tensor)
            scaled.largest = self.largest * factor
            if not math.isfinite(scaled.largest):
                raise ValueError(f"Noise.scaled: level {self.largest} times factor {factor} is not finite")
        return scaled

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
        return f"Noise({', '.join(parts)})"


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
    if not (value >= 0 and math.isfinite(value)):
        raise ValueError(f"Noise: {name} must be finite and not negative, got {value}")
    return None if value == 0 else _constant(value)


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
    return _shaped(values, 0, ndim, "per_draw")


def per_row(values: Tensor | Sequence[float], ndim: int) -> Tensor:
    """Levels that differ from row to row (image to image), for a value of ``ndim`` dimensions: (1, B, 1, ...).

    Example:
        >>> per_row([0.1, 0.2, 0.3], ndim=4).shape
        torch.Size([1, 3, 1, 1, 1])
    """
    return _shaped(values, 1, ndim, "per_row")


def per_channel(values: Tensor | Sequence[float], ndim: int) -> Tensor:
    """Levels that differ along dimension 1 of the value (channels, features): (1, 1, C, 1, ...), rank ``1 + ndim``.

    Example:
        >>> per_channel([0.1, 0.2, 0.3], ndim=4).shape
        torch.Size([1, 1, 3, 1, 1])
    """
    return _shaped(values, 2, ndim, "per_channel")


def can_look(t: Tensor) -> bool:
    """Whether the values of a tensor can be read at no great cost: on the CPU, and not inside a graph or
    a transform.
    """
    return (
        t.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and type(t) in (Tensor, torch.nn.Parameter, torch.nn.Buffer)
        and not torch._C._functorch.is_functorch_wrapped_tensor(t)
        and torch._C._len_torch_dispatch_stack() == 0
    )


def largest_level(dtype: torch.dtype) -> float:
    """The largest level for values of a type: the noise of half types is float32."""
    return torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).max


def within(t: Tensor, most: float) -> bool:
    """Whether all values lie in [0, most]; NaN does not."""
    if t.numel() == 0:
        return True
    low, high = torch.aminmax(t)  # a NaN is both
    return 0 <= low.item() and high.item() <= most


def level_tensor(op: str, name: str, t: Tensor | None, x: Tensor, trusted: bool) -> Tensor | None:
    """A level as the operators take it: float64, on the device of `x`, checked where its values can be seen.

    One that is 0-d and on the CPU stays there: the operator passes its value on, and no copy is waited for.
    """
    if t is None:
        return None
    if t.requires_grad:
        raise ValueError(
            f"{op}: level `{name}` requires grad, but there is no gradient with respect to a level; detach it"
        )
    if not trusted and can_look(t):
        if not within(t, largest_level(x.dtype)):
            raise ValueError(
                f"{op}: level `{name}` must be finite (in {x.dtype}) and not negative, got "
                f"{t.detach().flatten()[:8].tolist()}"
            )
    if t.dim() == 0 and t.device.type == "cpu":
        return t if t.dtype == torch.float64 else t.double()
    if t.dtype == torch.float64 and t.device == x.device:
        return t
    return t.to(device=x.device, dtype=torch.float64)


def seed_tensor(op: str, seed: int | Tensor | None, device: torch.device) -> Tensor:
    """A seed as the operators take it: one int64. None draws one from torch's default generator of the device; one that
    is on the CPU stays there, as a level does.
    """
    if seed is None:
        return torch.randint(-(2**63), 2**63 - 1, (), dtype=torch.int64, device=device)
    if isinstance(seed, Tensor):
        if seed.dtype != torch.int64 or seed.numel() != 1:
            raise ValueError(f"{op}: seed must be one int64, got {seed.dtype} of shape {list(seed.shape)}")
        return seed if seed.device == device or seed.device.type == "cpu" else seed.to(device)
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"{op}: seed must be an int, an int64 tensor or None, got {type(seed).__name__}")
    if not 0 <= seed < 2**64:
        raise ValueError(f"{op}: seed must lie in [0, 2^64), got {seed}")
    return torch.tensor(seed if seed < 2**63 else seed - 2**64, dtype=torch.int64, device="cpu")


def factor_tensor(op: str, level: float | Tensor | Sequence[float] | None, device: torch.device) -> Tensor | None:
    """A factor of all levels: a 0-d or one-dimensional float64 tensor, checked where its values can be seen."""
    if level is None:
        return None
    if isinstance(level, Tensor) and level.requires_grad:
        raise ValueError(f"{op}: level requires grad, but there is no gradient with respect to a level; detach it")
    if not isinstance(level, Tensor):
        numbers = list(level) if isinstance(level, Sequence) and not isinstance(level, str) else [level]
        if any(isinstance(n, bool) or not isinstance(n, int | float) for n in numbers):
            raise TypeError(f"{op}: level must be a number, numbers or a floating-point tensor, got {level!r}")
        level = torch.tensor(numbers if isinstance(level, Sequence) else level, dtype=torch.float64, device="cpu")
    if not level.dtype.is_floating_point or level.dim() > 1:
        raise TypeError(
            f"{op}: level must be a floating-point tensor, 0-d or a vector, got {level.dtype} of {list(level.shape)}"
        )
    if can_look(level) and not within(level, torch.finfo(torch.float64).max):
        raise ValueError(f"{op}: level must be finite and not negative, got {level.flatten()[:8].tolist()}")
    return level.to(device=device, dtype=torch.float64)


def ids_tensor(op: str, name: str, ids: Tensor | Sequence[int] | None, device: torch.device) -> Tensor | None:
    """Draw or row ids as the operators take them: an int64 vector, checked where its values can be seen."""
    if ids is None:
        return None
    if isinstance(ids, int):
        raise TypeError(f"{op}: {name} must be a vector of ids, got the number {ids}; for a count use range({ids})")
    if not isinstance(ids, Tensor):  # whatever is not an integer keeps its type, to be refused below
        ids = torch.tensor(ids, dtype=None if len(ids) else torch.int64, device="cpu")
    if ids.dtype != torch.int64 or ids.dim() != 1:
        raise ValueError(f"{op}: {name} must be an int64 vector, got {ids.dtype} of shape {list(ids.shape)}")
    if can_look(ids) and ids.numel() > 0:
        low, high = (int(v) for v in torch.aminmax(ids))
        if low < 0 or high >= ID_LIMIT:
            raise ValueError(f"{op}: {name} must lie in [0, 2^32), got values from {low} to {high}")
    ids = ids if ids.device == device else ids.to(device)
    return ids if ids.is_contiguous() else ids.contiguous()
