"""The command line as a whole: flags and their values, exit codes, and the commands that run no study."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from command_runs import environment, numbers, small_walk

import noisykernels as nk
from noisykernels.cli.main import main
from noisykernels.cli.parser import parser


def test_info(capsys) -> None:
    assert main(["info"]) == 0
    assert "cpu_level" in capsys.readouterr().out
    assert main(["info", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["stream_version"] == nk.STREAM_VERSION and facts["torch"] == torch.__version__


def test_sites(capsys) -> None:
    assert main(["sites", "--model", "lenet5-bn", "--data", "fashion-mnist"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 16 and lines[1].split()[:2] == ["1", "conv1:conv2d#0"]
    assert main(["sites", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [s["kind"] for s in found[:3]] == ["input", "linear", "relu"] and found[0]["shape"] == [
        1,
        8,
        8,
    ]


def test_train(cache: str, capsys) -> None:
    assert main(["train", "--epochs", "1", "--cache", cache]) == 0
    assert "test accuracy 0." in capsys.readouterr().out
    assert main(["train", "--epochs", "1", "--cache", cache, "--json", "--threads", "1"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["model"] == "mlp" and 0 < facts["accuracy"] < 1


def test_every_flag_is_tried_here() -> None:
    """In this file, or in those of single commands."""
    here = Path(__file__)
    source = "".join(path.read_text() for path in [here, *here.parent.glob("test_command_*.py")])
    for command in parser()._subparsers._group_actions[0].choices.values():
        for action in command._actions:
            for flag in action.option_strings:
                used = flag in source or flag in ("-h", "--help", "--root")
                assert used, flag


def test_numbers() -> None:
    assert numbers("0.1,0.3,1") == [0.1, 0.3, 1.0] and numbers("lin:0:2:3") == [0.0, 1.0, 2.0]
    assert numbers("log:0.01:100:5") == pytest.approx([0.01, 0.1, 1, 10, 100], rel=1e-12)
    assert numbers("log:1e-12:1e12:3") == pytest.approx([1e-12, 1, 1e12], rel=1e-12)


@pytest.mark.parametrize(
    "arguments",
    [
        [], ["fly"], ["walk", "--levels", "a"], ["walk", "--levels", "log:0:1:3"],
        ["walk", "--fast"], ["walk", "--levels", "lin:0:1:0"], ["train", "--model", "none"],
        ["walk", "--draws", "x"], ["report"], ["compare", "a.json"], ["compare", "a.json", "b.json", "--names", "a"],
        ["resume"], ["mixed", "--ratios", "x"], ["walk", "--device", "nope"],
    ],
    ids=str,
)  # fmt: skip
def test_wrong_flags_exit_with_2(arguments: list[str], capsys) -> None:
    with pytest.raises(SystemExit) as error:
        main(arguments)
    said = capsys.readouterr()
    assert error.value.code == 2 and said.err.startswith("noisykernels") and said.err.count("\n") == 1 and not said.out


def test_errors_exit_with_1_and_one_line(cache: str, capsys, tmp_path: Path) -> None:
    for flags in (["--out", tmp_path / "no" / "a.json"], ["--sites", "fc9"], ["--relative", "layer"]):
        assert small_walk(cache, *flags) == 1
        text = capsys.readouterr()
        assert text.err.startswith("noisykernels walk: ") and text.err.count("\n") == 1 and not text.out
    empty = {
        **environment(),
        "NOISYKERNELS_DATA": str(tmp_path),
        "https_proxy": "http://127.0.0.1:9",
    }
    command = [sys.executable, "-m", "noisykernels", "train", "--data", "cifar10", "--epochs", "0"]
    done = subprocess.run(command, env=empty, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "cifar10: " in done.stderr and "Traceback" not in done.stderr


def test_as_a_program(cache: str, tmp_path: Path) -> None:
    """A log that is no terminal gets few lines of progress; standard output only the result."""
    command = [
        sys.executable,
        "-m",
        "noisykernels",
        "walk",
        "--epochs",
        "1",
        "--cache",
        cache,
        "--json",
    ]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and len(json.loads(done.stdout)["midpoints"]) == 8
    assert done.stderr.count("\r") + done.stderr.count("\n") < 10
