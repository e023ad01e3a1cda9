"""The walk, done plainly: for every site, level and draw the noisy model runs over the data and its hits are counted.

This is the reference that faster engines are held against: correct and readable first. All it does for speed is to fold draws
into the batch, to hold the data in memory, and to run without autograd.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from noisykernels import _C
from noisykernels.inject import NoiseState, evaluating, inject, noise_state
from noisykernels.noise import Noise, ids_tensor
from noisykernels.records import Meta, Record
from noisykernels.sites import Site, matches
from noisykernels.study import Study

__all__ = ["walk"]

Data = tuple[Tensor, Tensor] | Iterable[tuple[Tensor, Tensor]]


def walk(
    model: nn.Module,
    data: Data,
    *,
    noise: Noise,
    levels: Sequence[float] | Tensor,
    draws: int | Sequence[int],
    seed: int,
    sites: Sequence[str | int] | str | None = None,
    target: Literal["activation"] = "activation",
    rows: Tensor | Sequence[int] | None = None,
    batch_rows: int = 500,
    threads: int | None = None,
    floor: float | None = None,
    axis: Literal["log", "linear"] | None = None,
    progress: bool | Callable[[int, int], object] = False,
    description: tuple[str, str] = ("", ""),
) -> Study:
    """Walks the noise through a model: one site noisy at a time, every level, every draw; counts correct predictions.

    Args:
        model: a classifier, (rows, ...) -> (rows, classes); any model, in any mode; it is left as it was. The device is the model's.
        data: (inputs, labels), or an iterable of such batches; held in memory.
        noise: the noise at level 1.
        levels: what its levels are multiplied with, each finite and not negative. ``Noise(add=1.0)`` at level 0.3 is ``add=0.3``.
        draws: number of draws (ids 0, 1, ...), or the ids.
        seed: 64-bit seed of the study.
        sites: names, name patterns or indices of the sites to walk (see `sites`); None walks all.
        target: where noise enters; ``"activation"``: values at sites.
        rows: int64 vector, data-set index of each row of the data; None numbers them in order.
        batch_rows: rows of a pass (each with all draws). Part of the contraction plan: predictions at a decision boundary may depend
            on it by rounding, the noise does not.
        threads: torch's threads for the study; None keeps the present number. Also part of the plan.
        floor: accuracy under unbounded noise; None is 1 / classes.
        axis: ``"log"`` or ``"linear"`` level axis; None: linear for purely multiplicative noise.
        progress: show a progress bar (needs tqdm), or a function (done, total) called after each level of each site.
        description: names of the model and of the data, kept with the study.

    Returns:
        A `Study` with one record for each (site, level, draw).

    Raises:
        ValueError: bad levels, draws, sites or data, or a model that does not give one score per class and row.
        RuntimeError: a site at which rows cannot be told apart.

    Source: Walking Noise, arXiv 2212.10430.

    Example:
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
        >>> data = torch.randn(20, 1, 2, 2), torch.randint(2, (20,))
        >>> walk(model, data, noise=Noise(add=1.0), levels=[0.1, 1.0], draws=2, seed=1).to_pandas().shape
        (8, 10)
    """
    if target != "activation":
        raise ValueError(f"walk: target must be 'activation', got {target!r}")
    if not isinstance(noise, Noise):
        raise TypeError(f"walk: noise must be a Noise, got {type(noise).__name__}")
    amplitudes = _levels(levels)
    draw_ids = _draws(draws)
    inputs, labels = _in_memory(data)
    if batch_rows < 1:
        raise ValueError(f"walk: batch_rows must be at least 1, got {batch_rows}")
    device = next((t.device for t in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    inputs, labels = inputs.to(device), labels.to(device)
    row_ids = ids_tensor("walk", "rows", rows, device)
    if row_ids is None:
        row_ids = torch.arange(len(labels), device=device)
    if len(row_ids) != len(labels):
        raise ValueError(f"walk: rows must hold one id for each of {len(labels)} rows, got {len(row_ids)}")
    batches = list(zip(inputs.split(batch_rows), labels.split(batch_rows), row_ids.split(batch_rows), strict=True))

    with _threads(threads), evaluating(model), inject(model, None, example_input=inputs[:2]) as injected:
        state: NoiseState = injected.__dict__["_noise_state"]
        every: list[Site] = state.traced
        chosen = _chosen(every, sites)
        with torch.inference_mode():
            clean, classes = _clean(injected, batches)
            records = []
            total = len(chosen) * len(amplitudes)
            with _progress(progress, total) as advance:
                for site in chosen:
                    for amplitude in amplitudes:
                        state.placement = replace(state.placement, noise=noise.scaled(amplitude), where=[site.name])
                        hits = _hits(injected, batches, draw_ids, seed)
                        records += [
                            Record.counted(site.name, site.index, amplitude, d, len(labels), h)
                            for d, h in zip(draw_ids, hits, strict=True)
                        ]
                        advance()
        plan = {
            "batch_rows": batch_rows,
            "draws_per_pass": len(draw_ids),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "cpu_level": _C.cpu_level(),
            "device": str(device),
        }
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
        sites=tuple(s.name for s in every),
        stream_version=_C.STREAM_VERSION,
        plan=plan,
        axis=axis,
        floor=floor,
        target=target,
        model=description[0] or type(model).__name__,
        data=description[1],
    )
    return Study(records, meta)


# ------------------------------------------------------------------------------------------------------- evaluation


def _scores(model: nn.Module, inputs: Tensor, rows: int) -> Tensor:
    scores = model(inputs)
    if not isinstance(scores, Tensor) or scores.dim() != 2 or scores.shape[0] != rows:
        got = list(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise ValueError(f"walk: the model must give scores of shape ({rows} rows, classes), got {got}")
    return scores


def _clean(model: nn.Module, batches: list[tuple[Tensor, Tensor, Tensor]]) -> tuple[int, int]:
    """Correct predictions without noise, and the number of classes."""
    correct, classes = 0, 0
    for inputs, labels, _ in batches:
        scores = _scores(model, inputs, len(labels))
        classes = scores.shape[1]
        correct += int((scores.argmax(1) == labels).sum())
    return correct, classes


def _hits(model: nn.Module, batches: list[tuple[Tensor, Tensor, Tensor]], draws: list[int], seed: int) -> list[int]:
    """Correct predictions of each draw, with the noise that the model's state holds."""
    count = torch.zeros(len(draws), dtype=torch.int64, device=batches[0][0].device)
    for inputs, labels, rows in batches:
        with noise_state(model, seed=seed, draws=draws, rows=rows):
            scores = _scores(model, inputs, len(draws) * len(labels))
        count += (scores.argmax(1).view(len(draws), -1) == labels).sum(1)
    return count.tolist()


# ------------------------------------------------------------------------------------------------- arguments of walk


def _levels(levels: Sequence[float] | Tensor) -> list[float]:
    values = [float(v) for v in (levels.tolist() if isinstance(levels, Tensor) else levels)]
    if not values or not all(math.isfinite(v) and v >= 0 for v in values):
        raise ValueError(f"walk: levels must be finite, not negative, and at least one, got {values}")
    if len(set(values)) != len(values):
        raise ValueError(f"walk: levels must differ from each other, got {values}")
    return values


def _draws(draws: int | Sequence[int]) -> list[int]:
    ids = list(range(draws)) if isinstance(draws, int) else [int(d) for d in draws]
    if not ids or len(set(ids)) != len(ids):
        raise ValueError(f"walk: draws must be at least one, or ids that differ from each other, got {draws}")
    ids_tensor("walk", "draws", ids, torch.device("cpu"))
    return ids


def _in_memory(data: Data) -> tuple[Tensor, Tensor]:
    if isinstance(data, tuple) and len(data) == 2 and all(isinstance(t, Tensor) for t in data):
        inputs, labels = data
    else:
        batches = [(torch.as_tensor(x), torch.as_tensor(y)) for x, y in data]
        if not batches:
            raise ValueError("walk: data holds no batch")
        inputs, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    if labels.dim() != 1 or labels.dtype.is_floating_point or len(inputs) != len(labels) or len(labels) == 0:
        raise ValueError(
            f"walk: data must be inputs (rows, ...) and whole-number labels (rows), at least one row, "
            f"got {list(inputs.shape)} and {labels.dtype} {list(labels.shape)}"
        )
    return inputs, labels


def _chosen(every: list[Site], sites: Sequence[str | int] | str | None) -> list[Site]:
    if sites is None:
        return every
    wanted = [sites] if isinstance(sites, str) else list(sites)
    for w in wanted:
        known = w in range(len(every)) if isinstance(w, int) else any(matches(s.name, w) for s in every)
        if not known:
            raise ValueError(f"walk: no site {w!r}; the model has {', '.join(f'{s.index} {s.name}' for s in every)}")
    return [s for s in every if any(w == s.index if isinstance(w, int) else matches(s.name, w) for w in wanted)]


def _describe(level: Tensor | None) -> Any:
    if level is None:
        return 0.0
    return level.item() if level.dim() == 0 else f"tensor {list(level.shape)}"


class _threads:
    """torch's number of threads for the length of a block."""

    def __init__(self, count: int | None) -> None:
        self.count, self.before = count, torch.get_num_threads()

    def __enter__(self) -> None:
        if self.count is not None:
            torch.set_num_threads(self.count)

    def __exit__(self, *_: object) -> None:
        torch.set_num_threads(self.before)


class _progress:
    """A function to call after each step: nothing, a caller's (done, total), or a tqdm bar."""

    def __init__(self, wanted: bool | Callable[[int, int], object], total: int) -> None:
        self.wanted, self.total, self.done = wanted, total, 0
        self.bar: Any = nullcontext()

    def __enter__(self) -> Callable[[], object]:
        if self.wanted is False:
            return lambda: None
        if self.wanted is not True:
            return self._call
        try:
            from tqdm.auto import tqdm
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError("walk: a progress bar needs tqdm: pip install noisykernels[progress]") from error
        self.bar = tqdm(total=self.total, desc="walk", unit="level", dynamic_ncols=True)
        return self.bar.update

    def _call(self) -> None:
        self.done += 1
        assert callable(self.wanted)
        self.wanted(self.done, self.total)

    def __exit__(self, *exception: object) -> None:
        self.bar.__exit__(*exception)
