"""How the libraries of CUDA compute."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture
def exact_library() -> Iterator[None]:
    """No algorithms that multiply by fractions (Winograd, FFT): small integers stay exact."""
    with torch.backends.cudnn.flags(enabled=False):
        yield


@pytest.fixture
def no_tf32() -> Iterator[None]:
    with torch.backends.cudnn.flags(allow_tf32=False):
        yield
