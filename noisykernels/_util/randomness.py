"""Random numbers that others draw: states that are put back, so that what follows draws as if nothing had been."""

from __future__ import annotations

import contextlib
import functools
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

__all__ = ["generator_of", "keeping_random"]


@contextlib.contextmanager
def keeping_random() -> Iterator[None]:
    """What is drawn meanwhile from the random numbers that a process has (torch's on the CPU and on CUDA devices, those
    of ``numpy.random`` and of ``random``) is drawn again afterwards.
    """
    on_cpu, of_numpy, of_python = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    on_cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    try:
        yield
    finally:
        torch.set_rng_state(on_cpu)
        np.random.set_state(of_numpy)  # noqa: NPY002
        random.setstate(of_python)
        if on_cuda:
            torch.cuda.set_rng_state_all(on_cuda)


def generator_of(value: Any) -> tuple[Callable[[Any], Any], Any] | None:
    """Of a generator of random numbers, how its state is set, and its state; None: it is none."""
    if isinstance(value, torch.Generator | np.random.RandomState):
        return value.set_state, value.get_state()
    if isinstance(value, np.random.Generator):
        return functools.partial(setattr, value.bit_generator, "state"), value.bit_generator.state
    if isinstance(value, random.Random) and not isinstance(value, random.SystemRandom):
        return value.setstate, value.getstate()
    return None
