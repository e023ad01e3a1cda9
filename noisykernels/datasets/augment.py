"""Augmentation of image tensors, batch by batch and without loops: a shifted crop and a mirror."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from noisykernels._util.arguments import check_arguments
from noisykernels._util.checks import whole
from noisykernels.datasets.vision import info

__all__ = ["Augment", "augmentation", "crop_flip"]


#: Function of (inputs of a batch, CPU generator) that returns the inputs to train on.
Augment = Callable[[Tensor, Generator], Tensor]


def crop_flip(x: Tensor, generator: Generator, *, pad: int = 4, fill: tuple[float, ...] = (0.0,)) -> Tensor:
    """Shift each image by up to `pad` pixels each way, and mirror every second one left to right.

    Args:
        x: (B, C, H, W), float, on any device.
        generator: a CPU generator; it alone decides.
        pad: pixels added on each side before the crop back to (H, W).
        fill: value of the added pixels, one for each channel or one for all.

    Returns:
        A new tensor (B, C, H, W).

    Example:
        >>> crop_flip(torch.ones(2, 1, 8, 8), torch.Generator().manual_seed(0)).shape
        torch.Size([2, 1, 8, 8])
    """
    check_arguments(crop_flip, locals(), pad=whole(0, 2**31))
    batch, channels, height, width = x.shape
    colour = torch.tensor(fill, dtype=x.dtype, device=x.device).view(-1, 1, 1)
    canvas = colour.expand(batch, channels, height + 2 * pad, width + 2 * pad).clone()
    canvas[:, :, pad : pad + height, pad : pad + width] = x
    # Three draws for each image, whatever the device: offset down, offset right, mirrored or not.
    down, right = torch.randint(2 * pad + 1, (2, batch), generator=generator).to(x.device)
    mirrored = torch.randint(2, (batch, 1, 1, 1), generator=generator).to(x.device) == 1
    windows = canvas.unfold(2, height, 1).unfold(3, width, 1)  # (B, C, 2p+1, 2p+1, H, W), a view
    crop = windows[torch.arange(batch, device=x.device), :, down, right]
    return torch.where(mirrored, crop.flip(-1), crop)


def augmentation(data_name: str) -> Augment | None:
    """The published augmentation of a data set, for `train(augment=...)`; None where there is none.

    Pixels beyond the border are black, as they are when the crop comes before the normalisation.

    Example:
        >>> augmentation("mnist") is None
        True
    """
    check_arguments(augmentation, locals())
    about = info(data_name)
    if about.augment is None:
        return None
    return lambda x, generator: crop_flip(x, generator, fill=about.black)
