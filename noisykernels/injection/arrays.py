"""Which calls of one forward use the same array of a chip.

An array is called like the first of its calls, so one that is used once has the id, and the noise, of that call. It
belongs to the module that calls and is told from the module's others by its weight: by what it is, if it is a parameter
or a buffer or a view of one; a weight that is made anew at each call, as by a parametrization, by its place among those
that this call of the module makes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor, nn

from noisykernels.injection.parameters import Parameters

__all__ = ["Arrays"]


class _Held(NamedTuple):
    """A weight: the tensor whose memory it is, which part of it (None: all), and its array."""

    base: Tensor
    view: Any
    array: str


class Arrays:
    """The arrays of one forward, in which every contraction with a weight is told to it in order.

    Args:
        by: what an array is: ``"module"``, ``"call"`` or ``"parameter"``.

    Attributes:
        of: the name of the first call with the same array, for every call so far.
        parameters: follows those of the model; None: nobody asks for `read`.
        read: the parameters that the weight of a call is made of.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> arrays = Arrays("module")
        >>> [arrays.first(f"fc:linear#{k}", [("fc", layer)], layer.weight) for k in range(2)]
        ['fc:linear#0', 'fc:linear#0']
    """

    def __init__(self, by: str) -> None:
        self.by = by
        self.of: dict[str, str] = {}
        self.parameters: Parameters | None = None
        self.read: dict[str, frozenset[str]] = {}
        self._held: dict[str, list[_Held]] = {}  # by owner: weights that stay what they are
        self._made: dict[int, list[_Held]] = {}  # by depth: those that the calls of modules that run have made
        self._places: dict[tuple[str, int], str] = {}  # arrays of made weights, by path and place

    def first(self, name: str, modules: list[tuple[str, nn.Module]], weight: Tensor) -> str:
        """The name of the first call with the array of this one.

        Args:
            name: of the call.
            modules: that run, with their paths, the innermost last.
            weight: of the contraction.
        """
        if self.by == "call":
            found = name
        else:
            path, module = modules[-1]
            base, view = weight, None
            if weight._base is not None:
                base, view = weight._base, _part(weight, weight._base)
            held = self._held.setdefault("" if self.by == "parameter" else path, [])
            known = _among(held, base, view)
            if known is not None:
                found = held[known].array
            elif _stays(base, module):
                found = name
                held.append(_Held(base, view, name))
            else:
                made = self._made.setdefault(len(modules), [])
                place = _among(made, base, view)
                if place is None:
                    place = len(made)
                    made.append(_Held(base, view, name))
                found = self._places.setdefault((path, place), name)
        self.of[name] = found
        if self.parameters is not None:
            self.read[name] = self.parameters.of(weight)
        return found

    def leave(self, depth: int) -> None:
        """The call of the module at this depth has ended."""
        self._made.pop(depth, None)

    def copy(self) -> Arrays:
        """Arrays that go on from here on their own."""
        made = Arrays(self.by)
        made.of, made._places = dict(self.of), dict(self._places)
        made._held = {owner: list(held) for owner, held in self._held.items()}
        made._made = {depth: list(held) for depth, held in self._made.items()}
        return made


def _among(held: list[_Held], base: Tensor, view: Any) -> int | None:
    for place, other in enumerate(held):
        if other.base is base and other.view == view:
            return place
    return None


def _stays(base: Tensor, module: nn.Module) -> bool:
    """Whether memory is that of a parameter, or of a buffer of this module: what `functional_call` puts in the place of
    a parameter may be another tensor at each call."""
    return isinstance(base, nn.Parameter) or any(base is t for t in module._buffers.values())


def _part(view: Tensor, base: Tensor) -> Any:
    """Which part of its memory a view looks at, whatever the order of its dimensions; None: all of it."""
    here, of_all = ((t.storage_offset(), sorted(zip(t.stride(), t.shape, strict=True))) for t in (view, base))
    return None if here == of_all else here


# As torch.compiler.assume_constant_result does it, which would import the whole compiler.
_part._dynamo_marked_constant = True  # type: ignore[attr-defined]
