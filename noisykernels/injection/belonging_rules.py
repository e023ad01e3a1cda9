"""What becomes of the tokens of entries in torch's operations, by their names.

Numbers of tokens have the shape of their value; where they are the same along a dimension they are expanded, so that
they take little and little is done with them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from noisykernels.injection.kinds import GROUPED, KINDS, PREPARING
from noisykernels.injection.kinds import SEVERAL as SEVERAL_OPERANDS
from noisykernels.injection.products import Product, pairs_of, product_of

__all__ = ["NONE", "SEVERAL", "Call", "compact", "has_values", "rule_of"]

NONE, SEVERAL = -1, -2
_OPERATORS = {  # what Python's are called in torch
    "truediv": "div", "itruediv": "div", "rtruediv": "div", "div": "div", "idiv": "div", "rdiv": "div",
    "floordiv": "floor_divide", "rfloordiv": "floor_divide", "ifloordiv": "floor_divide", "and": "bitwise_and",
    "or": "bitwise_or", "xor": "bitwise_xor", "invert": "bitwise_not", "radd": "add", "iadd": "add", "rmul": "mul",
    "imul": "mul", "isub": "sub", "rpow": "pow", "ipow": "pow", "mod": "remainder", "rmod": "remainder",
    "iand": "bitwise_and", "ior": "bitwise_or", "rand": "bitwise_and", "ror": "bitwise_or", "rsub": "rsub",
    "matmul": "matmul", "rmatmul": "matmul", "pos": "positive",
}  # fmt: skip


class Call:
    """A call of an operation that takes tokens.

    Args:
        func, args, kwargs: it.
        out: what it gave.
        tokens: of those of its tensors that have some, by identity.
    """

    def __init__(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any, tokens: dict[int, Tensor]):
        self.func, self.args, self.kwargs, self.out, self._tokens = func, args, kwargs, out, tokens
        own = getattr(func, "__name__", type(func).__name__)
        if own == "__get__":  # of an attribute
            own = getattr(getattr(func, "__self__", None), "__name__", own)
        own = own.removeprefix("linalg_")
        short = own.removesuffix("_" if not own.endswith("__") else "__").removeprefix("__").partition(".")[0]
        self.name = _OPERATORS.get(short, short) if own.startswith("__") else short
        self.writes = (own.endswith("_") and not own.endswith("__")) or own.startswith("__i") or own == "__setitem__"
        self.chooses = self.name in _CHOOSING and not (self.name == "where" and len(args) > 1)
        if self.name in ("getitem", "setitem", "index_put"):
            index = [t for t in pytree.tree_leaves(args[1:]) if isinstance(t, Tensor)]
            self.chooses |= any(t.dtype in (torch.bool, torch.uint8) for t in index)

    def results(self) -> list[Tensor]:
        """The tensors that it made, or wrote into."""
        if self.name == "setitem":
            return [self.args[0]]
        return [t for t in pytree.tree_leaves(self.out) if isinstance(t, Tensor) and has_values(t)]

    def given(self, place: int, name: str, otherwise: Any = None) -> Any:
        """An argument by its place or name."""
        return self.args[place] if len(self.args) > place else self.kwargs.get(name, otherwise)

    @property
    def first(self) -> Tensor:
        """The value that it is about."""
        found: Tensor = self.args[0] if self.args else self.kwargs["input"]
        return found

    def of(self, t: Tensor) -> Tensor:
        """The tokens of one of its tensors."""
        held = self._tokens.get(id(t))
        return torch.full((), NONE, device=t.device).expand(t.shape) if held is None else held

    def knows(self, t: Any) -> bool:
        """Whether one of its arguments has tokens."""
        return id(t) in self._tokens

    def dims(self, place: int = 1) -> list[int] | None:
        """The dimensions that it goes along; None: all."""
        dim = self.given(place, "dim", self.kwargs.get("axis"))
        if dim is None:
            return None
        rank = max(1, self.first.dim())
        return sorted(d % rank for d in ([dim] if isinstance(dim, int) else dim))

    def said(self) -> str:
        """It in words."""
        place = _REDUCING.get(self.name, _ALONG.get(self.name))
        if place is None or not isinstance(self.given(0, "input"), Tensor):
            return self.name
        dims = self.dims(place)
        if not dims:
            return f"{self.name} over all entries" if self.name in _REDUCING else self.name
        return f"{self.name} over dim{'s' * (len(dims) > 1)} {', '.join(map(str, dims))}"


def has_values(t: Tensor) -> bool:
    """Whether a tensor has values that belong to tokens: not only a shape, and not those of a sample within `vmap`."""
    return t.device.type != "meta" and not torch._C._functorch.is_functorch_wrapped_tensor(t)


def compact(tokens: Tensor) -> Tensor:
    """Numbers of which every dimension along which they are the same has one."""
    for d, (size, stride) in enumerate(zip(tokens.shape, tokens.stride(), strict=True)):
        if size > 1 and stride == 0:
            tokens = tokens.narrow(d, 0, 1)
    return tokens


def _joined(every: Sequence[Tensor], shape: Sequence[int]) -> Tensor:
    """The tokens of entries that are made of these, element for element."""
    found = compact(every[0])
    for other in map(compact, every[1:]):
        same = (other == NONE) | (found == other)
        found = torch.where(found == NONE, other, torch.where(same, found, SEVERAL))
    return found.expand(shape)


def _over(tokens: Tensor, dims: Sequence[int], keepdim: bool = True) -> Tensor:
    """The tokens of entries that are made of all those along some dimensions."""
    if not dims:
        return tokens
    tokens = compact(tokens)
    high = tokens.amax(tuple(dims), keepdim)
    low = torch.where(tokens == NONE, tokens.amax(tuple(dims), True), tokens).amin(tuple(dims), keepdim)
    return torch.where(low == high, high, SEVERAL)


def _moved(call: Call) -> list[Tensor]:
    """Of an operation that moves the entries of its first argument."""
    first = call.first
    if not call.knows(first):
        return _looked_up(call)
    args = (call.of(first), *call.args[1:]) if call.args else ()
    kwargs = call.kwargs if call.args else call.kwargs | {"input": call.of(first)}
    func = {"view": Tensor.reshape, "view_as": Tensor.reshape_as}.get(
        call.name, call.func
    )  # numbers lie in another way
    made = func(*args, **{n: a for n, a in kwargs.items() if n != "out"})
    return [_narrow(t) for t in pytree.tree_leaves(made) if isinstance(t, Tensor)]


def _narrow(tokens: Tensor) -> Tensor:
    """Numbers that are written out along the last dimension and are the same there."""
    if tokens.dim() > 1 and tokens.shape[-1] > 1 and tokens.stride(-1) != 0 and tokens.numel():
        first = tokens[..., :1]
        if bool((first == tokens).all()):
            return first.clone().expand(tokens.shape)
    return tokens


def _looked_up(call: Call) -> list[Tensor]:
    """Of what indices with tokens take from an array that has none: one index along one dimension. Which array it is
    (one index for all), or what several tokens have said, makes it no token's."""
    indices = [t for t in pytree.tree_leaves((call.args[1:], call.kwargs)) if call.knows(t)]
    (result,) = call.results()
    if all(index.dim() == 0 for index in indices):
        return _without(call)
    (index,) = indices
    tokens = call.of(index)
    tokens = tokens.where(tokens != SEVERAL, NONE)
    if call.name == "getitem" and (call.args[1] is index or call.args[1] == (index,)) and index.dtype != torch.bool:
        return [tokens.view(*index.shape, *[1] * (result.dim() - index.dim())).expand(result.shape)]
    if call.name in ("gather", "take_along_dim", "take"):
        return [tokens.expand(result.shape)]
    dim = call.dims()
    if call.name == "index_select" and dim is not None:
        return [tokens.view(-1, *[1] * (result.dim() - dim[0] - 1)).expand(result.shape)]
    raise ValueError(call.name)


def _kept(call: Call) -> list[Tensor]:
    return [call.of(call.first)]


def _together(call: Call) -> list[Tensor]:
    """Of several values side by side."""
    parts = call.given(0, "tensors")
    rest = {n: a for n, a in call.kwargs.items() if n not in ("tensors", "out")}
    made: Tensor = call.func([call.of(t) for t in parts], *call.args[1:], **rest)
    return [_narrow(made)]


def _padded(call: Call) -> list[Tensor]:
    return [torch.nn.functional.pad(call.of(call.first), call.given(1, "pad"), value=NONE)]


def _element_for_element(call: Call) -> list[Tensor]:
    if call.name == "where" and len(call.args) + len(call.kwargs) == 1:
        return _places(call)
    every = [call.of(t) for t in pytree.tree_leaves((call.args, call.kwargs)) if isinstance(t, Tensor)]
    return [_joined(every, t.shape) for t in call.results()]


def _written(call: Call) -> list[Tensor]:
    """Of what is written over: ``copy_``."""
    return [call.of(call.args[1]).expand(call.args[0].shape)]


def _without(call: Call) -> list[Tensor]:
    """Of values that look at none."""
    return [torch.full((), NONE, device=t.device).expand(t.shape) for t in call.results()]


def _reduced(call: Call) -> list[Tensor]:
    if call.name in ("max", "min") and isinstance(call.given(1, "other"), Tensor):
        return _element_for_element(call)
    dims = call.dims(_REDUCING[call.name])
    every = list(range(call.first.dim()))
    over = _over(call.of(call.first), every if dims is None else dims)
    results = call.results()
    if results[0].dim() < len(every):
        over = over.squeeze(tuple(every if dims is None else dims))
    return [over.expand(t.shape) for t in results]


def _along(call: Call) -> list[Tensor]:
    """Of what stays in place along a dimension in which all is taken together."""
    first = call.first
    dims = call.dims(_ALONG[call.name])
    if call.name.startswith("cum") and not first.is_floating_point():  # places are counted
        return _kept(call)
    if call.name in ("layer_norm", "rms_norm"):
        dims = list(range(first.dim() - len(call.given(1, "normalized_shape")), first.dim()))
    if dims is None:
        dims = [first.dim() - 1]
    return [_over(call.of(first), dims).expand(t.shape) for t in call.results()]


def _sorted(call: Call) -> list[Tensor]:
    """Of entries that are sorted along a dimension, and of the places that they come from."""
    first, results = call.first, call.results()
    place = next(t for t in reversed(results) if t.dtype == torch.int64)
    dim = next((a for a in (*call.args[1 + (call.name == "topk") :], call.kwargs.get("dim"))
                if isinstance(a, int) and not isinstance(a, bool)), -1)  # fmt: skip
    tokens = _narrow(call.of(first).gather(dim, place) if place.dim() == first.dim() else call.of(first))
    return [tokens for _ in results]


def _places(call: Call) -> list[Tensor]:
    """Of the places of entries that are not 0."""
    tokens, found = call.of(call.first), call.out
    if isinstance(found, tuple):
        return [tokens[found] for _ in found]
    return [tokens[found.unbind(1)].unsqueeze(1).expand(found.shape)]


def _one_more(call: Call) -> list[Tensor]:
    """Of entries that become vectors."""
    (result,) = call.results()
    where = call.of(
        call.first if call.name == "one_hot" else next(t for t in call.args[:2] if not t.is_floating_point())
    )
    return [where.unsqueeze(-1).expand(result.shape)]


def _put(call: Call) -> list[Tensor]:
    """Of entries that take the place of others."""
    target, value = call.args[0], call.args[-1]
    tokens = call.of(target).clone()
    if call.name in ("setitem", "index_put"):
        index = call.args[1]
        tokens[tuple(index) if isinstance(index, list) else index] = (
            call.of(value) if isinstance(value, Tensor) else NONE
        )
        return [tokens]
    dim, index = call.given(1, "dim"), call.given(2, "index")
    source = call.given(3, "src", call.given(3, "source"))
    if not isinstance(source, Tensor):
        return [
            _joined([tokens, tokens.scatter(dim, index, call.of(index)) if call.knows(index) else tokens], tokens.shape)
        ]
    made = getattr(tokens, "scatter" if call.name == "scatter" else "index_copy")(dim, index, call.of(source))
    return [_narrow(made)]


def _added(call: Call) -> list[Tensor]:
    """Of entries that are added to others: ``index_add`` and ``scatter_add``."""
    target, dim, index, source = call.args[0], call.given(1, "dim"), call.given(2, "index"), call.args[-1]
    source = call.given(3, "source", call.kwargs.get("src", source))
    tokens, of_source = call.of(target), call.of(source)
    if call.name == "index_add":
        shape = [1] * source.dim()
        shape[dim] = -1
        index = index.view(shape).expand(source.shape)
    low = tokens.where(tokens != NONE, torch.iinfo(torch.int64).max)
    low = low.scatter_reduce(dim, index, of_source.where(of_source != NONE, torch.iinfo(torch.int64).max), "amin")
    high = tokens.clone().scatter_reduce(dim, index, of_source.contiguous(), "amax")
    return [_narrow(torch.where((low == high) | (high == NONE), high, SEVERAL))]


# ---------------------------------------------------------------------------------------------------------- products


def _multiplied(call: Call) -> list[Tensor]:
    """Of products: the numbers stand for the values, so that products of them say how dimensions go together."""
    kind = KINDS[call.func]

    def numbers(a: Any) -> Any:
        return call.of(a) if isinstance(a, Tensor) else a

    args, kwargs = pytree.tree_map(numbers, (tuple(call.args), call.kwargs))
    if call.func is Tensor.__rmatmul__:
        args = args[::-1]
    if kind == "bilinear":
        raise ValueError(kind)
    pairs = pairs_of(kind, args, kwargs) if kind in SEVERAL_OPERANDS else [lambda _: product_of(kind, args, kwargs)]
    tokens = None
    for pair in pairs or ():
        tokens = _of_product(pair(tokens))
    assert tokens is not None
    return [tokens.expand(call.out.shape)]


def _of_product(product: Product | None) -> Tensor:
    """The tokens of a product: of its first operand that has some, whatever is summed."""
    sizes = None if product is None else product.sizes()
    if product is None or sizes is None:
        raise ValueError("a product of another form")
    found, of_result = [], product.labels[2]
    for tokens, labels in zip(product.operands, product.labels[:2], strict=True):
        summed = [d for d, label in enumerate(labels) if label not in of_result]
        kept = [label for label in labels if label in of_result]
        tokens = _over(tokens, summed).squeeze(tuple(summed))
        tokens = tokens.permute([kept.index(label) for label in of_result if label in kept])
        for d, label in enumerate(of_result):
            tokens = tokens if label in kept else tokens.unsqueeze(d)
        found.append(tokens)
    a, b = found
    return torch.where(a == NONE, b, a).expand([sizes[label] for label in of_result])


def _grouped(call: Call) -> list[Tensor]:
    """Of rows by the arrays of their groups."""
    a = call.first
    return [_over(call.of(a), [a.dim() - 1]).expand(call.out.shape)]


def _attended(call: Call) -> list[Tensor]:
    (out,) = call.results()
    return [_over(call.of(call.first), [call.first.dim() - 1]).expand(out.shape)]


# ------------------------------------------------------------------------------------------------------------- names

_MOVING = (
    "view reshape flatten unflatten ravel permute transpose t swapaxes movedim unsqueeze squeeze expand broadcast_to "
    "view_as reshape_as expand_as narrow select split split_with_sizes chunk unbind unfold index_select gather "
    "take_along_dim getitem masked_select repeat repeat_interleave tile flip roll diagonal T mT"
)
_KEEPING = (
    "contiguous clone detach alias to float half double bfloat16 long int bool type type_as cpu requires_grad dropout "
    "data tril triu fill zero"
)
_ELEMENTS = (
    "where floor_divide prelu hardswish log_sigmoid softsign relu6 multiply divide subtract masked_fill nan_to_num"
)
_NOTHING = "zeros_like ones_like empty_like full_like rand_like randn_like new_zeros new_ones new_empty new_full"
_REDUCING: dict[str, int] = {  # where the dimension is among the arguments
    **dict.fromkeys("sum mean prod amax amin all any std var logsumexp argmax argmin max min".split(), 1),
    **dict.fromkeys("norm vector_norm".split(), 2),
}
_ALONG: dict[str, int] = {
    **dict.fromkeys("softmax log_softmax cumsum cumprod glu".split(), 1),
    "normalize": 2, "layer_norm": 9, "rms_norm": 9,
}  # fmt: skip
_CHOOSING = frozenset("nonzero argwhere where masked_select topk sort argsort max min argmax argmin".split())

Rule = Callable[[Call], list[Tensor]]
_RULES: dict[str, Rule] = {
    **dict.fromkeys(_ELEMENTS.split(), _element_for_element),
    **dict.fromkeys(_MOVING.split(), _moved),
    **dict.fromkeys(_KEEPING.split(), _kept),
    **dict.fromkeys(_NOTHING.split(), _without),
    **dict.fromkeys(_REDUCING, _reduced),
    **dict.fromkeys(_ALONG, _along),
    **dict.fromkeys("topk sort argsort".split(), _sorted),
    **dict.fromkeys("nonzero argwhere".split(), _places),
    **dict.fromkeys("cat concat stack".split(), _together),
    **dict.fromkeys("one_hot embedding".split(), _one_more),
    **dict.fromkeys("setitem index_put scatter index_copy".split(), _put),
    **dict.fromkeys("index_add scatter_add".split(), _added),
    **dict.fromkeys([*PREPARING, "linear"], _multiplied),
    **dict.fromkeys([GROUPED, f"_{GROUPED}"], _grouped),
    "scaled_dot_product_attention": _attended, "pad": _padded, "copy": _written,
}  # fmt: skip


@functools.cache
def rule_of(name: str) -> Rule | None:
    """The rule of an operation of this name; None: there is none."""
    packet = getattr(torch.ops.aten, name, None) if name not in _RULES else None
    if packet is not None and any(torch.Tag.pointwise in getattr(packet, o).tags for o in packet.overloads()):
        return _element_for_element
    return _RULES.get(name)
