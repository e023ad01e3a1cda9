"""Records, reports and pictures that commands write: what is in them, and which are refused before any work."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from command_runs import small_walk

import noisykernels as nk
from noisykernels.cli.main import main


def test_records_and_report_of_a_walk(cache: str, capsys, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    files = [tmp_path / name for name in ("a.csv", "a.json", "a.html", "a.study")]
    flags = ["--export", files[0], "--export", files[1], "--report", files[2], "--out", files[3], "--sites", "fc1"]
    assert small_walk(cache, *flags) == 0
    text = capsys.readouterr().out
    assert all(f": {path}\n" in text for path in files)
    study = nk.Study.load(files[3])
    assert (
        len(files[0].read_text().splitlines())
        == 1 + len(study.records)
        == 1 + len(json.loads(files[1].read_text())["records"])
    )
    page = files[2].read_text()
    assert "python -m noisykernels walk --epochs 1" in page and "fc1:linear#0" in page
    assert main(["report", str(files[3])]) == 0
    assert capsys.readouterr().out == f"report: {files[2]}\n"
    assert "python -m" not in files[2].read_text()
    assert main(["report", str(files[3]), "--out", str(tmp_path / "b.html"), "--title", "A <b> title"]) == 0
    assert "<h1>A &lt;b&gt; title</h1>" in (tmp_path / "b.html").read_text()


@pytest.mark.parametrize("flags", [["--export", "a.xls"], ["--export", "no/a.csv"], ["--report", "no/a.html"]])
def test_files_that_cannot_be_written_are_refused_before_any_work(flags: list[str], tmp_path: Path, capsys) -> None:
    cache = tmp_path / "cache"
    assert main(["walk", "--epochs", "0", "--cache", str(cache), *flags]) == 1
    said = capsys.readouterr().err
    assert said.startswith("noisykernels walk: ") and said.count("\n") == 1 and not cache.exists()


@pytest.mark.parametrize("name", ["walk.txt", "walk.PNGS", "a.b/walk.json"])
def test_a_picture_that_cannot_be_drawn_is_refused_before_any_work(name: str, tmp_path: Path, capsys) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "a.b").mkdir()
    path, cache = tmp_path / name, tmp_path / "cache"
    assert main(["walk", "--epochs", "0", "--cache", str(cache), "--picture", str(path)]) == 1
    text = capsys.readouterr()
    assert text.err.startswith(f"noisykernels walk: {path}: expected a picture ending in ") and "pdf, " in text.err
    assert text.err.endswith(f", got {path.suffix!r}\n") and not text.out and not cache.exists()


def test_missing_matplotlib_is_noticed_before_any_work(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    cache = tmp_path / "cache"
    assert main(["walk", "--epochs", "0", "--cache", str(cache), "--picture", str(tmp_path / "walk.png")]) == 1
    assert "pip install noisykernels[plot]" in capsys.readouterr().err and not cache.exists()


@pytest.mark.parametrize(("name", "start"), [("walk.SVG", b"<?xml"), ("walk.pdf", b"%PDF"), ("walk", b"\x89PNG")])
def test_the_suffix_says_the_format_of_the_picture(cache: str, name: str, start: bytes, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    assert small_walk(cache, "--sites", "input", "--picture", tmp_path / name) == 0
    assert (tmp_path / name).read_bytes().startswith(start)
