"""The command line: commands, flags, exit codes, interruption."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import noisykernels as nk
from noisykernels.__main__ import main, numbers, parser

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with the checkpoint of the MLP, one epoch on digits."""
    pytest.importorskip("sklearn")
    folder = str(tmp_path_factory.mktemp("checkpoints"))
    assert main(["train", "--epochs", "1", "--cache", folder, "--quiet", "--json"]) == 0
    return folder


def walk(cache: str, *flags: object) -> int:
    fixed = ["--epochs", "1", "--cache", cache, "--rows", "60", "--draws", "1", "--quiet"]
    return main(["walk", *fixed, "--levels", "0.1,1,100", *map(str, flags)])


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


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


def test_walk(cache: str, capsys, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    picture, out = tmp_path / "walk.png", tmp_path / "walk.json"
    assert walk(cache, "--sites", "input", "3", "relu*", "--picture", picture, "--out", out) == 0
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
    assert main(["walk", *fixed, "--rel-ci", "0.2", "--memory", "0.01"]) == 0
    found = json.loads(capsys.readouterr().out)["midpoints"]
    assert {m["method"] for m in found} == {"adaptive"} and len(found) == 8
    for _ in range(2):  # the second time from the file
        assert main(["walk", *fixed, "--rel-ci", "0.2", "--store", str(tmp_path / "s.db")]) == 0
        assert [m["level"] for m in json.loads(capsys.readouterr().out)["midpoints"]] == [m["level"] for m in found]
    assert main(["grid", *fixed, "--engine", "plain", "--levels", "0.1,1,10", "--draws", "1", "--rows", "50"]) == 0
    assert {m["method"] for m in json.loads(capsys.readouterr().out)["midpoints"]} == {"rows"}


def test_votes(cache: str, capsys, tmp_path: Path) -> None:
    fixed = ["--epochs", "1", "--cache", cache, "--quiet", "--level", "0.5", "--draws", "5", "--rows", "80"]
    assert main(["vote", *fixed, "--picture", str(tmp_path / "v.png")]) == 0
    assert "executions" in capsys.readouterr().out and (tmp_path / "v.png").stat().st_size > 5000
    assert main(["vote", *fixed, "--json"]) == 0
    curves = json.loads(capsys.readouterr().out)["curves"]
    assert set(curves) == {"majority", "logit", "probability"} and len(curves["majority"]) == 5


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
    assert walk(cache, "--json", *flags.split()) == 0
    result = json.loads(capsys.readouterr().out, parse_constant=refuse)
    assert torch.get_num_threads() == threads
    assert 0 < result["clean"] < 1
    if "--sites" in flags:
        (midpoint,) = result["midpoints"]
        assert midpoint["status"] == "none" and midpoint["level"] is None


def test_every_flag_is_tried_here() -> None:
    source = Path(__file__).read_text()
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
        ["walk", "--draws", "x"],
    ],
    ids=str,
)  # fmt: skip
def test_wrong_flags_exit_with_2(arguments: list[str], capsys) -> None:
    with pytest.raises(SystemExit) as error:
        main(arguments)
    assert error.value.code == 2 and "usage:" in capsys.readouterr().err


def test_errors_exit_with_1_and_one_line(cache: str, capsys, tmp_path: Path) -> None:
    for flags in (["--out", tmp_path / "no" / "a.json"], ["--sites", "fc9"], ["--draws", "0"]):
        assert walk(cache, *flags) == 1
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


def test_interrupted_exits_with_130_and_writes_nothing(cache: str, tmp_path: Path) -> None:
    out = tmp_path / "walk.json"
    command = [sys.executable, "-m", "noisykernels", "walk", "--epochs", "1", "--cache", cache]
    command += ["--draws", "50", "--levels", "log:0.001:1000:1001", "--out", str(out)]
    process = subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    first = process.stderr.read(1)  # the bar appears: the walk runs
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate(timeout=60)
    assert process.returncode == 130 and (first + rest).endswith("interrupted; nothing was written\n")
    assert list(tmp_path.iterdir()) == []


def interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_interrupted_while_drawing_says_what_was_written(cache: str, tmp_path: Path, monkeypatch, capsys) -> None:
    """The table is there already, and the study if one was asked for."""
    pytest.importorskip("matplotlib")
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", interrupt)
    picture, out = tmp_path / "walk.png", tmp_path / "walk.json"
    assert walk(cache, "--picture", picture) == 130
    text = capsys.readouterr()
    assert "midpoint" in text.out and text.err == "interrupted; nothing was written\n"
    assert list(tmp_path.iterdir()) == []
    assert walk(cache, "--picture", picture, "--out", out) == 130
    assert capsys.readouterr().err == f"interrupted; written: {out}\n"
    assert list(tmp_path.iterdir()) == [out]


def test_interrupted_after_the_training_names_the_checkpoint(tmp_path: Path, monkeypatch, capsys) -> None:
    pytest.importorskip("sklearn")
    monkeypatch.setattr("noisykernels.walk", interrupt)
    assert main(["walk", "--epochs", "0", "--cache", str(tmp_path), "--quiet"]) == 130
    (checkpoint,) = tmp_path.iterdir()
    assert capsys.readouterr().err == f"interrupted; written: {checkpoint}\n"


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
    assert walk(cache, "--sites", "input", "--picture", tmp_path / name) == 0
    assert (tmp_path / name).read_bytes().startswith(start)
