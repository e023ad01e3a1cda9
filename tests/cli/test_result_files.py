"""Files of results on the command line: what one command writes another one shows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from noisykernels.cli.main import main
from noisykernels.experiments import Chips, Votes
from noisykernels.study import Comparison, Result


@pytest.fixture(scope="module")
def fixed(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    pytest.importorskip("sklearn")
    return ["--epochs", "1", "--cache", str(tmp_path_factory.mktemp("checkpoints")), "--quiet", "--rows", "60"]


def test_votes_and_chips_become_pages(fixed: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    for command, made in (("vote", Votes), ("chips", Chips)):
        path = tmp_path / f"{command}.json"
        assert main([command, *fixed, "--draws", "4", "--json"]) == 0
        told = capsys.readouterr().out
        assert main([command, *fixed, "--draws", "4", "--json", "--out", str(path)]) == 0
        assert capsys.readouterr().out == told
        found = Result.load(path)
        assert type(found) is made and found.clean == json.loads(told)["clean"]
        assert main(["report", str(path)]) == 0
        page = path.with_suffix(".html")
        assert capsys.readouterr().out == f"report: {page}\n" and found._brief() in page.read_text()
        assert main([command, *fixed, "--out", str(tmp_path / "no" / "a.json")]) == 1
        assert "the folder does not exist" in capsys.readouterr().err


def test_a_comparison_becomes_a_page(fixed: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    files = [str(tmp_path / name) for name in ("a.json", "b.json", "c.json")]
    for seed, file in enumerate(files[:2]):
        flags = ["--levels", "0.1,1,10", "--draws", "1", "--sites", "fc1", "--seed", str(seed), "--out", file]
        assert main(["walk", *fixed, *flags]) == 0
    capsys.readouterr()
    assert main(["compare", *files[:2], "--out", files[2]]) == 0
    assert Comparison.load(files[2]).table() + "\n" == capsys.readouterr().out
    assert main(["report", files[2], "--out", str(tmp_path / "d.html"), "--title", "both"]) == 0
    assert "<h1>both</h1>" in (tmp_path / "d.html").read_text()
    assert main(["compare", files[0], files[2]]) == 1
    assert "not a study file" in capsys.readouterr().err
