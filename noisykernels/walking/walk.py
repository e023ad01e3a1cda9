"""The walk: what it is asked and how its study comes about. The work is `evaluator`'s."""

from __future__ import annotations

import contextlib
import itertools
import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Any, Literal, SupportsIndex, overload

import torch
from torch import Tensor, nn

from noisykernels._C import STREAM_VERSION, cpu_level, cuda_multiplier
from noisykernels._engine.arguments import chosen_sites, draw_list, level_list, refuse_without_rows, scaled_noise
from noisykernels._engine.cached import Kept
from noisykernels._engine.evaluator import Evaluator, Problem
from noisykernels._engine.plan import SILENT, choose_passes, choose_plan, pass_memory, pass_rows
from noisykernels._engine.request import Answer, Request
from noisykernels._engine.session import Data, clean_correct, in_memory
from noisykernels._engine.store import Store
from noisykernels._engine.store_keys import identity, study_key
from noisykernels._engine.targets import Varied, Walked, as_weight_noise, has_weight
from noisykernels._engine.workers import Workers, packed
from noisykernels._graph.contractions import step_of
from noisykernels._graph.recorder import record_tape
from noisykernels._graph.tape import NotTraceable, Tape
from noisykernels._util.checks import whole_size
from noisykernels._util.progress import progress_of
from noisykernels._util.runtime import evaluating, gpu_precision, place_of, torch_threads
from noisykernels.hardware.noises import WeightNoise
from noisykernels.injection.api import inject
from noisykernels.injection.site import Site
from noisykernels.injection.state import state_of
from noisykernels.noise.arguments import seed_tensor
from noisykernels.noise.description import Noise
from noisykernels.stats.records import Meta
from noisykernels.study.study import Study
from noisykernels.walking.cells import Cells
from noisykernels.walking.plateaus import settled
from noisykernels.walking.search import Search, seek

__all__ = ["walk"]


@overload
def walk(model: nn.Module, data: Data, *, noise: Noise | WeightNoise | Varied, seed: int, **how: Any) -> Study: ...


@overload
def walk(
    model: nn.Module, data: Data, *, noise: Sequence[Noise] | Sequence[WeightNoise], seed: int, **how: Any
) -> list[Study]: ...


def walk(  # type: ignore[misc]  # the overloads leave out what does not matter for the result's type
    model: nn.Module,
    data: Data,
    *,
    noise: Noise | WeightNoise | Varied | Sequence[Noise | WeightNoise],
    levels: Sequence[float] | Tensor | None = None,
    draws: SupportsIndex | Sequence[int] | Tensor | None = None,
    seed: int,
    sites: Sequence[str | int] | str | None = None,
    target: Literal["activation", "weight", "parameter"] = "activation",
    rows: Tensor | Sequence[int] | None = None,
    batch_rows: int | None = None,
    draws_per_pass: int = 8,
    engine: Literal["auto", "plain"] = "auto",
    rel_ci: float = 0.05,
    plateaus: float | None = None,
    memory: int | None = None,
    store: str | os.PathLike[str] | None = None,
    executor: Executor | int | None = None,
    threads: int | None = None,
    floor: float | None = None,
    axis: Literal["log", "linear"] | None = None,
    progress: bool | Callable[[int, int], object] = False,
    description: tuple[str, str] = ("", ""),
) -> Study | list[Study]:
    """Walks the noise through a model, one site noisy at a time, and counts correct predictions.

    With ``levels`` and ``draws`` every cell of the grid (site, level, draw) is evaluated on all rows. Without them the
    walk is adaptive: it brackets the midpoint of each site and spends rows and draws until the 95 % interval is
    ``rel_ci`` of the midpoint to either side; see `adaptive`.

    Args:
        model: a classifier, (rows, ...) -> (rows, classes); any model, in any mode; it is left as
            it was, and runs where its parameters are. Its own noisy layers are walked like other
            sites, and are silent meanwhile.
        data: (inputs, labels), or an iterable of such batches; held in memory.
        noise: the noise at level 1; or several, such as mixed noise of several ratios: they share what is drawn and
            carried, and give a study each.
        levels: what its levels are multiplied with, each finite and not negative:
            ``Noise(add=1.0)`` at level 0.3 is ``add=0.3``. None: adaptive.
        draws: number of draws (ids 0, 1, ...), or the ids.
        seed: 64-bit seed of the study.
        sites: names, name patterns or indices of the sites to walk (see `sites`); None walks all.
        target: where noise enters; ``"activation"``: values at sites; ``"weight"``: the weights of linear layers and
            convolutions, drawn once for each draw, which is a chip, and the same for all rows. The noise is then a
            `WeightNoise`, such as ``WeightNoise(add=1.0, relative="layer")``, or a `Noise` of one term;
            ``"parameter"``: see `walk_parameter`.
        rows: int64 vector, data-set index of each row of the data; None numbers them in order.
        batch_rows, draws_per_pass: rows of a pass (None: 500, and 5,000 on a GPU), and how many draws of them at once;
            fewer where `memory` asks for it. Part of the contraction plan: a prediction at a decision boundary may
            depend on them by rounding, the noise does not.
        engine: ``"auto"`` runs what precedes a site once and what follows it for many levels at once, where the
            model can be recorded (see `tape`), with a warning that says why where it cannot; ``"plain"`` runs
            the whole noisy model for every level and draw. Same noise; the contractions may round differently.
        rel_ci: half-width of the interval wanted, relative to the midpoint; for the adaptive walk.
        plateaus: for a grid: do not run cells in full that lie on a plateau. Those at which no prediction can flip
            get status ``"proved"``; those of a level whose accuracy lies, by its 95 % interval, within this share of
            (clean accuracy - floor) around either, get ``"settled"``, on some rows only; see `plateaus`. 0.03, say.
        store: a file that keeps what is found, as it is found: the same walk goes on from there after it was
            killed, a larger one (levels, draws, sites) evaluates only what is new, and several processes may
            work on one. It belongs to this model, data, noise, seed and plan, and refuses others.
        executor: who evaluates: an object with `submit` as in `concurrent.futures`, or a number of processes to
            start; None: this process. The results are the same, whoever does; see `workers`.
        memory: bytes that the values of a pass may take, beside the model and the data; in each worker. None: 1 GiB,
            and a quarter of a GPU's memory (give less to several workers on one).
        threads: torch's threads for the study, in each worker too; None keeps the present number. Also of the plan.
        floor: accuracy under unbounded noise; None is 1 / classes.
        axis: ``"log"`` or ``"linear"`` level axis; None: linear for purely multiplicative noise.
        progress: show a progress bar on standard error, if tqdm is installed; or a function (done, total), which
            counts levels of sites, or sites for the adaptive walk.
        description: names of the model and of the data, kept with the study.

    Returns:
        A `Study` with one record for each (site, level, draw) that was evaluated; a list of them for several noises.

    Raises:
        ValueError: bad levels, draws, sites or data; a model that is injected already, that does
            not give one score per class and row, or that cannot be sent to workers.
        RuntimeError: a site at which rows cannot be told apart; workers that died over one part three times.
        StoreError: the file is no store, or another study's.

    Source: Walking Noise, arXiv 2212.10430.

    Example:
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
        >>> data = torch.randn(20, 1, 2, 2), torch.randint(2, (20,))
        >>> study = walk(model, data, noise=Noise(add=1.0), levels=[0.1, 1.0], draws=2, seed=1)
        >>> len(study.records), study.records[0].site
        (8, 'input')
    """
    if target not in ("activation", "weight", "parameter"):
        raise ValueError(f"walk: target must be 'activation' or 'weight', got {target!r}")
    if engine not in ("auto", "plain"):
        raise ValueError(f"walk: engine must be 'auto' or 'plain', got {engine!r}")
    alone = isinstance(noise, Walked)
    given: Any = (noise,) if alone else tuple(noise) if isinstance(noise, list | tuple) else ()
    if not given or not all(isinstance(n, Walked) for n in given):
        raise TypeError(f"walk: noise must be a Noise, or a list of them, got {type(noise).__name__}")
    if target != "weight" and any(isinstance(n, WeightNoise) for n in given):
        raise ValueError("walk: a WeightNoise goes with target='weight'")
    if any(isinstance(n, Varied) != (target == "parameter") for n in given):
        raise ValueError("walk: target='parameter' is for walk_parameter")
    noises = tuple(as_weight_noise("walk", n) for n in given) if target == "weight" else given
    terms: list[Noise] = [n.noise if isinstance(n, WeightNoise) else n for n in noises if not isinstance(n, Varied)]
    for level in (level for n in terms for level in (n.add, n.mul) if level is not None and level.dim() > 0):
        if level.dim() < 2 or level.shape[:2] != (1, 1):  # rows are cut into chunks and may be reordered
            raise ValueError(
                "walk: levels of the noise must be numbers, or differ by channel or element, not by draw or row; "
                f"got shape {list(level.shape)}"
            )
    if (levels is None) != (draws is None):
        raise ValueError("walk: give both levels and draws for a grid, or neither for an adaptive walk")
    if not 0 < rel_ci < 1:
        raise ValueError(f"walk: rel_ci must lie between 0 and 1, got {rel_ci}")
    if plateaus is not None and (levels is None or not 0 < plateaus < 0.5):
        raise ValueError(f"walk: plateaus must lie between 0 and 0.5, and go with levels, got {plateaus}")
    if plateaus is not None and target != "activation":
        raise ValueError("walk: plateaus are for noise on activations: the rows of a draw share the noise of weights")
    if not (executor is None or hasattr(executor, "submit") or (type(executor) is int and executor > 0)):
        raise ValueError(f"walk: executor must have `submit`, or be a number of processes, got {executor!r}")
    amplitudes, draw_ids = ([], []) if levels is None else (level_list("walk", levels), draw_list("walk", draws))
    device = place_of(model)
    seed_tensor("walk", seed, device)
    batch_rows = pass_rows("walk", batch_rows, device)
    draws_per_pass = whole_size("walk", "draws_per_pass", draws_per_pass)
    memory = pass_memory("walk", memory, device)
    parts = [part.to(device) for part in in_memory("walk", data, rows)]
    permuted = levels is None or plateaus is not None  # in an order of its own: the first rows are a random part of all
    if permuted:
        order = torch.randperm(len(parts[1]), generator=torch.Generator().manual_seed(seed % 2**63)).to(device)
        parts = [part[order] for part in parts]
    inputs, labels, row_ids = parts
    computed = torch.float64 if inputs.dtype == torch.float64 else torch.float32  # what the noise computes in
    for one, amplitude in itertools.product(terms, amplitudes):
        scaled_noise("walk", one, amplitude, computed)
    problem = Problem(model, (inputs, labels, row_ids), noises, seed)

    with (
        torch_threads(threads),
        evaluating(model),
        contextlib.ExitStack() as stack,
    ):
        sent = None if executor is None else packed(problem)  # before it is injected
        injected = stack.enter_context(inject(model, None, example_input=inputs[:2]))
        stack.enter_context(torch.inference_mode())
        state = state_of(injected)
        state.placement = SILENT
        open_to_it = [s for s in state.traced if target == "activation" or has_weight(s)]
        if not open_to_it:
            raise ValueError("walk: the model has no linear layer or convolution, so no weights for noise to enter")
        chosen = chosen_sites("walk", open_to_it, sites)
        refuse_without_rows("walk", chosen)
        passes = choose_passes(state.traced, memory, batch_rows, draws_per_pass)
        correct, classes = clean_correct("walk", injected, inputs, labels, passes.rows)
        tape = _tape(injected, inputs, chosen, target) if engine == "auto" else None
        chunks = None if tape is None else choose_plan(tape, memory, passes.rows, device)
        here = Evaluator(problem, injected, passes, chunks, tape)
        plan: dict[str, Any] = {
            "batch_rows": passes.rows,
            "draws_per_pass": passes.draws,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "cpu_level": cpu_level(),
            "device": device.type,
        }
        if device.type == "cuda":
            plan |= {
                "gpu": torch.cuda.get_device_name(device),
                "precision": list(gpu_precision()),
                "multiplier": cuda_multiplier(),
            }
        if chunks is not None:
            plan |= {"chunk_rows": chunks.rows, "pass_bytes": chunks.bytes}
        answers: Answers = here.correct
        if executor is not None and sent is not None:
            answers = stack.enter_context(Workers(executor, sent, here, passes, chunks)).correct
        if store is not None:
            ordered = plan | {"order": "permuted" if permuted else "as given"}
            where: str = target
            if target == "weight":
                where += f" relative to {', '.join(str(n.relative) for n in noises)}"
            if isinstance(first := noises[0], Varied):
                where += f" {first.name}, at {amplitudes[0]!r}: {identity(first.scaled(amplitudes[0]))}"
            told = terms[0] if len(terms) == 1 else terms
            key = study_key(model, inputs, labels, told, seed, plan=ordered, rows=row_ids.cpu(), target=where)
            answers = Kept(stack.enter_context(Store(store, key)), answers, here.rows_of_task).answers

        cells = Cells(chosen, correct)
        base = floor if floor is not None else 1 / classes
        if levels is not None:
            grid = [
                Request(s, tuple(amplitudes), tuple(draw_ids), len(labels), which=which)
                for s in chosen
                for which in range(len(noises))
            ]
            with progress_of("walk", progress, len(grid) * len(amplitudes)) as advance:
                if plateaus is not None:
                    grid = settled(grid, here, answers, cells, base, plateaus, advance)
                for request, answer in zip(grid, answers(grid, advance), strict=True):
                    cells.take(request, answer)
            midpoints: list[list[dict[str, Any]]] = [[] for _ in noises]
        else:
            midpoints = _search(here, answers, cells, base, rel_ci, progress)
        every = tuple(s.name for s in state.traced)
    settled_how = {} if plateaus is None else {"plateaus": plateaus}
    studies = []
    for which, one in enumerate(noises):
        records = cells.records(which)
        meta = Meta(
            seed=seed,
            noise=_told(one),
            levels=tuple(amplitudes) or tuple(sorted({r.level for r in records})),
            draws=tuple(draw_ids) or tuple(sorted({r.draw for r in records})),
            rows=len(labels),
            clean_correct=int(correct.sum()),
            classes=classes,
            sites=every,
            stream_version=STREAM_VERSION,
            plan=plan | {"memory": memory, "evaluations": cells.evaluations[which]} | settled_how,
            axis=axis,
            floor=floor,
            target=target,
            model=description[0] or type(model).__name__,
            data=description[1],
            midpoints=tuple(midpoints[which]),
        )
        studies.append(Study(records, meta))
    return studies[0] if alone else studies


Answers = Callable[[Sequence[Request], Callable[[float], object]], list[Answer]]


def _search(
    here: Evaluator, answers: Answers, cells: Cells, floor: float, rel_ci: float,
    progress: bool | Callable[[int, int], object],
) -> list[list[dict[str, Any]]]:  # fmt: skip
    """Midpoints of all sites under each noise."""
    clean = float(cells.clean.mean())
    if not 0 <= floor < clean:
        raise ValueError(f"walk: the clean accuracy {clean:.4f} is not above the floor {floor:.4f}: nothing to find")
    noises = here.problem.noises
    searches = []
    for which, one in enumerate(noises):
        scales = {} if here.reuse is None else here.reuse.scales(cells.sites, here.problem.data, one)
        how: dict[str, Any] = {"which": which, "chips": isinstance(one, WeightNoise)}
        searches += [Search(s, scales.get(s.name, 1.0), cells.clean, floor, rel_ci, **how) for s in cells.sites]
    with progress_of("walk", progress, len(searches)) as advance:
        for request, answer in seek(searches, lambda requests: answers(requests, lambda _: None), advance):
            cells.take(request, answer)
    return [[s.described() for s in searches if s.which == which] for which in range(len(noises))]


def _tape(model: nn.Module, inputs: Tensor, chosen: Sequence[Site], target: str) -> Tape | None:
    """The model recorded; None, with a warning, if it cannot be or no site can be reached."""
    try:
        tape = record_tape(model, inputs[:4])
    except NotTraceable as reason:
        warnings.warn(f"walk: every pass runs the whole model: {reason}", stacklevel=3)
        return None
    refused = [f"{s.name} ({tape.refused[s.name]})" for s in chosen if s.name in tape.refused]
    if target != "activation":
        why = "its weight is computed, or its input given by name"
        reached = [s.name for s in chosen if s.name in tape.sites]
        refused += [f"{name} ({why})" for name in reached if step_of(tape, name) is None]
    if refused:
        warnings.warn(f"walk: for these sites every pass runs the whole model: {', '.join(refused)}", stacklevel=3)
    return tape if tape.sites else None


def _told(noise: Walked) -> dict[str, Any]:
    """What is walked, as JSON can hold it."""
    if isinstance(noise, Varied):
        return {"parameter": noise.name, "larger": noise.larger}
    one = noise.noise if isinstance(noise, WeightNoise) else noise
    told = {"kind": one.kind, "mode": one.mode, "fold": one.fold, "add": _describe(one.add), "mul": _describe(one.mul)}
    return told | ({"relative": noise.relative} if isinstance(noise, WeightNoise) else {})


def _describe(level: Tensor | None) -> Any:
    if level is None:
        return 0.0
    return level.item() if level.dim() == 0 else f"tensor {list(level.shape)}"
