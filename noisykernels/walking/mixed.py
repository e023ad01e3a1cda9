"""Mixed noise: how the midpoints move between purely multiplicative and purely additive noise."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from noisykernels._engine.session import Data
from noisykernels._util.optional import optional
from noisykernels._util.text import aligned
from noisykernels.noise.description import Noise
from noisykernels.plotting.maps import plot_mixed_map
from noisykernels.stats.midpoint import midpoint_cells
from noisykernels.study.study import Study
from noisykernels.walking.walk import walk

__all__ = ["Mixed", "walk_mixed"]


@dataclass(frozen=True)
class Mixed:
    """Studies of the same model and data, one for each ratio of the noise."""

    ratios: tuple[float, ...]
    studies: tuple[Study, ...]

    def table(self) -> str:
        """Midpoints, a line for each site and a column for each ratio, as aligned text."""
        head = ["#", "site", *(f"ratio {ratio:g}" for ratio in self.ratios)]
        lines = [
            [str(same[0].site_index), same[0].site, *(midpoint_cells(m)[0] for m in same)]
            for same in zip(*(study.midpoints() for study in self.studies), strict=True)
        ]
        return "\n".join(aligned([head, *lines], (1,)))

    def plot(self, site: str | int | None = None, ax: Any = None) -> Any:
        """Midpoint against ratio for all sites, or the accuracy of one site against level and ratio.

        Returns:
            The matplotlib Figure.
        """
        return plot_mixed_map(self.studies, self.ratios, ax=ax, site=site).figure

    def to_pandas(self) -> Any:
        """The records of all studies, with a column `ratio`."""
        pandas = optional("pandas", "table")
        frames = [s.to_pandas().assign(ratio=ratio) for ratio, s in zip(self.ratios, self.studies, strict=True)]
        return pandas.concat(frames, ignore_index=True)

    def save(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Writes each study to a file of a folder, ``ratio-0.25.json``; `Study.load` reads them."""
        names = [f"ratio-{ratio:g}.json" for ratio in self.ratios]
        return [study.save(Path(folder) / name) for name, study in zip(names, self.studies, strict=True)]


def walk_mixed(
    model: nn.Module, data: Data, *, ratios: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 1.0), order: str = "mul_add",
    kind: str = "gaussian", seed: int, **options: Any,
) -> Mixed:  # fmt: skip
    """Walks mixed noise of several ratios: ``add = A * ratio``, ``mul = A * (1 - ratio)`` at level A.

    All ratios see the same random numbers, which are drawn and carried once.

    Args:
        model, data, seed: as for `walk`.
        ratios: additive shares, in [0, 1], each once.
        order, kind: of the noise, see `Noise`.
        options: other arguments of `walk`: levels and draws for a grid, neither for midpoints only, sites, store, ...

    Returns:
        A `Mixed` with a study for each ratio.

    Raises:
        ValueError: ratios out of range or twice, and as `walk`.

    Source: Walking Noise, arXiv 2212.10430 (mixed noise).

    Example:
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
        >>> data = torch.randn(20, 1, 2, 2), torch.randint(2, (20,))
        >>> mixed = walk_mixed(model, data, ratios=[0.0, 1.0], levels=[0.1, 1.0], draws=2, seed=1)
        >>> [study.meta.noise["add"] for study in mixed.studies]
        [0.0, 1.0]
    """
    shares = tuple(float(ratio) for ratio in ratios)
    if not shares or len(set(shares)) < len(shares) or not all(0 <= ratio <= 1 for ratio in shares):
        raise ValueError(f"walk_mixed: ratios must lie in [0, 1] and differ from each other, got {list(ratios)}")
    noises = [Noise.amplitude(1.0, ratio, order=order, kind=kind) for ratio in shares]
    return Mixed(shares, tuple(walk(model, data, noise=noises, seed=seed, **options)))
