"""The language model of the zoo: a small Llama with its byte pairs, trained here on English text and kept."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from noisykernels._util.arguments import check_arguments
from noisykernels._util.checks import Range, whole
from noisykernels._util.files import check_writable
from noisykernels.datasets.byte_pairs import BYTES, BytePairs
from noisykernels.datasets.download import check_private
from noisykernels.datasets.text import kjv
from noisykernels.datasets.windows import Tokens, tokens
from noisykernels.zoo.checkpoint import CheckpointError, checkpoint_path, load_checkpoint, save_checkpoint
from noisykernels.zoo.llama import Llama, LlamaSizes

__all__ = ["Language", "language"]

ROWS = 8  # windows of a step
WARMING = 100  # steps in which the learning rate rises
LAST = 0.1  # of the learning rate is left at the end
DECAY, BETAS, LONGEST = 0.1, (0.9, 0.95), 1.0  # of weights, of moments; norm of a step's gradients
KEPT = 100  # steps, after which a training is kept as it stands


class Language(NamedTuple):
    """A model, in evaluation mode, and the tokenizer that it was trained with."""

    model: Llama
    tokenizer: BytePairs


class _Kept(nn.Module):
    """Both, as one checkpoint holds them: merges that there are not are -1."""

    merges: Tensor

    def __init__(self, model: Llama, merges: Sequence[tuple[int, int]] = ()) -> None:
        super().__init__()
        self.model = model
        missing = model.sizes.vocabulary - BYTES - 1 - len(merges)
        self.register_buffer("merges", torch.tensor([*merges, *[(-1, -1)] * missing]).view(-1, 2))

    def tokenizer(self) -> BytePairs:
        return BytePairs([(a, b) for a, b in self.merges.tolist() if a >= 0])


class _Running(nn.Module):
    """A model in training and its optimizer's state, as the checkpoint of an unfinished training holds them."""

    def __init__(self, model: Llama, optimizer: torch.optim.AdamW) -> None:
        super().__init__()
        self.model = model
        for k, parameter in enumerate(model.parameters()):
            moments = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
            optimizer.state[parameter] = {"step": torch.zeros(())} | moments  # as it makes them at its first step
            for name, value in optimizer.state[parameter].items():
                self.register_buffer(f"{name}_{k}", value)


def language(
    sizes: LlamaSizes | None = None,
    text: Sequence[str] | None = None,
    *,
    steps: int = 1500,
    seed: int = 0,
    lr: float = 2e-3,
    length: int = 128,
    cache: str | os.PathLike[str] | None = None,
    root: str | os.PathLike[str] | None = None,
    on_step: Callable[[int, float], object] | None = None,
) -> Language:
    """A small language model of English: read from its checkpoint if there is one, else trained and stored.

    It is a `Llama` of 3.5 million parameters, and learns from nine tenths of the chapters of `datasets.kjv`, encoded in
    2,048 byte pairs: AdamW, a learning rate that rises and then falls as a cosine, one and a half passes over the text.
    Each hundred steps the training is kept as it stands: one that was stopped goes on from there, with the same result.

    Args:
        sizes: of the model; None: `LlamaSizes()`.
        text: to learn from, another one; None: that of `datasets.kjv`.
        steps: of training.
        seed: of the first weights and the order of windows.
        lr: the highest learning rate.
        length: tokens of a window; a step takes eight of them.
        cache: folder of checkpoints; default `checkpoints` in `datasets.cache_folder()`.
        root: folder of data, see `datasets.kjv`.
        on_step: called with the number of each step, from 1 (or of the first that is left), and its loss in nats for a
            token.

    Returns:
        model and tokenizer.

    Raises:
        CheckpointError: there is a file, but it is damaged or of other settings, or others may write to it or its
            folder; it is left alone.
        DataNotFound: the text is nowhere.
        ValueError: a vocabulary that has no room for all bytes and an end; a text that is shorter than a window.
        OSError: there is no checkpoint, and none can be written; before any training.

    Example:
        >>> import tempfile
        >>> small = LlamaSizes(vocabulary=260, width=8, blocks=1, heads=2, shared=1, hidden=8)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     model, tokenizer = language(small, ["to be or not to be"], steps=2, length=8, cache=folder)
        >>> len(tokenizer), model.training
        (260, False)
    """
    check_arguments(language, locals(), steps=whole(1, 10**7), lr=Range(0, ends=False))
    sizes = sizes or LlamaSizes()
    if sizes.vocabulary <= BYTES:
        raise ValueError(f"language: sizes must have a vocabulary of {BYTES + 1} or more, got {sizes.vocabulary}")
    data = "kjv" if text is None else hashlib.sha256("\0".join(text).encode()).hexdigest()[:16]
    settings = {
        "model": "llama", "data": data, **asdict(sizes), "steps": steps, "seed": seed, "lr": float(lr), "rows": ROWS,
        "window": length,
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = Llama(sizes)
    path, unfinished = (checkpoint_path(one, cache) for one in (settings, {**settings, "unfinished": True}))
    if path.exists():
        kept = _Kept(model)
        load_checkpoint(path, kept, settings)
        return Language(model.eval(), kept.tokenizer())
    found = next(place for place in path.parents if place.exists() or place.is_symlink())
    check_writable(found / path.name)  # before the work
    check_private(CheckpointError, path.parent)
    texts = kjv(root=root) if text is None else text
    tokenizer = BytePairs.trained("\n".join(texts), sizes.vocabulary)
    windows = tokens(texts, tokenizer, length=length, vocabulary=sizes.vocabulary)
    losses = _trained(model, windows, unfinished, {**settings, "unfinished": True}, on_step)
    save_checkpoint(path, _Kept(model, tokenizer.merges), settings, _records(losses)[KEPT - 1 :: KEPT])
    unfinished.unlink(missing_ok=True)
    return Language(model.eval(), tokenizer)


def _trained(
    model: Llama, windows: Tokens, path: Path, settings: Mapping[str, Any],
    on_step: Callable[[int, float], object] | None,
) -> list[float]:  # fmt: skip
    """The loss of each step, of those too that were done before."""
    optimizer = torch.optim.AdamW(model.parameters(), betas=BETAS, weight_decay=DECAY)
    running = _Running(model, optimizer)
    done = load_checkpoint(path, running, settings) if path.exists() else []
    losses = [record["loss"] for record in done]
    steps = settings["steps"]
    orders = _orders(len(windows["labels"]), settings["seed"])
    for step, some in islice(zip(range(1, steps + 1), orders, strict=False), len(losses), None):
        for group in optimizer.param_groups:
            group["lr"] = settings["lr"] * _rate(step - 1, steps)
        logits = model(windows["input_ids"][some])
        loss = F.cross_entropy(logits.flatten(0, 1), windows["labels"][some].flatten())
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(model.parameters(), LONGEST)
        optimizer.step()
        losses.append(loss.item())
        if step % KEPT == 0 and step < steps:
            save_checkpoint(path, running, settings, _records(losses))
        if on_step is not None:
            on_step(step, losses[-1])
    return losses


def _records(losses: Sequence[float]) -> list[dict[str, float]]:
    """As a checkpoint has them."""
    return [{"step": k + 1, "loss": v} for k, v in enumerate(losses)]


def _rate(step: int, steps: int) -> float:
    """The share of the learning rate at a step."""
    if step < WARMING:
        return (step + 1) / WARMING
    return LAST + (1 - LAST) * 0.5 * (1 + math.cos(math.pi * (step - WARMING) / max(1, steps - WARMING)))


def _orders(count: int, seed: int) -> Iterator[Tensor]:
    """The windows of each step: all of them in an order, then in another, for ever."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield from torch.randperm(count, generator=generator).split(ROWS)
