"""Studies asked other questions than half-way: tables, pictures, reports, comparisons, allocations, files."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from made_study import made_study

import noisykernels as nk
from noisykernels.plotting import plot_heat_map
from noisykernels.stats import Meta, Record
from noisykernels.stats.records import Measured
from noisykernels.study import Study, allocate, predicted_accuracy, tailored

LEVELS = tuple(float(v) for v in np.logspace(-2, 1, 13))
SITES = ("input", "fc1:linear#0", "fc2:linear#0")


def losses(strength=(1.0, 4.0, 0.0), name="nll", seed=1, worst: float = math.inf, bad: int = 0) -> Study:
    """A loss of 0.5 at sites whose noise adds `0.2 strength level^2`."""
    plan = {"metric": name, "measure": {"law": "real", "unit": "nats", "higher_is_better": False}}
    meta = Meta(seed=seed, noise={"add": 1.0}, levels=LEVELS, draws=(0, 1), rows=500, clean_correct=0, classes=10,
                sites=SITES, stream_version=1, plan=plan, floor=2.3, clean_value=0.5)  # fmt: skip
    records = [
        Measured(site, i, v, d, 500, bad * (v > 5), min(0.5 + 0.2 * s * v**2, worst) + 1e-4 * d, 0.1, "evaluated", 0, 1)
        for i, (site, s) in enumerate(zip(SITES, strength, strict=True)) for v in LEVELS for d in (0, 1)
    ]  # fmt: skip
    return Study(records, meta)


def test_a_grid_answers_several_questions():
    study = losses()
    first = {str(at): study.midpoints(at=at)[0] for at in ("half", nk.Keep(0.9), nk.Drop(0.2), nk.Ratio(1.4))}
    assert [m.word for m in first.values()] == ["midpoint", *["tolerance"] * 3]
    assert first["drop:0.2"].level == first["ratio:1.4"].level == pytest.approx(1, abs=0.05)
    assert first["half"].level == pytest.approx(math.sqrt(0.9 / 0.2), rel=0.05)
    assert first["half"].target == pytest.approx(1.4) and first["keep:0.9"].target == pytest.approx(0.68)
    lines = study.table(at=["half", nk.Keep(0.9), "drop:0.2"]).splitlines()
    assert lines[1].split() == ["#", "site", "half", "keep:0.9", "drop:0.2"]
    assert float(lines[3].split()[-1]) == pytest.approx(first["drop:0.2"].level, rel=1e-3)


def test_names_are_honest():
    study = losses()
    assert "midpoint" not in study.table(at=nk.Drop(0.2)) and "tolerance" in study.table(at=nk.Drop(0.2))
    assert "at=drop:0.2 (nll 0.7)" in study.table(at="drop:0.2").splitlines()[0]
    assert "midpoint" in study.table() and "tolerance" not in study.table()
    assert "lower is better" in study.table()
    assert study.asking("half") is study and study.asking(nk.Keep(0.9)).asking("half").meta == study.meta


def test_what_never_happens_is_told_and_an_answer_offered():
    study = losses((1.0, 4.0, 0.0), worst=1.0)  # no more than 1.0, and half-way is 1.4
    lines = study.table().splitlines()
    assert [line.split()[-1] for line in lines[3:6]] == ["never"] * 3
    assert lines[6] == "never half-way at 3 of 3 sites; at=nk.Keep(0.75) has an answer at 2 of 3"
    assert len(study.table(at=nk.Keep(0.75)).splitlines()) == 7
    assert study.table(at=nk.Keep(0.75)).splitlines()[6] == "never as far as keep:0.75 at 1 of 3 sites"
    assert "never" not in losses((1.0, 4.0, 2.0)).table()


def test_rows_without_a_number_are_beyond():
    study = losses(bad=3)
    assert np.isinf(study.curves()[0].mean[-2:]).all() and np.isfinite(study.curves()[0].mean[:-2]).all()
    assert [m.status for m in study.midpoints(at="drop:0.2")] == ["ok", "ok", "ok"]
    far = study.midpoints(at="drop:0.2")[2]  # which no noise moves, but for those rows
    assert far.low == LEVELS[-3] and far.high == LEVELS[-2]
    plot_heat_map(study.asking("drop:0.2"))
    study.plot(at="drop:0.2")


def test_questions_without_an_answer():
    study = losses()
    for at, said in (
        (nk.Ratio(0.9), "must be below the 0.45"), ("value:0.4", "must be below the 0.4"),
        ("keep:2", "at must be"), ("third", "at must be"),
    ):  # fmt: skip
        for view in (study.midpoints, study.table, study.plot, lambda at: study.report("/nowhere/x.html", at=at)):
            with pytest.raises(ValueError, match=said):
                view(at=at)
    with pytest.raises(TypeError, match="at must be"):
        study.midpoints(at=0.5)
    with pytest.raises(ValueError, match="at must hold a question"):
        study.table(at=[])
    with pytest.raises(ValueError, match="floor='free' is for half-way"):
        study.midpoints("free")
    unknown = Study(study.records, Meta(**{**vars(study.meta), "floor": None}))
    with pytest.raises(ValueError, match=r"^Study.midpoints: nll has no floor of its own.*nk.Ratio\(1.05\) has one"):
        unknown.table()
    assert "tolerance" in unknown.table(at=nk.Ratio(1.05)) and "nan" not in unknown.table(at=nk.Ratio(1.05))


def test_a_search_has_looked_for_one_crossing_alone():
    study = made_study([0.5, 1.0])
    found = dict(level=1.0, low=0.9, high=1.1, crossing=1.0, crossing_low=0.9, crossing_high=1.1, crossings=[1.0],
                 slope=2.0, clean=0.9, floor=0.1, status="ok", method="adaptive", confidence=0.95, site="input",
                 site_index=0, rising=False, at="drop:0.1", target=0.8)  # fmt: skip
    plan = {**study.meta.plan, "at": "drop:0.1"}
    adaptive = Study(study.records, Meta(**{**vars(study.meta), "midpoints": (found,), "plan": plan}))
    assert adaptive.midpoints()[0].word == "tolerance" and "at=drop:0.1" in adaptive.table()
    assert adaptive.midpoints(at=nk.Drop(0.1)) == adaptive.midpoints()
    with pytest.raises(
        ValueError, match=r"Study.asking: at must be nk.Drop\(0.1\), which the search has looked for alone"
    ):
        adaptive.midpoints(at="half")


def test_files_keep_the_question(tmp_path: Path):
    study = losses().asking(nk.Drop(0.2))
    study.save(tmp_path / "s.json")
    assert Study.load(tmp_path / "s.json") == study and study.meta.at == nk.Drop(0.2)


def test_the_report_speaks_of_it(tmp_path: Path):
    page = losses().report(tmp_path / "r.html", at="drop:0.2").read_text()
    assert "Tolerance of each site" in page and "has risen by 0.2 from its clean value" in page
    assert "Midpoint of each site" not in page and "at=&#x27;drop:0.2&#x27;," in page
    assert "rises by 0.2 from its clean value at level" in page
    page = losses().report(tmp_path / "r.html").read_text()
    assert "Midpoint of each site" in page and "Tolerance" not in page
    assert "has risen half-way from its clean value to the floor" in page


def test_comparisons_follow_it():
    both = losses().compare(losses((0.25, 4.0, 0.0), seed=2), at="drop:0.2")
    assert (both.word, both.at) == ("tolerance", "drop:0.2") and both.pairs[0].ratio == pytest.approx(2, rel=0.1)
    assert "tolerance levels, at=drop:0.2" in both.table() and both.pairs[0].verdict == "higher"
    assert nk.compare(losses().asking("ratio:1.2"), losses()).at == "ratio:1.2"
    other = losses(name="mse")
    with pytest.raises(ValueError, match=r"compare: studies must be of one measure for at=nk.Drop\(0.2\)"):
        nk.compare(losses(), other, at="drop:0.2")
    assert nk.compare(losses(), other, at="ratio:1.2").metric == "nll and mse"


def test_allocations_follow_it():
    """Losses add up: against all allocations of a budget, by hand."""
    study = losses((1.0, 4.0, 0.25)).asking("drop:0.2")
    found = study.midpoints()
    repeats = allocate(study, 12, level=0.5)
    assert sum(repeats.values()) == 12

    def lost(r):
        return sum(0.2 * (0.5 / math.sqrt(n) / m.level) ** m.slope for n, m in zip(r, found, strict=True))

    best = min(lost((a, b, 12 - a - b)) for a in range(1, 11) for b in range(1, 12 - a))
    assert lost([repeats[m.site] for m in found]) == pytest.approx(best)
    value = predicted_accuracy(study, repeats, level=0.5)
    assert value == pytest.approx(0.5 + best) and value == pytest.approx(0.5 + 0.05 * sum(
        s / repeats[site] for s, site in zip((1.0, 4.0, 0.25), SITES, strict=True)), rel=0.1)  # fmt: skip
    assert predicted_accuracy(study, level=100.0) == 2.3  # not beyond the floor
    tolerant = tailored(study, 4)
    assert tolerant["fc1:linear#0"] > tolerant["input"] > tolerant["fc2:linear#0"]
    half = losses((1.0, 4.0, 0.25))
    assert sum(allocate(half, 12, level=0.5).values()) == 12
    assert 0.5 < predicted_accuracy(half, level=0.5) < predicted_accuracy(half, level=2.0) < 2.3
    with pytest.raises(ValueError, match="one study and one question"):
        allocate([*study.midpoints(), *half.midpoints()][2:4], 12, level=0.5)


def test_shares_have_tolerances_too():
    study = made_study()
    kept, half = study.midpoints(at=nk.Keep(0.9)), study.midpoints()
    assert all(k.level < h.level for k, h in zip(kept, half, strict=True) if k.status == h.status == "ok")
    assert study.meta.at.word == "midpoint" and isinstance(study.records[0], Record)
