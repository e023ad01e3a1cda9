"""Deep networks: grids with plateaus settled, and midpoints, against the loop of bench_study.py.

Networks are trained for a few epochs on Fashion-MNIST and walked on its 10,000 test images, on every so many sites.
Times are processor time of one thread, so that what else a machine does matters little. The loop's cells are timed on
some rows and stand for all. So do ours of the levels that are run in full: the looks that settle the others are run as
they are. `python bench/bench_deep.py NAME [EVERY]` prints one network's figures; `pytest` all, as a table.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from bench_study import Encoder, ResNet18, SmallVGG, framed, modules_of_sites, plain_cell
from torch import Tensor, nn

import noisykernels as nk
from noisykernels._engine.request import Advance, Answer, Evaluate, Request, unheard
from noisykernels.datasets import load
from noisykernels.training import train
from noisykernels.walking.strategies import Grid

PART = 250  # rows that stand for all where a level is run in full
TIMED = 250  # and of a cell of the loop
GRIDS = {  # the loop's levels of the deep networks in bench_study.py, LeNet-5's there, and the published ones
    "20 levels over 4 decades": torch.logspace(-2, 2, 20),
    "49 levels over 6 decades": torch.logspace(-3, 3, 49),
    "49 levels over 12 decades": torch.logspace(-2, 10, 49),
}
PUBLISHED = 49 * 5  # cells of a site: four levels for each of twelve decades, five repeats


def patches(part: str, limit: int | None) -> tuple[Tensor, Tensor]:
    """Fashion-MNIST as 16 patches of 7 x 7 pixels."""
    x, y = load("fashion-mnist", part, limit=limit)
    return x.unfold(2, 7, 7).unfold(3, 7, 7).reshape(len(x), 16, 49).contiguous(), y


# Of each: the network, its data, images and epochs of its training, every how many of its sites are walked, and how
# many times faster than the loop grids (with five draws, over 12 decades) and midpoints are to be.
NETWORKS: dict[str, dict[str, Any]] = {
    "resnet": dict(build=ResNet18, data=framed, images=4000, epochs=2, every=9, grid=6, midpoints=150),
    "narrow resnet": dict(build=lambda: ResNet18(16), data=framed, images=10_000, epochs=3, every=9),
    "encoder": dict(build=lambda: Encoder(49), data=patches, images=20_000, epochs=4, every=1, grid=8),
    "vgg": dict(build=SmallVGG, data=framed, images=10_000, epochs=2, every=1, grid=12),
}


class Sampling:
    """Evaluates requests on all rows on their first ones only, and says how much longer all would have taken."""

    def __init__(self, evaluate: Evaluate, rows: int) -> None:
        self.evaluate, self.rows = evaluate, rows
        self.seconds, self.full = 0.0, 0

    def answers(self, requests: Sequence[Request], advance: Advance = unheard) -> list[Answer]:
        """See `Evaluate`; what is asked of all rows repeats what some gave."""
        if not requests or requests[0].rows < self.rows:
            return self.evaluate.answers(requests, advance)
        start = time.process_time()
        given = self.evaluate.answers([replace(r, rows=PART) for r in requests], advance)
        self.seconds += (time.process_time() - start) * (self.rows / PART - 1)
        self.full += sum(r.cells for r in requests)
        return [np.tile(answer, self.rows // PART) for answer in given]


def network(name: str) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    """A network trained, and its test set."""
    about = NETWORKS[name]
    torch.manual_seed(0)
    model = about["build"]()
    train(model, about["data"]("train", about["images"]), epochs=about["epochs"], seed=0)
    return model.eval(), about["data"]("test", None)


def walked(model: nn.Module, data: tuple[Tensor, Tensor], every: int) -> dict[int, nn.Module | None]:
    """The sites that are walked and that hooks of the loop reach, and their modules."""
    found = enumerate(modules_of_sites(model, data))
    sites = nk.sites(model, data[0][:2])
    reached = {i: m for i, m in found if sites[i].kind != "attention" and "self_attn" not in sites[i].name}
    reached = {i: m for i, m in reached.items() if m is None or not list(m.children())}
    return dict(list(reached.items())[::every])


def loop_of(model: nn.Module, data: tuple[Tensor, Tensor], sites: dict[int, nn.Module | None]) -> float:
    """Seconds of the loop for one cell of each site."""
    with torch.inference_mode():
        return sum(plain_cell(model, data, module, "add", time.process_time, TIMED) for module in sites.values())


def grid_of(model: nn.Module, data: tuple[Tensor, Tensor], sites: Sequence[int], levels: Tensor) -> dict[str, float]:
    """Seconds of a walk with plateaus settled, and its evaluations in parts of all."""
    run, kept = Grid.run, []

    def sampled(self: Grid, evaluate: Evaluate, *more: Any) -> Any:
        kept.append(Sampling(evaluate, len(data[1])))
        return run(self, kept[0], *more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Grid, "run", sampled)
        start = time.process_time()
        study = nk.walk(model, data, noise=nk.Noise(add=1.0), levels=levels, draws=5, seed=0, sites=list(sites),
                        plateaus=0.03)  # fmt: skip
        took = time.process_time() - start
    every = len(sites) * len(levels) * 5 * len(data[1])
    return {"seconds": took + kept[0].seconds, "evaluated": study.meta.plan["evaluations"] / every,
            "in full": kept[0].full / every}  # fmt: skip


def figures(name: str, model: nn.Module, data: tuple[Tensor, Tensor], every: int) -> list[dict[str, Any]]:
    """A row for each study of a network."""
    torch.set_num_threads(1)
    about, sites = NETWORKS[name], walked(model, data, every)
    loops, found = [loop_of(model, data, sites)], []
    for title, levels in GRIDS.items():
        ours = grid_of(model, data, list(sites), levels)
        loops.append(loop_of(model, data, sites))
        base = 5 * len(levels) * statistics.median(loops)
        found.append({"what": f"{name}, {len(sites)} sites, {title}, 5 draws, plateaus settled", "base us": 1e6 * base,
                      "ours": base / ours["seconds"], "bar": about.get("grid") if "12" in title else None,
                      "evaluated": ours["evaluated"], "in full": ours["in full"]})  # fmt: skip
    start = time.process_time()
    study = nk.walk(model, data, noise=nk.Noise(add=1.0), seed=0, sites=list(sites))
    took, base = time.process_time() - start, PUBLISHED * statistics.median([*loops, loop_of(model, data, sites)])
    found.append({"what": f"{name}, {len(sites)} sites, midpoints within 5 %", "base us": 1e6 * base,
                  "ours": base / took, "bar": about.get("midpoints"), "our s": took,
                  "evaluations": study.meta.plan["evaluations"] // len(sites)})  # fmt: skip
    return found


@pytest.mark.parametrize("name", list(NETWORKS))
def test_deep(name: str, benchmark: Any, record_row: Callable[..., None]) -> None:
    """Times faster than the loop."""
    model, data = network(name)
    for row in figures(name, model, data, NETWORKS[name]["every"]):
        record_row(
            row | {"spread": (row["ours"], row["ours"]), "met": None if not row["bar"] else row["ours"] >= row["bar"]}
        )
    how = dict(noise=nk.Noise(add=1.0), levels=[1.0], draws=1, sites=0, seed=0)
    benchmark.pedantic(nk.walk, args=(model, (data[0][:100], data[1][:100])), kwargs=how, rounds=1)


if __name__ == "__main__":
    for row in figures(sys.argv[1], *network(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1):
        print(row, flush=True)
