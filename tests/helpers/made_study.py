"""A made-up study of LeNet-5 with batch norm: known midpoints, no torch, no compiled extension."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from noisykernels.stats import Meta, Record
from noisykernels.study import Study

SITES = (
    "input", "conv1:conv2d#0", "norm1:batch_norm#0", "relu1:relu#0", "pool1:max_pool2d#0",
    "conv2:conv2d#0", "norm2:batch_norm#0", "relu2:relu#0", "pool2:max_pool2d#0", "fc1:linear#0",
    "norm3:batch_norm#0", "relu3:relu#0", "fc2:linear#0", "norm4:batch_norm#0", "relu4:relu#0",
    "fc3:linear#0",
)  # fmt: skip
# Site 6 has fallen before the smallest level, site 14 never falls.
MIDPOINTS = (
    0.45, 0.6, 0.5, 0.62, 1.4, 0.9, 0.002, 2.5, 4, 7.9, 4.7, 4.3, 30, 55, 1e7, 6,
)  # fmt: skip
CLEAN, FLOOR = 0.9, 0.1


def made_study(
    midpoints: Sequence[float] = MIDPOINTS, *, levels: Any = None, draws: int = 3,
    rows: int = 2000, slope: float = 4.5, seed: int = 0, **meta: Any,
) -> Study:  # fmt: skip
    """Binomial counts around logistic curves (log axis) with the given midpoints."""
    rng = np.random.default_rng(seed)
    levels = np.logspace(-2, 4, 13) if levels is None else np.asarray(levels, float)
    records = []
    for i, (site, mid) in enumerate(zip(SITES, midpoints, strict=False)):
        p = FLOOR + (CLEAN - FLOOR) / (1 + (np.maximum(levels, 1e-300) / mid) ** (slope / np.log(10)))
        for level, q in zip(levels, p, strict=True):
            for d in range(draws):
                count = int(rng.binomial(rows, q))
                records.append(Record.counted(site, i, level, d, rows, count))
    about = {
        "seed": 1, "noise": {"kind": "gaussian", "order": "mul_add", "add": 1.0, "mul": 0.0},
        "levels": tuple(levels), "draws": tuple(range(draws)), "rows": rows,
        "clean_correct": round(CLEAN * rows), "classes": 10, "sites": SITES[: len(midpoints)],
        "stream_version": 1, "plan": {"batch_rows": 256, "libraries": {"torch": "2.13"}},
    }  # fmt: skip
    return Study(records, Meta(**(about | meta)))
