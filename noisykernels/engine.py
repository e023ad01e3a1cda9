"""The walk, done plainly: for every site, level and draw the noisy model runs over the data and its
hits are counted.

This is the reference that faster engines are held against: correct and readable first. All it does
for speed is to fold draws into the batch, to hold the data in memory, and to run without autograd.
"""

from __future__ import annotations

import contextlib
import math
import operator
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal, SupportsIndex

import torch
from torch import Tensor, nn

from noisykernels import _C
from noisykernels._files import progress_bar
from noisykernels.inject import inject, noise_state
from noisykernels.injected import place_of, state_of
from noisykernels.noise import Noise, ids_tensor, seed_tensor
from noisykernels.records import Meta, Record
from noisykernels.sites import Placement, Site, matches
from noisykernels.study import Study
from noisykernels.trace import evaluating

__all__ = ["torch_threads", "walk"]

Data = tuple[Tensor, Tensor] | Iterable[tuple[Tensor, Tensor]]
Batch = tuple[Tensor, Tensor, Tensor]  # inputs, labels, rows


def walk(
    model: nn.Module,
    data: Data,
    *,
    noise: Noise,
    levels: Sequence[float] | Tensor,
    draws: SupportsIndex | Sequence[int] | Tensor,
    seed: int,
    sites: Sequence[str | int] | str | None = None,
    target: Literal["activation"] = "activation",
    rows: Tensor | Sequence[int] | None = None,
    batch_rows: int = 500,
    draws_per_pass: int = 8,
    threads: int | None = None,
    floor: float | None = None,
    axis: Literal["log", "linear"] | None = None,
    progress: bool | Callable[[int, int], object] = False,
    description: tuple[str, str] = ("", ""),
) -> Study:
    """Walks the noise through a model: one site noisy at a time, every level, every draw; counts
    correct predictions.

    Args:
        model: a classifier, (rows, ...) -> (rows, classes); any model, in any mode; it is left as
            it was, and runs where its parameters are. Its own noisy layers are walked like other
            sites, and are silent meanwhile.
        data: (inputs, labels), or an iterable of such batches; held in memory.
        noise: the noise at level 1.
        levels: what its levels are multiplied with, each finite and not negative:
            ``Noise(add=1.0)`` at level 0.3 is ``add=0.3``.
        draws: number of draws (ids 0, 1, ...), or the ids.
        seed: 64-bit seed of the study.
        sites: names, name patterns or indices of the sites to walk (see `sites`); None walks all.
        target: where noise enters; ``"activation"``: values at sites.
        rows: int64 vector, data-set index of each row of the data; None numbers them in order.
        batch_rows, draws_per_pass: rows of a pass, and how many draws of them at once. Part of the
            contraction plan: a prediction at a decision boundary may depend on them by rounding,
            the noise does not.
        threads: torch's threads for the study; None keeps the present number. Also of the plan.
        floor: accuracy under unbounded noise; None is 1 / classes.
        axis: ``"log"`` or ``"linear"`` level axis; None: linear for purely multiplicative noise.
        progress: show a progress bar on standard error, if tqdm is installed; or a function
            (done, total) called after each level of each site.
        description: names of the model and of the data, kept with the study.

    Returns:
        A `Study` with one record for each (site, level, draw).

    Raises:
        ValueError: bad levels, draws, sites or data; a model that is injected already, or that does
            not give one score per class and row.
        RuntimeError: a site at which rows cannot be told apart.

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
    if not isinstance(noise, Noise):
        raise TypeError(f"walk: noise must be a Noise, got {type(noise).__name__}")
    amplitudes, draw_ids = _levels(levels), _draws(draws)
    device = place_of(model)
    seed_tensor("walk", seed, device)
    batch_rows, draws_per_pass = _size("batch_rows", batch_rows), _size("draws_per_pass", draws_per_pass)
    inputs, labels, row_ids = (part.to(device) for part in _in_memory(data, rows))
    computed = torch.float64 if inputs.dtype == torch.float64 else torch.float32  # what the noise computes in
    noises = [_scaled(noise, amplitude, computed) for amplitude in amplitudes]
    parts = (part.split(batch_rows) for part in (inputs, labels, row_ids))
    batches: list[Batch] = list(zip(*parts, strict=True))

    with (
        torch_threads(threads),
        evaluating(model),
        inject(model, None, example_input=inputs[:2]) as injected,
        torch.inference_mode(),
    ):
        state = state_of(injected)
        silent = Placement(layers_own=False)
        state.placement = silent
        chosen = _chosen(state.traced, sites)
        _refuse_without_rows(chosen)
        clean, classes = _clean(injected, batches)
        records: list[Record] = []
        with _progress(progress, len(chosen) * len(amplitudes)) as advance:
            for site in chosen:
                for amplitude, scaled in zip(amplitudes, noises, strict=True):
                    state.placement = replace(silent, noise=scaled, where=site.name)
                    hits, nan = _hits(injected, batches, draw_ids, draws_per_pass, seed)
                    if nan:
                        total = len(draw_ids) * len(labels)
                        warnings.warn(
                            f"walk: site {site.name} at level {amplitude:g}: {nan} of {total} rows of scores hold NaN "
                            "and count as wrong",
                            stacklevel=2,
                        )
                    records += [
                        Record.counted(site.name, site.index, amplitude, d, len(labels), h)
                        for d, h in zip(draw_ids, hits, strict=True)
                    ]
                    advance()
        plan = {
            "batch_rows": batch_rows,
            "draws_per_pass": draws_per_pass,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "cpu_level": _C.cpu_level(),
            "device": str(device),
        }
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
        levels=tuple(amplitudes),
        draws=tuple(draw_ids),
        rows=len(labels),
        clean_correct=clean,
        classes=classes,
        sites=every,
        stream_version=_C.STREAM_VERSION,
        plan=plan,
        axis=axis,
        floor=floor,
        target=target,
        model=description[0] or type(model).__name__,
        data=description[1],
    )
    return Study(records, meta)


# --------------------------------------------------------------------------------------- evaluation


def _scores(model: nn.Module, inputs: Tensor, rows: int) -> Tensor:
    scores = model(inputs)
    if not isinstance(scores, Tensor) or scores.dim() != 2 or scores.shape[0] != rows:
        got = list(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise ValueError(f"walk: the model must give scores of shape [{rows}, classes], got {got}")
    return scores


def _clean(model: nn.Module, batches: list[Batch]) -> tuple[int, int]:
    """Correct predictions without noise, and the number of classes."""
    correct, classes = 0, 0
    for inputs, labels, _ in batches:
        scores = _scores(model, inputs, len(labels))
        if bool(scores.isnan().any()):
            raise ValueError("walk: the model gives NaN without noise")
        classes = scores.shape[1]
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= classes:
            raise ValueError(f"walk: labels must lie in 0..{classes - 1}, got {low}..{high}")
        correct += int((scores.argmax(1) == labels).sum())
    return correct, classes


def _hits(
    model: nn.Module, batches: list[Batch], draws: list[int], draws_per_pass: int, seed: int
) -> tuple[list[int], int]:
    """Correct predictions of each draw, with the noise that the model's state holds; rows of scores with a NaN."""
    counts: list[int] = []
    nan = 0
    for first in range(0, len(draws), draws_per_pass):
        ids = draws[first : first + draws_per_pass]
        count = torch.zeros(len(ids), dtype=torch.int64, device=batches[0][0].device)
        for inputs, labels, rows in batches:
            with noise_state(model, seed=seed, draws=ids, rows=rows):
                scores = _scores(model, inputs, len(ids) * len(labels))
            bad = scores.isnan().any(1)
            nan += int(bad.sum())
            count += ((scores.argmax(1).view(len(ids), -1) == labels) & ~bad.view(len(ids), -1)).sum(1)
        counts += count.tolist()
    return counts, nan


# -------------------------------------------------------------------------------- arguments of walk


def _levels(levels: Sequence[float] | Tensor) -> list[float]:
    wrong = f"walk: levels must be a list of numbers, got {levels!r}"
    try:
        values = torch.as_tensor(levels, dtype=torch.float64).tolist()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(wrong) from error
    if not isinstance(values, list) or not all(isinstance(v, float) for v in values):
        raise ValueError(wrong)
    if not values or not all(math.isfinite(v) and v >= 0 for v in values):
        raise ValueError(f"walk: levels must be finite, not negative, and at least one, got {values}")
    if len(set(values)) != len(values):
        raise ValueError(f"walk: levels must differ from each other, got {values}")
    return values


def _scaled(noise: Noise, amplitude: float, computed: torch.dtype) -> Noise:
    scaled = noise.scaled(amplitude)
    for name, level in (("add", scaled.add), ("mul", scaled.mul)):
        if level is not None and not bool(level.to(computed).isfinite().all()):
            kind = str(computed).removeprefix("torch.")
            raise ValueError(f"walk: `{name}` of the noise times level {amplitude} exceeds {kind}'s range")
    return scaled


def _size(name: str, size: SupportsIndex) -> int:
    try:
        count = operator.index(size)
    except TypeError:
        count = 0
    if count < 1:
        raise ValueError(f"walk: {name} must be a whole number of at least 1, got {size!r}")
    return count


def _is_number(value: Any) -> bool:
    """Whether this may be a whole number; a vector that holds one is none."""
    return isinstance(value, SupportsIndex) and not getattr(value, "shape", ())


def _draws(draws: Any) -> list[int]:
    ids: Tensor | None
    try:
        if _is_number(draws):
            ids = torch.arange(max(operator.index(draws), 0))
        else:
            ids = torch.as_tensor(draws, dtype=None if len(draws) else torch.int64, device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"walk: draws must be a number of draws or a list of ids, got {draws!r}") from error
    ids = ids_tensor("walk", "draws", ids, torch.device("cpu"))
    assert ids is not None
    if len(ids) == 0 or len(ids.unique()) != len(ids):
        raise ValueError(f"walk: draws must be at least one, or ids that differ, got {draws}")
    return ids.tolist()


def _in_memory(data: Data, rows: Tensor | Sequence[int] | None) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs, labels and row ids, checked."""
    inputs: Any
    labels: Any
    pair: Any = data if isinstance(data, tuple | list) and len(data) == 2 else ()
    if pair and all(isinstance(t, Tensor) for t in pair):
        inputs, labels = pair
    else:
        try:
            batches = [(torch.as_tensor(x), torch.as_tensor(y)) for x, y in data]
            inputs, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"walk: data must be (inputs, labels) or an iterable of such batches: {error}") from error
    if labels.dim() != 1 or labels.is_floating_point() or inputs.dim() == 0 or not len(inputs) == len(labels) > 0:
        raise ValueError(
            "walk: data must be inputs (rows, ...) and whole-number labels (rows), not empty, "
            f"got {list(inputs.shape)} and {labels.dtype} {list(labels.shape)}"
        )
    ids = ids_tensor("walk", "rows", rows, torch.device("cpu"))
    ids = torch.arange(len(labels)) if ids is None else ids
    if len(ids) != len(labels):
        raise ValueError(f"walk: rows must hold one id for each of {len(labels)} rows, got {len(ids)}")
    return inputs, labels, ids


def _chosen(every: list[Site], sites: Sequence[str | int] | str | None) -> list[Site]:
    if sites is None:
        return list(every)
    wanted: Any = [sites] if isinstance(sites, str) or _is_number(sites) else list(sites)

    def fits(site: Site, choice: str | int) -> bool:
        return matches(site.name, choice) if isinstance(choice, str) else site.index == choice

    for choice in wanted:
        if not any(fits(site, choice) for site in every):
            names = ", ".join(f"{s.index} {s.name}" for s in every)
            raise ValueError(f"walk: no site {choice!r}; the model has {names}")
    return [site for site in every if any(fits(site, choice) for choice in wanted)]


def _refuse_without_rows(chosen: list[Site]) -> None:
    """Before anything runs: at such a site the walk would end, and lose what it has counted."""
    if lost := [repr(site.name) for site in chosen if site.row_dim is None]:
        raise RuntimeError(
            f"walk: rows cannot be told apart at {', '.join(lost)}, so no noise can enter there; "
            "choose other sites with sites="
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


@contextlib.contextmanager
def _progress(wanted: bool | Callable[[int, int], object], total: int) -> Iterator[Callable[[], object]]:
    """A function to call after each step: nothing, a caller's (done, total), or a bar."""
    done = 0

    def call() -> None:
        nonlocal done
        done += 1
        assert callable(wanted)
        wanted(done, total)

    bar = progress_bar(total, "walk", unit="level") if wanted is True else None
    try:
        yield call if callable(wanted) else bar.update if bar is not None else lambda: None
    finally:
        if bar is not None:
            bar.close()
