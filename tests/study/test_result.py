"""What all results share: whoever knows one knows all, and a file reads back equal or says why not."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_study import MIDPOINTS, SITES, made_study

from noisykernels.arithmetic import CostModel, FixedFormat, FloatFormat
from noisykernels.experiments import Chips, FormatResult, LayerFormats, LayerOrder, OrderStudy, Sweep, Votes
from noisykernels.stats import VoteCurve
from noisykernels.stats.midpoint import described
from noisykernels.study import Comparison, Result, ResultFileError, Study, compare
from noisykernels.study import result as result_module
from noisykernels.study.encoding import codec_of
from noisykernels.walking import Mixed

RATIOS = (0.0, 1 / 3, 1.0)


def votes() -> Votes:
    n = np.arange(1, 13)
    curve = VoteCurve(n, 0.9 - 0.3 / n, 0.02 / np.sqrt(n))
    lower = VoteCurve(n, 0.88 - 0.3 / n, np.full(12, np.nan))
    return Votes({"probability": curve, "majority": lower}, 0.91, 500, tuple(range(12)), 2**64 - 1)


def chips() -> Chips:
    accuracy = np.random.default_rng(3).binomial(500, 0.83 + 0.06 * np.linspace(-1, 1, 40)) / 500
    return Chips(accuracy, 0.92, 500, tuple(range(5, 45)), 7)


def sweep() -> Sweep:
    formats = [FloatFormat(m, e, bias=3) for m in (2, 4, 7, 9) for e in (4, 5)]
    formats += [FixedFormat(n, 4, rounding="nearest") for n in (2, 4, 6)]
    results = [FormatResult(f, 1 - 0.5**i, 1 - 0.6**i, 300 / f.bits**2, 1 / 3) for i, f in enumerate(formats, 1)]
    results.append(FormatResult(FloatFormat(3, 4, subnormals=True, largest=448.0), math.nan, 0.995, math.inf, math.nan))
    return Sweep(results, 0.9, 500, "net")


def layers() -> LayerFormats:
    formats = {"z:conv2d#0": FloatFormat(7, 6), "b:linear#0": FixedFormat(4, 3), "a:linear#0": FloatFormat(4, 5)}
    macs = {"z:conv2d#0": 90_000, "b:linear#0": 9_000, "a:linear#0": 100}
    return LayerFormats(
        formats, macs, 0.9951, 17, CostModel({"fp32": (2.0, 8.0), "M7": (1, 2, 3), "M4": (1, 1), "fixed8": (0.1, 1)})
    )


def orders() -> OrderStudy:
    shift = {"natural": 0.1, "positive_first": math.inf}
    made = [
        LayerOrder(name, 64, 500, 0.3, 0.02, 0.1 + 0.2, shift, np.linspace(0, 0.1 * k, 101))
        for k, name in enumerate(("0:linear#0", "2:linear#0"), 1)
    ]
    named = {"none": 0.9, "natural": 0.85, "positive_first": 0.7}
    return OrderStudy(tuple(made), np.array([0.8, 0.82, 0.79]), named, 0.05, math.nan, 500, 3, 1)


def mixed() -> Mixed:
    noises = [{"kind": "gaussian", "order": "mul_add", "add": r, "mul": 1 - r} for r in RATIOS]
    return Mixed(RATIOS, tuple(made_study(seed=i, noise=noise) for i, noise in enumerate(noises)))


def comparison() -> Comparison:
    factors = [(1.0, 1.5, 0.5)[i % 3] for i in range(16)]
    other = made_study([f * v for f, v in zip(factors, MIDPOINTS, strict=True)], seed=9)
    return compare(made_study(MIDPOINTS[:12]), other, ("clean", "noisy"))


MAKE: dict[str, Callable[[], Result]] = {
    "Study": made_study, "Mixed": mixed, "Votes": votes, "Chips": chips, "Sweep": sweep, "LayerFormats": layers,
    "OrderStudy": orders, "Comparison": comparison,
}  # fmt: skip
FILES = [name for name in MAKE if name != "Mixed"]  # which is a folder of studies


@pytest.fixture(params=MAKE)
def result(request: pytest.FixtureRequest) -> Result:
    return MAKE[request.param]()


@pytest.fixture(params=FILES)
def filed(request: pytest.FixtureRequest) -> Result:
    return MAKE[request.param]()


def test_all_results_are_here() -> None:
    known = {  # those of examples, which are in no module, are not ours
        made
        for made in result_module.FORMATS.values()
        if getattr(sys.modules[made.__module__], made.__name__, 0) is made
    }
    assert known == {type(make()) for make in MAKE.values()} and {made.__name__ for made in known} == set(MAKE)


# ------------------------------------------------------------------------------------------- who knows one knows all


def test_table_frame_and_picture(result: Result, tmp_path: Path) -> None:
    pytest.importorskip("pandas")
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    lines = result.table().splitlines()
    assert len(lines) > 2 and all(line == line.rstrip() for line in lines)
    frame = result.to_pandas()
    names, rows = result._rows()
    assert list(frame.columns) == list(names) and len(frame) == len(rows) > 0
    figure = result.plot()
    figure.savefig(tmp_path / "a.png")
    assert isinstance(figure, matplotlib.figure.Figure) and (tmp_path / "a.png").stat().st_size > 5000
    matplotlib.pyplot.close("all")
    mine = matplotlib.figure.Figure()
    result._draw(mine)  # on the caller's axes: no figure of its own
    assert mine.axes and not matplotlib.pyplot.get_fignums()


def test_a_line_says_what_it_is(result: Result) -> None:
    text = repr(result)
    assert text == result.table() if isinstance(result, OrderStudy) else text.startswith(f"<{type(result).__name__}")
    assert "\n" not in result._brief() and result._brief() in (
        text if not isinstance(result, OrderStudy) else result._brief()
    )


@pytest.mark.parametrize("suffix", ["csv", "json", "parquet"])
def test_records_for_other_programs(result: Result, tmp_path: Path, suffix: str) -> None:
    pandas = pytest.importorskip("pandas")
    if suffix == "parquet":
        pytest.importorskip("pyarrow")
    path = result.export(tmp_path / f"a.{suffix}")
    assert path.name == f"a.{suffix}" and [p.name for p in tmp_path.iterdir()] == [path.name]
    if suffix == "json":
        content = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(name))
        assert content["meta"].keys() == result._about().keys()
        frame = pandas.DataFrame.from_records(content["records"])
        expected = result.to_pandas().replace([math.inf, -math.inf], math.nan)
    else:
        frame = (
            pandas.read_csv(path, keep_default_na=False, na_values=["nan"])
            if suffix == "csv"
            else pandas.read_parquet(path)
        )
        expected = result.to_pandas()
        if suffix == "parquet":
            assert frame.attrs["meta"].keys() == result._about().keys()
    pandas.testing.assert_frame_equal(frame, expected, check_exact=True, check_dtype=False)
    with pytest.raises(ValueError, match=r"must end in \.csv, \.json or \.parquet"):
        result.export(tmp_path / "a.xls")


def test_a_page_shows_it(result: Result, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    page = result.report(tmp_path / "a.html", "Chips & <more>").read_text()
    assert page.startswith("<!DOCTYPE html>") and "<h1>Chips &amp; &lt;more&gt;</h1>" in page
    assert "data:image/svg+xml;base64," in page and "http" not in page and "<script" not in page
    assert result.report(tmp_path / "b.html", "Chips & <more>").read_text() == page
    assert "<title>" in result.report(tmp_path / "c.html").read_text()
    if not isinstance(result, Study):  # whose page has more than its table
        assert all(line in page.replace("&lt;", "<").replace("&gt;", ">") for line in result.table().splitlines())


def test_curves_and_midpoints_are_computed_once_for_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    full = made_study([0.5, 2.0])
    search = Study(full.records, replace(full.meta, midpoints=tuple(described(p) for p in full.midpoints())))
    asked: list[str] = []
    for study in (full, search):
        asked.clear()
        for name in ("curves", "midpoints"):
            own = getattr(Study, name)
            monkeypatch.setattr(Study, name, lambda *a, _own=own, _name=name, **b: asked.append(_name) or _own(*a, **b))
        study.report(tmp_path / "a.html")
        assert sorted(asked) == ["curves", "midpoints"]
        monkeypatch.undo()


# ------------------------------------------------------------------------------------------------------------- files


def test_file_reads_back_equal(filed: Result, tmp_path: Path) -> None:
    path = filed.save(str(tmp_path / "a.json"))
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    back = type(filed).load(str(path))
    assert type(back) is type(filed) and back == filed and back.table() == filed.table()
    assert back.save(tmp_path / "b.json").read_bytes() == path.read_bytes()
    for field in fields(filed):  # type: ignore[arg-type]
        mine, theirs = getattr(filed, field.name), getattr(back, field.name)
        assert type(mine) is type(theirs)
        if isinstance(mine, np.ndarray):
            assert mine.dtype == theirs.dtype and np.array_equal(mine, theirs, equal_nan=True)
        elif not isinstance(mine, CostModel):
            assert repr(mine) == repr(theirs)  # order of dictionaries, types and digits of numbers


def test_any_file_is_opened_by_the_base(filed: Result, tmp_path: Path) -> None:
    back = Result.load(filed.save(tmp_path / "a.json"))
    assert type(back) is type(filed) and back == filed


@pytest.mark.parametrize("name", ["Votes", "Chips", "Sweep"])
def test_the_base_finds_classes_that_nobody_has_imported(tmp_path: Path, name: str) -> None:
    path = MAKE[name]().save(tmp_path / "a.json")
    code = f"from noisykernels.study import Result; print(type(Result.load({str(path)!r})).__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == f"{name}\n", done.stderr


def test_a_study_is_opened_without_torch(tmp_path: Path) -> None:
    path = made_study([0.5, 2.0]).save(tmp_path / "a.json")
    code = f"import sys; from noisykernels.study import Result; print(len(Result.load({str(path)!r}).records))\n"
    code += "assert not {'torch', 'noisykernels._C', 'pandas', 'matplotlib'} & sys.modules.keys()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "78\n", done.stderr


def test_equality_is_of_content(filed: Result) -> None:
    same = MAKE[type(filed).__name__]()
    assert filed == same and filed is not same and filed != "a" and filed != made_study([0.5])
    assert (filed == MAKE["Chips"]()) == isinstance(filed, Chips)


def test_one_number_makes_a_difference() -> None:
    other = chips()
    other.values[3] = np.nextafter(other.values[3], 1)
    assert other != chips()
    assert votes() != replace(votes(), curves=dict(reversed(votes().curves.items())))  # columns of the table


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -0.0, 5e-324, 0.1 + 0.2, 1.7976931348623157e308])
def test_every_number_survives(tmp_path: Path, value: float) -> None:
    made = Chips(np.array([value, 0.5]), value, 500, (0, 2**63), 2**64 - 1)
    text = made.save(tmp_path / "a.json").read_text()
    json.loads(text, parse_constant=lambda name: pytest.fail(name))  # is JSON, and nothing more
    back = Chips.load(tmp_path / "a.json")
    assert np.array([value, 0.5]).tobytes() == back.values.tobytes() and repr(back.clean) == repr(value)
    assert (back.draws, back.seed) == ((0, 2**63), 2**64 - 1)


def changed(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "empty": (lambda p: p.write_bytes(b""), "not a KIND file, or cut off"),
    "cut": (lambda p: p.write_bytes(p.read_bytes()[:-100]), "not a KIND file, or cut off"),
    "binary": (lambda p: p.write_bytes(bytes(range(256))), "not a KIND file, or cut off"),
    "foreign": (lambda p: p.write_text('{"a": 1}'), "not a KIND file"),
    "list": (lambda p: p.write_text("[1, 2]"), "not a KIND file"),
    "format": (lambda p: changed(p, format="noisykernels.other"), "not a KIND file"),
    "format of no text": (lambda p: changed(p, format=["a"]), "not a KIND file"),
    "newer": (lambda p: changed(p, version=3), "format version 3; this release reads version 2"),
    "one more": (lambda p: changed(p, more=1), "damaged or edited"),
    "not a number": (lambda p: changed(p, more=math.nan), "damaged or edited"),
    "no checksum": (lambda p: changed(p, sha256=None), "damaged or edited"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_file_is_refused(filed: Result, tmp_path: Path, name: str) -> None:
    damage, said = DAMAGE[name]
    path = filed.save(tmp_path / "a.json")
    damage(path)
    for made in (type(filed), Result):
        with pytest.raises(ResultFileError, match=said.replace("KIND", made._kind)) as caught:
            made.load(path)
        assert str(path) in str(caught.value)


def test_another_result_is_refused(filed: Result, tmp_path: Path) -> None:
    path = filed.save(tmp_path / "a.json")
    other = Chips if not isinstance(filed, Chips) else Study
    wanted = f'not a {other._kind} file \\(no "format": "noisykernels.{other._kind.replace(" ", "_")}"\\)'
    with pytest.raises(ResultFileError, match=wanted):
        other.load(path)


def rewritten(path: Path, body: dict[str, Any]) -> None:
    """The file with another body, whose checksum fits."""
    head = {k: json.loads(path.read_text())[k] for k in ("format", "version")}
    path.write_text(json.dumps({**head, "sha256": result_module.digest(body), **body}))


def test_consistent_nonsense_is_refused(filed: Result, tmp_path: Path) -> None:
    path = filed.save(tmp_path / "a.json")
    body = {k: v for k, v in json.loads(path.read_text()).items() if k not in ("format", "version", "sha256")}
    nonsense = [{}, *({k: v for k, v in body.items() if k != name} for name in body)]
    nonsense += [body | {name: wrong} for name in body for wrong in (None, [["a"]], {"a": [None]})]
    if not isinstance(filed, Study):  # whose meta takes what it is given
        nonsense += [body | {"more": 1}]
    for wrong in nonsense:
        rewritten(path, wrong)
        with pytest.raises(ResultFileError, match=f"not a valid {filed._kind}"):
            type(filed).load(path)


def test_white_space_and_key_order_are_no_damage(filed: Result, tmp_path: Path) -> None:
    path = filed.save(tmp_path / "a.json")
    path.write_text(json.dumps(json.loads(path.read_text()), indent=1, sort_keys=True))
    back = Result.load(path)
    assert back == filed and back.table() == filed.table()


@pytest.mark.parametrize("verb", ["save", "export", "report"])
def test_interrupted_writes_leave_what_was_there(
    result: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / ("new" if verb == "save" and isinstance(result, Mixed) else "a.json")
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        getattr(result, verb)(path)
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]
    if path.suffix:
        path.write_bytes(b"before")
        with pytest.raises(KeyboardInterrupt):
            getattr(result, verb)(path)
        assert path.read_bytes() == b"before" and [p.name for p in tmp_path.iterdir()] == [path.name]


def test_missing_file_is_an_os_error(tmp_path: Path) -> None:
    for made in (*result_module.FORMATS.values(), Result):
        with pytest.raises(FileNotFoundError):
            made.load(tmp_path / "none.json")


# ------------------------------------------------------------------------------------------------ folders of studies


def test_a_folder_reads_back_equal(tmp_path: Path) -> None:
    made = mixed()
    made.save(tmp_path)
    (tmp_path / "other.json").write_text("{}")  # is none of ours
    back = Mixed.load(str(tmp_path))
    assert back == made and back.ratios == RATIOS  # a third with all its digits, which its file's name has not
    turned = Mixed(RATIOS[::-1], made.studies[::-1])
    turned.save(tmp_path)
    assert Mixed.load(tmp_path) == made


def test_folders_that_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ResultFileError, match=r"not a folder of mixed noise"):
        Mixed.load(tmp_path)
    mixed().save(tmp_path)
    made_study(seed=8, rows=1000).save(tmp_path / "ratio-0.7.json")
    with pytest.raises(ResultFileError, match="studies of different walks: rows is not the same"):
        Mixed.load(tmp_path)
    (tmp_path / "ratio-0.7.json").write_text("{}")
    with pytest.raises(ResultFileError, match=r"ratio-0\.7\.json: not a study file"):
        Mixed.load(tmp_path)


# ---------------------------------------------------------------------------------------------------------- encoding


def test_a_type_without_words_is_refused_at_once() -> None:
    for kind in (set[int], int | str, object, dict[int, str], complex):
        with pytest.raises(TypeError, match="no way to write a"):
            codec_of(kind, {})


def test_a_new_result_needs_a_name_of_its_own_and_all_methods() -> None:
    @dataclass(frozen=True)
    class Half(Result):
        count: int

        def table(self) -> str:
            return str(self.count)

    assert Half not in result_module.FORMATS.values()
    with pytest.raises(TypeError, match="abstract"):
        Half(3)  # type: ignore[abstract]


# ---------------------------------------------------------------------------------------------------------- pictures


def test_picture_of_chips() -> None:
    matplotlib = pytest.importorskip("matplotlib")
    from noisykernels.plotting import plot_yields

    found = chips()
    ax = plot_yields(found, matplotlib.figure.Figure().subplots(), limits=[0.8, 0.85])
    curve = next(line for line in ax.lines if line.get_drawstyle().startswith("steps"))
    x, share = curve.get_data()
    assert curve.get_drawstyle() == "steps-pre"
    for v in (0.79, 0.83, 0.85):
        assert share[np.searchsorted(x, v)] == found.yield_at(v)[0]
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert [f"yield {found.yield_at(v)[0]:.3f} at {v:.3f}" for v in (0.8, 0.85)] == labels[-2:]
    same = Chips(np.full(3, 0.5), 0.5, 10, (0, 1, 2), 0)
    left, right = plot_yields(same, matplotlib.figure.Figure().subplots()).get_xlim()
    assert left < 0.45 and right > 0.5


def test_picture_of_layer_formats() -> None:
    matplotlib = pytest.importorskip("matplotlib")
    from noisykernels.plotting import plot_layer_formats

    found = layers()
    ax = plot_layer_formats(found, matplotlib.figure.Figure().subplots())
    bars = sorted((round(bar.get_x() + bar.get_width() / 2), bar.get_height()) for bar in ax.patches)
    assert bars == [(x, fmt.bits) for x, fmt in enumerate(found.formats.values())]
    assert [t.get_text() for t in ax.texts] == ["M7E6", "90.8%", "L4R3", "9.1%", "M4E5", "0.1%"]
    assert [t.get_text() for t in ax.get_xticklabels()] == ["z conv2d", "b linear", "a linear"]


def test_the_front_as_text() -> None:
    made = sweep()
    lines = made.table(0.9).splitlines()
    assert lines[0].startswith("net: clean accuracy 0.9000, 500 rows, 12 formats, ") and len(lines) == 3 + len(
        made.front()
    )
    assert [line.split()[0] for line in lines[3:]] == [str(r.format).split()[0] for r in made.front()]
    assert sum("<- fastest" in line for line in lines) == 1 and f"{made.fastest(0.9).format} is the fastest" in lines[0]
    assert "none keeps 1 of" in Sweep(made.results[:3], 0.9, 500).table(1.0)
    assert len(SITES) == 16


def test_folders_and_files_of_no_kind_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(ResultFileError, match=r"a folder: `Mixed.load` reads the one that `Mixed.save` wrote"):
        Result.load(tmp_path)
    code = "import sys; sys.modules['torch'] = None\nfrom noisykernels.study import Result\nResult.load(sys.argv[1])"
    path = tmp_path / "v.json"
    path.write_text('{"format": "noisykernels.vote", "version": 1}')
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False)
    assert "ResultFileError: noisykernels.vote: to open such a file needs torch, which is not installed" in done.stderr
