"""Mixed noise of several ratios: a study for each, their table, table of records, picture and files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import noisykernels as nk
from noisykernels.cli.main import main
from noisykernels.study import Study
from noisykernels.zoo import MLP

HOW: dict[str, Any] = dict(levels=[0.1, 1.0, 10.0], draws=2, seed=3)


def problem() -> tuple[torch.nn.Module, tuple[torch.Tensor, torch.Tensor]]:
    torch.manual_seed(0)
    model, x = MLP(12, 4, width=8, norm=True).eval(), torch.randn(300, 12)
    return model, (x, model(x).argmax(1))


def test_each_ratio_is_the_walk_of_its_noise(tmp_path: Path) -> None:
    model, data = problem()
    for order in ("mul_add", "add_mul"):
        mixed = nk.walk_mixed(model, data, ratios=[0.25, 1.0], order=order, **HOW)
        for ratio, study in zip(mixed.ratios, mixed.studies, strict=True):
            noise = nk.Noise.amplitude(1.0, ratio, order=order)
            assert study.records == nk.walk(model, data, noise=noise, **HOW).records
    files = mixed.save(tmp_path)
    assert [f.name for f in files] == ["ratio-0.25.json", "ratio-1.json"]
    assert Study.load(files[1]) == mixed.studies[1]
    frame = mixed.to_pandas()
    assert len(frame) == 2 * len(mixed.studies[0].records) and set(frame["ratio"]) == {0.25, 1.0}
    lines = mixed.table().splitlines()
    assert lines[0].split()[-4:] == ["ratio", "0.25", "ratio", "1"] and len(lines) == 2 + len(
        mixed.studies[0].meta.sites
    )


def test_pictures_of_all_sites_and_of_one() -> None:
    model, data = problem()
    mixed = nk.walk_mixed(model, data, ratios=[0.0, 0.5, 1.0], **HOW)
    assert mixed.plot().axes and mixed.plot(site="input").axes
    with pytest.raises(ValueError, match="nowhere"):
        mixed.plot(site="nowhere")


@pytest.mark.parametrize(
    ("ratios", "said"),
    [
        ([], r"ratios must lie in \[0, 1\] and differ"), ([0.5, 0.5], r"ratios must lie in \[0, 1\] and differ"),
        *(([bad], "each item of ratios must be a number from 0 to 1, got") for bad in (-0.1, 1.1, float("nan"))),
    ],
)  # fmt: skip
def test_bad_ratios_are_refused(ratios: list[float], said: str) -> None:
    model, data = problem()
    with pytest.raises(ValueError, match=f"walk_mixed: {said}"):
        nk.walk_mixed(model, data, ratios=ratios, **HOW)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"bits": 3}, "options must be arguments of walk, got 'bits'"),
        ({"noise": nk.Noise(add=1.0)}, "options must be arguments of walk, got 'noise'"),
        ({"floor": "0"}, "floor must be a finite number"), ({"at": "third"}, "at must be 'half', nk.Keep"),
        ({"levels": []}, "levels must be finite, not negative, and at least one"), ({"draws": 0}, "draws must be"),
        ({"metric": "perplex"}, "metric 'perplex' is not known"), ({"sites": ["conv*"]}, "no site 'conv"),
        ({"groups": 3}, "groups must be"), ({"axis": "square"}, "axis must be 'log' or 'linear'"),
        ({"rows": [1]}, "rows must hold one id"), ({"draws": None}, "give both levels and draws"),
        ({"at": nk.Drop(2.0)}, "accuracy is never as low"), ({"plateaus": 0.7}, "plateaus must"),
    ],
)  # fmt: skip
def test_what_its_walks_refuse_names_it(change: dict[str, Any], said: str) -> None:
    model, data = problem()
    with pytest.raises((TypeError, ValueError), match=f"^walk_mixed: {said}"):
        nk.walk_mixed(model, data, ratios=[0.5], **(HOW | change))


def test_so_do_warnings() -> None:
    """Of few rows for a search."""
    model, (x, y) = problem()
    with pytest.warns(UserWarning, match="^walk_mixed: 60 rows are few for midpoints"):
        nk.walk_mixed(model, (x[:60], y[:60]), ratios=[0.5], seed=1, sites=["input"], search=nk.Search(0.05, most=1000))


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = [
        "--model",
        "mlp",
        "--data",
        "digits",
        "--epochs",
        "1",
        "--cache",
        str(tmp_path),
        "--quiet",
        "--rows",
        "60",
    ]
    grid = ["--levels", "0.1,1,10", "--draws", "1", "--ratios", "0,1", "--sites", "input"]
    assert main(["mixed", *common, *grid, "--json"]) == 0
    assert [one["ratio"] for one in json.loads(capsys.readouterr().out)] == [0.0, 1.0]
    files = ["--picture", str(tmp_path / "m.png"), "--out", str(tmp_path)]
    assert main(["mixed", *common, *grid, *files, "--store", str(tmp_path / "s.db")]) == 0
    table = capsys.readouterr().out
    assert (tmp_path / "m.png").stat().st_size > 1000 and (tmp_path / "ratio-0.json").exists()
    assert main(["resume", str(tmp_path / "s.db"), "--cache", str(tmp_path), *files]) == 0
    assert capsys.readouterr().out == table
