"""A contraction as the library computes it: which one, its geometry, the size of its operands."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from noisykernels._util.runtime import as_autocast

__all__ = ["Contraction", "Geometry", "Layout", "largest_of", "largest_of_rows"]


DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)  # of operands


Geometry = tuple[list[int], list[int], list[int], bool, list[int], int]
"""Stride, padding, dilation, transposed, output padding and groups."""


@dataclass(frozen=True)
class Layout:
    """How an array that is not (features, products) is stored, such as one of (products, features).

    Args:
        order: its dimensions, first those that part it into groups, then those of features, then those of products.
        groups, features: how many of them these are.
    """

    order: tuple[int, ...]
    groups: int
    features: int

    def matrix(self, stored: Tensor) -> Tensor:
        """The array as (groups x features, products)."""
        laid = stored.permute(self.order)
        sizes = laid.shape
        return laid.reshape(math.prod(sizes[: self.groups + self.features]), -1)

    def beside(self, values: Tensor, stored: Tensor) -> Tensor:
        """One value for each feature of each group, in a shape that broadcasts to the array as it is stored."""
        count = self.groups + self.features
        sizes = [stored.shape[d] for d in self.order[:count]]
        laid = values.view(*sizes, *[1] * (len(self.order) - count))
        return laid.permute([self.order.index(d) for d in range(len(self.order))])


@dataclass(frozen=True)
class Contraction:
    """A linear layer or a convolution, without its operands; or a product of two values, neither of which is an array.

    Args:
        name: of the operator, for messages.
        geometry: of a convolution; None: a linear layer, or a product of values.
        layout: of an array that is stored in another way.
        of_values: x (rows, T, I, K) times "weight" (rows, T, J, K), each with a partner of its own: (rows, T, I, J).
    """

    name: str
    geometry: Geometry | None = None
    layout: Layout | None = None
    of_values: bool = False

    @property
    def laid_out(self) -> Contraction:
        """The same of an array in the library's own layout, see `matrix`."""
        return self if self.layout is None else replace(self, layout=None)

    def matrix(self, weight: Tensor) -> Tensor:
        """The weight in the library's layout, from that in which it is stored."""
        if self.layout is None:
            return weight
        matrix = self.layout.matrix(weight)
        return matrix if self.geometry is None else matrix.unsqueeze(-1)

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """The exact contraction."""
        weight = self.matrix(weight)
        if self.of_values:
            return x @ weight.transpose(-1, -2)
        if self.geometry is None:
            return F.linear(x, weight, bias)
        if self.beyond_library(weight):
            stride, padding, dilation, transposed, output_padding, groups = self.geometry
            inner = stride[1:], padding[1:], dilation[1:], transposed, output_padding[1:], groups
            y = Contraction(self.name, inner)(x.transpose(1, 2).flatten(0, 1), weight.squeeze(2), bias)
            apart: Tensor = y.unflatten(0, (len(x), x.shape[2]))
            return apart.transpose(1, 2)
        if x.device.type == "cpu":  # torch casts for this operator on CUDA only
            x, weight, bias = as_autocast(x), as_autocast(weight), None if bias is None else as_autocast(bias)
        out: Tensor = torch.ops.aten.convolution(x, weight, bias, *self.geometry)
        return out

    def beyond_library(self, weight: Tensor) -> bool:
        """Whether a convolution has four dimensions of positions, over the first of which no kernel reaches: that many
        values of a row, to each of which the library's three are applied."""
        return self.geometry is not None and weight.dim() > 5

    @property
    def transposed(self) -> bool:
        """Whether the weight has its output features along dimension 1."""
        return self.geometry is not None and self.geometry[3]

    @property
    def groups(self) -> int:
        """In how many parts input and output features are divided."""
        return 1 if self.geometry is None else self.geometry[5]

    def features(self, weight: Tensor) -> int:
        """Number of output features."""
        weight = self.matrix(weight)
        if self.of_values:
            return weight.shape[-2]
        return weight.shape[1] * self.groups if self.transposed else weight.shape[0]

    def steps(self, weight: Tensor) -> int:
        """Products that are added up for an output; those with padding count."""
        weight = self.matrix(weight)
        if self.of_values:
            return weight.shape[-1]
        inputs = weight.shape[0] // self.groups if self.transposed else weight.shape[1]
        return inputs * math.prod(weight.shape[2:])

    def positions(self, x: Tensor, weight: Tensor) -> list[int]:
        """Sizes of the output of a convolution of x (rows, channels, ...)."""
        assert self.geometry is not None
        stride, padding, dilation, transposed, output_padding, _ = self.geometry
        found = []
        for d, size in enumerate(x.shape[2:]):
            reach = dilation[d] * (weight.shape[2 + d] - 1)
            if transposed:
                found.append((size - 1) * stride[d] - 2 * padding[d] + reach + output_padding[d] + 1)
            else:
                found.append((size + 2 * padding[d] - reach - 1) // stride[d] + 1)
        return found

    def check(self, x: Tensor, weight: Tensor) -> None:
        """Raises an error for operands that a library's contraction would refuse."""
        name, shapes = self.name, f"got shapes {list(x.shape)} and {list(weight.shape)}"
        if x.dtype != weight.dtype or x.dtype not in DTYPES:
            raise ValueError(f"{name}: x and weight must have one floating dtype, got {x.dtype} and {weight.dtype}")
        if self.of_values:
            return
        if self.geometry is None:
            if weight.dim() != 2 or x.shape[-1] != weight.shape[1]:
                raise ValueError(f"{name}: x must be (..., K) and weight (N, K), {shapes}")
            return
        stride, padding, dilation, _, output_padding, groups = self.geometry
        if min(*stride, *dilation, groups) < 1 or min(*padding, *output_padding) < 0:
            raise ValueError(
                f"{name}: stride, dilation and groups must be positive and paddings not negative, got stride {stride}, "
                f"dilation {dilation}, groups {groups}, padding {padding} and output_padding {output_padding}"
            )
        inputs = weight.shape[0] if self.transposed else weight.shape[1] * self.groups
        if x.dim() != weight.dim() or x.shape[1] != inputs or weight.shape[0] % self.groups:
            raise ValueError(f"{name}: x must have {inputs} channels for the weight's {self.groups} groups, {shapes}")
        self._check_positions(x, weight)

    def _check_positions(self, x: Tensor, weight: Tensor) -> None:
        """Raises an error where torch would; an output of which padding crops everything is one without positions."""
        assert self.geometry is not None
        stride, _, dilation, transposed, output_padding, _ = self.geometry
        beyond = [o >= max(s, d) for o, s, d in zip(output_padding, stride, dilation, strict=True)]
        if transposed and any(beyond) and x.shape[0] > 0:
            raise ValueError(
                f"{self.name}: output_padding must be smaller than stride or dilation, got {output_padding} beside "
                f"stride {stride} and dilation {dilation}"
            )
        sizes = self.positions(x, weight)
        if transposed and min(sizes) < 0:
            raise ValueError(f"{self.name}: the padding crops more than there is: the output would have sizes {sizes}")
        if not transposed and min(sizes) <= 0:
            raise ValueError(f"{self.name}: the kernel is larger than the padded input of shape {list(x.shape)}")

    def by_feature(self, weight: Tensor) -> Tensor:
        """The weights of each output feature, in the order of their inputs: (N, K)."""
        weight = self.matrix(weight)
        if self.transposed:
            weight = weight.reshape(self.groups, -1, *weight.shape[1:]).transpose(1, 2).flatten(0, 1)
        return weight.flatten(1)

    def as_stored(self, by_feature: Tensor, weight: Tensor) -> Tensor:
        """The counterpart of `by_feature`: a number for each weight, in the shape of the weight as it is stored."""
        if self.layout is not None:
            order = self.layout.order
            laid = by_feature.reshape([weight.shape[d] for d in order])
            return laid.permute([order.index(d) for d in range(len(order))])
        if self.transposed:
            apart = by_feature.reshape(self.groups, weight.shape[1], -1, *weight.shape[2:])
            return apart.transpose(1, 2).reshape(weight.shape)
        return by_feature.reshape(weight.shape)

    def largest(self, weight: Tensor) -> Tensor:
        """The largest magnitude of the weights of each output feature: (N)."""
        weight = weight.detach()
        weight = weight.movedim(-2, 0).flatten(1) if self.of_values else self.by_feature(weight)
        return largest_of_rows(weight)

    def beside_weight(self, values: Tensor, weight: Tensor) -> Tensor:
        """One value for each output feature (N), in a shape that broadcasts to the weight as it is stored."""
        if self.layout is not None:
            return self.layout.beside(values, weight)
        if self.of_values:
            return values.view(-1, 1)
        ones = [1] * (weight.dim() - 2)
        if not self.transposed:
            return values.view(-1, 1, *ones)
        per_group = values.view(self.groups, 1, -1).expand(-1, weight.shape[0] // self.groups, -1)
        return per_group.reshape(weight.shape[0], weight.shape[1], *ones)

    def beside_output(self, values: Tensor, y: Tensor) -> Tensor:
        """One value for each output feature (N), in a shape that broadcasts to the output (rows, ...)."""
        return values if self.geometry is None else values.view(-1, *[1] * (y.dim() - 2))


def largest_of_rows(weight: Tensor) -> Tensor:
    """max |W| of each row of a matrix; 0 where there is nothing."""
    if weight.shape[1] == 0:
        return weight.new_zeros(weight.shape[0])
    return torch.maximum(weight.amax(1), -weight.amin(1))  # the norm of order infinity takes ten times as long


def largest_of(weight: Tensor) -> Tensor:
    """max |W|, 0-d, without a gradient."""
    if weight.numel() == 0:
        return weight.new_zeros(())
    low, high = torch.aminmax(weight.detach())
    return torch.maximum(high, -low)
