"""How often intervals of other measures and questions hold the truth: `python bench/question_coverage.py [STUDIES]`.

300 real searches each: the loss of a small classifier (a twentieth more) and the squared error of a regressor (twice as
much), at the first layer. The truth: values under 2,000 draws of another seed at nine levels around the tolerance, and
the crossing of a quadratic through them.
"""

import sys

import numpy as np
import torch
from torch import nn

import noisykernels as nk

NOISE = nk.Noise(add=1.0)
torch.manual_seed(0)
x, w = torch.randn(600, 6), torch.randn(6, 3)
labels, values = (x @ w + 0.5 * torch.randn(600, 3)).argmax(1), torch.stack([x[:, 0] * x[:, 1], x[:, 2].sin()], 1)


def fitted(model, targets, loss):
    """A model trained for a moment."""
    optimizer = torch.optim.Adam(model.parameters(), 2e-2)
    for _ in range(200):
        optimizer.zero_grad()
        loss(model(x), targets).backward()
        optimizer.step()
    return model.eval()


classifier = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3))
regressor = nn.Sequential(nn.Linear(6, 24), nn.Tanh(), nn.Linear(24, 2))
CASES = [
    ("nll", nk.Ratio(1.05), fitted(classifier, labels, nn.functional.cross_entropy), labels),
    ("mse", nk.Ratio(2.0), fitted(regressor, values, nn.functional.mse_loss), values),
]
studies = int(sys.argv[1]) if len(sys.argv) > 1 else 300
steps = np.linspace(-0.12, 0.12, 9)
for metric, at, model, targets in CASES:
    asked = dict(noise=NOISE, metric=metric, at=at, sites=["0:linear#0"])
    (first,) = nk.walk(model, (x, targets), seed=10**9, **asked).midpoints()
    levels = first.level * np.exp(steps)
    grid = nk.walk(model, (x, targets), levels=levels.tolist(), draws=2000, seed=2**40, **asked)
    fit = np.polyfit(steps, grid.curves()[0].mean - first.target, 2)
    truth = first.level * np.exp(min((r.real for r in np.roots(fit) if abs(r.imag) < 1e-9), key=abs))
    hits, widths, costs = 0, [], []
    for seed in range(studies):
        study = nk.walk(model, (x, targets), seed=seed, **asked)
        (m,) = study.midpoints()
        hits += m.low <= truth <= m.high
        widths.append((m.high - m.low) / 2 / m.level)
        costs.append(study.meta.plan["evaluations"])
    print(f"{metric} {at}: truth {truth:.4f}, held {hits / studies:.4f} of {studies} searches; half-width "
          f"{np.median(widths):.4f}, evaluations {int(np.median(costs)):,}", flush=True)  # fmt: skip
