"""Names that mean something to a page, a picture, a spreadsheet or a terminal are text to all of them."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
import warnings
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import pytest
from made_study import made_study
from pages import Reader

from noisykernels._util.text import aligned, printable, printable_lines
from noisykernels.plotting.style import literal
from noisykernels.study import Result, Study, compare
from noisykernels.study.export import exporter

HOSTILE = {
    "markup": '<script>alert(1)</script><img src=x onerror=alert(1)>"\'&',
    "end of a comment": "]]>--><!--",
    "formula": "=cmd|' /C calc'!A0",
    "plus": "+1+1", "minus": "-2+3", "at": "@SUM(1)", "wide": "\uff1d1+1", "hidden": " =1+1", "second": "a;=1+1",
    "tab": "\t=1", "return": "\r=1",
    "screen": "\x1b[2J\x1b]0;title\x07\x9b31m", "null": "a\x00b", "lines": "a\nb\r\nc\u2028d\x85e",
    "backwards": "\u202egnp.exe\u2066\u200f", "half a character": "\ud800", "tex": "$\\frac{1}{0}$",
    "dollar": "a$b\\$c$",
    "hidden from legends": "_x", "quotes": 'a"b,c', "braces": "{0}%s%n", "nothing": "", "letters": "größe-日本",
}  # fmt: skip


NAMES = list(HOSTILE.values())


def study_of(names: list[str], **meta: object) -> Study:
    """A made-up study of sites with these names."""
    study = made_study([0.5 + i for i in range(len(names))], levels=[0.1, 1, 10, 100], draws=2, **meta)
    records = [r._replace(site=names[r.site_index]) for r in study.records]
    return Study(records, replace(study.meta, sites=tuple(names)))


@pytest.fixture(params=[0, 1, 2], ids=["first", "middle", "last"])
def names(request: pytest.FixtureRequest) -> list[str]:
    return NAMES[8 * request.param :][:8]


@pytest.fixture
def study(names: list[str]) -> Study:
    """Names everywhere: of sites, the model, the data, the metric, the noise, the plan."""
    plan = {"metric": names[2], **dict(zip(names, names, strict=True))}
    return study_of(names, model=names[0], data=names[1], plan=plan, noise={"add": 1.0, "kind": names[3]})


def test_a_table_is_lines_of_printable_text(names: list[str], study: Study) -> None:
    both = compare(study, study_of(names, seed=1, plan=study.meta.plan), (names[4], names[5]))
    for result in (study, both):
        lines = result.table().split("\n")
        assert all(line.isprintable() for line in lines) and repr(result).isprintable()
        assert all(printable(name) in result.table() for name in names)
    assert len(study.table().split("\n")) == 3 + len(names)


def test_a_file_gives_the_names_back(names: list[str], study: Study, tmp_path: Path) -> None:
    assert Result.load(study.save(tmp_path / "a.json")) == study
    content = json.loads(study.export(tmp_path / "b.json").read_text())
    assert list(dict.fromkeys(r["site"] for r in content["records"])) == names
    assert content["meta"]["model"] == names[0]
    rows = list(csv.reader(io.StringIO(study.export(tmp_path / "c.csv").read_bytes().decode(), newline="")))
    assert list(dict.fromkeys(row[0] for row in rows[1:])) == [n if n != "\ud800" else "\\ud800" for n in names]
    assert len(rows) == 1 + len(study.records)
    if "\ud800" not in names:  # which no encoding has
        pandas = pytest.importorskip("pandas")
        pytest.importorskip("pyarrow")
        frame = pandas.read_parquet(study.export(tmp_path / "d.parquet"))
        assert list(dict.fromkeys(frame.site)) == names and frame.attrs["meta"]["model"] == names[0]


def test_in_a_spreadsheet_no_text_is_a_formula_and_numbers_are_numbers(study: Study, tmp_path: Path) -> None:
    """Read as programs in other countries do, too: cells end at semicolons there, or at tabs."""
    plain_text = study.export(tmp_path / "a.csv").read_bytes().decode()
    marked = study.export(tmp_path / "b.csv", spreadsheet=True).read_bytes().decode()
    for delimiter in ",;\t":
        for row in csv.reader(io.StringIO(marked, newline=""), delimiter=delimiter):
            for part in (part for cell in row for part in re.split(r"[\r\n]", cell)):
                begins = part.lstrip(' \t\r\n"')[:1]
                assert begins not in ("=", "+", "@", "\uff1d", "\uff0b", "\uff20"), part
                assert begins != "-" or re.match(r"-?[\d.]+(e[+-]?\d+)?(,|$)", part), part
    before, after = (list(csv.reader(io.StringIO(text, newline=""))) for text in (plain_text, marked))
    assert [row[1:] for row in before] == [row[1:] for row in after] and len(before) == len(after)
    assert [row[0].replace("'", "") for row in after] == [row[0].replace("'", "") for row in before]
    files = [study.export(tmp_path / f"{i}.json", spreadsheet=bool(i)).read_bytes() for i in (0, 1)]
    assert files[0] == files[1]


@pytest.mark.parametrize(
    ("cell", "marked"),
    [
        ("=1", "'=1"), ("+1", "'+1"), ("-1", "'-1"), ("@x", "'@x"), ("\tx", "'\tx"), ("\rx", "'\rx"), (" =1", "' =1"),
        ("a=1", "a=1"), ("a-b", "a-b"), ("fc1:linear#0", "fc1:linear#0"), ("a;=1", "a;'=1"), ("a\n=1", "a\n'=1"),
        ("'=1", "'=1"), ("", ""), (-1.5, "-1.5"), (-2, "-2"), (None, ""), ("a, =1", "a,' =1"),
    ],
)  # fmt: skip
def test_what_is_marked(cell: object, marked: str, tmp_path: Path) -> None:
    content = exporter(Path("a.csv"), spreadsheet=True)(["=name"], [[cell]], {})
    assert list(csv.reader(io.StringIO(content.decode(), newline=""))) == [["'=name"], [marked]]


def pictures(page: str) -> list[bytes]:
    return [base64.b64decode(text) for text in re.findall(r"data:image/svg\+xml;base64,([^\"]*)", page)]


def test_a_page_shows_names_and_runs_nothing(names: list[str], study: Study, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    tame = study_of([f"site{i}" for i in range(len(names))], plan=dict.fromkeys("abcdefghi", "x"))
    expected = Reader(tame.report(tmp_path / "a.html").read_text())
    page = study.report(tmp_path / "b.html", title=names[6]).read_text()
    read = Reader(page)
    assert set(read.tags) == set(expected.tags) and read.tags.count("img") == 3
    text = " ".join(read.text.split())
    assert all(" ".join(printable_lines(name).split()) in text for name in names)
    assert all(line.isprintable() for line in page.split("\n"))
    for picture in pictures(page):
        tags = {element.tag.rpartition("}")[2] for element in ElementTree.fromstring(picture).iter()}
        assert not tags & {"script", "foreignObject", "a", "iframe"} and b"<script" not in picture


def test_pictures_draw_names_as_they_are(names: list[str], study: Study) -> None:
    """The names in curves, profiles and comparisons; none is a formula, which could not be drawn."""
    matplotlib = pytest.importorskip("matplotlib")
    pyplot = pytest.importorskip("matplotlib.pyplot")
    both = compare(study, study_of(names, seed=1), (names[4], names[5]))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")
        for result in (study, both):
            figure = result.plot()
            figure.savefig(io.BytesIO(), format="svg")
            said = [t.get_text() for t in figure.findobj(matplotlib.text.Text)]
            assert all(any(literal(name.strip()).strip() in text for text in said) for name in names)
            assert all(text.isprintable() for text in said)
            pyplot.close(figure)


def test_commands_that_show_files_of_others(names: list[str], study: Study, tmp_path: Path, capsys) -> None:
    pytest.importorskip("matplotlib")
    main = pytest.importorskip("noisykernels.cli.main").main
    study.save(tmp_path / "a.json")
    study_of(names, seed=1).save(tmp_path / "b.json")
    assert main(["compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")]) == 0
    told = capsys.readouterr().out
    assert all(line.isprintable() for line in told.splitlines()) and told.count("\n") >= 3 + len(names)
    assert main(["compare", str(tmp_path / "a.json"), str(tmp_path / "b.json"), "--json"]) == 0
    told = capsys.readouterr().out
    assert {site["site"] for site in json.loads(told)["sites"]} == set(names)
    assert all(line.isprintable() for line in told.splitlines())


def test_printable_text() -> None:
    assert (
        printable("a\x1b[2J") == "a\\x1b[2J" and printable("\u202e") == "\\u202e" and printable("\ud800") == "\\ud800"
    )
    assert printable_lines("a\n\tb\r\n") == "a\n\\tb\\r\n" and printable("größe 日本 🙂") == "größe 日本 🙂"
    assert aligned([["a", "b"], ["x\ny", "1"]], [0]) == ["a     b", "-------", "x\\ny  1"]
