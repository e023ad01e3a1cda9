"""Attention that a model writes out itself: which of its products and softmaxes are scores, weights and weighted sum.

Scores are a product of two values that both have rows, of which a softmax is made by nothing but operations element for
element, views and casts; the weights are that softmax; the weighted sum is the product of them, got in the same way,
with another value. Norms, layers, pools and other products in between end a descent, and so does a value with fewer
entries than the product: what is a softmax for another reason (of logits, gates, a pooling) is none of an attention.
Products and softmaxes are told by the module that calls and the number of the call.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from noisykernels.injection.doors import ABOVE
from noisykernels.injection.kinds import ACTIVATIONS, KINDS, PREPARING, SOFTMAX
from noisykernels.injection.record import Record
from noisykernels.injection.site import path_of
from noisykernels.injection.written_out import Role
from noisykernels.nn.signals import running

__all__ = ["Descent", "names_without", "roles_of", "values_with_rows"]


class _Call(NamedTuple):
    """A product or a softmax.

    Args:
        of: calls that its operands descend from.
        entries: of the result of a product, of the operand of a softmax.
    """

    of: frozenset[str]
    entries: int


class Descent(TorchFunctionMode):
    """Follows values from products to softmaxes to products, above the mode of the injected model that runs."""

    def __init__(self) -> None:
        super().__init__()
        self.products: dict[str, _Call] = {}
        self.softmaxes: dict[str, _Call] = {}
        self._count: dict[str, int] = {}  # softmaxes of each module
        self._of: dict[int, tuple[weakref.ref[Tensor], frozenset[str]]] = {}  # by identity: what a tensor descends from

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        of = frozenset[str]().union(*map(self.of, given))
        mode: Any = running()
        kind, path = KINDS.get(func), mode.modules[-1][0]
        stem = f"{path}:{kind}"
        before = mode.calls.get(stem, 0)
        out = func(*args, **kwargs)
        made = [t for t in pytree.tree_leaves(out) if isinstance(t, Tensor)]
        if mode.muted or func is F.multi_head_attention_forward:
            of = frozenset()
        elif func in SOFTMAX:
            number = self._count[path] = self._count.get(path, -1) + 1
            name = f"{path}:softmax#{number}"
            self.softmaxes[name] = _Call(of, given[0].numel())
            of = frozenset([name])
        elif kind in PREPARING:
            names = [f"{stem}#{k}" for k in range(before, mode.calls.get(stem, 0))]
            entries = made[0].numel() if made else 0
            self.products |= {name: _Call(of, entries) for name in names}
            of = frozenset(names[:1] if len(names) == 1 else ())
        elif kind is not None and kind not in ACTIVATIONS:
            of = frozenset()
        for t in made or (given[:1] if func is Tensor.__setitem__ else ()):
            self._of[id(t)] = weakref.ref(t), of
        return out

    def of(self, t: Tensor) -> frozenset[str]:
        """The products and softmaxes that a tensor descends from."""
        held, of = self._of.get(id(t), (None, frozenset[str]()))
        return of if held is not None and held() is t else frozenset()


def values_with_rows(small: Record, large: Record) -> list[str]:
    """The products of two values that both have rows, in forwards with some rows and with one more."""
    others = {entry.name: entry.operands for entry in large}
    found = []
    for entry in small:
        pairs = list(zip(entry.operands, others.get(entry.name, ()), strict=False))
        if pairs and entry.array is None and all(a != b for a, b in pairs):
            found.append(entry.name)
    return found


def roles_of(descent: Descent, values: Iterable[str]) -> dict[str, Role]:
    """What products and softmaxes of a forward are to an attention.

    Args:
        descent: of the forward.
        values: products of two values.
    """
    found: dict[str, Role] = {}
    several = set(values) & descent.products.keys()
    for name, softmax in descent.softmaxes.items():
        scores = softmax.of & several
        sums = [
            n for n, made in descent.products.items() if n in several and made.of & descent.softmaxes.keys() == {name}
        ]
        if len(scores) != 1 or not sums or not scores.isdisjoint(found) or sums[0] in found:
            continue
        (first,) = scores
        if softmax.entries >= descent.products[first].entries:
            path = _common([path_of(n) for n in (first, name, sums[0])])
            parts = (first, "scores"), (name, "softmax"), (sums[0], "weighted_sum")
            found |= {call: Role(part, path, first) for call, part in parts}
    return found


def names_without(products: Iterable[str], roles: Mapping[str, Role]) -> dict[str, str]:
    """The names of the products that are parts of no attention, which alone count among their kind.

    Example:
        >>> names_without(["a:matmul#0", "a:matmul#1", "a:matmul#2"], {"a:matmul#1": Role("scores", "a", "a:matmul#1")})
        {'a:matmul#0': 'a:matmul#0', 'a:matmul#2': 'a:matmul#1'}
    """
    count: dict[str, int] = {}
    found = {}
    for name in products:
        if name not in roles:
            stem = name.rpartition("#")[0]
            number = count[stem] = count.get(stem, -1) + 1
            found[name] = f"{stem}#{number}"
    return found


def _common(paths: list[str]) -> str:
    """The innermost module that all of these modules are in."""
    if len(set(paths)) == 1:
        return paths[0]
    if ABOVE in paths:
        return ABOVE
    parts = [path.split(".") for path in paths]
    same = []
    for names in zip(*parts, strict=False):
        if len(set(names)) > 1:
            break
        same.append(names[0])
    return ".".join(same)
