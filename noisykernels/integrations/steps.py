"""Noise around the steps and evaluations of a training loop that somebody else holds.

Knows schedules and no trainer: the adapters beside it tell when a step or an evaluation begins. The noise of a step is
a function of (seed, step, call within the step): with the seed alone a run goes on with the same bits.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from noisykernels._util.checks import shown
from noisykernels._util.data import Data, in_memory
from noisykernels._util.warning import warn_user
from noisykernels.injection.setting import noise_state
from noisykernels.injection.state import injected_in
from noisykernels.noise.arguments import seed_tensor
from noisykernels.noise.contract import ID_LIMIT
from noisykernels.training.schedules import Level, check_level
from noisykernels.training.statistics import site_statistics

__all__ = ["NoisySteps"]

MEASURED = ("snr_db", "noise_power", "variance")  # of each noisy site, where statistics are asked for


class NoisySteps:
    """Seed, schedule and present block of `noise_state` of one training.

    Args:
        op: what errors call it.
        seed: of all noise; None draws one from torch's default generator.
        level: factor of all noise in steps: a number, or a function ``(step, rows)`` as `noisy_steps` takes it, whose
            rows are None here.
        evaluation: factor of all noise in evaluations.
        statistics: data of which the sites' statistics are logged.
    """

    def __init__(self, op: str, seed: int | None, level: Level, evaluation: float, statistics: Data | None) -> None:
        self.drawn = seed is None
        self.seed = int(seed_tensor(op, seed, torch.device("cpu"))) % 2**64
        check_level(op, level)
        if isinstance(statistics, Iterator):
            raise TypeError(f"{op}: statistics must be data that can be read at each log, got {shown(statistics)}")
        if statistics is not None:
            in_memory(op, statistics)  # before any training
        self.op, self.level, self.evaluation, self.statistics = op, level, evaluation, statistics
        self._blocks: list[tuple[int | None, contextlib.ExitStack]] = []  # of steps, or (None) of evaluations, nested

    @property
    def step(self) -> int | None:
        """The step whose noise calls have now; None: none has."""
        return self._blocks[-1][0] if self._blocks else None

    @property
    def is_on(self) -> bool:
        """Whether a training, or an evaluation, goes on."""
        return bool(self._blocks)

    def state(self) -> dict[str, int]:
        """What a checkpoint has to hold."""
        return {"seed": self.seed}

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on with the seed of a checkpoint, whatever was given."""
        if state["seed"] != self.seed and not self.drawn:
            warn_user(f"{self.op}: the checkpoint was trained with seed {state['seed']}, and goes on with it")
        self.seed, self.drawn = state["seed"], False

    def begin_step(self, model: nn.Module, step: int, rank: int = 0, processes: int = 1) -> None:
        """From here on calls have the noise of this step, each its own; nothing changes where they have it already."""
        if self.step == step:
            return
        if self.step is not None:
            self.leave()
        self._enter(step, model, draws=[step * processes + rank], level=self.level_at(step), advance=True)

    def begin_evaluation(self, model: nn.Module, rank: int = 0) -> None:
        """From here on calls have the noise of evaluations, the same in each: rows count from 0, in a draw that no step
        has."""
        if self._blocks and self.step is None:
            self.leave()
        self._enter(None, model, draws=[ID_LIMIT - 1 - rank], level=self.evaluation, rows="advance")

    def leave(self) -> None:
        """Ends the step or the evaluation that was begun last: what goes on around it goes on where it was."""
        self._blocks.pop()[1].close()

    def end(self) -> None:
        """The model is as it was before all of it."""
        while self._blocks:
            self.leave()

    def _enter(self, step: int | None, model: nn.Module, **told: Any) -> None:
        block = contextlib.ExitStack()
        block.enter_context(noise_state(model, seed=self.seed, **told))
        self._blocks.append((step, block))

    def level_at(self, step: int) -> Any:
        """The factor of all noise in a step."""
        return self.level(step, None) if callable(self.level) else self.level

    def logged(self, model: nn.Module, step: int) -> dict[str, float]:
        """What there is to log of a step: its level, and the statistics of each site that is noisy."""
        level = self.level_at(step)
        found = {} if level is None else {"noise/level": float(torch.as_tensor(level).double().mean())}
        if self.statistics is None:
            return found
        injected = [part for _, part in injected_in(model)]
        noisy = injected[0] if len(injected) == 1 else model  # such as a part of a LightningModule
        for record in site_statistics(noisy, self.statistics, seed=self.seed, level=level):
            if record.noise_power > 0:
                found |= {f"noise/{record.site}/{name}": getattr(record, name) for name in MEASURED}
        return found
