"""Measures with weights, and what they are by definition: plain loops over rows and positions; see `measure_cases`."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from measure_cases import Case, best, mae, near, none, padded, signs
from torch import Tensor

from noisykernels import metrics
from noisykernels.metrics import Weighted

__all__ = ["WEIGHTED", "uneven"]


def uneven(*shape: int) -> Tensor:
    """Weights, a tenth of them 0, some of them large."""
    drawn = torch.rand(shape, generator=torch.Generator().manual_seed(6))
    return torch.where(drawn < 0.1, 0.0, (3 * drawn).exp())


def mean(values: Tensor, weights: Tensor) -> float:
    """sum w x / sum w, a weight for each of the first dimensions."""
    total = over = 0.0
    for x, w in zip(values.double(), weights.double(), strict=True):
        for one in x.flatten():
            total, over = total + float(w * one) if w > 0 else total, over + float(w)
    return total / over


def of_positions(numbers: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], float]:
    """Of a function of the scores and the target of one position, over those that count."""

    def value(y: Tensor, t: Tensor) -> float:
        there = t.flatten() != -100
        scores, targets = y.double().reshape(-1, y.shape[-1])[there], t.flatten()[there]
        found = torch.stack([numbers(s, c) for s, c in zip(scores, targets, strict=True)])
        return mean(found, uneven(*t.shape).flatten()[there])

    return value


def of_rows(numbers: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], float]:
    """Of a function of the outputs and targets of one row."""
    return lambda y, t: mean(torch.stack([numbers(a, b).mean() for a, b in zip(y, t, strict=True)]), uneven(len(y)))


def hit(s: Tensor, c: Tensor) -> Tensor:
    return (s.argmax(-1) == c).double()


def nll(s: Tensor, c: Tensor) -> Tensor:
    return -s.double().log_softmax(0)[c]


def brier(s: Tensor, c: Tensor) -> Tensor:
    return (s.double().softmax(0) - torch.nn.functional.one_hot(c, len(s))).square().sum()


def squares(y: Tensor, t: Tensor) -> Tensor:
    return (y.double() - t.double()).square()


def relative(y: Tensor, t: Tensor) -> float:
    w = uneven(len(t)).double().unsqueeze(1)
    centre = (w * t).sum(0) / w.sum()
    return of_rows(squares)(y, t) / float((w * (t - centre).square()).sum() / (w.sum() * t.shape[1]))


def kl(y: Tensor, clean: Tensor) -> float:
    p, q = clean.double().log_softmax(-1), y.double().log_softmax(-1)
    return mean((p.exp() * (p - q)).sum(-1).flatten(), uneven(*y.shape[:-1]).flatten())


def jaccard(a: Tensor, b: Tensor) -> Tensor:
    said, true = a > 0, b > 0
    return (said & true).sum().double() / (said | true).sum() if bool((said | true).any()) else torch.tensor(1.0)


def iou(y: Tensor, t: Tensor) -> float:
    said, true, w = y.argmax(-1).flatten(), t.flatten(), uneven(*t.shape).flatten().double()
    held = true[w > 0].unique().tolist()
    return sum(float(w[(said == k) & (true == k)].sum() / w[(said == k) | (true == k)].sum()) for k in held) / len(held)


def auroc(y: Tensor, t: Tensor) -> float:
    p, t, w = (y.double().flatten().sigmoid() * 1000).long(), t.flatten(), uneven(len(y)).double()
    pairs = [
        (float(v * u), float(a > b) + float(a == b) / 2)
        for a, v in zip(p[t == 1], w[t == 1], strict=True)
        for b, u in zip(p[t == 0], w[t == 0], strict=True)
    ]
    return sum(m * x for m, x in pairs) / sum(m for m, _ in pairs)


def ece(y: Tensor, t: Tensor) -> float:
    w, bins = uneven(len(y)).double(), dict[int, float]()
    for s, c, v in zip(y.double(), t, w, strict=True):
        sure, said = s.softmax(0).max(0)
        k = min(14, int(float(sure) * 15))
        bins[k] = bins.get(k, 0.0) + float(v) * (float(sure) - float(int(said) == int(c)))
    return sum(map(abs, bins.values())) / float(w.sum())


def of(metric: metrics.Metric | str, *shape: int, targets: Callable[[Tensor], Tensor], value: Callable[..., float],
       positions: bool = False) -> Case:  # fmt: skip
    """A case with a weight for each row, or position."""
    return Case(Weighted(metric), shape, targets, value, lambda t: uneven(*t.shape) if positions else uneven(len(t)))


WEIGHTED: dict[str, Case] = {
    "accuracy, weighted": of("accuracy", 5, targets=best, value=of_rows(hit)),
    "nll, weighted": of("nll", 5, targets=best, value=of_rows(nll)),
    "perplexity, weighted positions": of(
        "perplexity", 4, 5, targets=padded, value=lambda y, t: math.exp(of_positions(nll)(y, t)), positions=True
    ),
    "token_accuracy, weighted positions": of(
        "token_accuracy", 4, 5, targets=padded, value=of_positions(hit), positions=True
    ),
    "brier, weighted": of("brier", 5, targets=best, value=of_rows(brier)),
    "mse, weighted": of("mse", 3, targets=near, value=of_rows(squares)),
    "relative_mse, weighted": of("relative_mse", 3, targets=near, value=relative),
    "kl, weighted positions": Case(
        Weighted("kl"), (4, 5), none, kl, lambda t: uneven(len(t), 4)
    ),
    "jaccard, weighted": of("jaccard", 4, targets=signs, value=of_rows(jaccard)),
    "mean_iou, weighted positions": of("mean_iou", 2, 4, 3, targets=best, value=iou, positions=True),
    "auroc, weighted": of("auroc", 1, targets=lambda y: signs(y).squeeze(-1), value=auroc),
    "ece, weighted": of("ece", 5, targets=best, value=ece),
    "a function of rows, weighted": of(
        metrics.ByRow(mae, higher_is_better=False), 3, targets=near,
        value=of_rows(lambda a, b: (a - b).abs().double()),
    ),
}  # fmt: skip
