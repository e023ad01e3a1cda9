"""What a walk is asked, checked: its targets, how it looks, and what goes into its studies."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, SupportsIndex

from torch import Tensor

from noisykernels._engine.arguments import draw_list, level_list, listed
from noisykernels._engine.compute import Compute
from noisykernels._engine.session import Rows
from noisykernels._engine.targets import Activation, Target, Weight
from noisykernels._util.arguments import check_arguments
from noisykernels._util.inputs import Output
from noisykernels.hardware.noises import WeightNoise
from noisykernels.metrics.accuracy import ACCURACY
from noisykernels.metrics.names import MetricLike
from noisykernels.noise.description import Noise
from noisykernels.stats.midpoint import Axis
from noisykernels.stats.questions import HALF, At, question
from noisykernels.walking.groups import Groups, check_groups
from noisykernels.walking.strategies import Grid, Progress, Search, Strategy

__all__ = ["Asked", "asked_of", "strategy_of", "targets_of"]


@dataclass(frozen=True)
class Asked:
    """Everything that a walk is asked, but the model and its data; see `walk`.

    Args:
        op: the function that was called, for errors.
    """

    op: str
    targets: tuple[Target, ...]
    strategy: Strategy
    seed: int
    sites: Sequence[str | int | type] | str | type | None = None
    groups: Groups = None
    rows: Rows = None
    metric: MetricLike = ACCURACY
    floor: float | None = None
    at: At = HALF
    axis: Axis | None = None
    arrays: str = "module"
    root: str = ""
    detail: str | None = None
    compute: Compute | None = None
    store: str | os.PathLike[str] | None = None
    progress: Progress = False
    description: tuple[str, str] = ("", "")
    forward: Callable[..., Any] | None = None
    output: Output = None

    def __post_init__(self) -> None:
        """Checks what nothing else does before the work is done."""
        if self.sites is not None:  # which may be read but once
            object.__setattr__(self, "sites", listed(self.sites))
        if self.axis not in (None, "log", "linear"):
            raise ValueError(f"{self.op}: axis must be 'log' or 'linear' or None, got {self.axis!r}")
        check_groups(self.op, self.groups, self.sites)
        if self.floor is not None and not isinstance(self.floor, float | int):
            raise TypeError(f"{self.op}: floor must be a number or None, got {self.floor!r}")
        object.__setattr__(self, "at", question(self.op, self.at))
        names = self.description
        if not (isinstance(names, tuple | list) and len(names) == 2 and all(isinstance(n, str) for n in names)):
            raise TypeError(f"{self.op}: description must be two texts, of the model and of the data, got {names!r}")


def asked_of(op: str, walk: Callable[..., Any], given: Mapping[str, Any]) -> Asked:
    """What a walk of noise is asked.

    Args:
        op: the function that was called, for errors.
        walk: the function whose arguments are given.
        given: all of them, by name; checked.
    """
    targets = targets_of(op, given["noise"], given["target"])
    check_arguments(walk, given, op)
    how = {name: given[name] for name in ("levels", "draws", "search", "plateaus")}
    others = given.keys() - {"model", "data", "noise", "target", *how}
    strategy = strategy_of(op, target=targets[0], **how)
    return Asked(op, targets, strategy, **{name: given[name] for name in others})


def targets_of(op: str, noise: Any, target: str) -> tuple[Target, ...]:
    """The targets that noise, or a list of noises, means.

    Raises:
        TypeError: what is no noise.
        ValueError: an unknown target, or noise that does not go with it.
    """
    if target == "parameter":
        raise ValueError(f"{op}: target='parameter' is for walk_parameter")
    if target not in ("activation", "weight"):
        raise ValueError(f"{op}: target must be 'activation' or 'weight', got {target!r}")
    given = tuple(noise) if isinstance(noise, list | tuple) else (noise,)
    if any(callable(n) and not isinstance(n, type) for n in given):
        raise TypeError(
            f"{op}: noise must be a Noise, whose levels are walked, got a function, which has none: with functions of "
            "the value use inject(), vote() or chips()"
        )
    if not given or not all(isinstance(n, Noise | WeightNoise) for n in given):
        raise TypeError(f"{op}: noise must be a Noise, or a list of them, got {type(noise).__name__}")
    if target == "weight":
        return tuple(Weight(_of_weights(op, n)) for n in given)
    if any(isinstance(n, WeightNoise) for n in given):
        raise ValueError(f"{op}: a WeightNoise goes with target='weight'")
    for level in (level for n in given for level in (n.add, n.mul) if level is not None and level.dim() > 0):
        if level.dim() < 2 or level.shape[:2] != (1, 1):  # rows are cut into chunks and may be reordered
            raise ValueError(
                f"{op}: levels of the noise must be numbers, or differ by channel or element, not by draw or row; "
                f"got shape {list(level.shape)}"
            )
    return tuple(Activation(n) for n in given)


def _of_weights(op: str, noise: Noise | WeightNoise) -> WeightNoise:
    """Noise for weights from what a walk is given; levels must be numbers, as they serve weights of any shape."""
    if not isinstance(noise, WeightNoise):
        noise = WeightNoise.of(noise)
    if any(level is not None and level.dim() > 0 for level in (noise.noise.add, noise.noise.mul)):
        raise ValueError(f"{op}: levels of noise on weights must be numbers, got {noise!r}")
    return noise


def strategy_of(
    op: str,
    levels: Sequence[float] | Tensor | None,
    draws: SupportsIndex | Sequence[int] | Tensor | None,
    search: Search | None,
    plateaus: float | None,
    target: Target,
) -> Strategy:
    """How to look: a grid where there are levels and draws, a search where there are neither.

    Raises:
        TypeError: a search that is none.
        ValueError: one of levels and draws, plateaus or a search that do not go with the rest.
    """
    if (levels is None) != (draws is None):
        raise ValueError(f"{op}: give both levels and draws for a grid, or neither for an adaptive walk")
    if search is not None and not isinstance(search, Search):
        raise TypeError(f"{op}: search must be a Search, got {type(search).__name__}")
    if plateaus is not None and (levels is None or not 0 < plateaus < 0.5):
        raise ValueError(f"{op}: plateaus must lie between 0 and 0.5, and go with levels, got {plateaus}")
    if plateaus is not None and target.shares_rows:
        raise ValueError(f"{op}: plateaus are for noise on activations: the rows of a draw share the noise of weights")
    if levels is None:
        return Search() if search is None else search
    if search is not None:
        raise ValueError(f"{op}: a search finds its own levels: leave out levels and draws, or search")
    return Grid(tuple(level_list(op, levels)), tuple(draw_list(op, draws)), plateaus)
