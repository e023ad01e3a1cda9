"""The walk: what it is asked and how its study comes about. The work is done by `plain` or `reuse`."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, SupportsIndex

import torch
from torch import Tensor, nn

from noisykernels import _C
from noisykernels._files import progress_of
from noisykernels.adaptive import NAN, Answer, Request, Search, seek
from noisykernels.arguments import (
    Data,
    chosen_sites,
    draw_list,
    in_memory,
    level_list,
    refuse_without_rows,
    scaled_noise,
    whole_size,
)
from noisykernels.inject import inject
from noisykernels.injected import place_of, state_of
from noisykernels.kept import Kept
from noisykernels.noise import Noise, seed_tensor
from noisykernels.plain import SILENT, Plain, clean_correct
from noisykernels.records import Meta, Record
from noisykernels.reuse import Reuse, choose_plan
from noisykernels.sites import Site
from noisykernels.store import Store, study_key
from noisykernels.study import Study
from noisykernels.tape import NotTraceable, record_tape
from noisykernels.trace import evaluating

__all__ = ["torch_threads", "walk"]


def walk(
    model: nn.Module,
    data: Data,
    *,
    noise: Noise,
    levels: Sequence[float] | Tensor | None = None,
    draws: SupportsIndex | Sequence[int] | Tensor | None = None,
    seed: int,
    sites: Sequence[str | int] | str | None = None,
    target: Literal["activation"] = "activation",
    rows: Tensor | Sequence[int] | None = None,
    batch_rows: int = 500,
    draws_per_pass: int = 8,
    engine: Literal["auto", "plain"] = "auto",
    rel_ci: float = 0.05,
    memory: int = 2**30,
    store: str | os.PathLike[str] | None = None,
    threads: int | None = None,
    floor: float | None = None,
    axis: Literal["log", "linear"] | None = None,
    progress: bool | Callable[[int, int], object] = False,
    description: tuple[str, str] = ("", ""),
) -> Study:
    """Walks the noise through a model, one site noisy at a time, and counts correct predictions.

    With ``levels`` and ``draws`` every cell of the grid (site, level, draw) is evaluated on all rows. Without them the
    walk is adaptive: it brackets the midpoint of each site and spends rows and draws until the 95 % interval is
    ``rel_ci`` of the midpoint to either side; see `adaptive`.

    Args:
        model: a classifier, (rows, ...) -> (rows, classes); any model, in any mode; it is left as
            it was, and runs where its parameters are. Its own noisy layers are walked like other
            sites, and are silent meanwhile.
        data: (inputs, labels), or an iterable of such batches; held in memory.
        noise: the noise at level 1.
        levels: what its levels are multiplied with, each finite and not negative:
            ``Noise(add=1.0)`` at level 0.3 is ``add=0.3``. None: adaptive.
        draws: number of draws (ids 0, 1, ...), or the ids.
        seed: 64-bit seed of the study.
        sites: names, name patterns or indices of the sites to walk (see `sites`); None walks all.
        target: where noise enters; ``"activation"``: values at sites.
        rows: int64 vector, data-set index of each row of the data; None numbers them in order.
        batch_rows, draws_per_pass: rows of a pass, and how many draws of them at once. Part of the
            contraction plan: a prediction at a decision boundary may depend on them by rounding,
            the noise does not.
        engine: ``"auto"`` runs what precedes a site once and what follows it for many levels at once, where the
            model can be recorded (see `tape`), with a warning that says why where it cannot; ``"plain"`` runs
            the whole noisy model for every level and draw. Same noise; the contractions may round differently.
        rel_ci: half-width of the interval wanted, relative to the midpoint; for the adaptive walk.
        store: a file that keeps what is found, as it is found: the same walk goes on from there after it was
            killed, a larger one (levels, draws, sites) evaluates only what is new, and several processes may
            work on one. It belongs to this model, data, noise, seed and plan, and refuses others.
        memory: bytes that the values of a pass may take, beside the model and the data.
        threads: torch's threads for the study; None keeps the present number. Also of the plan.
        floor: accuracy under unbounded noise; None is 1 / classes.
        axis: ``"log"`` or ``"linear"`` level axis; None: linear for purely multiplicative noise.
        progress: show a progress bar on standard error, if tqdm is installed; or a function (done, total), which
            counts levels of sites, or sites for the adaptive walk.
        description: names of the model and of the data, kept with the study.

    Returns:
        A `Study` with one record for each (site, level, draw) that was evaluated.

    Raises:
        ValueError: bad levels, draws, sites or data; a model that is injected already, or that does
            not give one score per class and row.
        RuntimeError: a site at which rows cannot be told apart.
        StoreError: the file is no store, or another study's.

    Source: Walking Noise, arXiv 2212.10430.

    Example:
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
        >>> data = torch.randn(20, 1, 2, 2), torch.randint(2, (20,))
        >>> study = walk(model, data, noise=Noise(add=1.0), levels=[0.1, 1.0], draws=2, seed=1)
        >>> len(study.records), study.records[0].site
        (8, 'input')
    """
    if target != "activation":
        raise ValueError(f"walk: target must be 'activation', got {target!r}")
    if engine not in ("auto", "plain"):
        raise ValueError(f"walk: engine must be 'auto' or 'plain', got {engine!r}")
    if not isinstance(noise, Noise):
        raise TypeError(f"walk: noise must be a Noise, got {type(noise).__name__}")
    if (levels is None) != (draws is None):
        raise ValueError("walk: give both levels and draws for a grid, or neither for an adaptive walk")
    if not 0 < rel_ci < 1:
        raise ValueError(f"walk: rel_ci must lie between 0 and 1, got {rel_ci}")
    amplitudes, draw_ids = ([], []) if levels is None else (level_list("walk", levels), draw_list("walk", draws))
    device = place_of(model)
    seed_tensor("walk", seed, device)
    batch_rows = whole_size("walk", "batch_rows", batch_rows)
    draws_per_pass = whole_size("walk", "draws_per_pass", draws_per_pass)
    memory = whole_size("walk", "memory", memory)
    parts = [part.to(device) for part in in_memory("walk", data, rows)]
    if levels is None:  # in an order of their own, so that the first rows are a random part of all
        permuted = torch.randperm(len(parts[1]), generator=torch.Generator().manual_seed(seed % 2**63)).to(device)
        parts = [part[permuted] for part in parts]
    inputs, labels, row_ids = parts
    held = inputs, labels, row_ids
    computed = torch.float64 if inputs.dtype == torch.float64 else torch.float32  # what the noise computes in
    for amplitude in amplitudes:
        scaled_noise("walk", noise, amplitude, computed)

    with (
        torch_threads(threads),
        evaluating(model),
        inject(model, None, example_input=inputs[:2]) as injected,
        torch.inference_mode(),
        contextlib.ExitStack() as stack,
    ):
        state = state_of(injected)
        state.placement = SILENT
        chosen = chosen_sites("walk", state.traced, sites)
        refuse_without_rows("walk", chosen)
        correct, classes = clean_correct("walk", injected, inputs, labels, batch_rows)
        plan = {
            "batch_rows": batch_rows,
            "draws_per_pass": draws_per_pass,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "cpu_level": _C.cpu_level(),
            "device": str(device),
        }
        plain = Plain(injected, batch_rows, draws_per_pass, seed)
        reuse = _reuse(injected, inputs, chosen, memory, batch_rows, seed) if engine == "auto" else None
        if reuse is not None:
            plan |= {"chunk_rows": reuse.plan.rows, "pass_bytes": reuse.plan.bytes}

        def evaluate(requests: Sequence[Request], advance: Callable[[float], object]) -> list[Answer]:
            """Each by the engine that can."""
            reached = {i for i, r in enumerate(requests) if reuse is not None and r.site.name in reuse.suffixes}
            found: dict[int, Answer] = {}
            for counter, mine in ((reuse, reached), (plain, set(range(len(requests))) - reached)):
                if counter is not None and mine:
                    some = counter.correct([requests[i] for i in sorted(mine)], held, noise, advance)
                    found |= dict(zip(sorted(mine), some, strict=True))
            return [found[i] for i in range(len(requests))]

        answers = evaluate
        if store is not None:
            order = "as given" if levels is not None else "permuted"
            key = study_key(
                model, inputs, labels, noise, seed, plan=plan | {"order": order}, rows=row_ids.cpu(), target=target
            )
            answers = Kept(stack.enter_context(Store(store, key)), evaluate).answers

        records: dict[tuple[str, float, int], Record] = {}

        def record(request: Request, answer: Answer) -> None:
            """A record for each cell; of one evaluated twice, that with more rows."""
            for level, of_level in zip(request.levels, answer, strict=True):
                _warn_of_nan(request.site.name, level, of_level)
                for draw, of_draw in zip(request.draws, of_level, strict=True):
                    key = (request.site.name, level, draw)
                    if key not in records or records[key].rows < len(of_draw):
                        hits = int((of_draw == 1).sum())
                        records[key] = Record.counted(
                            request.site.name, request.site.index, level, draw, len(of_draw), hits
                        )

        midpoints: list[dict[str, Any]] = []
        if levels is not None:
            with progress_of("walk", progress, len(chosen) * len(amplitudes)) as advance:
                grid = [Request(s, tuple(amplitudes), tuple(draw_ids), len(labels)) for s in chosen]
                for request, answer in zip(grid, answers(grid, advance), strict=True):
                    record(request, answer)
        else:
            base = floor if floor is not None else 1 / classes
            if not 0 <= base < float(correct.mean()):
                raise ValueError(
                    f"walk: the clean accuracy {correct.mean():.4f} is not above the floor {base:.4f}: nothing to find"
                )
            scales = {} if reuse is None else reuse.scales(chosen, held, noise)
            searches = [Search(s, scales.get(s.name, 1.0), correct, base, rel_ci) for s in chosen]
            with progress_of("walk", progress, len(chosen)) as advance:
                for request, answer in seek(searches, lambda requests: answers(requests, lambda _: None), advance):
                    record(request, answer)
            midpoints = [search.described() for search in searches]
            plan["evaluations"] = sum(search.evaluations for search in searches)
        every = tuple(s.name for s in state.traced)
    meta = Meta(
        seed=seed,
        noise={
            "kind": noise.kind,
            "mode": noise.mode,
            "fold": noise.fold,
            "add": _describe(noise.add),
            "mul": _describe(noise.mul),
        },
        levels=tuple(amplitudes) or tuple(sorted({r.level for r in records.values()})),
        draws=tuple(draw_ids) or tuple(sorted({r.draw for r in records.values()})),
        rows=len(labels),
        clean_correct=int(correct.sum()),
        classes=classes,
        sites=every,
        stream_version=_C.STREAM_VERSION,
        plan=plan,
        axis=axis,
        floor=floor,
        target=target,
        model=description[0] or type(model).__name__,
        data=description[1],
        midpoints=tuple(midpoints),
    )
    return Study(list(records.values()), meta)


def _reuse(
    model: nn.Module, inputs: Tensor, chosen: Sequence[Site], memory: int, batch_rows: int, seed: int
) -> Reuse | None:
    """The engine that shares work, for the sites that it can reach; None, with a warning, if there are none."""
    try:
        tape = record_tape(model, inputs[:4])
    except NotTraceable as reason:
        warnings.warn(f"walk: every pass runs the whole model: {reason}", stacklevel=3)
        return None
    refused = [f"{s.name} ({tape.refused[s.name]})" for s in chosen if s.name in tape.refused]
    if refused:
        warnings.warn(f"walk: for these sites every pass runs the whole model: {', '.join(refused)}", stacklevel=3)
    reached = [s for s in chosen if s.name in tape.sites]
    return Reuse(tape, reached, choose_plan(tape, memory, batch_rows), seed) if reached else None


def _warn_of_nan(site: str, level: float, answer: Answer) -> None:
    if nan := int((answer == NAN).sum()):
        warnings.warn(
            f"walk: site {site} at level {level:g}: {nan} of {answer.size} rows of scores hold NaN and count as wrong",
            stacklevel=3,
        )


def _describe(level: Tensor | None) -> Any:
    if level is None:
        return 0.0
    return level.item() if level.dim() == 0 else f"tensor {list(level.shape)}"


@contextlib.contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """torch's number of threads for the length of a block; None leaves it as it is."""
    before = torch.get_num_threads()
    try:
        if count is not None:
            torch.set_num_threads(count)
        yield
    finally:
        torch.set_num_threads(before)
