"""Convolutions of 3 x 3 with a quarter of their multiplications: F(4 x 4, 3 x 3) of Winograd, for channels_last values.

Six neighbours of a line are values of a polynomial's product at six points (Cook and Toom): what they are in `_SPREAD`
and what the three weights are in `_WEIGHTS` is multiplied, and `_GATHERED` makes four outputs of the six products; in
two dimensions 36 products for 16 outputs in place of 144. The sums over channels are then 36 matrix products.

The points are 0, +-5/8, +-3/2 and infinity: their squares and the sums and products of these are exact in float32, and
they amplify roundings least of all that were tried. By the model in `_engine/rounding.py` roundings of products and
sums over channels scatter an output by 4.8 times what they do in the direct sum (8.2 at the worst of the 16 places; 31
for the usual points 0, +-1, +-2); measured it is 0.3 to 0.5 times that model's eta, as the sums are blocked.
Where a result is not finite the convolution runs directly: differences of infinite values would spread to neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = ["Winograd"]

A, B = 5 / 8, 3 / 2
TILES = 128  # at once: 16 outputs each. More leave the cache of a core, fewer make the products slow
CHANNELS = 128  # of each side from which on transforms cost less than the multiplications that they save
POINTS = (0.0, A, -A, B, -B)
# Factors that make up for the rows of `_spread`, which have ones where they can.
FACTORS = (1 / (A * B) ** 2, *2 * (1 / (2 * A**2 * (A**2 - B**2)),), *2 * (1 / (2 * B**2 * (B**2 - A**2)),), 1.0)


def _weights() -> Tensor:
    """[6, 3]: what three weights are at the points."""
    rows = [[f * p**k for k in range(3)] for f, p in zip(FACTORS, POINTS, strict=False)]
    return torch.tensor([*rows, [0.0, 0.0, 1.0]], dtype=torch.float64)


class Winograd:
    """A convolution with stride and padding 1, and a rectifier in place.

    Args:
        weight: [outputs, inputs, 3, 3], float32.
        bias: of the outputs.
        relu: rectify.
        directly: the same by the library, of a value and of what is added.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, relu: bool, directly: Callable[..., Tensor]) -> None:
        at = _weights()
        spread = torch.einsum("ia,jb,kcab->ijck", at, at, weight.double())
        self.weight = spread.flatten(0, 1).to(weight.dtype).contiguous()  # [36, inputs, outputs]
        self.bias, self.relu, self.directly = bias, relu, directly

    @staticmethod
    def pays(weight: Tensor, height: int, width: int) -> bool:
        """Whether it is faster: there are enough channels, and at most a quarter of the tiles' outputs are lost."""
        used = height * width >= 0.75 * (16 * -(-height // 4) * -(-width // 4))
        return used and min(weight.shape[:2]) >= CHANNELS

    def __call__(self, x: Tensor, added: Tensor | None = None) -> Tensor:
        """Of [images, inputs, height, width]: [images, outputs, height, width], channels_last, with what is added."""
        if added is not None and added.dtype != x.dtype:  # the sum is of another type
            return self.directly(x, added)
        count, _, height, width = x.shape
        down, right = -(-height // 4), -(-width // 4)
        y = x.new_empty(count, 4 * down, 4 * right, self.weight.shape[-1])
        some = max(1, min(count, TILES // (down * right)))
        work = _Work(x, some, down, right, y.shape[-1])
        for low in range(0, count, some):
            part = slice(low, low + some)
            self._images(x[part], None if added is None else added[part], y[part], work.of(min(some, count - low)))
        y = y[:, :height, :width].permute(0, 3, 1, 2)
        return y.contiguous(memory_format=torch.channels_last)

    def _images(self, x: Tensor, added: Tensor | None, y: Tensor, work: _Work) -> None:
        """Some images that fit a core's cache, into y [images, height, width, outputs], which has whole tiles."""
        height, width = x.shape[2:]
        work.padded[:, 1 : 1 + height, 1 : 1 + width] = x.permute(0, 2, 3, 1)
        _spread(_every_fourth(work.padded, 1), work.rows.unbind(0), work.of_rows)
        _spread(_every_fourth(work.rows, 3), work.tiles.unbind(1), work.of_tiles)
        tiles = work.tiles.flatten(2, 4).flatten(0, 1)
        torch.bmm(tiles, self.weight, out=work.products.flatten(2, 4).flatten(0, 1))
        _gather(work.products.unbind(0), work.gathered.unbind(0), work.of_products, None)
        images, _, _, outputs = y.shape
        places = y.view(images, y.shape[1] // 4, 4, y.shape[2] // 4, 4, outputs).permute(4, 2, 0, 1, 3, 5)
        _gather(work.gathered.unbind(1), places.unbind(0), work.of_gathered, self.bias)
        inner = y[:, :height, :width].permute(0, 3, 1, 2)
        if not bool(y.sum().isfinite()):
            inner.copy_(self.directly(x, added))
            return
        if added is not None:
            inner.add_(added)
        if self.relu:
            torch.relu_(y)


class _Work:
    """Memory for some images, used again for the next ones."""

    def __init__(self, x: Tensor, images: int, down: int, right: int, outputs: int) -> None:
        inputs = x.shape[1]
        self.padded = x.new_zeros(images, 4 * down + 2, 4 * right + 2, inputs)
        self.rows = x.new_empty(6, images, down, 4 * right + 2, inputs)
        self.of_rows = x.new_empty(2, images, down, 4 * right + 2, inputs)
        self.tiles = x.new_empty(6, 6, images, down, right, inputs)
        self.of_tiles = x.new_empty(2, 6, images, down, right, inputs)
        self.products = x.new_empty(6, 6, images, down, right, outputs)
        self.of_products = x.new_empty(2, 6, images, down, right, outputs)
        self.gathered = x.new_empty(4, 6, images, down, right, outputs)
        self.of_gathered = x.new_empty(2, 4, images, down, right, outputs)
        self.shape = (x, images, down, right, outputs)

    def of(self, images: int) -> _Work:
        """For so many: the last ones may be fewer."""
        x, most, *rest = self.shape
        return self if images == most else _Work(x, images, *rest)


def _every_fourth(x: Tensor, dim: int) -> list[Tensor]:
    """The six neighbours of each tile along a dimension."""
    last = x.shape[dim] - 5
    return [x[(slice(None),) * dim + (slice(i, i + last, 4),)] for i in range(6)]


def _spread(d: Sequence[Tensor], out: Sequence[Tensor], two: Tensor) -> None:
    """Six neighbours at the points."""
    a2, b2 = A**2, B**2
    torch.sub(d[4], d[2], alpha=a2 + b2, out=out[0]).add_(d[0], alpha=a2 * b2)
    torch.sub(d[5], d[3], alpha=a2 + b2, out=out[5]).add_(d[1], alpha=a2 * b2)
    for at, first, other in ((A, 1, b2), (B, 3, a2)):
        even, odd = torch.sub(d[4], d[2], alpha=other, out=two[0]), torch.sub(d[3], d[1], alpha=other, out=two[1])
        torch.add(even, odd, alpha=at, out=out[first])
        torch.sub(even, odd, alpha=at, out=out[first + 1])


def _gather(m: Sequence[Tensor], out: Sequence[Tensor], two: Tensor, bias: Tensor | None) -> None:
    """Four outputs of six products."""
    one, other = torch.add(m[1], m[2], out=two[0]), torch.add(m[3], m[4], out=two[1])
    torch.add(m[0], one, out=out[0]).add_(other)
    _scaled(one, A**2, bias)
    torch.add(one, other, alpha=B**2, out=out[2])
    torch.sub(m[1], m[2], out=one)
    torch.sub(m[3], m[4], out=other)
    torch.add(m[5], one, alpha=A**3, out=out[3]).add_(other, alpha=B**3)
    _scaled(one, A, bias)
    torch.add(one, other, alpha=B, out=out[1])
    if bias is not None:
        out[0].add_(bias)
        out[3].add_(bias)


def _scaled(x: Tensor, factor: float, bias: Tensor | None) -> None:
    """x times a factor, plus a bias, in place."""
    if bias is None:
        x.mul_(factor)
    else:
        torch.add(bias, x, alpha=factor, out=x)
