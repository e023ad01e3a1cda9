"""How often the searched intervals hold the truth: `python bench/interval_coverage.py [STUDIES]` (1,200: two minutes).

An MLP on scikit-learn's digits. The truth of each site: accuracy under 3,000 draws of another seed at nine levels
around the midpoint, and the half-way crossing of a quadratic through them.
"""

import sys

import numpy as np
import torch

import noisykernels as nk
from noisykernels.datasets import load
from noisykernels.zoo import trained

NOISE = nk.Noise(add=1.0)
model, data = trained("mlp", "digits", epochs=30).eval(), load("digits", "test")
first = nk.walk(model, data, noise=NOISE, seed=10**9)
target = (first.meta.clean + first.meta.floor) / 2
steps = np.linspace(-0.12, 0.12, 9)
truth = {}
for m in first.midpoints():
    grid = nk.walk(
        model, data, noise=NOISE, levels=m.level * np.exp(steps), draws=3000, seed=2**40, sites=[m.site_index]
    )
    fit = np.polyfit(steps, grid.curves()[0].mean - target, 2)
    truth[m.site] = m.level * np.exp(min((r.real for r in np.roots(fit) if abs(r.imag) < 1e-9), key=abs))

studies = int(sys.argv[1]) if len(sys.argv) > 1 else 1200
hits, widths = dict.fromkeys(truth, 0), []
for seed in range(studies):
    for m in nk.walk(model, data, noise=NOISE, seed=seed).midpoints():
        hits[m.site] += m.low <= truth[m.site] <= m.high
        widths.append((m.high - m.low) / 2 / m.level)
for site, count in hits.items():
    print(f"{site:20s} truth {truth[site]:7.4f}  held {count / studies:.4f}")
print(f"all sites held {sum(hits.values()) / studies / len(hits):.4f} of {studies} studies")
print(f"half-width: median {np.median(widths):.4f}, largest {max(widths):.4f}; {torch.get_num_threads()} threads")
