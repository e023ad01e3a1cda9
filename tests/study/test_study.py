"""Studies: records and their views hold the same numbers, files read back equal or say why not."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_study import CLEAN, MIDPOINTS, SITES, made_study

from noisykernels.stats import Meta, Record, fit_midpoint, wilson
from noisykernels.stats.midpoint import described
from noisykernels.study import ResultFileError, Study
from noisykernels.study.result import digest

FIELDS = ["site", "site_index", "level", "draw", "rows", "correct", "accuracy", "status", "low",
          "high"]  # fmt: skip


@pytest.fixture(scope="module")
def study() -> Study:
    return made_study()


# Records and meta ---------------------------------------------------------------------------------


def test_record_of_a_count():
    r = Record.counted("fc1:linear#0", np.int64(3), np.float64(0.5), 7, 200, np.int64(150))
    assert list(r._fields) == FIELDS
    assert r[:8] == ("fc1:linear#0", 3, 0.5, 7, 200, 150, 0.75, "evaluated")
    assert (r.low, r.high) == wilson(150, 200)
    assert [type(v) for v in r] == [str, int, float, int, int, int, float, str, float, float]
    for correct, rows in ((-1, 10), (11, 10), (0, 0)):
        with pytest.raises(ValueError, match="correct must be" if rows else "rows must be .* from 1"):
            Record.counted("a", 0, 1.0, 0, rows, correct)


def test_records_come_in_task_key_order(study):
    shuffled = [study.records[i] for i in np.random.default_rng(0).permutation(len(study.records))]
    assert Study(shuffled, study.meta) == study
    keys = [(r.site_index, r.level, r.draw) for r in study.records]
    assert keys == sorted(keys) and len(set(keys)) == 16 * 13 * 3


def test_records_must_fit_the_study(study):
    with pytest.raises(ValueError, match="two of site 'input'"):
        Study([study.records[0]] * 2, study.meta)
    for change in ({"site": "other"}, {"site_index": 16}, {"site_index": -1}):
        with pytest.raises(ValueError, match=r"not in meta\.sites"):
            Study([study.records[0]._replace(**change)], study.meta)


def test_meta_infers_axis_and_floor(study):
    m = study.meta
    assert (m.axis, m.floor, m.clean, m.independent_rows) == ("log", 0.1, CLEAN, True)
    axes = {(1.0, 0.0): "log", (0.0, 1.0): "linear", (0.5, 0.5): "log", (0.0, 0.0): "log"}
    for (add, mul), axis in axes.items():
        assert replace(m, noise={"add": add, "mul": mul}, axis=None).axis == axis
    assert replace(m, noise={"add": 0.0, "mul": [0.0, 0.5]}, axis=None).axis == "linear"
    assert replace(m, axis="linear").axis == "linear" and replace(m, floor=0.2).floor == 0.2
    assert not replace(m, target="weight").independent_rows
    with pytest.raises(FrozenInstanceError):
        m.seed = 2


@pytest.mark.parametrize(
    ("change", "text"),
    [({"axis": "ln"}, "axis"), ({"classes": 0}, "classes"), ({"clean_correct": 2001}, "2001 of"),
     ({"plan": {"torch": object()}}, "plan"), ({"noise": {"add": float("nan")}}, "noise")],
)  # fmt: skip
def test_meta_refuses(study, change, text):
    with pytest.raises(ValueError, match=text):
        replace(study.meta, **change)


def test_repr_is_short(study):
    assert repr(study) == ("<Study: 16 sites x 13 levels x 3 draws, 2000 rows, clean 0.9000, 624 records>")


# Views --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("draws", [1, 3])
def test_curves(draws):
    study = made_study(draws=draws)
    curves = study.curves()
    assert [c.site for c in curves] == list(SITES)
    for c in curves:
        mine = [r for r in study.records if r.site == c.site]
        assert c.levels.tolist() == list(study.meta.levels) and c.draws == draws
        for i, level in enumerate(c.levels):
            counts = [r.correct for r in mine if r.level == level]
            low, high = wilson(sum(counts), 2000 * draws)
            assert (c.mean[i], c.low[i], c.high[i]) == pytest.approx((np.mean(counts) / 2000, low, high), abs=1e-12)
    shared = Study(study.records, replace(study.meta, target="weight")).curves()
    wider = [(s.high - s.low) >= (c.high - c.low) for s, c in zip(shared, curves, strict=True)]
    assert np.all(wider)
    assert draws == 1 or any((s.high > c.high).any() for s, c in zip(shared, curves, strict=True))


def test_midpoints(study):
    points = study.midpoints()
    assert [(p.site_index, p.site) for p in points] == list(enumerate(SITES))
    status = {6: "below", 14: "none"}
    for p, true in zip(points, MIDPOINTS, strict=True):
        assert p.status == status.get(p.site_index, "ok")
        # 14 intervals of at least 95 %: four half-widths is a false alarm below 1e-6 in all
        if p.status == "ok":
            assert abs(np.log10(p.level / true)) < 2 * np.log10(p.high / p.low)
    cells = [r for r in study.records if r.site_index == 3]
    acc = np.array([r.accuracy for r in cells]).reshape(13, 3)
    alone = fit_midpoint(study.meta.levels, acc, clean=CLEAN, floor=0.1, rows=2000)
    assert replace(points[3], site="", site_index=-1) == alone
    assert study.midpoints(confidence=0.5)[3].low > points[3].low
    assert study.midpoints(floor=0.3)[3].floor == 0.3
    assert study.midpoints(floor="free")[3].floor == pytest.approx(0.1, abs=0.02)
    weight = Study(study.records, replace(study.meta, target="weight"))
    assert (weight.midpoints()[3].method, points[3].method) == ("draws", "rows")
    with pytest.raises(ValueError, match="free"):
        study.midpoints(floor="chance")
    with pytest.raises(ValueError, match="no better than its floor"):
        study.midpoints(floor=0.95)


def test_cells_may_be_missing(study):
    some = [r for r in study.records if r.site_index in (3, 5) and (r.draw, r.level) != (1, 0.01)]
    part = Study(some, study.meta)
    assert [p.site_index for p in part.midpoints()] == [3, 5]
    assert part.midpoints()[0].level == pytest.approx(study.midpoints()[3].level, rel=0.01)
    assert np.isnan(part.to_xarray()["accuracy"].sel(level=0.01, draw=1)).all()
    assert Study([], study.meta).midpoints() == Study([], study.meta).curves() == []


def test_table(study):
    text = study.table()
    lines = text.splitlines()
    assert lines[0] == ("clean accuracy 0.9000 (1800 of 2000 rows), 13 levels x 3 draws, log axis, seed 1")
    assert lines[1].split() == ["#", "site", "floor", "midpoint", "95%", "interval", "half-way",
                                "status"]  # fmt: skip
    assert len(lines) == 3 + 16 + 1
    assert lines.pop() == "never half-way at 1 of 16 sites"  # which answers no question that is offered
    for p, line in zip(study.midpoints(), lines[3:], strict=True):
        words = line.split()
        assert words[:2] == [str(p.site_index), p.site]
        if p.status == "ok":
            assert [float(words[i]) for i in (3, 4, 6, 7)] == pytest.approx(
                [p.level, p.low, p.high, p.crossing], rel=1e-3
            )
            assert words[-1] == "ok"
    assert lines[3 + 6].split()[3:] == ["<", "0.01", "below"]
    assert lines[3 + 14].split()[3:] == [">", "1e+04", "never"]
    column = lines[1].index("status")
    assert all(line[column - 1] == " " and line[column] != " " for line in lines[3:])


def test_pandas_has_the_records(study):
    table = study.to_pandas()
    assert list(table.columns) == FIELDS
    assert [Record(*row) for row in table.itertuples(index=False)] == study.records


def test_xarray_has_the_records(study):
    data = study.to_xarray()
    assert data["accuracy"].dims == ("site", "level", "draw")
    assert dict(data.sizes) == {"site": 16, "level": 13, "draw": 3}
    assert data.attrs["clean"] == CLEAN and data.attrs["seed"] == 1
    for r in study.records:
        cell = data.isel(site=r.site_index).sel(level=r.level, draw=r.draw)
        assert cell["site"].item() == r.site and cell["site_index"].item() == r.site_index
        for name in ("rows", "correct", "accuracy", "status", "low", "high"):
            assert cell[name].item() == getattr(r, name)


# Files --------------------------------------------------------------------------------------------


def test_file_reads_back_equal(study, tmp_path):
    path = study.save(tmp_path / "a.json")
    back = Study.load(str(path))
    assert back == study and back.midpoints()[0] == study.midpoints()[0]
    assert all(type(a) is Record for a in back.records) and back.meta.plan == study.meta.plan
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


@settings(deadline=None, max_examples=40)
@given(st.floats(0, 1e16), st.integers(0, 2**64 - 1), st.text(max_size=9), st.integers(1, 2**40),
       st.data())  # fmt: skip
def test_any_values_read_back_equal(tmp_path_factory, level, seed, name, rows, data):
    correct = data.draw(st.integers(0, rows))
    meta = Meta(seed=seed, noise={"add": level}, levels=(level,), draws=(5,), rows=rows,
                clean_correct=correct, classes=7, sites=(name,), stream_version=1,
                plan={"chunks": (1, 2), "threads": None})  # fmt: skip
    study = Study([Record.counted(name, 0, level, 5, rows, correct)], meta)
    assert Study.load(study.save(tmp_path_factory.mktemp("s") / "a.json")) == study


def changed(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


DAMAGE = {
    "empty": (lambda p: p.write_bytes(b""), "not a study file, or cut off"),
    "cut": (lambda p: p.write_bytes(p.read_bytes()[:-100]), "not a study file, or cut off"),
    "binary": (lambda p: p.write_bytes(bytes(range(256))), "not a study file, or cut off"),
    "foreign": (lambda p: p.write_text('{"a": 1}'), "not a study file"),
    "list": (lambda p: p.write_text("[1, 2]"), "not a study file"),
    "newer": (lambda p: changed(p, version=3), "format version 3; this release reads version 2"),
    "one digit": (
        lambda p: p.write_text(p.read_text().replace('"seed": 1', '"seed": 2')), "damaged or edited"
    ),
    "no checksum": (lambda p: changed(p, sha256=None), "damaged or edited"),
    "no records": (lambda p: changed(p, records=[]), "damaged or edited"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_file_is_refused(study, tmp_path, name):
    path = study.save(tmp_path / "a.json")
    damage, text = DAMAGE[name]
    damage(path)
    with pytest.raises(ResultFileError, match=text) as caught:
        Study.load(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("change", [
    {"columns": ["site"]}, {"records": [["input", 0]]}, {"meta": {}}, {"meta": None},
    {"records": None},
])  # fmt: skip
def test_consistent_nonsense_is_refused(study, tmp_path, change):
    path = study.save(tmp_path / "a.json")
    body = json.loads(path.read_text()) | change
    inner = {k: body[k] for k in ("meta", "columns", "records")}
    path.write_text(json.dumps(body | {"sha256": digest(inner)}))
    with pytest.raises(ResultFileError, match="not a valid study"):
        Study.load(path)


@pytest.mark.parametrize(("change", "told"), [
    ({"status": "weird"}, "status"), ({"method": 3}, "method"), ({"low": "x"}, "low"), ({"site": 1}, "site"),
    ({"crossings": ["y"]}, "crossings"), ({"rising": "no"}, "rising"), ({"high": True}, "high"),
])  # fmt: skip
def test_midpoints_that_no_search_has_found_are_refused(study, tmp_path, change, told):
    found = tuple(described(p) for p in study.midpoints())
    search = Study(study.records, replace(study.meta, midpoints=found))
    assert Study.load(search.save(tmp_path / "good.json")) == search
    bad = Study(study.records, replace(study.meta, midpoints=(found[0] | change, *found[1:])))
    with pytest.raises(ResultFileError, match=f"not a valid study: midpoints: {told} must be"):
        Study.load(bad.save(tmp_path / "bad.json"))


def test_a_plan_without_numbers_of_evaluations(study):
    found = tuple(described(replace(p, method="stopped")) for p in study.midpoints())
    search = Study(study.records, replace(study.meta, midpoints=found, plan={}))
    assert "adaptive, 16 sites stopped, log axis" in search.table()
    assert repr(search).endswith("16 sites stopped>")


def test_white_space_and_key_order_are_no_damage(study, tmp_path):
    path = study.save(tmp_path / "a.json")
    path.write_text(json.dumps(json.loads(path.read_text()), indent=1, sort_keys=True))
    assert Study.load(path) == study


def test_failed_save_keeps_the_old_file(study, tmp_path, monkeypatch):
    path = study.save(tmp_path / "a.json")
    before = path.read_bytes()
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        made_study(seed=5).save(path)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_missing_file_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        Study.load(tmp_path / "none.json")


# Export -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["csv", "JSON", "parquet"])
def test_exported_records_read_back_equal(study, tmp_path, suffix):
    pandas = pytest.importorskip("pandas")
    if suffix == "parquet":
        pytest.importorskip("pyarrow")
    strange = study.records[0]._replace(status='of, "all"\nkinds é', level=0.1 + 0.2)
    study = Study([*study.records[1:], strange], study.meta)
    path = study.export(str(tmp_path / f"a.{suffix}"))
    assert path.name == f"a.{suffix}" and [p.name for p in tmp_path.iterdir()] == [path.name]
    if suffix == "JSON":
        content = json.loads(path.read_text())
        rows = [Record(**r) for r in content["records"]]
        assert Meta(**content["meta"]) == study.meta
    else:
        table = pandas.read_csv(path) if suffix == "csv" else pandas.read_parquet(path)
        assert list(table.columns) == FIELDS
        rows = [Record(*row) for row in table.itertuples(index=False)]
        if suffix == "parquet":
            assert Meta(**table.attrs["meta"]) == study.meta
    assert rows == study.records
    before = path.read_bytes()
    assert study.export(path).read_bytes() == before


def test_export_of_nothing(study, tmp_path):
    path = Study([], study.meta).export(tmp_path / "a.csv")
    assert path.read_text() == ",".join(FIELDS) + "\n"


@pytest.mark.parametrize("name", ["a.xls", "a", "csv", "a.csv.gz"])
def test_export_of_another_suffix_is_refused(study, tmp_path, name):
    with pytest.raises(ValueError, match=r"export: path must end in \.csv, \.json or \.parquet, got '.*" + name):
        study.export(tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("module", "told"), [("pandas", r"noisykernels\[table\]"), ("pyarrow", "pip install pyarrow")])
def test_parquet_says_what_it_lacks(study, tmp_path, monkeypatch, module, told):
    pytest.importorskip("pandas")
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ModuleNotFoundError, match=f"{module}.* is not installed; try: .*{told}"):
        study.export(tmp_path / "a.parquet")
    assert not list(tmp_path.iterdir())


# Optional dependencies ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "view", "extra"),
    [("pandas", "to_pandas", "table"), ("xarray", "to_xarray", "table"),
     ("matplotlib", "plot", "plot")],
)  # fmt: skip
def test_missing_package_names_the_extra(study, monkeypatch, module, view, extra):
    for name in [m for m in sys.modules if m == module or m.startswith(module + ".")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ModuleNotFoundError, match=rf"{module} .*noisykernels\[{extra}\]"):
        getattr(study, view)()


def test_import_needs_neither_torch_nor_optional_packages():
    code = f"""
import sys
for name in ("torch", "noisykernels._C", "matplotlib", "pandas", "xarray", "scipy"):
    sys.modules[name] = None
sys.path.insert(0, {str(Path(__file__).parents[1] / "helpers")!r})
import noisykernels.study, noisykernels.stats, noisykernels.plotting
from made_study import made_study
print(len(made_study().table().splitlines()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "20\n"), done.stderr
