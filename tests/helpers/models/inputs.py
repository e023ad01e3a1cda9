"""What goes into the look-alikes, by kind: rows of tokens, images, series and tables, made from a seed."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["Given", "Made", "images", "seeded", "series", "table", "tokens"]

VOCABULARY = 40

Given = Tensor | dict[str, Tensor]
Inputs = Callable[[int], Given]


class Made(NamedTuple):
    """A model and its rows: `build()` with random weights of the present seed, `inputs(rows)`; which of the tensors
    that it gives is its output, and the package that it is from, where it is no look-alike."""

    build: Callable[[], nn.Module]
    inputs: Inputs
    output: str | None = None
    package: str = ""


def seeded() -> torch.Generator:
    """Of all inputs."""
    return torch.Generator().manual_seed(11)


def tokens(length: int, vocabulary: int = VOCABULARY) -> Inputs:
    """Numbers of words."""
    return lambda rows: torch.randint(1, vocabulary, (rows, length), generator=seeded())


def images(size: int, channels: int = 3) -> Inputs:
    """Channels first."""
    return lambda rows: torch.randn(rows, channels, size, size, generator=seeded())


def series(length: int, features: int) -> Inputs:
    """Steps of features."""
    return lambda rows: torch.randn(rows, length, features, generator=seeded())


def table(features: int) -> Inputs:
    """Numbers."""
    return lambda rows: torch.randn(rows, features, generator=seeded())
