"""What users get wrong of seeds, draws and rows, and of walks."""

from __future__ import annotations

import torch
from bad_calls import NAN, NOISE, WEIGHTS, Table, X, Y, net, stated, walk
from bad_models import Mixing
from torch import nn

import noisykernels as nk

CASES: Table = {
    "Seed, draws, rows": [
        ("negative seed", lambda _: stated(seed=-1), ValueError),
        ("seed of 65 bits", lambda _: stated(seed=2**64), ValueError),
        ("seed of another type", lambda _: stated(seed=0.5), TypeError),
        ("number of draws instead of ids", lambda _: stated(draws=3), TypeError),
        ("no draw", lambda _: stated(draws=[]), ValueError),
        ("negative draw", lambda _: stated(draws=[-1]), ValueError),
        ("draw beyond 32 bits", lambda _: stated(draws=[2**32]), ValueError),
        ("draws as floats", lambda _: stated(draws=[0.0]), ValueError),
        ("rows by another word", lambda _: stated(rows="next"), ValueError),
        ("rows that are too few", lambda _: stated(rows=[1, 2]), RuntimeError),
        ("row beyond 32 bits", lambda _: stated(rows=[2**32] * 6), ValueError),
        ("negative level", lambda _: stated(level=-1.0), ValueError),
        ("a word for a level", lambda _: stated(level="low"), TypeError),
        ("a level larger than any float", lambda _: stated(level=10**400), ValueError),
        ("levels that are too few", lambda _: stated(level=[0.1, 0.2]), RuntimeError),
        ("levels of rank 2", lambda _: stated(level=torch.ones(6, 1)), TypeError),
    ],
    "Walk": [
        ("noise that is a number", lambda _: walk(noise=0.1), TypeError),
        ("no level", lambda _: walk(levels=[]), ValueError),
        ("negative level", lambda _: walk(levels=[-1.0]), ValueError),
        ("NaN level", lambda _: walk(levels=[NAN]), ValueError),
        ("the same level twice", lambda _: walk(levels=[1.0, 1.0]), ValueError),
        ("a number for the levels", lambda _: walk(levels=0.3), TypeError),
        ("a word for a level", lambda _: walk(levels=["a"]), TypeError),
        ("level beyond float32", lambda _: walk(levels=[1e39], noise=nk.Noise(add=1.0)), ValueError),
        (
            "level beyond float64",
            lambda _: walk(net().double(), (X.double(), Y), noise=nk.Noise(add=1e200), levels=[1e200]),
            ValueError,
        ),
        ("no draw", lambda _: walk(draws=0), ValueError),
        ("draws that are no number", lambda _: walk(draws=2.0), TypeError),
        ("the same draw twice", lambda _: walk(draws=[1, 1]), ValueError),
        ("draw beyond 32 bits", lambda _: walk(draws=[2**32]), ValueError),
        ("negative seed", lambda _: walk(seed=-1), ValueError),
        ("no rows in a pass", lambda _: walk(compute=nk.Compute(batch_rows=0)), ValueError),
        ("no draws in a pass", lambda _: walk(compute=nk.Compute(draws_per_pass=0)), ValueError),
        ("unknown site", lambda _: walk(sites=["fc1"]), ValueError),
        ("unknown site index", lambda _: walk(sites=[9]), ValueError),
        ("unknown target", lambda _: walk(target="bias"), ValueError),
        ("noise of weights at activations", lambda _: walk(noise=WEIGHTS), ValueError),
        ("mixed noise of weights", lambda _: walk(target="weight", noise=nk.Noise(1.0, 1.0)), ValueError),
        (
            "noise of weights that differs by channel",
            lambda _: walk(target="weight", noise=nk.Noise(add=torch.ones(1, 1, 4))),
            ValueError,
        ),
        ("weights of a model that has none", lambda _: walk(nn.ReLU(), target="weight"), ValueError),
        ("weights of a site that has none", lambda _: walk(target="weight", sites="1:relu"), ValueError),
        ("plateaus of noise on weights", lambda _: walk(target="weight", plateaus=0.03), ValueError),
        ("an empty list of noises", lambda _: walk(noise=[]), TypeError),
        ("plateaus of a search", lambda _: walk(levels=None, draws=None, plateaus=0.03), ValueError),
        ("plateaus that are everything", lambda _: walk(plateaus=1.0), ValueError),
        ("an executor that is a word", lambda _: walk(compute=nk.Compute(executor="dask")), TypeError),
        ("no processes", lambda _: walk(compute=nk.Compute(executor=0)), ValueError),
        ("ratio beyond 1", lambda _: nk.walk_mixed(net(), (X, Y), ratios=[2.0], seed=0), ValueError),
        ("more inputs than labels", lambda _: walk(data=(X, Y[:2])), ValueError),
        ("labels one-hot", lambda _: walk(data=(X, torch.zeros(6, 3))), ValueError),
        ("labels beyond the classes", lambda _: walk(data=(X, Y + 3)), ValueError),
        ("no data", lambda _: walk(data=(X[:0], Y[:0])), ValueError),
        ("empty iterable", lambda _: walk(data=[]), ValueError),
        ("single items instead of batches", lambda _: walk(data=[(X[0], 0)]), ValueError),
        ("rows that are too few", lambda _: walk(rows=[1]), ValueError),
        (
            "scores that are no matrix",
            lambda _: walk(model=nn.Sequential(nn.Linear(4, 3), nn.Unflatten(1, (3, 1)))),
            ValueError,
        ),
        ("site that mixes rows", lambda _: walk(model=Mixing(), sites=[":sigmoid#0"]), RuntimeError),
        ("an injected model", lambda _: walk(model=nk.inject(net(), NOISE).model), ValueError),
    ],
}
