"""The scripts that rerun published experiments, each at a size that says nothing but that it runs."""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

EXAMPLES = Path(__file__).parents[2] / "examples"
FOLDER = EXAMPLES / "reproduction"
SMALL: dict[str, Any] = {"data": "digits", "epochs": 1, "rows": 60}
BN: dict[str, Any] = {"model": "mlp-bn", "limit": 200, "trainings": 2}
SITE = "fc2:linear#0"
SIZES: dict[str, dict[str, Any]] = {
    "formats": {"networks": ("mlp", "cifarnet"), "limit": 200, "every": 40, "evaluations": (2,), "few": 20},
    "profiles": {"models": ("mlp-bn",), "draws": 1, "highest": 2.0, "lengths": (2,), "precision": 0.5},
    "extreme": {**BN, "sites": (SITE, "relu2:relu#0"), "levels": (0.0, 1e10), "draws": 1},
    "mixed_noise": {"model": "mlp-bn", "limit": 200, "site": SITE, "mul": (0.0, 1.0), "add": (0.0, 1.0), "draws": 1,
                    "amplitudes": (1.0, 10.0), "ratios": (0.1, 0.9)},
    "ordering": {"data": "made", "limits": (8.0,), "trainings": 2, "permutations": 2, "frames": 16, "bands": 8},
    "recalibration": {"models": ("mlp-bn",), "fitted": 200, "draws": 1, "trainings": 2},
    "sharpness": {**BN, "chips": 2, "choices": 2, "levels": (0.0, 0.1)},
    "unstable": {**BN, "draws": 1, "levels": (0.0, 1.0), "fluctuations": (1.0,)},
}  # fmt: skip


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None) -> Callable[[str], ModuleType]:
    """Imports a script as a run of it would, with a cache of its own."""
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib").use("agg")
    monkeypatch.setenv("NOISYKERNELS_DATA", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(str(FOLDER))
    names = [path.stem for path in FOLDER.glob("*.py")]
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    return importlib.import_module


def test_every_script_is_listed() -> None:
    assert sorted(SIZES) == sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "scaffold")


@pytest.mark.parametrize("name", SIZES)
def test_script(name: str, script: Callable[[str], ModuleType], tmp_path: Path, capsys: Any) -> None:
    results = script(name).run(tmp_path / "out", **(SMALL | SIZES[name]))
    text = capsys.readouterr().out
    assert len(text.splitlines()) > 5 and "60 test rows" in text
    (picture,) = (tmp_path / "out").glob("reproduction_*.png")
    written = json.loads(picture.with_suffix(".json").read_text())
    assert written.keys() == results.keys()
    again = script(name).run(tmp_path / "again", **(SMALL | SIZES[name]))  # from the checkpoints
    assert json.dumps(again) == json.dumps(results) and capsys.readouterr().out == text


def test_scaffold(script: Callable[[str], ModuleType]) -> None:
    scaffold = script("scaffold")
    recipe: dict[str, Any] = {"model": "mlp", "data": "digits", "epochs": 1, "limit": 200}
    clean = scaffold.noisy_trained(**recipe)
    noisy = scaffold.noisy_trained(**recipe, where=SITE, add=1.0)
    assert not torch.equal(clean.fc1.weight, noisy.fc1.weight)
    assert bool(torch.equal(noisy.fc1.weight, scaffold.noisy_trained(**recipe, where=SITE, add=1.0).fc1.weight))
    assert float(scaffold.noisy_trained(**recipe, clamp=0.01).fc2.weight.detach().abs().max()) == pytest.approx(0.01)
    test = scaffold.load("digits", "test", limit=50)
    (plain,) = scaffold.accuracies(clean, test)
    assert plain == scaffold.accuracies(clean, test, scaffold.nk.Noise(add=0.0), SITE)[0]
    assert len(set(scaffold.accuracies(clean, test, scaffold.nk.Noise(add=3.0), draws=5))) > 1
    assert scaffold.spread([1.0, 3.0]) == math.sqrt(2) and scaffold.spread([1.0]) == 0


def test_climb_finds_the_crossing(script: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch) -> None:
    """With an accuracy that is known for each level."""
    profiles = script("profiles")
    monkeypatch.setattr(profiles, "noisy_trained", lambda **recipe: recipe["add"])
    monkeypatch.setattr(profiles, "weights", lambda network: {})
    monkeypatch.setattr(profiles, "accuracies", lambda level, *rest, **how: [0.9 - 0.1 * math.log10(level)])
    found = profiles.climb({}, SITE, None, 0.65, 1.0, 1e6, 1)
    assert found["midpoint"] == pytest.approx(10**2.5) and profiles.cell(found) == "316.2"
    assert profiles.cell(profiles.climb({}, SITE, None, 0.65, 1.0, 10.0, 1)) == "> 10"
    assert profiles.cell(profiles.climb({}, SITE, None, 0.95, 1.0, 10.0, 1)) == "< 1"


def test_level_that_fluctuates(script: Callable[[str], ModuleType]) -> None:
    """Around a level of zero nothing fluctuates; else each image has a level of its own, new for each draw."""
    unstable, scaffold = script("unstable"), script("scaffold")
    network = scaffold.fresh("mlp-bn", "digits").eval()
    data = scaffold.load("digits", "test", limit=50)
    assert unstable.after_operations(network, data[0])[:2] == ["fc1:linear#0", "relu1:relu#0"]
    assert unstable.accuracy(network, data, 0.0, 1.0, 2) == pytest.approx(scaffold.accuracies(network, data)[0])
    rows = torch.arange(20000)
    one, other = (unstable.normal(rows, 1, draw) for draw in (0, 1))
    assert abs(float(one.mean())) < 5 / math.sqrt(len(rows)) and not torch.equal(one, other)  # five standard errors
    assert torch.equal(unstable.normal(rows[7:9], 1, 0), one[7:9])


def test_accuracies_of_chips(script: Callable[[str], ModuleType]) -> None:
    """A chip keeps its number; without noise there is one."""
    sharpness, scaffold = script("sharpness"), script("scaffold")
    network = scaffold.fresh("mlp-bn", "digits").eval()
    data = scaffold.load("digits", "test", limit=100)
    assert sharpness.chip_accuracies(network, data, 0.0, range(4)) == scaffold.accuracies(network, data)
    found = sharpness.chip_accuracies(network, data, 0.3, range(4))
    assert len(set(found)) > 1 and sharpness.chip_accuracies(network, data, 0.3, [2]) == found[2:3]


def test_repeats_on_several_trainings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib").use("agg")
    monkeypatch.setenv("NOISYKERNELS_DATA", str(tmp_path / "cache"))
    spec = importlib.util.spec_from_file_location("executions", EXAMPLES / "executions.py")
    assert spec is not None and spec.loader is not None
    executions = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(executions)
    how: dict[str, Any] = {"rows": 60, "draws": 2, "trainings": 2, "mappings": ("rank",), "repeats": (2, 10)}
    found = executions.several(tmp_path, models=("mlp",), data="digits", epochs=5, **how)
    assert found["mlp"].keys() == {"uniform", "rank", "allocated"}
    assert all(accuracy[1] > accuracy[0] for accuracy in found["mlp"]["uniform"])  # more help more
    assert "rank - uniform" in capsys.readouterr().out and (tmp_path / "reproduction_executions.png").exists()
