"""A contraction of a running forward as its hardware makes it: linear layers, convolutions, products of two operands.

What noise enters at the site afterwards is not known here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

from noisykernels.hardware.contraction import Contraction
from noisykernels.hardware.device import Device
from noisykernels.hardware.execute import draws_for_rows, run
from noisykernels.injection.columns import Wider
from noisykernels.injection.kinds import CONTRACTION_KINDS
from noisykernels.injection.layouts import laid_out
from noisykernels.injection.memory import Array
from noisykernels.injection.products import Product, product_of
from noisykernels.injection.rows import ALONE, Rows, apart, together
from noisykernels.nn.functional import placed
from noisykernels.noise.arguments import Chip, Key

__all__ = ["on_hardware"]

_REST = (("dilation", "groups"), ("output_padding", "groups", "dilation"))  # of convolutions, of transposed ones


class Running(Protocol):
    """What a contraction asks of the mode that runs it; see `mode.SiteMode`."""

    @property
    def batch(self) -> int: ...

    @property
    def column(self) -> bool: ...  # whether a bias is one more column of the array

    def with_column(self, contraction: Contraction, x: Tensor, weight: Tensor, bias: Tensor) -> Wider: ...

    def rows_at(self, name: str, row_dim: int | None = None) -> Rows | None: ...

    def array_at(self, name: str, product: Product) -> Array | None: ...

    def chip_at(self, name: str) -> Chip: ...

    def key_at(self, name: str, rows: Rows) -> dict[str, Any]: ...

    def at_level(self, name: str, hardware: Sequence[Device]) -> Sequence[Device]: ...


def on_hardware(
    mode: Running, name: str, kind: str, hardware: Sequence[Device], args: Any, kwargs: dict[str, Any],
    row_dim: int | None = None, product: Product | None = None,
) -> Tensor | None:  # fmt: skip
    """The result of a contraction as its devices make it; None: they cannot act on it, since its rows are not known."""
    rows = mode.rows_at(name, row_dim)
    if rows is None:  # they are mixed: what is drawn for each of them has no key
        if any(d.operands and (draws_for_rows((d,)) or not d.of_array) for d in hardware):
            return None
        rows = ALONE
    hardware = mode.at_level(name, hardware)
    if kind in CONTRACTION_KINDS:
        laid_anew = mode.column or _turned(mode, name, kind, args, kwargs)
        plain = None if laid_anew else _plain(mode, name, kind, hardware, args, kwargs, rows)
        if plain is not None:
            return plain
        if kind != "linear":
            return _convolution(mode, name, kind, hardware, args, kwargs, rows)
    if product is None:
        product = product_of(kind, args, kwargs)
    return None if product is None else product_on_hardware(mode, name, kind, hardware, product, rows)


def _turned(mode: Running, name: str, kind: str, args: Any, kwargs: dict[str, Any]) -> bool:
    """Whether the weight of a linear layer looks at an array that is stored the other way round."""
    weight = args[1] if len(args) > 1 else kwargs["weight"]
    if kind != "linear" or weight.dim() != 2 or weight.is_contiguous():
        return False
    product = product_of(kind, args, kwargs)
    array = None if product is None else mode.array_at(name, product)
    return array is not None and array == (1, (1, 0))


def _plain(
    mode: Running, name: str, kind: str, hardware: Sequence[Device], args: Any, kwargs: dict[str, Any], rows: Rows
) -> Tensor | None:
    """A linear layer or convolution by the operator of that name; None where rows do not lie as it takes them."""
    kwargs = dict(kwargs)
    x, rest = (args[0], args[1:]) if args else (kwargs.pop("input"), ())
    weight = rest[0] if rest else kwargs["weight"]
    op, dim = CONTRACTION_KINDS[kind], rows.dim
    batched = x.dim() > 1 if kind == "linear" else x.dim() == weight.dim()
    if not batched or rows.outer == 0 or x.shape[dim] != mode.batch or (dim != 0 and kind != "linear"):
        return None
    chip = mode.chip_at(name)
    held = {"array": chip.id, "array_seed": chip.seed}
    y: Tensor = op(x.movedim(dim, 0), *rest, **kwargs, hardware=hardware, **held, **mode.key_at(name, rows))
    return y.movedim(0, dim)


def product_on_hardware(
    mode: Running, name: str, kind: str, hardware: Sequence[Device], product: Product, rows: Rows
) -> Tensor | None:
    """A product of two operands on hardware; None where its rows are not found in them."""
    array = mode.array_at(name, product)
    if array is None and kind in ("linear", "bilinear"):  # whose second operand is called a weight
        array = Array(1, tuple(range(product.operands[1].dim())))
    number = None
    if array is not None:
        number, order = array
        operands, labels = list(product.operands), list(product.labels)
        while operands[number].dim() > len(order):  # expanded to one row: as the trace has seen it, it was to more
            ones = [d for d, size in enumerate(operands[number].shape) if size == 1]
            if not ones:
                return None
            operands[number] = operands[number].select(ones[0], 0)
            labels[number] = [label for d, label in enumerate(labels[number]) if d != ones[0]]
        operands[number] = operands[number].permute(order)
        labels[number] = [labels[number][d] for d in order]
        product = Product((operands[0], operands[1]), (labels[0], labels[1], labels[2]), product.bias, product.finish)
    laid = laid_out(kind, product, number, rows, 1 if rows.outer == 0 else mode.batch)
    if laid is None:
        return None
    return laid.back(_run(mode, name, laid.contraction, laid.x, laid.weight, laid.bias, hardware, rows))


def _run(
    mode: Running, name: str, contraction: Contraction, x: Tensor, weight: Tensor, bias: Tensor | None,
    hardware: Sequence[Device], rows: Rows,
) -> Tensor:  # fmt: skip
    """The contraction of x (rows, ...) on the array of a site."""
    told = mode.key_at(name, rows)
    key = Key.of(name, x.device, told["seed"], told["site"], told["draws"], told["rows"], 0)
    if bias is None or not mode.column:
        return run(contraction, x, weight, bias, hardware, key, False, mode.chip_at(name))
    wider = mode.with_column(contraction, x, weight, bias)
    y = run(wider.contraction, wider.x, wider.weight, None, hardware, key, False, mode.chip_at(name))
    return y if wider.shape is None else y.reshape(-1, *wider.shape)


def _convolution(
    mode: Running, name: str, kind: str, hardware: Sequence[Device], args: Any, kwargs: dict[str, Any], rows: Rows
) -> Tensor | None:
    """A convolution; where several values belong to a row, these become one more dimension of positions."""
    names = ("input", "weight", "bias", "stride", "padding", *_REST["transpose" in kind])
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    x, weight, bias = given["input"], given["weight"], given.get("bias")
    sizes = [given.get(name, 0 if "padding" in name else 1) for name in ("stride", "padding", "dilation")]
    more = ("transpose" in kind, given.get("output_padding", 0), given.get("groups", 1))
    count = 1 if rows.outer == 0 else mode.batch
    dims = weight.dim() - 2
    if x.dim() != weight.dim() or rows.dim != 0 or apart(x, rows, count) is None:
        return None
    _, x, geometry = placed(dims, x, weight, (*sizes, *more))
    apart_ = apart(x, rows, count)
    assert apart_ is not None
    if apart_.dim() == x.dim():
        return _run(mode, name, Contraction(kind, geometry), x, weight, bias, hardware, rows)
    stride, padding, dilation, transposed, output_padding, groups = geometry
    geometry = [1, *stride], [0, *padding], [1, *dilation], transposed, [0, *output_padding], groups
    here = apart_.flatten(1, -x.dim()).transpose(1, 2)  # (rows, channels, values of each, ...)
    y = _run(mode, name, Contraction(kind, geometry), here, weight.unsqueeze(2), bias, hardware, rows).transpose(1, 2)
    return together(y.unflatten(1, apart_.shape[1 : 1 - x.dim()]), rows, x)
