"""How and by whom a study is computed; nothing of what it asks."""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import dataclass, fields
from typing import Literal, SupportsIndex

import torch

from noisykernels._util.checks import RANGES, in_range, is_number, one_of, shown

__all__ = ["SIZES", "Compute"]

SIZES = ("batch_rows", "draws_per_pass", "memory", "threads")  # what studies follow that run the whole model


@dataclass(frozen=True)
class Compute:
    """How and by whom a study is computed: the noise does not depend on it.

    A walk takes all of it; other studies take the settings that their documentation names, and refuse others.

    Args:
        engine: ``"shared"`` runs what precedes a site once and what follows it for many levels at once, where the model
            can be recorded, with a warning that says why where it cannot; ``"auto"`` as well, but for a grid without
            plateaus or store that is so small that recording a large model, or one of very many sites, costs more
            than it saves (told in the study's plan); ``"plain"`` runs the whole noisy model for every level and draw.
            Same noise; the contractions may round differently.
        batch_rows, draws_per_pass: rows of a pass (None: 500, and 5,000 on a GPU), and how many draws of them at once;
            fewer where `memory` asks for it. Part of the contraction plan: a prediction at a decision boundary may
            depend on them by rounding, the noise does not.
        memory: bytes that the values of a pass may take, beside the model and tensors of data; in each worker. Data of
            a loader that take more than a quarter of it are read chunk by chunk, each an eighth of it. None: 1 GiB, and
            a quarter of a GPU's memory (give less to several workers on one).
        threads: torch's threads for the study, in each worker too; None keeps the present number. Also of the plan.
        executor: who evaluates: an object with `submit` as in `concurrent.futures`, or a number of processes to
            start; None: this process. The results are the same, whoever does.
        verify: how the work that is shared is held against the plain engine: ``"sample"``, a few rows at each site
            before it is trusted; ``"full"``, every row of every level and draw as well, which takes as long as
            ``"plain"``. What differs by more than rounding explains is the plain engine's, named in a warning and in
            the study's ``meta.plan["verification"]``, with the number of predictions that differ by rounding.

    Raises:
        ValueError: an unknown engine or way to verify, sizes below 1, an executor that is none.

    Example:
        >>> Compute(batch_rows=100).rows_on(torch.device("cpu")), Compute().rows_on(torch.device("cpu"))
        (100, 500)
    """

    engine: Literal["auto", "shared", "plain"] = "auto"
    batch_rows: SupportsIndex | None = None
    draws_per_pass: SupportsIndex = 8
    memory: SupportsIndex | None = None
    threads: int | None = None
    executor: Executor | int | None = None
    verify: Literal["sample", "full"] = "sample"

    def __post_init__(self) -> None:
        """Checks each argument."""
        one_of("Compute", "engine", self.engine, ("auto", "shared", "plain"))
        one_of("Compute", "verify", self.verify, ("sample", "full"))
        for name in ("batch_rows", "draws_per_pass", "memory", "threads"):
            if (size := getattr(self, name)) is not None or name == "draws_per_pass":
                object.__setattr__(self, name, in_range("Compute", name, size))
        if is_number(self.executor):
            object.__setattr__(self, "executor", in_range("Compute", "executor", self.executor, RANGES["workers"]))
        elif self.executor is not None and not hasattr(self.executor, "submit"):
            got = shown(self.executor)
            raise TypeError(f"Compute: executor must have `submit`, or be a number of processes, got {got}")

    def rows_on(self, device: torch.device) -> int:
        """Rows of a pass; where not said, what is enough to keep the device busy."""
        if self.batch_rows is None:
            return 5000 if device.type == "cuda" else 500
        return int(self.batch_rows)

    def memory_on(self, device: torch.device) -> int:
        """Bytes of a pass; a part of all of a GPU's memory, not of what is free: a walk that goes on keeps its plan."""
        if self.memory is None:
            return torch.cuda.get_device_properties(device).total_memory // 4 if device.type == "cuda" else 2**30
        return int(self.memory)

    @classmethod
    def of(cls, op: str, given: Compute | None, *names: str) -> Compute:
        """What a study is given, if it can follow it: any settings, or those named.

        Raises:
            TypeError: what is no Compute.
            ValueError: a setting that the study does not take; without it, it would be silently left out.
        """
        usual = cls()
        if given is None:
            return usual
        if not isinstance(given, cls):
            raise TypeError(f"{op}: compute must be a Compute, got {type(given).__name__}")
        for field in fields(given) if names else ():
            if field.name not in names and (value := getattr(given, field.name)) != getattr(usual, field.name):
                raise ValueError(f"{op}: of compute it takes {', '.join(names)}, got {field.name}={value!r}")
        return given
