"""Every measure with a small model, data and its definition written out as a plain loop over rows."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from noisykernels import metrics
from noisykernels.metrics import Metric
from noisykernels.metrics.weighted import weighed

ROWS, INPUTS = 60, 6


class Shaped(nn.Module):
    """Two linear layers and tanh; outputs of any shape of a row, of both signs, sure of what they say."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.shape = shape
        self.one, self.two = nn.Linear(INPUTS, 12, bias=False), nn.Linear(12, math.prod(shape), bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return (6 * self.two(self.one(x).tanh())).reshape(len(x), *self.shape)


@dataclass
class Case:
    """A measure, a shape of outputs, targets for them, and the value of outputs and targets by its definition.

    Args:
        metric: as `metric=` takes it.
        shape: of a row's outputs.
        targets: of the outputs without noise.
        value: of outputs [rows, ...] and targets (those without noise, where it is against these), in float64.
        weights: of the targets, which go along with the data; None: there are none.
    """

    metric: Any
    shape: tuple[int, ...]
    targets: Callable[[Tensor], Tensor]
    value: Callable[[Tensor, Tensor], float]
    weights: Callable[[Tensor], Tensor] | None = None

    def model(self) -> nn.Module:
        """The same each time."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            return Shaped(*self.shape)

    def data(self) -> tuple[Tensor, ...]:
        """Inputs and targets, and their weights where they have some."""
        x = torch.randn(ROWS, INPUTS, generator=torch.Generator().manual_seed(4))
        with torch.no_grad():
            targets = self.targets(self.model()(x))
        return (x, targets) if self.weights is None else (x, targets, self.weights(targets))


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(5)


def best(outputs: Tensor) -> Tensor:
    """The classes that outputs say, a third of them another one."""
    classes = outputs.shape[-1]
    said = outputs.argmax(-1)
    other = torch.randint(classes, said.shape, generator=generator())
    return torch.where(torch.rand(said.shape, generator=generator()) < 1 / 3, other, said)


def padded(outputs: Tensor) -> Tensor:
    """As `best`, with padding of another length in each row."""
    found = best(outputs)
    lengths = 1 + torch.arange(len(found)) % found.shape[1]
    return found.masked_fill(torch.arange(found.shape[1]) >= lengths[:, None], -100)


def near(outputs: Tensor) -> Tensor:
    return outputs + 0.1 * torch.randn(outputs.shape, generator=generator())


def signs(outputs: Tensor) -> Tensor:
    """Yes and no, a tenth of them turned round."""
    turned = torch.rand(outputs.shape, generator=generator()) < 0.1
    return ((outputs > 0) ^ turned).long()


def none(outputs: Tensor) -> Tensor:
    """Targets that nothing looks at."""
    return torch.zeros(len(outputs), dtype=torch.int64)


# ------------------------------------------------------------------------------------------ definitions


def positions(y: Tensor, t: Tensor) -> list[tuple[Tensor, int]]:
    """Scores and target of each position that counts."""
    y, t = y.double().reshape(-1, y.shape[-1]), t.flatten()
    return [(scores, int(target)) for scores, target in zip(y, t, strict=True) if target != -100]


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def hits(y: Tensor, t: Tensor, k: int = 1) -> float:
    return mean([float(int((s > s[c]).sum()) < k) for s, c in positions(y, t)])


def nll(y: Tensor, t: Tensor) -> float:
    return mean([-float(s.log_softmax(0)[c]) for s, c in positions(y, t)])


def brier(y: Tensor, t: Tensor) -> float:
    return mean([float((s.softmax(0) - nn.functional.one_hot(torch.tensor(c), len(s))).square().sum())
                 for s, c in positions(y, t)])  # fmt: skip


def squares(y: Tensor, t: Tensor) -> float:
    return float((y.double() - t.double().reshape(y.shape)).square().mean())


def relative(y: Tensor, t: Tensor) -> float:
    t = t.double().reshape(len(t), -1)
    return squares(y, t) / float((t - t.mean(0)).square().mean())


def cosine(y: Tensor, t: Tensor) -> float:
    return mean([float(a @ b / a.norm() / b.norm()) for a, b in zip(y.double(), t.double(), strict=True)])


def exact(y: Tensor, t: Tensor) -> float:
    return mean([float(bool(((a > 0) == (b > 0)).all())) for a, b in zip(y, t.reshape(y.shape), strict=True)])


def jaccard(y: Tensor, t: Tensor) -> float:
    found = []
    for a, b in zip(y > 0, t > 0, strict=True):
        found.append(float((a & b).sum()) / float((a | b).sum()) if bool((a | b).any()) else 1.0)
    return mean(found)


def kl(y: Tensor, clean: Tensor) -> float:
    p, q = clean.double().log_softmax(-1), y.double().log_softmax(-1)
    return mean([float((a.exp() * (a - b)).sum()) for a, b in zip(p.flatten(0, -2), q.flatten(0, -2), strict=True)])


def agreement(y: Tensor, clean: Tensor) -> float:
    return float((y.argmax(-1) == clean.argmax(-1)).double().mean())


def counts(y: Tensor, t: Tensor) -> dict[int, tuple[int, int, int]]:
    """Of each class that targets hold: both said and true, said, true."""
    pairs = [(int(s.argmax()), c) for s, c in positions(y, t)]
    return {
        k: (sum(a == b == k for a, b in pairs), sum(a == k for a, _ in pairs), sum(b == k for _, b in pairs))
        for k in sorted({b for _, b in pairs})
    }


def iou(y: Tensor, t: Tensor) -> float:
    return mean([both / (said + true - both) for both, said, true in counts(y, t).values()])


def f1(y: Tensor, t: Tensor) -> float:
    return mean([2 * both / (said + true) for both, said, true in counts(y, t).values()])


def auroc(y: Tensor, t: Tensor) -> float:
    p = (y.double().flatten().sigmoid() * 1000).long()
    yes, no = p[t.flatten() == 1], p[t.flatten() == 0]
    return mean([float(a > b) + float(a == b) / 2 for a in yes for b in no])


def ece(y: Tensor, t: Tensor) -> float:
    bins: dict[int, list[tuple[float, float]]] = {}
    every = positions(y, t)
    for s, c in every:
        sure, said = s.softmax(0).max(0)
        bins.setdefault(min(14, int(float(sure) * 15)), []).append((float(sure), float(int(said) == c)))
    return sum(abs(sum(a - b for a, b in some)) for some in bins.values()) / len(every)


def mae(y: Tensor, t: Tensor) -> Tensor:
    """A user's function of rows."""
    return (y - t).abs().mean(-1)


def correlation(y: Tensor, t: Tensor) -> Tensor:
    """A user's function of a whole pass."""
    return torch.corrcoef(torch.stack([y.flatten(), t.flatten()]))[0, 1]


class Hits:
    """A look-alike of a metric of torchmetrics: states that reduce by "sum", and what they make."""

    higher_is_better = True

    def __init__(self) -> None:
        self._defaults = {"right": torch.tensor(0), "total": torch.tensor(0)}
        self._reductions = dict.fromkeys(self._defaults, dim_zero_sum)
        self.reset()

    def reset(self) -> None:
        for name, start in self._defaults.items():
            setattr(self, name, start.clone())

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        self.right = self.right + (outputs.argmax(-1) == targets).sum()
        self.total = self.total + targets.numel()

    def compute(self) -> Tensor:
        return self.right / self.total

    def __repr__(self) -> str:
        return "Hits()"


def dim_zero_sum(values: Tensor) -> Tensor:
    """As torchmetrics calls it."""
    return values.sum(0)


CASES: dict[str, Case] = {
    "accuracy": Case("accuracy", (5,), best, hits),
    "top2": Case("top2", (5,), best, lambda y, t: hits(y, t, 2)),
    "top5": Case("top5", (7,), best, lambda y, t: hits(y, t, 5)),
    "nll": Case("nll", (5,), best, nll),
    "perplexity": Case("perplexity", (4, 5), padded, lambda y, t: math.exp(nll(y, t))),
    "brier": Case("brier", (5,), best, brier),
    "token_accuracy": Case("token_accuracy", (4, 5), padded, hits),
    "kl": Case("kl", (4, 5), none, kl),
    "agreement": Case("agreement", (5,), none, agreement),
    "token_agreement": Case("token_agreement", (4, 5), none, agreement),
    "mse": Case("mse", (3,), near, squares),
    "mse of one": Case("mse", (1,), lambda y: near(y).squeeze(-1), squares),
    "mse against clean": Case(metrics.MSE("clean"), (2, 3), none, squares),
    "relative_mse": Case("relative_mse", (3,), near, relative),
    "decibels": Case(metrics.RelativeMSE(decibels=True), (3,), near, lambda y, t: 10 * math.log10(relative(y, t))),
    "cosine": Case("cosine", (3,), near, cosine),
    "binary_accuracy": Case("binary_accuracy", (1,), signs, exact),
    "multilabel": Case("multilabel", (4,), signs, exact),
    "jaccard": Case("jaccard", (4,), signs, jaccard),
    "mean_iou": Case("mean_iou", (2, 4, 3), best, iou),
    "mean_iou, classes first": Case(
        metrics.MeanIoU(dim=1), (3, 4, 4), lambda y: best(y.movedim(1, -1)), lambda y, t: iou(y.movedim(1, -1), t)
    ),
    "f1": Case("f1", (4,), best, f1),
    "auroc": Case("auroc", (1,), signs, auroc),
    "ece": Case("ece", (5,), best, ece),
    "torchmetrics": Case(Hits(), (5,), best, hits),
    "a function of rows": Case(mae, (3,), near, lambda y, t: float(mae(y, t).double().mean())),
    "a function of a pass": Case(correlation, (1,), near, lambda y, t: float(correlation(y.double(), t.double()))),
}


def prepared(case: Case) -> tuple[Metric, Tensor, Any]:
    """The measure for a case's data, its outputs without noise, and its targets."""
    from noisykernels._engine.session import Problem
    from noisykernels._util.inputs import Call

    x, *_ = case.data()
    problem = Problem.of(Call("test"), case.model(), case.data(), seed=1, metric=case.metric)
    inputs, labels, _ = problem.data
    with torch.no_grad():
        return problem.metric, case.model()(x), weighed(labels, inputs.weights)
