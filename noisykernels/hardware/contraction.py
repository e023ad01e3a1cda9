"""A contraction as the library computes it: which one, its geometry, the size of its operands."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from noisykernels._util.runtime import as_autocast

__all__ = ["Contraction", "Geometry", "largest_of"]


DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)  # of operands


Geometry = tuple[list[int], list[int], list[int], bool, list[int], int]
"""Stride, padding, dilation, transposed, output padding and groups."""


@dataclass(frozen=True)
class Contraction:
    """A linear layer or a convolution, without its operands.

    Args:
        name: of the operator, for messages.
        geometry: of a convolution; None: a linear layer.
    """

    name: str
    geometry: Geometry | None = None

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """The exact contraction."""
        if self.geometry is None:
            return F.linear(x, weight, bias)
        if x.device.type == "cpu":  # torch casts for this operator on CUDA only
            x, weight, bias = as_autocast(x), as_autocast(weight), None if bias is None else as_autocast(bias)
        out: Tensor = torch.ops.aten.convolution(x, weight, bias, *self.geometry)
        return out

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
        return weight.shape[1] * self.groups if self.transposed else weight.shape[0]

    def steps(self, weight: Tensor) -> int:
        """Products that are added up for an output; those with padding count."""
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

    def largest(self, weight: Tensor) -> Tensor:
        """The largest magnitude of the weights of each output feature: (N)."""
        weight = weight.detach()
        if self.transposed:
            weight = weight.reshape(self.groups, -1, *weight.shape[1:]).transpose(1, 2).flatten(0, 1)
        weight = weight.flatten(1)
        if weight.shape[1] == 0:
            return weight.new_zeros(weight.shape[0])
        return torch.maximum(weight.amax(1), -weight.amin(1))  # the norm of order infinity takes ten times as long

    def beside_weight(self, values: Tensor, weight: Tensor) -> Tensor:
        """One value for each output feature (N), in a shape that broadcasts to the weight."""
        ones = [1] * (weight.dim() - 2)
        if not self.transposed:
            return values.view(-1, 1, *ones)
        per_group = values.view(self.groups, 1, -1).expand(-1, weight.shape[0] // self.groups, -1)
        return per_group.reshape(weight.shape[0], weight.shape[1], *ones)

    def beside_output(self, values: Tensor, y: Tensor) -> Tensor:
        """One value for each output feature (N), in a shape that broadcasts to the output (rows, ...)."""
        return values if self.geometry is None else values.view(-1, *[1] * (y.dim() - 2))


def largest_of(weight: Tensor) -> Tensor:
    """max |W|, 0-d, without a gradient."""
    if weight.numel() == 0:
        return weight.new_zeros(())
    low, high = torch.aminmax(weight.detach())
    return torch.maximum(high, -low)
