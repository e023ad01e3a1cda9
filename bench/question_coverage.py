"""How often intervals of every law hold the truth: `PYTHONPATH=.:tests/helpers python bench/question_coverage.py [N]`.

Prints the table of docs/results/intervals.md: N made-up studies of each line (default 300), whose truth is known (of
sums over rows: from 2,000 draws of another seed, 8,000 where rows share their noise), and N real searches: the loss of
a small classifier (a twentieth more), the squared error of a regressor (twice as much), both with weights as well, at
the first layer. Their truth: values under 2,000 draws of another seed at nine levels around the tolerance, and the
crossing of a quadratic through them. A word after N picks the lines that hold it.
"""

import math
import sys
from functools import cache

import numpy as np
import torch
from made_curves import Made, MadeLoss, search, search_loss, seek
from made_grids import made_accuracy, made_loss
from made_sums import MadeScores, MadeSums, grid_of_sums, search_sums
from torch import nn

import noisykernels as nk
from noisykernels.metrics import Weighted

STUDIES = int(sys.argv[1]) if len(sys.argv) > 1 else 300
PICKED = sys.argv[2] if len(sys.argv) > 2 else ""
NOISE = nk.Noise(add=1.0)


def grid_of_loss(law, draws, weights, seed):
    """A made-up walk over a grid."""
    m, truth = made_loss(law, draws, seed, weights)
    return m.low, m.high, truth


def grid_of_accuracy(draws, weights, seed):
    """A made-up walk over a grid, of an accuracy."""
    m, truth = made_accuracy(draws, seed, weights)
    return m.low, m.high, truth


def searched_loss(law, chip, seed):
    """A made-up search, of rows or of chips."""
    made = MadeLoss(seed, law, chip=chip)
    one = search_loss(made, nk.Drop(0.2), chips=chip > 0)
    seek([one], made)
    return one.found.low, one.found.high, made.tolerance(0.2)


def searched_accuracy(seed):
    """A made-up search for a midpoint."""
    made = Made(seed)
    one = search(made)
    seek([one], made)
    return one.found.low, one.found.high, made.midpoint()


SUMS = {
    "F1 of 1,500 rows": (MadeSums, {"metric": "f1"}),
    "F1 of 600 rows": (MadeSums, {"metric": "f1", "rows": 600}),
    "F1 of 200 rows": (MadeSums, {"metric": "f1", "rows": 200}),
    "mean IoU of 16 correlated pixels a row": (MadeSums, {"metric": "mean_iou", "places": 16}),
    "mean IoU of 300 rows": (MadeSums, {"metric": "mean_iou", "rows": 300}),
    "AUROC of 1,500 rows": (MadeScores, {"metric": "auroc"}),
    "AUROC of 300 rows": (MadeScores, {"metric": "auroc", "rows": 300}),
    "ECE of 1,500 rows": (MadeScores, {"metric": "ece"}),
    "ECE of 300 rows": (MadeScores, {"metric": "ece", "rows": 300}),
    "F1 of rows that share noise": (MadeSums, {"metric": "f1", "rows": 600, "chip": 0.3}),
}
LOSS = nk.Drop(0.1)


def made_sums(name, seed):
    """The law of a line."""
    kind, how = SUMS[name]
    return kind(seed, **how)


def found_sums(made):
    """What a search finds."""
    one = search_sums(made, LOSS, chips=made.chip > 0)
    seek([one], made)
    return one.found


@cache
def true_sums(name):
    """From many draws."""
    made = made_sums(name, 0)
    found = found_sums(made)
    return made.truth(found.target, found.level, 8000 if made.chip else 2000)


def searched_sums(name, seed):
    """A made-up search of a sum over rows."""
    found = found_sums(made_sums(name, seed))
    return found.low, found.high, true_sums(name)


def gridded_sums(name, draws, seed):
    """A made-up walk over a grid, of a sum over rows."""
    m = grid_of_sums(made_sums(name, seed), LOSS, draws)
    return m.low, m.high, true_sums(name)


MADE = [
    *((f"{law} loss, grid, {draws} draw{'s' * (draws > 1)}", grid_of_loss, (law, draws, None))
      for law in ("heavy", "skewed") for draws in (1, 2, 4, 8, 16)),
    *((f"loss shared by rows, grid, {draws} draws", grid_of_loss, ("shared", draws, None)) for draws in (2, 4, 8, 16)),
    *((f"{law} loss, {weights} weights, grid, {draws} draw{'s' * (draws > 1)}", grid_of_loss, (law, draws, weights))
      for weights in ("uneven", "few") for law, draws in (("heavy", 1), ("skewed", 2), ("skewed", 16), ("shared", 8))),
    *((f"accuracy, grid, {draws} draw{'s' * (draws > 1)}", grid_of_accuracy, (draws, None)) for draws in (1, 2, 8)),
    *((f"accuracy, {weights} weights, grid, {draws} draw{'s' * (draws > 1)}", grid_of_accuracy, (draws, weights))
      for weights in ("uneven", "few") for draws in (1, 2, 16)),
    ("accuracy, search", searched_accuracy, ()),
    *((f"{law} loss, search", searched_loss, (law, 0.0)) for law in ("heavy", "skewed")),
    ("loss shared by rows, search of chips", searched_loss, ("skewed", 0.4)),
    *((f"{name}, grid, {draws} draw{'s' * (draws > 1)}", gridded_sums, (name, draws))
      for name in SUMS for draws in ((2, 8) if "share" in name else (1, 8))),
    *((f"{name}, search{' of chips' * ('share' in name)}", searched_sums, (name,)) for name in SUMS),
]  # fmt: skip


def fitted(model, targets, loss):
    """A model trained for a moment."""
    optimizer = torch.optim.Adam(model.parameters(), 2e-2)
    for _ in range(200):
        optimizer.zero_grad()
        loss(model(X), targets).backward()
        optimizer.step()
    return model.eval()


torch.manual_seed(0)
X, W = torch.randn(600, 6), torch.randn(6, 3)
LABELS = (X @ W + 0.5 * torch.randn(600, 3)).argmax(1)
VALUES = torch.stack([X[:, 0] * X[:, 1], X[:, 2].sin()], 1)
CLASSIFIER = fitted(nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3)), LABELS, nn.functional.cross_entropy)
REGRESSOR = fitted(nn.Sequential(nn.Linear(6, 24), nn.Tanh(), nn.Linear(24, 2)), VALUES, nn.functional.mse_loss)
CARE = torch.randn(600).exp()
REAL = {
    "nll of a classifier, search": (CLASSIFIER, (X, LABELS), "nll", nk.Ratio(1.05)),
    "mse of a regressor, search": (REGRESSOR, (X, VALUES), "mse", nk.Ratio(2.0)),
    "weighted nll of a classifier, search": (CLASSIFIER, (X, LABELS, CARE), Weighted("nll"), nk.Ratio(1.05)),
    "weighted accuracy of a classifier, search": (CLASSIFIER, (X, LABELS, CARE), Weighted("accuracy"), nk.Drop(0.1)),
}


def asked(name, **options):
    """The walk of a line, at the first layer."""
    model, data, metric, at = REAL[name]
    return nk.walk(model, data, noise=NOISE, metric=metric, at=at, sites=["0:linear#0"], **options)


def true_tolerance(name):
    """From many draws."""
    steps = np.linspace(-0.12, 0.12, 9)
    (first,) = asked(name, seed=10**9).midpoints()
    levels = first.level * np.exp(steps)
    grid = asked(name, levels=levels.tolist(), draws=2000, seed=2**40)
    fit = np.polyfit(steps, grid.curves()[0].mean - first.target, 2)
    return first.level * math.exp(min((r.real for r in np.roots(fit) if abs(r.imag) < 1e-9), key=abs))


def real(name, truth, seed):
    """A real search."""
    (m,) = asked(name, seed=seed).midpoints()
    return m.low, m.high, truth


def line(what, give, options):
    """A line of the table."""
    each = [give(*options, seed) for seed in range(STUDIES)]
    held = sum(low <= truth <= high for low, high, truth in each) / STUDIES
    widths = [math.log(high / low) / 2 if 0 < low <= high < math.inf else math.inf for low, high, _ in each]
    error = math.sqrt(held * (1 - held) / STUDIES)
    width = float(np.median(widths))
    said = f"{100 * width:.1f} %" if math.isfinite(width) else "one end open"
    return f"| {what} | {100 * held:.1f} % | {100 * error:.1f} | {said} |"


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(f"| {STUDIES} studies each | held the truth | binomial error | median half-width |\n|---|---|---|---|")
    for name, function, arguments in MADE:
        if PICKED in name:
            print(line(name, function, arguments), flush=True)
    for name in REAL:
        if PICKED in name:
            print(line(name, real, (name, true_tolerance(name))), flush=True)
