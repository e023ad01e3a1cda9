"""Voting: the noisy machine runs several times and its answers are combined; how accurate is that?

`vote` runs a model and counts (`stats.votes` has the counting).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from noisykernels._engine.arguments import draw_list
from noisykernels._engine.compute import SIZES, Compute
from noisykernels._engine.session import Problem, Session, places_of
from noisykernels._util.arguments import check_arguments
from noisykernels._util.data import Data
from noisykernels._util.inputs import Call, Output
from noisykernels._util.progress import progress_of
from noisykernels._util.text import covers, printable
from noisykernels.experiments.mean_votes import MEANS, MeanVotes
from noisykernels.metrics.accuracy import ACCURACY, Accuracy
from noisykernels.metrics.base import is_share
from noisykernels.metrics.names import MetricLike
from noisykernels.nn.modules import NoisyLayer
from noisykernels.noise.description import Noise
from noisykernels.plotting.votes import plot_votes
from noisykernels.stats.votes import KINDS, MOST_DRAWS, Means, VoteCurve, majority_curve
from noisykernels.study.result import Result

__all__ = ["Votes", "vote"]


@dataclass(frozen=True, eq=False, repr=False)
class Votes(Result, kind="vote"):
    """What is measured, the accuracy or another metric, against the number of executions, by kind of vote; what `vote`
    returns.

    Columns of `to_pandas`: kind, executions, accuracy, error.

    Example:
        >>> curve = VoteCurve(np.array([1, 2, 3]), np.array([0.7, 0.7, 0.8]), np.full(3, 0.01))
        >>> print(Votes({"majority": curve}, clean=0.9, rows=500, draws=(0, 1, 2), seed=1).table())
        clean accuracy 0.9000, 500 rows, 3 draws, seed 1
        executions          majority
        ----------------------------
                 1  0.7000 +- 0.0100
                 2  0.7000 +- 0.0100
                 3  0.8000 +- 0.0100
    """

    curves: dict[str, VoteCurve]
    clean: float
    rows: int
    draws: tuple[int, ...]
    seed: int
    arrays: str = "module"
    covered: dict[str, float] = field(default_factory=dict)  # shares of multiply-adds
    metric: str = "accuracy"
    unit: str = "fraction of rows"
    share: bool = True  # of rows that are right

    def table(self) -> str:
        """Value +- standard error as aligned text: lines for n up to 10, every tenth and the last."""
        count = len(self.draws)
        lines = ["executions" + "".join(f"{kind:>18}" for kind in self.curves)]
        lines.append("-" * len(lines[0]))
        for i in range(count):
            if i < 10 or (i + 1) % 10 == 0 or i + 1 == count:
                cells = "".join(f"  {c.values[i]:.4f} +- {c.error[i]:.4f}" for c in self.curves.values())
                lines.append(f"{i + 1:10}{cells}")
        title = f"clean {self.metric} {self.clean:.4f}, {self.rows} rows, {count} draws, seed {self.seed}"
        return "\n".join(map(printable, [title, *covers(self.covered), *lines]))

    def _rows(self) -> tuple[Sequence[str], Sequence[Sequence[Any]]]:
        rows = [
            (kind, *row)
            for kind, c in self.curves.items()
            for row in zip(*(column.tolist() for column in c), strict=True)
        ]
        return ["kind", "executions", "accuracy" if self.metric == "accuracy" else "value", "error"], rows

    def _brief(self) -> str:
        kinds, draws = len(self.curves), len(self.draws)
        return f"{kinds} kind{'s' * (kinds != 1)} of vote, {draws} draw{'s' * (draws != 1)}, {self.rows} rows, " \
               f"clean {self.clean:.4f}" + "".join(f"; {line}" for line in covers(self.covered))  # fmt: skip

    def plot(self, ax: Any = None) -> Any:
        """Picture of the curves on the caller's axes or a new figure (see `plotting.plot_votes`); the Figure."""
        return plot_votes(self, ax).figure


def vote(
    model: nn.Module,
    data: Data,
    *,
    noise: Noise | Callable[..., Tensor] | dict[str, Noise | Callable[..., Tensor]] | None,
    hardware: Any = None,
    draws: int | Sequence[int],
    seed: int,
    sites: Sequence[str | int | type] | str | type | None = None,
    kinds: Sequence[str] | str = KINDS,
    metric: MetricLike = ACCURACY,
    repeats: int | dict[str, int] = 1,
    subsets: int = 20,
    rows: Sequence[int] | torch.Tensor | None = None,
    arrays: Literal["module", "call", "parameter"] = "module",
    root: str = "",
    detail: Literal["attention"] | None = None,
    forward: Callable[..., Any] | None = None,
    output: Output = None,
    compute: Compute | None = None,
    progress: bool | Callable[[int, int], object] = False,
) -> Votes:
    """Runs the noisy model once per draw and tells the accuracy of n executions that vote, n = 1..D.

    `majority`: the class most executions name (exact, see `majority`); `logit`, `probability`: the class with the
    highest mean score or softmax (see `mean_scores`). Another metric measures `mean`, the mean of the outputs, or
    `probability`, the logarithm of the mean softmax: its mean over subsets of the draws.

    Args:
        model: a classifier, (rows, ...) -> (rows, classes), not injected; it is left as it was.
        data: (inputs, labels), or an iterable of such batches, in any of the forms of ``docs/guides/data.md``.
        noise: the noise of all chosen sites, or a function of the value, as for `inject`; or a dict from name patterns
            to these; None: that of the model's own noisy layers, which keep theirs in any case.
        hardware: what is inside contractions, as for `inject`.
        draws: number D of draws (ids 0, 1, ...), or the ids.
        seed: 64-bit seed of the noise; also of the random subsets.
        sites: names, name patterns, module types or indices of the noisy sites, as ``where`` of `inject`; None: all.
            Not with a dict.
        kinds: of votes, from ``"majority"``, ``"logit"``, ``"probability"``; of another metric than the accuracy from
            ``"mean"``, the usual one, and ``"probability"``.
        metric: what is measured, as for `walk`.
        repeats: multi-execution beside the voting, as for `inject`.
        subsets: random subsets for the mean scores, see `mean_scores`.
        rows: int64 vector, data-set index of each row of the data; None numbers them in order.
        arrays: which calls share an array of the chip, as for `inject`.
        root: the part at which names of sites begin, as for `inject`.
        detail: ``"attention"``: noise and hardware meet what is inside of attention by its names, as for `inject`.
        forward, output: how the model is called, and what of its result is measured, as for `walk`.
        compute: sizes of passes, memory and threads of `Compute`; other settings are refused.
        progress: show a progress bar, if tqdm is installed; or a function (done, total) called after each pass.

    Returns:
        `Votes`; rows whose scores hold NaN in one draw vote for nobody there, and make mean scores wrong.

    Raises:
        ValueError: bad data, draws, sites, kinds or sizes, a model without noise, already injected, or without one
            score per class and row.
        TypeError: a noise, seed or compute of another type.

    Source: whole-network voting extends the multi-execution of Walking Noise, arXiv 2212.10430.

    Example:
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
        >>> data = torch.randn(20, 1, 2, 2), torch.randint(2, (20,))
        >>> votes = vote(model, data, noise=Noise(add=0.5), draws=5, seed=1)
        >>> list(votes.curves), votes.curves["majority"].values.shape
        (['majority', 'logit', 'probability'], (5,))
    """
    check_arguments(vote, locals())
    classes = metric == "accuracy" or (isinstance(metric, Accuracy) and not metric.identity())
    wanted, known = (kinds,) if isinstance(kinds, str) else tuple(kinds), KINDS if classes else MEANS
    if not classes and wanted == KINDS:
        wanted = MEANS[:1]
    if not wanted or len(set(wanted)) < len(wanted) or not set(wanted) <= set(known):
        which = "" if classes else "of another metric than the accuracy "
        raise ValueError(f"vote: kinds {which}must be some of {known}, each once, got {kinds!r}")
    if noise is None and hardware is None and not any(isinstance(m, NoisyLayer) for m in model.modules()):
        raise ValueError("vote: noise is None, there is no hardware, and the model has no noisy layer")
    compute = Compute.of("vote", compute, *SIZES)
    sampled = [k for k in KINDS[1:] if k in wanted]
    ids = draw_list("vote", draws)
    if "majority" in wanted and len(ids) > MOST_DRAWS:  # which counting would say after all the work
        raise ValueError(f"vote: draws must be at most {MOST_DRAWS} for a majority, got {len(ids)}")
    problem = Problem.of(
        Call("vote", forward, output), model, data, seed=seed, rows=rows, metric=metric, arrays=arrays, root=root,
        detail=detail, sites=sites, compute=compute,
    )  # fmt: skip
    means = Means("vote", None, subsets, seed)
    labels = problem.data[1]
    where = places_of("vote", problem, noise, sites)
    placed = {"noise": noise, "where": where, "hardware": hardware, "repeats": repeats}
    with Session("vote", problem, compute, **placed) as session:
        clean, covered = session.clean_value, session.covered(session.noisy)
        if not classes:
            with progress_of("vote", progress, session.noisy_passes(ids)) as advance:
                found = _of_means(session, wanted, ids, subsets, advance)
            measure = session.problem.metric
            return Votes(
                found, clean, len(labels), tuple(ids), seed, arrays, covered, measure.name, measure.unit,
                is_share(measure),
            )  # fmt: skip
        predictions = np.empty((len(ids), len(labels)), np.int64)
        parts = []
        with progress_of("vote", progress, session.noisy_passes(ids)) as advance:
            for some, places, scores in session.noisy_scores(ids):
                parts.append(scores.cpu().double().numpy())
                advance(1)
                if places.stop < len(ids):
                    continue
                every, parts = np.concatenate(parts), []
                best = every.argmax(2)
                best[np.isnan(every).any(2)] = -1
                predictions[:, some] = best
                if sampled:
                    means.add(every, labels[some].cpu().numpy(), sampled)
    curves = means.curves()
    if "majority" in wanted:
        curves["majority"] = majority_curve("vote", predictions, labels.cpu().numpy(), session.outputs, None)
    return Votes({k: curves[k] for k in wanted}, clean, len(labels), tuple(ids), seed, arrays, covered)


def _of_means(
    session: Session, kinds: tuple[str, ...], ids: list[int], subsets: int, advance: Callable[[float], object]
) -> dict[str, VoteCurve]:
    """Curves of mean outputs, each batch of rows under all draws."""
    votes, parts = MeanVotes(session, kinds, len(ids), subsets, session.problem.seed), []
    for some, places, scores in session.noisy_scores(ids):
        parts.append(scores)
        advance(1)
        if places.stop == len(ids):
            targets = session.targets(session.inputs[some], session.labels[some])
            votes.add(some.start, torch.cat(parts), targets)
            parts = []
    return votes.curves()
