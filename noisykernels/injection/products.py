"""torch's products of two operands as what they are: which of their dimensions are summed, shared and free.

Knows nothing of noise or hardware; `canonical` says how the library's contractions compute such a product.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

__all__ = ["PRODUCTS", "Product", "pairs_of", "product_of"]

_INPUT = ("input", "self")
# By kind, what its arguments are called: alternatives of each.
_NAMES: dict[str, tuple[tuple[str, ...], ...]] = {
    "matmul": ((*_INPUT, "tensor1"), ("other", "tensor2")),
    "mm": (_INPUT, ("mat2",)),
    "bmm": (_INPUT, ("mat2",)),
    "mv": (_INPUT, ("vec",)),
    "dot": (_INPUT, ("tensor", "other")),
    "vdot": (_INPUT, ("other",)),
    "inner": (_INPUT, ("other",)),
    "vecdot": (("x", *_INPUT), ("y", "other"), ("dim",)),
    "addmm": (_INPUT, ("mat1",), ("mat2",)),
    "addmv": (_INPUT, ("mat",), ("vec",)),
    "addbmm": (_INPUT, ("batch1",), ("batch2",)),
    "baddbmm": (_INPUT, ("batch1",), ("batch2",)),
    "tensordot": (("a", *_INPUT), ("b", "other"), ("dims", "dims_self"), ("dims_other",)),
    "bilinear": (("input1",), ("input2",), ("weight",), ("bias",)),
    "linear": (_INPUT, ("weight",), ("bias",)),
}
PRODUCTS = tuple(name for name in _NAMES if name != "linear")

Labels = list[int]  # one for each dimension; those of a label belong together


@dataclass
class Product:
    """A product of two values or arrays.

    Args:
        operands: two of them.
        labels: of their dimensions, and of those of the result.
        shape: of the result.
        bias: of each feature, if the result has one.
        finish: what is left to do to the result.
    """

    operands: tuple[Tensor, Tensor]
    labels: tuple[Labels, Labels, Labels]
    bias: Tensor | None = None
    finish: Callable[[Tensor], Tensor] = field(default=lambda y: y)

    def plainly(self) -> Tensor:
        """It as torch computes it, before `finish`."""
        numbers = {label: n for n, label in enumerate(dict.fromkeys(label for part in self.labels for label in part))}
        of_a, of_b, of_result = ([numbers[label] for label in part] for part in self.labels)
        made: Tensor = torch.einsum(self.operands[0], of_a, self.operands[1], of_b, of_result)
        return made

    def once(self) -> Product:
        """The same without the repetitions of an operand that was expanded to the other's size, such as the rows."""
        operands, labels = list(self.operands), [list(part) for part in self.labels]
        for i in (0, 1):
            for label in labels[i][:]:
                dim = labels[i].index(label)
                many = label in labels[1 - i] and operands[1 - i].shape[labels[1 - i].index(label)] > 1
                if many and operands[i].stride(dim) == 0 and label in labels[2]:
                    operands[i], labels[i] = operands[i].select(dim, 0), labels[i][:dim] + labels[i][dim + 1 :]
        return Product((operands[0], operands[1]), (labels[0], labels[1], labels[2]), self.bias, self.finish)

    def sizes(self) -> dict[int, int] | None:
        """Of all labels; None: they do not fit together."""
        found: dict[int, int] = {}
        for tensor, labels in zip(self.operands, self.labels[:2], strict=True):
            if tensor.dim() != len(labels) or len(set(labels)) < len(labels):
                return None
            for size, label in zip(tensor.shape, labels, strict=True):
                before = found.get(label, 1)
                if size != before and size != 1 and before != 1:
                    return None
                found[label] = before if size == 1 else size
        return found if len(set(self.labels[2])) == len(self.labels[2]) else None


def _arguments(kind: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
    """The arguments of a call in the order of its kind's names; those not given are None."""
    found: list[Any] = list(args)
    for names in _NAMES[kind][len(found) :]:
        found.append(next((kwargs[name] for name in names if name in kwargs), None))
    return found


def product_of(kind: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Product | None:
    """What a call of a function of this kind multiplies; None: it cannot be told."""
    if kind not in _NAMES:
        return None
    given = _arguments(kind, args, kwargs)
    first = 1 if kind in ("addmm", "addmv", "addbmm", "baddbmm") else 0
    a, b = given[first : first + 2]
    if not all(isinstance(t, Tensor) and t.layout is torch.strided for t in (a, b)):
        return None
    if kind == "bilinear":
        return _bilinear(*given[:4])
    if kind == "linear":
        free = list(range(2, a.dim() + 1))
        return Product((a, b), ([*free, 0], [1, 0], [*free, 1]), given[2])
    labels: tuple[Labels, Labels, Labels] | None
    if kind == "tensordot":
        labels = _labels_of_tensordot(a, b, given[2], given[3])
    elif kind == "inner":
        labels = _labels_of_tensordot(a, b, ([-1], [-1]), None) if min(a.dim(), b.dim()) else None
    elif kind == "vecdot":
        labels = _labels_of_vecdot(a, b, -1 if given[2] is None else given[2])
    elif kind == "addbmm":
        labels = [3, 1, 0], [3, 0, 2], [1, 2]
    else:
        labels = _labels_of_matmul(a, b)
    if labels is None:
        return None
    product = Product((a, b), labels)
    if first:
        _add(product, given[0], kwargs.get("beta", 1), kwargs.get("alpha", 1))
    if (kind_of := kwargs.get("out_dtype")) is not None:
        finish = product.finish
        product.finish = lambda y: finish(y).to(kind_of)
    return product.once() if product.sizes() is not None else None


def _labels_of_matmul(a: Tensor, b: Tensor) -> tuple[Labels, Labels, Labels] | None:
    if not min(a.dim(), b.dim()):
        return None
    most = max(a.dim(), b.dim()) - 2
    batch = list(range(3, 3 + max(0, most)))
    of_a = batch[len(batch) - max(0, a.dim() - 2) :] + ([1, 0] if a.dim() > 1 else [0])
    of_b = batch[len(batch) - max(0, b.dim() - 2) :] + ([0, 2] if b.dim() > 1 else [0])
    return of_a, of_b, batch + [1] * (a.dim() > 1) + [2] * (b.dim() > 1)


def _labels_of_tensordot(a: Tensor, b: Tensor, dims: Any, others: Any) -> tuple[Labels, Labels, Labels]:
    if others is not None:
        dims = dims, others
    if isinstance(dims, Tensor):
        dims = dims.tolist()
    if isinstance(dims, int):
        dims = range(a.dim() - dims, a.dim()), range(dims)
    summed = [[d % t.dim() for d in ([some] if isinstance(some, int) else some)]
              for t, some in zip((a, b), dims, strict=True)]  # fmt: skip
    of_a, of_b = list(range(a.dim())), list(range(a.dim(), a.dim() + b.dim()))
    for d, e in zip(*summed, strict=True):
        of_b[e] = of_a[d]
    free = [label for d, label in enumerate(of_a) if d not in summed[0]]
    return of_a, of_b, free + [label for d, label in enumerate(of_b) if d not in summed[1]]


def _labels_of_vecdot(a: Tensor, b: Tensor, dim: int) -> tuple[Labels, Labels, Labels]:
    every = list(range(max(a.dim(), b.dim())))
    summed = every[dim]
    return every[len(every) - a.dim() :], every[len(every) - b.dim() :], [label for label in every if label != summed]


def _bilinear(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor | None) -> Product:
    """The outer product of both inputs, which the array contracts."""
    free = list(range(3, 2 + x.dim()))
    outer = x.unsqueeze(-1) * y.unsqueeze(-2)
    return Product((outer, weight), ([*free, 0, 1], [2, 0, 1], [*free, 2]), bias)


def _add(product: Product, added: Tensor, beta: Any, alpha: Any) -> None:
    """beta x added + alpha x the product, as `addmm` and its like have it."""
    if beta == alpha == 1 and added.dim() == 1 and len(product.labels[2]) > 1:
        product.bias = added  # of each feature, if the second operand is what has the features
        return

    def finish(y: Tensor) -> Tensor:
        y = y if alpha == 1 else y * alpha
        return y if beta == 0 else y + (added if beta == 1 else added * beta)

    product.finish = finish


# ------------------------------------------------------------------------------------------------------------ einsum


Pair = Callable[[Tensor | None], Product]  # from the product of what comes before


def pairs_of(kind: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Pair] | None:
    """The products, from left to right, that a call of `einsum`, `multi_dot` or `chain_matmul` is made of; None: it is
    not made of such products."""
    if kind == "einsum":
        equation, operands = _of_sublists(args) if isinstance(args[0], Tensor) else (args[0], args[1:])
    else:
        equation, operands = None, args or (kwargs.get("tensors", kwargs.get("matrices")),)
    tensors = list(operands[0] if len(operands) == 1 and isinstance(operands[0], list | tuple) else operands)
    if kind == "einsum" and "equation" in kwargs:
        return None
    if not all(isinstance(t, Tensor) and t.layout is torch.strided for t in tensors):
        return None
    steps = _of_chain(tensors) if equation is None else _of_equation(equation, tensors)
    if steps is None:
        return None

    def pair(number: int) -> Pair:
        def made(before: Tensor | None) -> Product:
            product = Product((tensors[0] if before is None else before, tensors[number + 1]), steps[number])
            return product if product.sizes() is None else product.once()

        return made

    return [pair(number) for number in range(len(steps))]


def _of_chain(tensors: Sequence[Tensor]) -> list[tuple[Labels, Labels, Labels]] | None:
    if len(tensors) < 2:
        return None
    ranks = [t.dim() for t in tensors]
    labels = [[n, n + 1] for n in range(len(tensors))]
    labels[0], labels[-1] = labels[0][2 - ranks[0] :], labels[-1][: ranks[-1]]
    steps, made = [], labels[0]
    for part in labels[1:]:
        result = [one for one in (*made, *part) if (one in made) != (one in part)]
        steps.append((made, part, result))
        made = result
    return steps


def _of_equation(equation: str, tensors: Sequence[Tensor]) -> list[tuple[Labels, Labels, Labels]] | None:
    """Of an einsum."""
    before, arrow, after = equation.replace(" ", "").partition("->")
    terms = before.split(",")
    if len(terms) != len(tensors) or len(terms) < 2:
        return None
    most = max((t.dim() - len(term.replace("...", "")) for term, t in zip(terms, tensors, strict=True)
                if "..." in term), default=0)  # fmt: skip

    def labels(term: str, rank: int | None) -> Labels:
        head, dots, tail = term.partition("...")
        count = 0 if not dots else most if rank is None else rank - len(head) - len(tail)
        return [*map(ord, head), *range(-count, 0), *map(ord, tail)]

    parts = [labels(term, t.dim()) for term, t in zip(terms, tensors, strict=True)]
    every = [label for part in parts for label in part]
    once = sorted(label for label in set(every) if label >= 0 and every.count(label) == 1)
    result = labels(after, None) if arrow else [*range(-most, 0), *once]
    made, steps = parts[0], []
    for number, part in enumerate(parts[1:], 2):
        later = {label for rest in parts[number:] for label in rest} | set(result)
        kept = result if number == len(parts) else [x for x in dict.fromkeys([*made, *part]) if x in later]
        steps.append((made, part, kept))
        made = kept
    return steps


def _of_sublists(args: Sequence[Any]) -> tuple[str, list[Tensor]]:
    """An einsum of operands, each followed by the numbers of its dimensions, as an equation and its operands."""

    def word(numbers: Sequence[Any]) -> str:
        return "".join("..." if n is Ellipsis else chr(ord("A") + n if n < 26 else ord("a") + n - 26) for n in numbers)

    pairs = [(args[i], word(args[i + 1])) for i in range(0, len(args) - 1, 2)]
    equation = ",".join(term for _, term in pairs) + (f"->{word(args[-1])}" if len(args) % 2 else "")
    return equation, [t for t, _ in pairs]
