"""A product of two operands laid out as one of the library's contractions computes it, and its result put back."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor

from noisykernels.hardware.contraction import Contraction, Layout
from noisykernels.injection.products import Labels, Product
from noisykernels.injection.rows import Rows

__all__ = ["Laid", "laid_out"]

_ROW, _OUTSIDE, _INSIDE, _ALONE, _FRESH = range(-1000, -1005, -1)  # labels of our own, and from the last one down


class Laid(NamedTuple):
    """A contraction, its operands, its bias where it has one for each feature, and what makes the result of its own."""

    contraction: Contraction
    x: Tensor  # (rows, ...)
    weight: Tensor  # an array as it is stored, or (rows, ...)
    bias: Tensor | None
    back: Callable[[Tensor], Tensor]


class _Operand:
    """A tensor and the labels of its dimensions."""

    def __init__(self, tensor: Tensor, labels: Labels) -> None:
        self.tensor, self.labels = tensor, list(labels)

    def sum(self, label: int) -> None:
        """Adds up along a dimension, which is then gone."""
        self.tensor = self.tensor.sum(self.labels.index(label))
        self.labels.remove(label)

    def drop(self, label: int) -> None:
        """Takes a dimension of one entry away."""
        self.tensor = self.tensor.squeeze(self.labels.index(label))
        self.labels.remove(label)

    def spread(self, label: int, size: int) -> None:
        """Repeats along a dimension, which may be a new one."""
        if label not in self.labels:
            self.tensor, self.labels = self.tensor.unsqueeze(-1), [*self.labels, label]
        sizes = [size if other == label else -1 for other in self.labels]
        self.tensor = self.tensor.expand(sizes)

    def size(self, label: int) -> int:
        """Of a dimension."""
        return self.tensor.shape[self.labels.index(label)]

    def sized(self, labels: Sequence[int]) -> list[int]:
        """Sizes of some dimensions."""
        return [self.size(label) for label in labels]

    def ordered(self, *groups: Sequence[int]) -> Tensor:
        """The tensor with its dimensions in an order, each group made one."""
        moved = self.tensor.permute([self.labels.index(label) for group in groups for label in group])
        return moved.reshape([math.prod(self.sized(group)) for group in groups])


def laid_out(kind: str, product: Product, array: int | None, rows: Rows, count: int) -> Laid | None:
    """A product as a contraction of an operand that has the rows with an array, or of two that have rows.

    Args:
        kind: of the function, for messages.
        array: which operand is an array as it is stored; None: none is.
        rows: where the result holds its rows.
        count: of the rows.

    Returns:
        None where the rows are not found among the operands' dimensions.
    """
    sizes = product.sizes()
    if sizes is None:
        return None
    first, second = (_Operand(t, labels) for t, labels in zip(product.operands, product.labels[:2], strict=True))
    shape = [sizes.get(label, 1) for label in product.labels[2]]
    x, w = (second, first) if array == 0 else (first, second)
    result = _with_rows(list(product.labels[2]), rows, count, (x,) if array is not None else (x, w), w, array)
    if result is None:
        return None
    for operand, other in ((x, w), (w, x)):
        for label in [one for one in operand.labels if one not in other.labels and one not in result]:
            if array is None or operand is x:
                operand.sum(label)
            else:
                other.spread(label, operand.size(label))
    if array is None:
        contraction, labels, of_x, of_w = _of_values(kind, x, w, result)
    else:
        contraction, labels, of_x, of_w = _of_array(kind, x, w, result)
    every = {label: size for o in (w, x) for label, size in zip(o.labels, o.tensor.shape, strict=True)}
    every[_ROW] = of_x.shape[0]
    for label in labels:
        if label in x.labels and label in w.labels:
            every[label] = max(x.size(label), w.size(label))
    bias = _bias(product, w, labels) if array is not None else None
    added = None if bias is not None else product.bias
    order = [labels.index(label) for label in result if label in labels]
    order += [i for i in range(len(labels)) if i not in order]
    finish = product.finish

    def back(y: Tensor) -> Tensor:
        y = y.reshape([every[label] for label in labels]).permute(order).reshape(shape)
        return finish(y if added is None else y + added)

    return Laid(contraction, of_x, of_w, bias, back)


def _with_rows(
    result: Labels, rows: Rows, count: int, having: Sequence[_Operand], w: _Operand, array: int | None
) -> Labels | None:
    """The labels of the result, in which the rows have one of their own, as in the operands that have them."""
    if rows.outer == 0:
        for operand in having:
            operand.tensor, operand.labels = operand.tensor.unsqueeze(0), [_ROW, *operand.labels]
        return [_ROW, *result]
    if not -len(result) <= rows.dim < len(result):
        return None
    label = result[rows.dim]
    if array is not None and label in w.labels and w.size(label) > 1:
        return None
    found = False
    for operand in having:
        if label not in operand.labels:
            continue
        i = operand.labels.index(label)
        size = operand.tensor.shape[i]
        if size == 1 and count != 1:
            operand.drop(label)
            continue
        if count == 0 or size % (rows.outer * count) or (size != count and not rows.folded):
            return None
        operand.tensor = operand.tensor.unflatten(i, (rows.outer, count, -1))
        operand.labels[i : i + 1] = [_OUTSIDE, _ROW, _INSIDE]
        found = True
    if array is not None and label in w.labels:
        w.labels[w.labels.index(label)] = _ALONE
    i = rows.dim % len(result)
    return [*result[:i], _OUTSIDE, _ROW, _INSIDE, *result[i + 1 :]] if found else None


def _of_array(kind: str, x: _Operand, w: _Operand, result: Labels) -> tuple[Contraction, Labels, Tensor, Tensor]:
    fresh = _FRESH
    for label in [one for one in w.labels if one in x.labels]:
        if x.size(label) < w.size(label):  # the same for all
            x.drop(label) if label in result else x.spread(label, w.size(label))
        elif w.size(label) < x.size(label):
            if label in result:
                w.labels[w.labels.index(label)] = fresh
                fresh -= 1
            else:
                x.sum(label)
                x.spread(label, 1)
    groups = [label for label in w.labels if label in x.labels and label in result]
    products = [label for label in w.labels if label in x.labels and label not in result]
    features = [label for label in w.labels if label not in x.labels]
    free = [label for label in result if label in x.labels and label != _ROW and label not in groups]
    order = tuple(w.labels.index(label) for label in (*groups, *features, *products))
    layout = Layout(order, len(groups), len(features))
    if not groups:
        plain = order == (0, 1) and len(features) == 1
        of_x = x.ordered([_ROW], *([label] for label in free), products)
        contraction = Contraction(kind, None, None if plain else layout)
        return contraction, [_ROW, *free, *features], of_x, w.tensor
    of_x = x.ordered([_ROW], [*groups, *products], free)
    geometry = ([1], [0], [1], False, [0], math.prod(w.sized(groups)))
    return Contraction(kind, geometry, layout), [_ROW, *groups, *features, *free], of_x, w.tensor


def _of_values(kind: str, x: _Operand, w: _Operand, result: Labels) -> tuple[Contraction, Labels, Tensor, Tensor]:
    for label in [one for one in w.labels if one in x.labels]:
        size = max(x.size(label), w.size(label))
        x.spread(label, size)
        w.spread(label, size)
    for operand in (x, w):
        if _ROW not in operand.labels:
            operand.tensor, operand.labels = operand.tensor.unsqueeze(0), [_ROW, *operand.labels]
    x.spread(_ROW, max(x.size(_ROW), w.size(_ROW)))
    shared = [label for label in w.labels if label in x.labels and label != _ROW]
    both = [label for label in result if label in shared]
    products = [label for label in shared if label not in result]
    of_x = [label for label in result if label in x.labels and label != _ROW and label not in both]
    of_w = [label for label in result if label in w.labels and label != _ROW and label not in both]
    laid = x.ordered([_ROW], both, of_x, products), w.ordered([_ROW], both, of_w, products)
    return Contraction(kind, of_values=True), [_ROW, *both, *of_x, *of_w], *laid


def _bias(product: Product, w: _Operand, labels: Labels) -> Tensor | None:
    """The bias of each group's features, if it goes along a dimension of the array."""
    last = product.labels[2][-1] if product.labels[2] else None
    if product.bias is None or last not in w.labels:
        return None
    laid = [label for label in labels if label in w.labels]
    sizes = w.sized(laid)
    if product.bias.numel() != w.size(last):
        return None
    along = product.bias.view([w.size(last) if label == last else 1 for label in laid])
    return along.expand(sizes).reshape(-1)
