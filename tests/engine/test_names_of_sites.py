"""Modules called `input`, `a*`, `x:relu#0`, `q|0x1p+0;1,2~1`: every study, engine, store, worker, report and budget."""

from __future__ import annotations

import csv
import html
import io
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
from hostile_names import LAYERS, SITES, Hostile

import noisykernels as nk
from noisykernels.cli.main import main
from noisykernels.hardware import DAC, WeightNoise
from noisykernels.study import allocate
from noisykernels.walking import walk_parameter

SEED, DRAWS, LEVELS = 5, [2, 0], [0.5, 2.0]
CONTRACTIONS = [s for s in SITES if s.endswith(":linear#0")]
GRID: dict[str, Any] = dict(levels=LEVELS, draws=DRAWS, seed=SEED)
MODEL = Hostile().eval()
X = torch.randn(40, 6, generator=torch.Generator().manual_seed(2))
Y = MODEL(X).argmax(1)


def bits(value: float) -> list[Any]:
    """A function of a module, which workers can be sent."""
    return [DAC(int(value), "row")]


TARGETS: dict[str, tuple[list[str], list[float]]] = {
    "activation": (SITES, LEVELS), "weight": (CONTRACTIONS, LEVELS), "parameter": (CONTRACTIONS, [2.0, 4.0]),
}  # fmt: skip


def study(target: str, **options: Any) -> nk.Study:
    if target == "parameter":
        grid = GRID | {"values": TARGETS[target][1]}
        del grid["levels"]
        return walk_parameter(MODEL, (X, Y), bits, **grid, **options)
    return nk.walk(MODEL, (X, Y), noise=nk.Noise(add=1.0), target=target, **GRID, **options)


def placed(target: str, site: str, level: float) -> dict[str, Any]:
    """What `inject` is asked for by a loop: other words for the same."""
    noise = nk.Noise(add=level)
    if target == "activation":
        return dict(noise=noise, where=lambda name, _: noise if name == site else None)
    made = bits(level) if target == "parameter" else [WeightNoise(add=level)]
    return dict(noise=None, hardware=lambda name, _: made if name == site else None)


def loop(target: str) -> Iterator[tuple[str, float, int, int]]:
    sites, levels = TARGETS[target]
    for site in sites:
        for level in levels:
            with nk.inject(MODEL, **placed(target, site, level)), torch.inference_mode():
                with nk.noise_state(MODEL, seed=SEED, draws=sorted(DRAWS), rows=range(len(X))):
                    right = MODEL(X).argmax(1).view(len(DRAWS), -1) == Y
            for draw, correct in zip(sorted(DRAWS), right.sum(1).tolist(), strict=True):
                yield site, level, draw, correct


@pytest.mark.parametrize("target", TARGETS)
def test_both_engines_count_what_a_loop_counts(target: str, tmp_path: Path) -> None:
    expected = list(loop(target))
    for engine in ("auto", "plain"):
        store = tmp_path / f"{engine}.db"
        compute = nk.Compute(engine=engine, threads=1)
        found = study(target, compute=compute, store=store)
        assert [(r.site, r.level, r.draw, r.correct) for r in found.records] == expected
        assert study(target, compute=compute, store=store).records == found.records  # all of it from the file
    assert len({correct for *_, correct in expected}) > 3


def test_a_larger_study_finds_the_cells_of_a_smaller_one(tmp_path: Path) -> None:
    small = study("activation", sites=[SITES[0], *LAYERS[::2]], store=tmp_path / "a.db")
    assert [r.site for r in small.records[:: len(LEVELS) * 2]] == [s for s in SITES if s in ("input", *LAYERS[::2])]
    assert study("activation", store=tmp_path / "a.db").records == study("activation").records


def test_workers_count_the_same() -> None:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor:
        together = study("weight", compute=nk.Compute(executor=executor, threads=1))
    assert together.records == study("weight", compute=nk.Compute(threads=1)).records


@pytest.mark.parametrize("site", [s for s in SITES if s != "input"])
def test_a_study_at_one_site_is_a_study_at_that_site(site: str) -> None:
    assert {r.site for r in study("activation", sites=site).records} == {site}
    if site in CONTRACTIONS:
        assert {r.site for r in study("weight", sites=[site]).records} == {site}


def test_a_name_is_no_pattern_where_its_site_is_not_open() -> None:
    """`x` has no weight; the pattern `x*` would find one."""
    for name in ("x", "x:relu#0"):
        with pytest.raises(ValueError, match=f"no site '{name}'"):
            study("weight", sites=name)


def test_pages_tables_and_budgets_hold_the_names(tmp_path: Path) -> None:
    """Pictures too, which must not read a name as a formula."""
    file = study("activation").save(tmp_path / "a.json")
    table, page = tmp_path / "a.csv", tmp_path / "a.html"
    found = nk.Study.load(file)
    found.export(table)
    assert [row[0] for row in csv.reader(io.StringIO(table.read_text()))][1 :: len(LEVELS) * 2] == SITES
    assert main(["report", str(file), "--out", str(page)]) == 0
    text = page.read_text()
    assert all(html.escape(site) in text for site in SITES) and "<b>&amp;:" not in text
    assert [pair.site for pair in found.compare(found).pairs] == SITES

    repeats = allocate(found, 3 * len(SITES), level=0.5)
    assert set(repeats) == set(SITES) and len(set(repeats.values())) > 1
    with nk.inject(MODEL, nk.Noise(add=1.0), repeats=repeats, example_input=X[:2]):
        placement = MODEL.__dict__["_noise_state"].placement
        assert {s: placement.repeats_at(s) for s in SITES} == repeats
