"""Deep networks: grids with plateaus settled, and midpoints, against the loop of bench_study.py.

Networks are trained for a few epochs on Fashion-MNIST and walked on its 10,000 test images, on every so many sites,
that is, on a sample spread over the depth, which was chosen before anything was timed. Times are processor time of one
thread, so that what else a machine does matters little. The loop's cells are timed on some rows and stand for all. So
do ours of the levels that are run in full: the looks that settle the others are run as they are. What a study takes is
scaled to all sites: the clean pass once, the rest by their number.

`python bench/bench_deep.py NAME` prints one network's figures, `--study` one of them, `--sites` of some sites; with
`--keep FOLDER` the trained weights and what searches have found stay there. `pytest` prints all, as a table.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bench_study import Encoder, ResNet18, SmallVGG, framed, modules_of_sites, plain_cell
from torch import Tensor, nn

import noisykernels as nk
from noisykernels._engine import session
from noisykernels._engine.request import Advance, Answer, Evaluate, Request, unheard
from noisykernels.datasets import load
from noisykernels.training import train
from noisykernels.walking.strategies import Grid

PART = 250  # rows that stand for all where a level is run in full
GRIDS = {  # the loop's levels of the deep networks in bench_study.py, LeNet-5's there, and the published ones
    "20 levels over 4 decades": torch.logspace(-2, 2, 20),
    "49 levels over 6 decades": torch.logspace(-3, 3, 49),
    "49 levels over 12 decades": torch.logspace(-2, 10, 49),
}
MIDPOINTS = "midpoints within 5 %"
PUBLISHED = 49 * 5  # cells of a site: four levels for each of twelve decades, five repeats


def patches(part: str, limit: int | None) -> tuple[Tensor, Tensor]:
    """Fashion-MNIST as 16 patches of 7 x 7 pixels."""
    x, y = load("fashion-mnist", part, limit=limit)
    return x.unfold(2, 7, 7).unfold(3, 7, 7).reshape(len(x), 16, 49).contiguous(), y


# Of each: the network, its data, images, epochs and batches of its training, every how many of its sites are walked, on
# how many rows a cell of the loop is timed, and how many times faster than the loop grids (with five draws, over 12
# decades) and midpoints are to be.
NETWORKS: dict[str, dict[str, Any]] = {
    "resnet": dict(build=ResNet18, data=framed, images=2000, epochs=1, batch=32, every=10, timed=50, grid=6,
                   midpoints=150),
    "narrow resnet": dict(build=lambda: ResNet18(16), data=framed, images=3000, epochs=2, batch=64, every=15, timed=250,
                          grid=6),
    "encoder": dict(build=lambda: Encoder(49), data=patches, images=20_000, epochs=4, batch=128, every=1, timed=250,
                    grid=8),
    "vgg": dict(build=SmallVGG, data=framed, images=5000, epochs=2, batch=64, every=4, timed=250, grid=12),
}  # fmt: skip


class Sampling:
    """Evaluates requests on all rows on their first ones only, and says how much longer all would have taken."""

    def __init__(self, evaluate: Evaluate, rows: int) -> None:
        self.evaluate, self.rows = evaluate, rows
        self.seconds, self.looks, self.full = 0.0, 0.0, 0  # not spent; of looks; cells that would have been run in full

    def answers(self, requests: Sequence[Request], advance: Advance = unheard) -> list[Answer]:
        """See `Evaluate`; what is asked of all rows repeats what some gave."""
        start = time.process_time()
        if not requests or requests[0].rows < self.rows:
            given = self.evaluate.answers(requests, advance)
            self.looks += time.process_time() - start
            return given
        given = self.evaluate.answers([replace(r, rows=PART) for r in requests], advance)
        self.seconds += (time.process_time() - start) * (self.rows / PART - 1)
        self.full += sum(r.cells for r in requests)
        return [np.tile(answer, self.rows // PART) for answer in given]


def network(name: str, keep: Path | None = None) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    """A network trained, and its test set; the weights are read from a folder if they are there, and kept there."""
    about = NETWORKS[name]
    kept = None if keep is None else keep / f"{name}.pt"
    torch.manual_seed(0)
    model = about["build"]()
    if kept is not None and kept.exists():
        model.load_state_dict(torch.load(kept))
    else:
        images = about["data"]("train", about["images"])
        train(model, images, epochs=about["epochs"], batch_size=about["batch"], seed=0)
        if kept is not None:
            torch.save(model.state_dict(), kept)
    return model.eval(), about["data"]("test", None)


def reached(model: nn.Module, data: tuple[Tensor, Tensor]) -> dict[int, nn.Module | None]:
    """The sites that hooks of the loop reach, and their modules."""
    found = enumerate(modules_of_sites(model, data))
    sites = nk.sites(model, data[0][:2])
    some = {i: m for i, m in found if sites[i].kind != "attention" and "self_attn" not in sites[i].name}
    return {i: m for i, m in some.items() if m is None or not list(m.children())}


def loop_of(model: nn.Module, data: tuple[Tensor, Tensor], sites: dict[int, nn.Module | None], rows: int) -> float:
    """Seconds of the loop for one cell of each site."""
    with torch.inference_mode():
        return sum(plain_cell(model, data, module, "add", time.process_time, rows) for module in sites.values())


@contextlib.contextmanager
def timed() -> Iterator[dict[str, float]]:
    """Seconds of what runs within, and of its clean pass."""
    clean, found = session.clean_run, {"clean": 0.0}

    def run(*args: Any) -> Any:
        start = time.process_time()
        given = clean(*args)
        found["clean"] += time.process_time() - start
        return given

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "clean_run", run)
        start = time.process_time()
        yield found
        found["seconds"] = time.process_time() - start


def grid_of(model: nn.Module, data: tuple[Tensor, Tensor], sites: Sequence[int], levels: Tensor) -> dict[str, float]:
    """Seconds of a walk with plateaus settled, and its evaluations in parts of all."""
    run, kept = Grid.run, []

    def sampled(self: Grid, evaluate: Evaluate, *more: Any) -> Any:
        kept.append(Sampling(evaluate, len(data[1])))
        return run(self, kept[0], *more)

    with pytest.MonkeyPatch.context() as patch, timed() as found:
        patch.setattr(Grid, "run", sampled)
        study = nk.walk(model, data, noise=nk.Noise(add=1.0), levels=levels, draws=5, seed=0, sites=list(sites),
                        plateaus=0.03)  # fmt: skip
    every = len(sites) * len(levels) * 5 * len(data[1])
    return {"seconds": found["seconds"] + kept[0].seconds, "clean": found["clean"], "looks s": kept[0].looks,
            "evaluated": study.meta.plan["evaluations"] / every, "in full": kept[0].full / every}  # fmt: skip


def midpoints_of(
    model: nn.Module, data: tuple[Tensor, Tensor], sites: Sequence[int], store: Path | None
) -> dict[str, float]:
    """Seconds of a search, of its clean pass, and its evaluations of a site."""
    with timed() as found:
        study = nk.walk(model, data, noise=nk.Noise(add=1.0), seed=0, sites=list(sites), store=store)
    return found | {"evaluations": study.meta.plan["evaluations"] / len(sites)}


def figures(
    name: str, model: nn.Module, data: tuple[Tensor, Tensor], *, sites: Sequence[int] | None = None,
    studies: Sequence[str] = (*GRIDS, MIDPOINTS), keep: Path | None = None,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """A row for each study of a network."""
    torch.set_num_threads(1)
    about, every = NETWORKS[name], reached(model, data)
    chosen = {i: every[i] for i in (list(every)[:: about["every"]] if sites is None else sites)}
    loops = [loop_of(model, data, chosen, about["timed"])]
    for title in studies:
        if title == MIDPOINTS:
            store = None if keep is None else keep / f"{name} {' '.join(map(str, chosen))}.db"
            found, cells, bar = midpoints_of(model, data, list(chosen), store), PUBLISHED, about.get("midpoints")
        else:
            found, cells = grid_of(model, data, list(chosen), GRIDS[title]), 5 * len(GRIDS[title])
            bar = about.get("grid") if "12" in title else None
        loops.append(loop_of(model, data, chosen, about["timed"]))
        more = len(every) / len(chosen)
        base = more * cells * statistics.median(loops)
        took = found["clean"] + more * (found["seconds"] - found["clean"])
        yield {"what": f"{name}, {len(chosen)} of {len(every)} sites, {title}", "base us": 1e6 * base,
               "ours": base / took, "bar": bar, "all sites s": took, **found}  # fmt: skip


@pytest.mark.parametrize("name", list(NETWORKS))
def test_deep(name: str, benchmark: Any, record_row: Callable[..., None]) -> None:
    """Times faster than the loop."""
    model, data = network(name)
    for row in figures(name, model, data):
        record_row(
            row | {"spread": (row["ours"], row["ours"]), "met": None if not row["bar"] else row["ours"] >= row["bar"]}
        )
    how = dict(noise=nk.Noise(add=1.0), levels=[1.0], draws=1, sites=0, seed=0)
    benchmark.pedantic(nk.walk, args=(model, (data[0][:100], data[1][:100])), kwargs=how, rounds=1)


def main() -> None:
    """Prints a network's figures."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("name", choices=NETWORKS)
    asked.add_argument("--sites", type=int, nargs="*", help="indices; else every so many that hooks reach")
    asked.add_argument("--study", nargs="*", default=[*GRIDS, MIDPOINTS], choices=[*GRIDS, MIDPOINTS])
    asked.add_argument("--keep", type=Path, help="folder of weights and stores")
    args = asked.parse_args()
    model, data = network(args.name, args.keep)
    for row in figures(args.name, model, data, sites=args.sites, studies=args.study, keep=args.keep):
        print(row, flush=True)


if __name__ == "__main__":
    main()
