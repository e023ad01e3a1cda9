"""Mixed noise: how the midpoints move between purely multiplicative and purely additive noise."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from noisykernels._util.arguments import check_arguments
from noisykernels._util.data import Data
from noisykernels._util.text import aligned
from noisykernels.noise.description import Noise
from noisykernels.noise.ranges import Ranges
from noisykernels.plotting.maps import plot_mixed_map
from noisykernels.stats.midpoint import midpoint_cells
from noisykernels.stats.records import Record
from noisykernels.study.result import Result, ResultFileError
from noisykernels.study.study import Study
from noisykernels.walking.options import Asked, asked_of
from noisykernels.walking.walks import run, walk

__all__ = ["Mixed", "walk_mixed"]


@dataclass(frozen=True, repr=False)
class Mixed(Result, kind="mixed study"):
    """Studies of the same model and data, one for each ratio of the noise.

    Columns of `to_pandas`: the fields of `Record`, and ratio.
    """

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

    def plot(self, ax: Any = None, *, site: str | int | None = None) -> Any:
        """Midpoint against ratio for all sites, or the accuracy of one site against level and ratio.

        Args:
            ax: matplotlib axes; None makes a new figure.
            site: of which the accuracy is drawn; None: the midpoints of all.

        Returns:
            The matplotlib Figure.
        """
        check_arguments(Mixed.plot, locals())
        return plot_mixed_map(self.studies, self.ratios, ax=ax, site=site).figure

    def save(self, folder: str | os.PathLike[str]) -> list[Path]:  # type: ignore[override]  # a file for each ratio
        """Writes each study to a file of a folder, ``ratio-0.25.json``; `load` reads the folder, `Study.load` each."""
        check_arguments(Mixed.save, locals())
        names = [f"ratio-{ratio:g}.json" for ratio in self.ratios]
        return [study.save(Path(folder) / name) for name, study in zip(names, self.studies, strict=True)]

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Mixed:
        """Reads what `save` wrote; equal to what was saved, but with the ratios in ascending order.

        Raises:
            ResultFileError: no studies there, a damaged one, or studies of different walks.
            OSError: no such folder, ...
        """
        check_arguments(Mixed.load, locals())
        names = [path for path in Path(folder).iterdir() if re.fullmatch(r"ratio-[\d.e-]+\.json", path.name)]
        read = sorted(((_ratio(path, study := Study.load(path)), study) for path in names), key=lambda one: one[0])
        if not read:
            raise ResultFileError(f"{folder}: not a folder of mixed noise (no ratio-0.5.json or the like)")
        ratios, studies = zip(*read, strict=True)
        for name in ("seed", "rows", "clean_correct", "sites", "target", "model", "data", "stream_version"):
            if any(getattr(s.meta, name) != getattr(studies[0].meta, name) for s in studies):
                raise ResultFileError(f"{folder}: studies of different walks: {name} is not the same in all of them")
        return cls(ratios, studies)

    def _rows(self) -> tuple[Sequence[str], Sequence[Sequence[Any]]]:
        pairs = zip(self.ratios, self.studies, strict=True)
        return [*Record._fields, "ratio"], [(*r, ratio) for ratio, study in pairs for r in study.records]

    def _brief(self) -> str:
        return f"{len(self.ratios)} ratios, each {self.studies[0]._brief()}"

    def _about(self) -> dict[str, Any]:
        meta = self.studies[0].meta
        about = {name: getattr(meta, name) for name in ("model", "data", "rows", "clean", "target", "seed")}
        return {"ratios": self.ratios, **about}


def _ratio(path: Path, study: Study) -> float:
    """The ratio of a file: its name has six digits of it, the study's noise all of them."""
    told, share = path.stem.removeprefix("ratio-"), study.meta.noise.get("add")
    return share if isinstance(share, float) and f"{share:g}" == told else float(told)


def walk_mixed(
    model: nn.Module, data: Data, *, ratios: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 1.0), order: str = "mul_add",
    kind: str = "gaussian", relative: str | Ranges | None = None, seed: int, **options: Any,
) -> Mixed:  # fmt: skip
    """Walks mixed noise of several ratios: ``add = A * ratio``, ``mul = A * (1 - ratio)`` at level A.

    All ratios see the same random numbers, which are drawn and carried once.

    Args:
        model, data, seed: as for `walk`.
        ratios: additive shares, in [0, 1], each once.
        order, kind, relative: of the noise, see `Noise`.
        options: other arguments of `walk`: levels and draws for a grid, neither for a search, at, sites, store, ...

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
    check_arguments(walk_mixed, locals())
    shares = tuple(float(ratio) for ratio in ratios)
    if not shares or len(set(shares)) < len(shares) or not all(0 <= ratio <= 1 for ratio in shares):
        raise ValueError(f"walk_mixed: ratios must lie in [0, 1] and differ from each other, got {list(ratios)}")
    noises = [Noise.amplitude(1.0, ratio, order=order, kind=kind, relative=relative) for ratio in shares]
    return Mixed(shares, tuple(run(model, data, _asked(model, data, noises, seed, options))))


def _asked(model: nn.Module, data: Data, noises: list[Noise], seed: int, options: dict[str, Any]) -> Asked:
    """What `walk` would be asked with these options, which are checked as its own arguments are."""
    signature = inspect.signature(walk)
    if unknown := options.keys() - (signature.parameters.keys() - {"noise"}):
        raise TypeError(f"walk_mixed: options must be arguments of walk, got {min(unknown)!r}")
    given = signature.bind(model, data, noise=noises, seed=seed, **options)
    given.apply_defaults()
    return asked_of("walk_mixed", walk, given.arguments)
