"""What a language model has learnt: its perplexity on text that it was trained on and on text that it was not, beside
those of the frequencies of tokens alone, and of pairs of them."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import noisykernels as nk
from noisykernels.datasets import kjv

WINDOWS, LENGTH = 64, 128  # of each text, that the model is asked


def perplexities(model: nn.Module, tokenizer: nk.datasets.BytePairs) -> dict[str, float]:
    """By name: of the model on both texts, of both baselines on the tests'."""
    texts = {split: nk.tokens(kjv(split), tokenizer, length=LENGTH) for split in ("train", "test")}
    found = {}
    for split, data in texts.items():
        some = data["input_ids"][:: len(data["labels"]) // WINDOWS][:WINDOWS]  # from all of it
        labels = data["labels"][:: len(data["labels"]) // WINDOWS][:WINDOWS]
        with torch.no_grad():
            losses = [
                F.cross_entropy(model(x).flatten(0, 1), y.flatten())
                for x, y in zip(some.split(8), labels.split(8), strict=True)
            ]
        found[split] = math.exp(float(torch.stack(losses).mean()))
    seen, asked = texts["train"], texts["test"]
    found |= {"tokens alone": alone(seen, asked, len(tokenizer)), "pairs": pairs(seen, asked, len(tokenizer))}
    return found


def alone(seen: dict[str, Tensor], asked: dict[str, Tensor], size: int) -> float:
    """Perplexity where a token's frequency is its probability; each was met once more than it was."""
    return math.exp(-float(_frequencies(seen, size)[asked["labels"]].log().mean()))


def pairs(seen: dict[str, Tensor], asked: dict[str, Tensor], size: int) -> float:
    """Perplexity where a token's probability is its frequency behind the one before, and where that is rare its own:
    the share of the latter is that of the kinds of tokens met there, as Witten and Bell have it."""
    counts = torch.zeros(size, size, dtype=torch.float64)
    counts.index_put_(
        (seen["input_ids"].flatten(), seen["labels"].flatten()), torch.ones((), dtype=torch.float64), True
    )
    met, kinds = counts.sum(1, keepdim=True), (counts > 0).sum(1, keepdim=True).clamp(min=1)
    chances = (counts + kinds * _frequencies(seen, size)) / (met + kinds)
    return math.exp(-float(chances[asked["input_ids"], asked["labels"]].log().mean()))


def _frequencies(seen: dict[str, Tensor], size: int) -> Tensor:
    counts = seen["labels"].flatten().bincount(minlength=size).double() + 1
    return counts / counts.sum()
