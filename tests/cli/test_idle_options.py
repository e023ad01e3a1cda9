"""An option that is given does something: each is looked at by what its command runs, or refused."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from made_study import made_study

import noisykernels as nk
from noisykernels.cli import commands, idle
from noisykernels.cli.main import main
from noisykernels.cli.parser import parser

# A value of each option that is not the usual one, as typed.
VALUES: dict[str, list[str]] = {
    "root": ["."], "cache": ["."], "model": ["mlp-bn"], "data": ["mnist"], "epochs": ["7"], "train_seed": ["7"],
    "threads": ["1"], "device": ["cpu"], "rows": ["7"], "seed": ["7"], "sites": ["fc1"], "batch_rows": ["7"],
    "draws_per_pass": ["7"], "order": ["add_mul"], "kind": ["uniform"], "workers": ["2"], "engine": ["plain"],
    "store": ["s.db"], "memory": ["0.5"], "noise": ["mul"], "ratio": ["0.25"], "out": ["a.out"], "export": ["a.csv"],
    "groups": ["block"], "at": ["keep:0.9"],
    "report": ["a.html"], "picture": ["a.png"], "target": ["weight"], "relative": ["layer"], "arrays": ["call"],
    "detail": ["attention"], "metric": ["nll"],
    "rel_ci": ["0.2"], "most": ["900"], "levels": ["0.1,1"], "draws": ["7"], "plateaus": ["0.03"], "ratios": ["0.5"],
    "level": ["0.25"], "limits": ["0.5"], "title": ["a"], "names": ["a", "b"], "json": [], "quiet": [],
    "spreadsheet": [],
}  # fmt: skip
# Settings beside which an option may do nothing.
BESIDE: dict[str, list[list[str]]] = {
    "walk": [[], ["--levels", "0.1,1"], ["--noise", "mixed"], ["--target", "weight"], ["--export", "a.json"]],
    "grid": [[], ["--noise", "mixed"], ["--target", "weight"]],
    "mixed": [[], ["--levels", "0.1,1"]],
    "vote": [[], ["--noise", "mixed"], ["--json"]],
    "chips": [[], ["--json"], ["--noise", "mul"]],
    "parameter": [["saturation", "--values", "1"]],
    "report": [["s.json"]],
    "compare": [["s.json", "t.json"]],
}


class Seen(argparse.Namespace):
    """Arguments that remember which of them were looked at."""

    def __getattribute__(self, name: str) -> Any:
        if name[0] != "_":
            object.__getattribute__(self, "__dict__").setdefault("_seen", set()).add(name)
        return object.__getattribute__(self, name)


@pytest.fixture
def looked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[list[str]], set[str]]:
    """The arguments that a command line's command looks at, when nothing is trained or walked."""
    monkeypatch.chdir(tmp_path)
    study = made_study([0.5, 1.0])
    study.save("s.json")
    study.save("t.json")
    monkeypatch.setattr(commands, "trained", lambda *_, **__: torch.nn.Identity())
    monkeypatch.setattr(commands, "load", lambda *_, **__: (torch.zeros(3), torch.zeros(3)))
    monkeypatch.setattr(commands, "accuracy", lambda *_: 0.5)
    monkeypatch.setattr(commands, "walk_parameter", lambda *_, **__: study)
    monkeypatch.setattr(nk, "walk", lambda *_, **__: study, raising=False)
    made = nk.walking.Mixed((0.0,), (study,))
    monkeypatch.setattr(nk, "walk_mixed", lambda *_, **__: made, raising=False)
    for name in ("vote", "chips"):
        monkeypatch.setattr(nk, name, lambda *_, **__: Nothing(), raising=False)

    def seen(line: list[str]) -> set[str]:
        args = parser().parse_args(line, Seen())
        args.argv = line
        idle.refuse_idle(args)
        args.__dict__["_seen"].clear()
        args.run(args)
        return args.__dict__["_seen"]

    return seen


class Nothing:
    """A result of which nothing is known."""

    clean, mean, std, curves, covered, values = 0.5, 0.5, 0.0, {}, {}, torch.zeros(2)

    def table(self, *_: object) -> str:
        return ""

    def yield_at(self, _: float) -> tuple[float, float, float]:
        return 1.0, 1.0, 1.0

    def save(self, path: Path) -> Path:
        return path

    def plot(self) -> Any:
        return made_study([0.5]).plot()


ELSEWHERE = {"threads", "quiet", "picture"}  # looked at by `main`, by the bar, by its own function


@pytest.mark.parametrize("name", [n for n in BESIDE if n] + ["train", "sites", "info"])
def test_an_option_does_something_or_is_refused(name: str, looked) -> None:
    """Given alone, and beside what decides how the command works."""
    choices = parser()._subparsers._group_actions[0].choices
    silent = []
    for beside in BESIDE.get(name, [[]]):
        for action in choices[name]._actions:
            if action.dest == "help" or not action.option_strings or action.option_strings[0] in beside:
                continue
            line = [name, *beside, action.option_strings[0], *VALUES[action.dest]]
            try:
                seen = looked(line)
            except ValueError as error:
                refused = str(error)
                assert action.option_strings[0] in refused or action.dest in refused, (line, refused)
                continue
            if action.dest not in seen | ELSEWHERE:
                silent.append(" ".join(line))
    assert not silent


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("walk --draws 3", "--draws goes with --levels"), ("mixed --draws 3", "--draws goes with --levels"),
        ("walk --levels 1 --rel-ci 0.1", "--rel-ci goes with a search, so without --levels"),
        ("walk --levels 1 --most 900", "--most goes with a search, so without --levels"),
        ("walk --ratio 0.5", "--ratio goes with --noise mixed"), ("grid --noise mul --ratio 1", "--ratio goes with"),
        ("vote --order mul_add", "--order goes with --noise mixed"), ("walk --relative layer", "--target weight"),
        ("walk --target weight --relative rms", "--target activation"),
        ("vote --relative tile:4", "--target weight"),
        ("walk --noise mul --relative rms", "--relative goes with --noise add or mixed"),
        ("walk --target weight --noise mixed", "--target weight goes with --noise add or mul"),
        ("grid --spreadsheet", "--spreadsheet goes with --export of a .csv"),
        ("grid --export a.json --spreadsheet", "--spreadsheet goes with --export of a .csv"),
    ],
)  # fmt: skip
def test_options_that_would_do_nothing(line: str, said: str, capsys, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(line.split()) == 1
    told = capsys.readouterr().err
    assert said in told and told.count("\n") == 1 and not [*tmp_path.iterdir()]
