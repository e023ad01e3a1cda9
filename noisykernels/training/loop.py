"""Training with the recipe of the Walking Noise study, and accuracy.

Knows nothing about noise: a model whose layers draw noise is trained like any other, and `on_step`
lets the caller name the draw and the rows of each step. Shuffling and augmentation have a generator
of their own; torch's global generator is left to the model.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from noisykernels._util.arguments import check_arguments
from noisykernels._util.checks import Range, shown
from noisykernels._util.data import Batch, Data, batches, check_classes, in_memory, needed
from noisykernels._util.inputs import Call, Inputs, Output
from noisykernels._util.progress import progress_bar
from noisykernels._util.runtime import device_of, evaluating, keeping_modes, place_of
from noisykernels.datasets.augment import Augment
from noisykernels.metrics.accuracy import ACCURACY

__all__ = ["accuracy", "clamp_weights", "train"]


Step = Callable[[int, Tensor], AbstractContextManager[object] | None]


def clamp_weights(model: nn.Module, limit: float) -> None:
    """Clamp the `weight` of every module but batch norms to [-limit, limit]; biases are left alone.

    Example:
        >>> layer = nn.Linear(4, 4)
        >>> clamp_weights(layer, 0.01)
        >>> bool(layer.weight.abs().max() <= 0.01)
        True
    """
    check_arguments(clamp_weights, locals(), limit=Range(0, ends=False))
    with torch.no_grad():
        for module in model.modules():
            weight = getattr(module, "weight", None)
            if isinstance(weight, nn.Parameter) and not isinstance(module, _BatchNorm):
                weight.clamp_(-limit, limit)


def train(
    model: nn.Module,
    data: Data,
    *,
    epochs: int,
    lr: float = 1e-3,
    batch_size: int = 128,
    augment: Augment | None = None,
    clamp: float | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
    progress: bool = False,
    on_epoch: Callable[[dict[str, float]], object] | None = None,
    on_step: Step | None = None,
    val: Data | None = None,
    forward: Callable[..., Any] | None = None,
    output: Output = None,
) -> list[dict[str, float]]:
    """Train in place: Adam, cosine annealing over the epochs, cross-entropy, no weight decay.

    Each epoch is a permutation of the rows, from a generator seeded with `seed`, which also serves
    `augment`; a last batch of a single row, which batch norm cannot take, joins the one before it.
    For the same seed, data, model and number of threads the weights come out equal to the bit.

    Args:
        model: any classifier; its modules are in training mode meanwhile, and put back afterwards.
        data: inputs, and labels (N,), int64, in any of the forms of ``docs/guides/data.md``; held in memory.
        epochs: passes over the data.
        lr: learning rate of the first epoch.
        batch_size: rows of a step.
        augment: function (inputs of a batch, generator) -> inputs; see `augmentation`. For a model of one input.
        clamp: after each step, `clamp_weights(model, clamp)`.
        seed: of shuffling and augmentation. Noise inside the model has its own.
        device: move the model there; by default it stays where it is. The data follows it.
        progress: show a bar on standard error, if tqdm is installed.
        on_epoch: called with the record of each epoch.
        on_step: called as `on_step(step, rows)` before each step, counted from 0 over all epochs,
            with the data-set rows of the batch (int64, on the CPU). If it returns a context
            manager, forward and backward run inside it. To train with noise that does not repeat:
            `on_step=lambda step, rows: noise_state(model, seed=1, draws=[step], rows=rows)`.
        val: data on which each epoch's accuracy is measured, without `on_step`.
        forward, output: how the model is called, and what of its result are the scores, as for `walk`.

    Returns:
        A record per epoch: `epoch` (from 1), `lr`, `loss` and `accuracy` (means over the epoch, in
        training mode), `seconds`, and `val_accuracy` where `val` is given.

    Raises:
        ValueError: data that does not fit together, or a setting out of range.

    Example:
        >>> model = nn.Linear(3, 2)
        >>> history = train(model, (torch.randn(8, 3), torch.zeros(8, dtype=torch.int64)), epochs=2)
        >>> [record["lr"] for record in history]
        [0.001, 0.0005]
    """
    check_arguments(train, locals(), clamp=Range(0, ends=False))
    call = Call("train", forward, output)
    inputs, labels = _held(call, model, data)
    checked = None if val is None else _held(replace(call, op="train: val"), model, val)
    if augment is not None and inputs.one is None:
        raise ValueError(f"train: augment is for a model of one input, got {len(inputs.tensors)}")
    if device is not None:
        model.to(device_of("train", device))
    place = place_of(model)
    inputs, labels = inputs.to(place), labels.to(place)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=max(epochs, 1))
    history: list[dict[str, float]] = []
    bar = progress_bar(epochs, "training", unit="epoch") if progress else None
    step = 0
    try:
        for epoch in range(1, epochs + 1):
            start, rate = time.perf_counter(), schedule.get_last_lr()[0]
            loss_sum = torch.zeros((), device=place)
            correct = torch.zeros((), dtype=torch.int64, device=place)
            steps = _batches(len(labels), batch_size, generator)
            with keeping_modes(model):
                model.train()  # which a model may override, to leave a part as it is
                for rows in steps:
                    x, y = inputs[rows.to(place)], labels[rows.to(place)]
                    if augment is not None and x.one is not None:
                        x = Inputs((augment(x.one, generator),))
                    around = on_step(step, rows) if on_step is not None else None
                    with around if around is not None else nullcontext():
                        logits = call(model, x)
                        _check_first(step, logits, labels)
                        loss = nn.functional.cross_entropy(logits, y)
                        optimizer.zero_grad()
                        torch.autograd.backward(loss)
                    optimizer.step()
                    if clamp is not None:
                        clamp_weights(model, clamp)
                    loss_sum += loss.detach() * len(rows)
                    correct += (logits.detach().argmax(1) == y).sum()
                    step += 1
                    if bar is not None:
                        bar.n = round(step / len(steps), 2)  # a sum of fractions passes the end
                        bar.update(0)
            schedule.step()
            record = {
                "epoch": epoch,
                "lr": float(rate),
                "loss": float(loss_sum) / len(labels),
                "accuracy": int(correct) / len(labels),
            }
            if checked is not None:
                record["val_accuracy"] = _share(call, model, [Batch(*checked)])
            record["seconds"] = time.perf_counter() - start
            history.append(record)
            if bar is not None:
                bar.set_postfix({k: v for k, v in record.items() if k.endswith(("loss", "racy"))})
            if on_epoch is not None:
                on_epoch(record)
    finally:
        if bar is not None:
            bar.close()
    return history


def accuracy(
    model: nn.Module, data: Data, batch_size: int = 1000, *, forward: Callable[..., Any] | None = None,
    output: Output = None,
) -> float:  # fmt: skip
    """Fraction of rows classified correctly, in evaluation mode; the model's modes are put back.

    Args:
        model: any classifier, on any device.
        data: inputs, and labels (N,), int64, in any of the forms of ``docs/guides/data.md``.
        batch_size: rows per forward pass, where `data` are no batches.
        forward, output: how the model is called, and what of its result are the scores, as for `walk`.

    Example:
        >>> accuracy(nn.Identity(), (torch.eye(4), torch.tensor([0, 1, 2, 0])))
        0.75
    """
    check_arguments(accuracy, locals())
    call = Call("accuracy", forward, output)
    return _share(call, model, batches("accuracy", data, batch_size, takes=call.takes(model)), data)


def _share(call: Call, model: nn.Module, parts: Iterable[Batch], data: Data = None) -> float:
    """The share of rows that are classified correctly."""
    place, correct, rows = place_of(model), 0, 0
    with evaluating(model), torch.inference_mode():
        for inputs, y in parts:
            labels = _classes(call.op, data, y)
            if rows == 0:
                call.check(model, inputs)
            if len(labels) == 0:
                continue
            scores = call(model, inputs.to(place))
            check_classes(call.op, scores, labels)
            numbers = ACCURACY.law.numbers(ACCURACY.of_rows(scores, labels.to(place)).cpu().numpy())
            correct, rows = correct + int(numbers.sum()), rows + len(labels)
    if rows == 0:
        raise ValueError(f"{call.op}: data must hold at least one row, got none")
    return correct / rows


def _held(call: Call, model: nn.Module, data: Data) -> tuple[Inputs, Tensor]:
    """All rows of data with classes, at least one."""
    inputs, labels = in_memory(call.op, data, call.takes(model))
    labels = _classes(call.op, data, labels)
    if len(labels) == 0:
        raise ValueError(f"{call.op}: data must hold at least one row, got none")
    call.check(model, inputs)
    return inputs, labels


def _classes(op: str, data: Data, labels: Tensor | None) -> Tensor:
    """Labels that may be numbers of classes."""
    labels = needed(op, data, labels)
    if labels.dtype != torch.int64 or labels.ndim != 1:
        raise ValueError(f"{op}: data must have labels of int64 and shape (N,), got {shown(labels)}")
    return labels


def _check_first(step: int, scores: Any, labels: Tensor) -> None:
    """At the first step, that a model and all labels fit together."""
    if step == 0:
        check_classes("train", scores, labels)


def _batches(n: int, size: int, generator: Generator) -> list[Tensor]:
    """A permutation of n rows in batches; a last batch of one row joins the one before it."""
    order = torch.randperm(n, generator=generator)
    batches = list(torch.split(order, size))
    if len(batches) > 1 and len(batches[-1]) == 1:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches
