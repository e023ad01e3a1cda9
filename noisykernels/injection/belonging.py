"""Which token each entry of a value belongs to, followed through the operations of a forward.

Shapes tell where tokens lie as long as they lie in order. Where a model picks them out and sorts them, as for its
experts, the number of the token goes along with each entry: operations that move entries move the numbers, element for
element and along features they stay, and a product belongs to its first operand that has a token. Where several tokens
come together in one entry, or an operation is none of those that are known, it is noted which one lost them.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from noisykernels.injection.belonging_rules import NONE, Call, compact, has_values, rule_of
from noisykernels.injection.belonging_rules import SEVERAL as SEVERAL
from noisykernels.injection.doors import ABOVE

__all__ = ["SEVERAL", "Belonging", "Followed"]


class Followed(NamedTuple):
    """What is known of a value.

    Args:
        tokens: of its shape: the number of each entry's token; -1: of none; -2: of several.
        chosen: whether values have said which tokens these are, so that there may be more or fewer.
        lost: the operation in which tokens came together; empty: none.
    """

    tokens: Tensor
    chosen: bool = False
    lost: str = ""


class Belonging(TorchFunctionMode):
    """Follows tokens below the mode of the injected model that runs.

    Args:
        module: gives the path of the module that runs.

    Example:
        >>> x = torch.randn(2, 3, 4)
        >>> with Belonging(lambda: "block") as belonging:
        ...     belonging.tell(x, torch.arange(6).view(2, 3, 1).expand(2, 3, 4))
        ...     picked, mean = x.flatten(0, 1)[[4, 0]] * 2, x.mean(1)
        >>> belonging.of(picked).tokens[:, 0].tolist(), belonging.of(mean).lost
        ([4, 0], "mean over dim 1 in module 'block'")
    """

    def __init__(self, module: Callable[[], str]) -> None:
        super().__init__()
        self._module = module
        self._of: dict[int, tuple[weakref.ref[Tensor], Followed]] = {}
        self._memory: dict[int, tuple[weakref.ref[torch.UntypedStorage], Followed]] = {}  # of what was written into

    def tell(self, value: Tensor, tokens: Tensor, chosen: bool = False) -> None:
        """The tokens of a value are known."""
        self.give(value, Followed(tokens, chosen))

    def give(self, value: Tensor, held: Followed | None) -> None:
        """A value has the tokens of another."""
        if held is None:
            return
        number = id(value)

        def gone(seen: weakref.ref[Tensor]) -> None:
            if self._of.get(number, (None,))[0] is seen:
                del self._of[number]

        self._of[number] = weakref.ref(value, gone), held

    def of(self, value: Any) -> Followed | None:
        """What is known of a value; None: it is of no token."""
        seen, held = self._of.get(id(value), (None, None))
        if seen is not None and seen() is value:
            return held
        every = self._in_memory(value) if isinstance(value, Tensor) else None
        if every is None or bool((_laid(every.tokens, value) == NONE).all()):
            return None
        return _part(every, value)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = {
            id(t): held
            for t in pytree.tree_leaves((args, kwargs))
            if isinstance(t, Tensor) and (held := self.of(t)) is not None
        }
        out = func(*args, **kwargs)
        if given:
            call = Call(func, args, kwargs, out, {number: held.tokens for number, held in given.items()})
            for t, tokens in self._made(call):
                self._take(t, tokens, call, list(given.values()))
        return out

    def _made(self, call: Call) -> list[tuple[Tensor, Tensor]]:
        """The results of an operation with the numbers of their entries' tokens."""
        results, rule = call.results(), rule_of(call.name)
        try:
            found = [] if rule is None else rule(call)
        except (IndexError, KeyError, RuntimeError, StopIteration, TypeError, ValueError):
            found = []  # a form of its own: it loses them, which is said where they are asked for
        if [tokens.shape for tokens in found] != [t.shape for t in results]:
            found = [torch.full((), SEVERAL, device=t.device).expand(t.shape) for t in results]
        return list(zip(results, found, strict=True))

    def _take(self, t: Tensor, tokens: Tensor, call: Call, given: list[Followed]) -> None:
        lost = ""
        if bool((compact(tokens) == SEVERAL).any()):
            lost = next((held.lost for held in given if held.lost), "") or self._said(call)
        chosen = call.chooses or any(held.chosen for held in given)
        if chosen:
            small = compact(tokens).flatten()
            chosen = not torch.equal(small, torch.arange(small.numel(), device=small.device))  # all are back in order
        self.give(t, Followed(tokens, chosen, lost))
        if call.writes:
            self._write_through(t, tokens, chosen, lost)

    def _write_through(self, t: Tensor, tokens: Tensor, chosen: bool, lost: str) -> None:
        """What was written into a value is in all that look at the same memory, also where nothing was known so far."""
        storage = t.untyped_storage()
        sharing = [
            (other, held)
            for seen, held in [*self._of.values()]
            if (other := seen()) is not None and other is not t and other.untyped_storage() is storage
        ]
        before = self._in_memory(t)
        count = storage.nbytes() // t.element_size()
        if before is None and not sharing and t.numel() == count:
            return
        flat = torch.full((count,), NONE, device=t.device) if before is None else before.tokens.clone()
        for other, held in sharing if before is None else ():
            _laid(flat, _once(other, other)).copy_(_once(held.tokens, other))
        _laid(flat, t).copy_(tokens)
        every = Followed(flat, chosen or any(held.chosen for _, held in sharing), lost)
        every = every._replace(lost=next((held.lost for _, held in sharing if held.lost), lost))
        self._memory[storage._cdata] = weakref.ref(storage), every
        for other, _ in sharing:
            self.give(other, _part(every, other))

    def _in_memory(self, value: Tensor) -> Followed | None:
        """What is known of the elements of the memory that a value looks at, where some were written into."""
        if not self._memory or not has_values(value):
            return None
        storage = value.untyped_storage()
        seen, held = self._memory.get(storage._cdata, (None, None))
        return held if seen is not None and seen() is storage else None

    def _said(self, call: Call) -> str:
        path = self._module()
        where = "the model itself" if path in ("", ABOVE) else f"module {path!r}"
        return f"{call.said()} in {where}"


def _laid(flat: Tensor, value: Tensor) -> Tensor:
    """The numbers of a value's entries, of those of its memory."""
    return flat.as_strided(value.shape, value.stride(), value.storage_offset())


def _part(every: Followed, value: Tensor) -> Followed:
    """What is known of a value, of what is known of its memory."""
    tokens = _laid(every.tokens, value)
    return every._replace(tokens=tokens, lost=every.lost if bool((tokens == SEVERAL).any()) else "")


def _once(t: Tensor, like: Tensor) -> Tensor:
    """A tensor without what a value of its shape repeats in memory."""
    for d, (size, stride) in enumerate(zip(like.shape, like.stride(), strict=True)):
        if size > 1 and stride == 0:
            t = t.narrow(d, 0, 1)
    return t
