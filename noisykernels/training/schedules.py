"""Noise while training: how its level changes from step to step and from image to image.

What is here gives factors for `noise_state(level=...)`, and knows nothing of models but that they have a noise state.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from noisykernels._util.arguments import check_arguments
from noisykernels._util.checks import Range, in_range, one_of, shown
from noisykernels.injection.setting import noise_state
from noisykernels.injection.state import NoiseState
from noisykernels.noise.arguments import factor_tensor, seed_tensor
from noisykernels.noise.contract import hashed_id
from noisykernels.noise.functional import eps

__all__ = ["Level", "Schedule", "VarianceAware", "check_level", "noisy_steps"]


_SITE = hashed_id("level")  # no site has a name like this one; and no activation draws from the operand used here
_OPERAND = "programming"
FORMS = ("folded", "clipped")

Level = float | Tensor | Callable[[int, Tensor | None], float | Tensor] | None


class Schedule:
    r"""A factor that changes with the step: straight lines between points, constant before and after them.

    .. math:: f(t) = f_i + (f_{i+1} - f_i) \frac{t - t_i}{t_{i+1} - t_i}, \qquad t_i \le t \le t_{i+1}

    Args:
        points: pairs (step, factor), steps rising, factors not negative. A step may be whatever is counted: steps,
            epochs, or a progress from 0 to 1; what the schedule is called with has to be the same.

    Raises:
        ValueError: no point, steps that do not rise, a factor that is negative or not finite.

    Example:
        >>> ramp = Schedule.ramp(100)
        >>> [ramp(step) for step in (0, 50, 100, 1000)]
        [0.0, 0.5, 1.0, 1.0]
        >>> Schedule([(0, 1.0), (10, 0.25)])
        Schedule([(0, 1.0), (10, 0.25)])
    """

    def __init__(self, points: Sequence[tuple[float, float]]) -> None:
        check_arguments(Schedule.__init__, locals())
        self.points = tuple((step, factor) for step, factor in points)
        steps = [step for step, _ in self.points]
        if not steps or any(not a < b for a, b in itertools.pairwise(steps)):
            raise ValueError(f"Schedule: expected at least one point and steps that rise, got steps {steps}")
        for step, factor in self.points:
            if not (math.isfinite(step) and math.isfinite(factor) and factor >= 0):
                raise ValueError(f"Schedule: expected finite points with factors >= 0, got {(step, factor)}")

    @classmethod
    def constant(cls, factor: float = 1.0) -> Schedule:
        """The same factor at every step.

        Example:
            >>> Schedule.constant(0.5)(123)
            0.5
        """
        check_arguments(Schedule.constant, locals())
        return cls([(0, factor)])

    @classmethod
    def ramp(cls, steps: float, *, start: float = 0.0, end: float = 1.0) -> Schedule:
        """From `start` to `end` over `steps` steps, then `end`.

        Example:
            >>> Schedule.ramp(4, end=2.0)(1)
            0.5
        """
        check_arguments(Schedule.ramp, locals())
        if not steps > 0:
            raise ValueError(f"Schedule.ramp: steps must be positive, got {steps}")
        return cls([(0, start), (steps, end)])

    @classmethod
    def overshoot(cls, steps: float, *, peak: float = 1.5, end: float = 1.0) -> Schedule:
        """From 0 to `peak` in the first half of `steps`, then to `end` in the second half.

        Source: Variance-Aware Noisy Training's published code, for the three factors; their times are our own choice.

        Example:
            >>> up_and_down = Schedule.overshoot(100)
            >>> [up_and_down(step) for step in (0, 25, 50, 75, 100)]
            [0.0, 0.75, 1.5, 1.25, 1.0]
        """
        check_arguments(Schedule.overshoot, locals())
        if not steps > 0:
            raise ValueError(f"Schedule.overshoot: steps must be positive, got {steps}")
        return cls([(0, 0.0), (steps / 2, peak), (steps, end)])

    def __call__(self, step: float, rows: Tensor | None = None) -> float:
        """The factor at a step; `rows` are not looked at."""
        steps, factors = zip(*self.points, strict=True)
        return float(np.interp(step, steps, factors))

    def __repr__(self) -> str:
        return f"Schedule({list(self.points)})"


@dataclass(frozen=True)
class VarianceAware:
    r"""Noise levels that are random themselves, image by image, so that a network learns a range of them.

    .. math::
        \text{folded:}\; \sigma = \alpha\,\sigma_t + \theta\,|z| \qquad
        \text{clipped:}\; \sigma = \max(0,\, \alpha\,\sigma_t + \theta\,z), \qquad z \sim N(0, 1)

    with *z* a pure function of (seed, step, data-set row): the same image has the same level at the same step, in
    whatever batch it comes. Levels are in units of the placed noise: absolute for `Noise(add=1.0)`.

    Args:
        sigma: :math:`\sigma_t`, the level to train for.
        alpha: share of it that is always there.
        theta: standard deviation of what varies.
        seed: 64-bit seed of the levels, int.
        form: ``"folded"`` (the published code) or ``"clipped"`` (the paper).
        every: None draws a level for each row at each step; a number *n* draws one for all rows, anew every *n* steps:
            with the steps of an epoch, one for each epoch.

    Raises:
        ValueError: a number out of range, an unknown form.

    Source: Variance-Aware Noisy Training (its published code, and the text of the paper "Beyond Noise"), where
    alpha 0.45 and theta 0.66 are called optimal for ResNet-18 on TinyImageNet.

    Example:
        >>> levels = VarianceAware(1.0, alpha=0.45, theta=0.66, seed=1)
        >>> rows = torch.tensor([7, 3, 7])
        >>> found = levels(0, rows)
        >>> found.shape, bool((found >= 0.45).all()), bool(found[0] == found[2])
        (torch.Size([3]), True, True)
    """

    sigma: float
    alpha: float
    theta: float
    seed: int
    form: str = "folded"
    every: int | None = None

    def __post_init__(self) -> None:
        for name in ("sigma", "alpha", "theta"):
            in_range("VarianceAware", name, getattr(self, name), Range(0))
        one_of("VarianceAware", "form", self.form, FORMS)
        if self.every is not None:
            in_range("VarianceAware", "every", self.every)
        if self.seed is None:
            raise TypeError("VarianceAware: seed must be an int, got None: levels are a pure function of it")
        seed_tensor("VarianceAware", self.seed, torch.device("cpu"))

    def __call__(self, step: int, rows: Tensor | None = None) -> Tensor:
        """Levels of a step.

        Args:
            step: number of the step, in [0, 2^32).
            rows: int64 (B), the data-set index of each row; not looked at if the level is one for all.

        Returns:
            float64, (B) on the device of `rows`; 0-d with `every`.
        """
        if self.every is not None:
            z = eps((1,), seed=self.seed, site=_SITE, operand=_OPERAND, draw=step // self.every).squeeze(0)
        elif rows is None:
            raise ValueError("VarianceAware: a level for each row needs the rows, got None")
        else:
            z = eps(
                (len(rows),), seed=self.seed, site=_SITE, operand=_OPERAND, draw=step, rows=rows, device=rows.device
            )
        z = z.double().abs() if self.form == "folded" else z.double()
        return (self.alpha * self.sigma + self.theta * z).clamp(min=0)


def check_level(op: str, level: Level) -> None:
    """Refuses what is no level, and no function that gives one."""
    if isinstance(level, type):
        raise TypeError(f"{op}: level must be numbers or a function (step, rows), got {shown(level)}")
    factor_tensor(op, None if callable(level) else level, torch.device("cpu"))


def noisy_steps(
    model: nn.Module, *, seed: int | Tensor, level: Level = 1.0
) -> Callable[[int, Tensor | None], AbstractContextManager[NoiseState]]:
    """What surrounds a training step, so that each step and each row has noise of its own at the level that is its due.

    The draw is the step's number, so that noise never repeats; the level is a tensor, so that a compiled model is not
    compiled again when it changes.

    Args:
        model: injected, or with noisy layers.
        seed: 64-bit seed of the noise.
        level: factor of all the model's noise, as for `noise_state`; or a function ``(step, rows)`` that gives it: a
            `Schedule`, a `VarianceAware`, or your own of both.

    Returns:
        A function ``(step, rows=None)`` that returns a context manager, in which forward and backward belong: the
        `on_step` of `train`, or for a loop of your own. `rows` is int64 (B), the data-set index of each row.

    Raises:
        TypeError, ValueError: see `noise_state`.

    Example:
        >>> model = nn.Linear(4, 2)
        >>> _ = nk.inject(model, nk.Noise(add=0.5))
        >>> noisy = noisy_steps(model, seed=1, level=Schedule.ramp(100))
        >>> for step, rows in enumerate(torch.arange(32).split(8)):
        ...     with noisy(step, rows) as state:
        ...         model(torch.ones(8, 4)).sum().backward()
        ...         print(float(state.level))
        0.0
        0.01
        0.02
        0.03
    """
    check_arguments(noisy_steps, locals())
    check_level("noisy_steps", level)

    def on_step(step: int, rows: Tensor | None = None) -> AbstractContextManager[NoiseState]:
        factor = level(step, rows) if callable(level) else level
        return noise_state(model, seed=seed, draws=[step], rows=rows, level=factor)

    return on_step
