"""The walk: one site noisy at a time. What it is asked is `options`', the work is the engine's."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, SupportsIndex, overload

import torch
from torch import Tensor, nn

from noisykernels._C import STREAM_VERSION
from noisykernels._engine.arguments import chosen_sites, with_rows
from noisykernels._engine.compute import Compute
from noisykernels._engine.evaluation import evaluation
from noisykernels._engine.evaluator import Evaluator
from noisykernels._engine.rounding import tied
from noisykernels._engine.session import Problem, Rows, Session
from noisykernels._engine.workers import packed
from noisykernels._util.data import Data
from noisykernels._util.inputs import Call, Output
from noisykernels._util.warning import warn_user
from noisykernels.hardware.noises import WeightNoise
from noisykernels.injection.placement import SILENT
from noisykernels.injection.site import Site
from noisykernels.injection.tokens import Place
from noisykernels.metrics.accuracy import ACCURACY
from noisykernels.metrics.base import is_share, measure_of
from noisykernels.metrics.names import MetricLike
from noisykernels.metrics.typed import typed
from noisykernels.noise.description import Noise
from noisykernels.stats.questions import HALF, At, question
from noisykernels.stats.records import Meta
from noisykernels.study.study import Study
from noisykernels.walking.cells import Cells
from noisykernels.walking.groups import Groups, grouped, words_of
from noisykernels.walking.options import Asked, asked_of
from noisykernels.walking.strategies import Found, Progress, Search

__all__ = ["run", "walk"]


@overload
def walk(model: nn.Module, data: Data, *, noise: Noise | WeightNoise, seed: int, **options: Any) -> Study: ...


@overload
def walk(
    model: nn.Module, data: Data, *, noise: Sequence[Noise] | Sequence[WeightNoise], seed: int, **options: Any
) -> list[Study]: ...


def walk(  # type: ignore[misc]  # the overloads leave out what does not matter for the result's type
    model: nn.Module,
    data: Data,
    *,
    noise: Noise | WeightNoise | Sequence[Noise | WeightNoise],
    levels: Sequence[float] | Tensor | None = None,
    draws: SupportsIndex | Sequence[int] | Tensor | None = None,
    seed: int,
    sites: Sequence[str | int | type] | str | type | None = None,
    groups: Groups = None,
    target: Literal["activation", "weight"] = "activation",
    arrays: Literal["module", "call", "parameter"] = "module",
    root: str = "",
    detail: Literal["attention"] | None = None,
    rows: Rows = None,
    forward: Callable[..., Any] | None = None,
    output: Output = None,
    metric: MetricLike = ACCURACY,
    floor: float | None = None,
    at: At = "half",
    axis: Literal["log", "linear"] | None = None,
    search: Search | None = None,
    plateaus: float | None = None,
    compute: Compute | None = None,
    store: str | os.PathLike[str] | None = None,
    progress: Progress = False,
    description: tuple[str, str] = ("", ""),
) -> Study | list[Study]:
    """Walks the noise through a model, one site noisy at a time, and measures each row: is its prediction correct?

    With ``levels`` and ``draws`` every cell of the grid (site, level, draw) is evaluated on all rows. Without them the
    walk is adaptive: it brackets the midpoint of each site and spends rows and draws until the 95 % interval is as
    short as ``search`` says.

    Args:
        model: a classifier, (rows, ...) -> (rows, classes); any model, in any mode; it is left as
            it was, and runs where its parameters are. Its own noisy layers are walked like other
            sites, and are silent meanwhile.
        data: (inputs, labels), or an iterable of such batches, in any of the forms of ``docs/guides/data.md``.
        noise: the noise at level 1; or several, such as mixed noise of several ratios: they share what is drawn and
            carried, and give a study each.
        levels: what its levels are multiplied with, each finite and not negative:
            ``Noise(add=1.0)`` at level 0.3 is ``add=0.3``. None: adaptive.
        draws: number of draws (ids 0, 1, ...), or the ids.
        seed: 64-bit seed of the study.
        sites: names, name patterns, module types or indices of the sites to walk (see `sites`), as ``where`` of
            `inject`: so the results of modules that are asked for are sites, too, after all others; None walks all.
        groups: sites that are noisy together, each at the same level, as one place of the walk: ``"all"`` of them, the
            level that the whole chip can stand; ``"block"``, those of each block (what a `ModuleList` or `Sequential`
            holds; elsewhere what the model holds) together; or a dict of names and, for each, the sites as for
            `sites`. A group shares what comes before its first site. None: one site at a time.
        target: where noise enters; ``"activation"``: values at sites; ``"weight"``: the weights of linear layers and
            convolutions, drawn once for each draw, which is a chip, and the same for all rows. The noise is then a
            `WeightNoise`, such as ``WeightNoise(add=1.0, relative="layer")``, or a `Noise` of one term.
            (`walk_parameter` walks hardware.) A weight that several calls use is walked once, as the site of the first.
        arrays: which calls share a weight's noise, as for `inject`.
        root: the part at which names of sites begin, as for `inject`.
        detail: ``"attention"``: walks what is inside of torch's attention, too, as for `inject`.
        rows: int64 vector, data-set index of each row of the data; None numbers them in order; `TokenRows`: rows are
            sequences, whose tokens have noise of their own, the same padded or not, in any batch.
        forward: how the model is called: function (model, inputs as they came) -> output; None: ``model(x)``,
            ``model(x, z)``, or ``model(**inputs)`` for a dict.
        output: what of its result is measured: a key, an index, or a function of it; None: the tensor itself, else its
            ``logits``, else its first tensor.
        metric: what is measured of each row.
        floor: its value under unbounded noise; None: the metric's own, 1 / classes for the accuracy.
        at: the question: at which level a site's curve crosses which value. ``"half"``, half-way between the clean
            value and the floor, whose level is its midpoint; or one whose level is its tolerance: ``Keep(0.99)``, that
            share of what lies between floor and clean value is left; ``Drop(0.01)``, so much is lost; ``Ratio(1.05)``,
            so many times the clean value; ``Value(0.9)``. A grid can be asked others later, a search finds this one.
        axis: ``"log"`` or ``"linear"`` level axis; None: linear for purely multiplicative noise.
        search: how exact an adaptive walk is to be; None: ``Search(rel_ci=0.05)``.
        plateaus: for a grid: do not run cells in full that lie on a plateau. Those at which no prediction can flip
            get status ``"proved"``; those of a level whose accuracy lies, by its 95 % interval, within this share of
            (clean accuracy - floor) around either, get ``"settled"``, on some rows only. 0.03, say.
        compute: how and by whom it is computed: engine, sizes of passes, memory, threads, workers; see `Compute`.
        store: a file that keeps what is found, as it is found: the same walk goes on from there after it was
            killed, a larger one (levels, draws, sites) evaluates only what is new, and several processes may
            work on one. It belongs to this model, data, noise, seed and plan, and refuses others.
        progress: show a progress bar on standard error, if tqdm is installed; or a function (done, total), which
            counts levels of sites, or sites for the adaptive walk.
        description: names of the model and of the data, kept with the study.

    Returns:
        A `Study` with one record for each (site, level, draw) that was evaluated; a list of them for several noises.

    Raises:
        ValueError: bad levels, draws, sites or data; a question without an answer; a model that is injected already,
            that does not give one score per class and row, or that cannot be sent to workers.
        TypeError: a noise, seed, metric, search, compute, floor, question or description of another type.
        RuntimeError: a site at which rows cannot be told apart; workers that died over one part three times.
        StoreError: the file is no store, another study's, or cannot be read or written (a full disk, a removed folder).

    Source: Walking Noise, arXiv 2212.10430.

    Example:
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
        >>> data = torch.randn(20, 1, 2, 2), torch.randint(2, (20,))
        >>> study = walk(model, data, noise=Noise(add=1.0), levels=[0.1, 1.0], draws=2, seed=1)
        >>> len(study.records), study.records[0].site
        (8, 'input')
    """
    studies = run(model, data, asked_of("walk", walk, locals()))
    return studies if isinstance(noise, list | tuple) else studies[0]


def run(model: nn.Module, data: Data, asked: Asked) -> list[Study]:
    """The story of a walk: a study for each target."""
    targets, strategy = asked.targets, asked.strategy
    problem = Problem.of(
        Call(asked.op, asked.forward, asked.output), model, data, seed=asked.seed, rows=asked.rows,
        metric=asked.metric, arrays=asked.arrays, root=asked.root, detail=asked.detail,
        sites=words_of(asked.sites, asked.groups), compute=asked.compute,
    )  # fmt: skip
    metric = problem.metric
    strategy.check(asked.op, metric)
    if strategy.shuffled:
        problem = problem.shuffled()
    problem = replace(problem, targets=targets)
    computed = torch.float64 if problem.data[0][:1].tensors[0].dtype == torch.float64 else torch.float32
    for target in targets:
        for level in strategy.levels:
            target.check(asked.op, level, computed)
    session = Session(asked.op, problem, asked.compute)
    sent = None if session.compute.executor is None else packed(problem)  # before it is injected
    with session:
        if session.mixed and strategy.shuffled:
            raise ValueError(
                f"{asked.op}: rows of this model look at each other, so no part of them can stand for all, as "
                "searches and plateaus have it; give levels and draws, without plateaus, for a grid"
            )
        cells = Cells(
            _chosen(session, asked), len(targets), session.clean, _floor(session, asked), session.problem.metric,
            len(session.labels), question(asked.op, asked.at), session.shares, asked.op,
        )  # fmt: skip
        cells.check_question(searched=not strategy.levels)
        for target in targets:
            for site in cells.sites:
                target.check_site(site)
        # What is kept may be enlarged, and must then have the plan that it began with.
        draws = len(strategy.draws) if strategy.whole and asked.store is None else None
        here = Evaluator.of(session, cells.sites, strategy.levels, draws)
        ties, covered = _ties(session), _covered(session, asked, cells.sites)
        plan, kept = _plans(session, asked, here, cells)
        with evaluation(here, sent, asked.store, kept, strategy.levels) as evaluate:
            found = strategy.run(evaluate, here, cells, asked.progress)
    if here.why:
        plan |= {"engine": "plain", "why": here.why}
    plan |= {"memory": session.compute.memory_on(problem.device), "covered": covered}
    if ties is not None:
        plan["ties"] = round(ties, 4)
    plans = [plan | ({} if here.shared is None else {"verification": v.told()}) for v in here.verifications]
    return [_study(session, asked, cells, found, plan, which) for which, plan in enumerate(plans)]


def _plans(
    session: Session, asked: Asked, here: Evaluator, cells: Cells
) -> tuple[dict[str, Any], dict[str, Any]]:  # fmt: skip
    """What a study tells of how it came about, and what a store of it belongs to."""
    metric = cells.metric
    plan = here.described()
    kept = plan | {"order": "permuted" if asked.strategy.shuffled else "as given"}
    if asked.targets[0].shares_rows:  # what is on a chip
        plan["arrays"] = asked.arrays
        if any(len(site.calls) > 1 for site in session.sites):  # else they are the same
            kept["arrays"] = asked.arrays
    if asked.root:
        plan["root"], kept["root"] = asked.root, asked.root
    if session.problem.length:
        plan["tokens"] = kept["tokens"] = session.problem.length
    if asked.detail is not None:
        plan["detail"] = kept["detail"] = asked.detail
    if groups := {site.name: list(site.members) for site in cells.sites if site.members}:
        plan["groups"] = kept["groups"] = groups
    kept |= session.problem.call.told()
    if identity := metric.identity():
        plan["metric"], kept["metric"] = metric.name, identity
        if (code := typed(metric)) is not None:
            plan["metric_code"] = code
    if not is_share(metric):
        plan["measure"] = measure_of(metric)
    return plan, kept


def _chosen(session: Session, asked: Asked) -> list[Site]:
    """The sites to walk."""
    opens = asked.targets[0].opens
    if not any(map(opens, session.sites)):
        raise ValueError(f"{asked.op}: the model has no linear layer or convolution, so no weights for noise to enter")
    root = session.problem.root
    chosen = chosen_sites(asked.op, session.model, session.sites, asked.sites, opens, root)
    told = {name for name, place in session.token_places().items() if isinstance(place, Place)}
    chosen = with_rows(asked.op, chosen, asked.sites, told)
    return grouped(asked.op, session.model, chosen, asked.groups, root)


def _covered(session: Session, asked: Asked, chosen: Sequence[Site]) -> dict[str, float]:
    """The share of multiply-adds whose results, or whose weights, are walked."""
    level = asked.strategy.levels[0] if asked.strategy.levels else 1.0
    placed = [asked.targets[0].placement(site, level) for site in chosen]
    noise: Any = {choice: p.noise for p in placed if p.noise is not None for _, choice in p.choices()}
    hardware = {call: devices for p in placed for call, devices in (p.hardware or {}).items()}
    return session.covered(
        replace(SILENT, noise=noise or None, hardware=hardware or None),
        tell=asked.sites is None and not isinstance(asked.groups, Mapping),
    )


def _ties(session: Session) -> float | None:
    """See `tied`; with a warning where that is most of the rows."""
    share = tied(session)
    if share is not None and share > 0.5:
        warn_user(
            f"{session.op}: without noise {share:.0%} of the rows have scores that are tied but for rounding, which "
            "alone decides what they count",
        )
    return share


def _floor(session: Session, asked: Asked) -> float | None:
    """What is measured under unbounded noise; None: it is not known."""
    if asked.floor is not None:
        return asked.floor
    return session.floor


def _study(
    session: Session, asked: Asked, cells: Cells, found: Found, plan: dict[str, Any], which: int
) -> Study:  # fmt: skip
    """The study of one target."""
    records, target, strategy = cells.records(which), asked.targets[which], asked.strategy
    share = is_share(cells.metric)
    meta = Meta(
        seed=asked.seed,
        noise=target.told(),
        levels=tuple(strategy.levels) or tuple(sorted({r.level for r in records})),
        draws=tuple(strategy.draws) or tuple(sorted({r.draw for r in records})),
        rows=len(session.labels),
        clean_correct=int(cells.clean.sum()) if share else 0,
        clean_value=None if share else cells.clean_value,
        classes=session.outputs,
        sites=tuple(s.name for s in (session.sites if asked.groups is None else cells.sites)),
        stream_version=STREAM_VERSION,
        plan=plan
        | ({} if cells.question == HALF else {"at": str(cells.question)})
        | {"evaluations": cells.evaluations[which]}
        | strategy.described(found[which]),
        axis=asked.axis,
        floor=cells.floor,
        target=target.name,
        model=asked.description[0] or session.problem.name,
        data=asked.description[1],
        midpoints=tuple(found[which]),
    )
    return Study(records, meta)
