"""`walk` and `grid`: a grid, a search, noise of weights, plateaus, workers, and their JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from command_runs import small_walk

import noisykernels as nk
from noisykernels.cli.main import main
from noisykernels.study import Study


def test_walk(cache: str, capsys, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    picture, out = tmp_path / "walk.png", tmp_path / "walk.json"
    assert small_walk(cache, "--sites", "input", "3", "relu*", "--picture", picture, "--out", out) == 0
    text = capsys.readouterr().out
    assert "midpoint" in text and "fc2:linear#0" in text and "fc3" not in text
    assert picture.read_bytes()[:4] == b"\x89PNG"
    study = nk.Study.load(out)
    assert {r.site_index for r in study.records} == {0, 2, 3, 4, 6} and study.meta.levels == (
        0.1,
        1,
        100,
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["walk.json", "walk.png"]


def test_a_search_and_the_plain_engine(cache: str, capsys, tmp_path: Path) -> None:
    fixed = ["--epochs", "1", "--cache", cache, "--quiet", "--json"]
    assert main(["walk", *fixed, "--rel-ci", "0.2", "--most", "400000", "--memory", "0.01"]) == 0
    found = json.loads(capsys.readouterr().out)["midpoints"]
    assert {m["method"] for m in found} == {"adaptive"} and len(found) == 8
    for _ in range(2):  # the second time from the file
        assert main(["walk", *fixed, "--rel-ci", "0.2", "--store", str(tmp_path / "s.db")]) == 0
        assert [m["level"] for m in json.loads(capsys.readouterr().out)["midpoints"]] == [m["level"] for m in found]
    assert main(["grid", *fixed, "--engine", "plain", "--levels", "0.1,1,10", "--draws", "1", "--rows", "50"]) == 0
    assert {m["method"] for m in json.loads(capsys.readouterr().out)["midpoints"]} == {"rows"}


def test_a_walk_over_weights(cache: str, capsys, tmp_path: Path) -> None:
    """A grid with its report, and a search; the store, and what does not go together."""
    pytest.importorskip("matplotlib")
    out, page, store = tmp_path / "w.json", tmp_path / "w.html", tmp_path / "w.db"
    flags = ["--target", "weight", "--relative", "layer"]
    assert small_walk(cache, *flags, "--out", out, "--report", page, "--store", store) == 0
    text = capsys.readouterr().out
    assert "noise WeightNoise(add=1.0, relative='layer') times the level" in text and "relu" not in text
    study = nk.Study.load(out)
    assert study.meta.target == "weight" and study.meta.noise["relative"] == "layer"
    assert [r.site_index for r in study.records if r.level == 1] == [1, 3, 5, 7] and len(study.records) == 12
    assert "--target weight --relative layer" in page.read_text() and "nk.WeightNoise(add=1.0" in page.read_text()
    assert main(["resume", str(store), "--cache", cache, "--out", str(tmp_path / "again.json")]) == 0
    assert text.splitlines()[1] in capsys.readouterr().out and nk.Study.load(tmp_path / "again.json") == study
    assert small_walk(cache, "--target", "weight", "--relative", "channel", "--store", store) == 1
    assert "target" in capsys.readouterr().err
    fixed = ["--epochs", "1", "--cache", cache, "--quiet", "--json", "--rel-ci", "0.3", "--sites", "fc1"]
    assert main(["walk", *fixed, "--target", "weight", "--noise", "mul", "--kind", "uniform"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["midpoints"]
    assert found["method"] == "adaptive" and found["site"] == "fc1:linear#0"
    for wrong, said in (
        (["--relative", "layer"], "--relative layer goes with --target weight"),
        (["--target", "weight", "--noise", "mixed"], "--target weight goes with --noise add or mul, got mixed"),
        (["--target", "weight", "--sites", "relu1"], "no site 'relu1'; the model has 1 fc1:linear#0"),
    ):
        assert small_walk(cache, *wrong) == 1
        assert said in capsys.readouterr().err
    grid = ["grid", "--epochs", "1", "--cache", cache, "--quiet", "--levels", "1", "--target", "weight"]
    assert main([*grid, "--plateaus", "0.1"]) == 1
    assert "walk: plateaus are for noise on activations" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags",
    [
        "--noise mul --kind uniform", "--noise mixed --ratio 0.2 --order add_mul --threads 1",
        "--levels lin:0:2:3 --seed 18446744073709551615 --batch-rows 7 --draws-per-pass 1",
        "--levels log:0.001:0.01:2 --sites input --train-seed 0 --data digits --model mlp",
    ],
)  # fmt: skip
def test_json_of_a_walk_is_strict_json(cache: str, capsys, flags: str) -> None:
    """Also where there is no midpoint, which has no level."""

    def refuse(text: str) -> float:
        raise AssertionError(f"{text} is no JSON")

    threads = torch.get_num_threads()
    assert small_walk(cache, "--json", *flags.split()) == 0
    result = json.loads(capsys.readouterr().out, parse_constant=refuse)
    assert torch.get_num_threads() == threads
    assert 0 < result["clean"] < 1
    if "--sites" in flags:
        (midpoint,) = result["midpoints"]
        assert midpoint["status"] == "none" and midpoint["level"] is None


def test_workers_and_plateaus(tmp_path: Path, capsys) -> None:
    fixed = ["--model", "mlp", "--data", "digits", "--epochs", "1", "--cache", str(tmp_path), "--quiet", "--sites", "0"]
    grid = ["grid", *fixed, "--levels", "0.01,1,1e4", "--draws", "2", "--threads", "1", "--json"]
    assert main(grid) == 0
    alone = capsys.readouterr().out
    assert main([*grid, "--workers", "1"]) == 0
    assert capsys.readouterr().out == alone
    assert main([*grid, "--plateaus", "0.3", "--out", str(tmp_path / "a.json")]) == 0
    assert "settled" in {r.status for r in Study.load(tmp_path / "a.json").records}
