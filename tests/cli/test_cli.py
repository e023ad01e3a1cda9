"""The command line: commands, flags, exit codes, interruption."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
import torch

import noisykernels as nk
from noisykernels._engine.store import Store, noting
from noisykernels.cli.main import main
from noisykernels.cli.parser import parser
from noisykernels.cli.reading import LEVELS, Numbers
from noisykernels.datasets import load
from noisykernels.study import Study
from noisykernels.walking import PARAMETERS, walk_parameter
from noisykernels.zoo import trained

ROOT = Path(__file__).parents[2]
numbers = Numbers(LEVELS)


def walk(cache: str, *flags: object) -> int:
    fixed = ["--epochs", "1", "--cache", cache, "--rows", "60", "--draws", "1", "--quiet"]
    levels = [] if "--levels" in flags else ["--levels", "0.1,1,100"]
    return main(["walk", *fixed, *levels, *map(str, flags)])


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
    assert walk(cache, *flags, "--out", out, "--report", page, "--store", store) == 0
    text = capsys.readouterr().out
    assert "noise WeightNoise(add=1.0, relative='layer') times the level" in text and "relu" not in text
    study = nk.Study.load(out)
    assert study.meta.target == "weight" and study.meta.noise["relative"] == "layer"
    assert [r.site_index for r in study.records if r.level == 1] == [1, 3, 5, 7] and len(study.records) == 12
    assert "--target weight --relative layer" in page.read_text() and "nk.WeightNoise(add=1.0" in page.read_text()
    assert main(["resume", str(store), "--cache", cache, "--out", str(tmp_path / "again.json")]) == 0
    assert text.splitlines()[1] in capsys.readouterr().out and nk.Study.load(tmp_path / "again.json") == study
    assert walk(cache, "--target", "weight", "--relative", "channel", "--store", store) == 1
    assert "target" in capsys.readouterr().err
    fixed = ["--epochs", "1", "--cache", cache, "--quiet", "--json", "--rel-ci", "0.3", "--sites", "fc1"]
    assert main(["walk", *fixed, "--target", "weight", "--noise", "mul", "--kind", "uniform"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["midpoints"]
    assert found["method"] == "adaptive" and found["site"] == "fc1:linear#0"
    for wrong, said in (
        (["--relative", "layer"], "--relative goes with --target weight"),
        (["--target", "weight", "--noise", "mixed"], "WeightNoise: give add or mul, or both with fold=True"),
        (["--target", "weight", "--sites", "relu1"], "no site 'relu1'; the model has 1 fc1:linear#0"),
    ):
        assert walk(cache, *wrong) == 1
        assert said in capsys.readouterr().err
    grid = ["grid", "--epochs", "1", "--cache", cache, "--quiet", "--levels", "1", "--target", "weight"]
    assert main([*grid, "--plateaus", "0.1"]) == 1
    assert "walk: plateaus are for noise on activations" in capsys.readouterr().err


def test_a_walk_over_a_parameter(cache: str, capsys, tmp_path: Path) -> None:
    """What Python finds, with all files; the store; each parameter known by a word."""
    pytest.importorskip("matplotlib")
    files = {name: tmp_path / f"p.{name}" for name in ("json", "html", "csv", "db", "png")}
    fixed = ["--epochs", "1", "--cache", cache, "--quiet", "--rows", "60"]
    flags = [*fixed, "--sites", "fc1", "fc_out", "--out", str(files["json"]), "--report", str(files["html"])]
    flags += ["--export", str(files["csv"]), "--spreadsheet", "--picture", str(files["png"])]
    store = ["--store", str(files["db"])]
    assert main(["parameter", "saturation", "--values", "log:0.1:10:3", *flags, *store]) == 0
    text = capsys.readouterr().out
    assert "limit of the running sum (units of the output)" in text and "fc_out:linear#0" in text
    study = nk.Study.load(files["json"])
    model, data = trained("mlp", "digits", epochs=1, cache=cache), load("digits", "test", limit=60)
    known = PARAMETERS["saturation"]._asdict()
    expected = walk_parameter(model, data, values=numbers("log:0.1:10:3"), seed=0, sites=["fc1", "fc_out"], **known)
    assert study.records == expected.records and study.meta.parameter == known["name"] and len(study.records) == 6
    assert all(path.stat().st_size > 100 for path in files.values())
    asked = [word for word in flags if word not in ("--rows", "60", "--epochs", "1", "--sites", "fc1", "fc_out")]
    assert main(["resume", str(files["db"]), *asked]) == 0 and capsys.readouterr().out == text
    for name in PARAMETERS:
        values = "0.2,0.3" if name == "leak" else "2,3"
        assert main(["parameter", name, "--values", values, "--draws", "2", "--sites", "fc1", *fixed, "--json"]) == 0
        (found,) = json.loads(capsys.readouterr().out)["midpoints"]
        assert found["site"] == "fc1:linear#0" and found["rising"] == (PARAMETERS[name].larger == "better"), name
    assert main(["parameter", "input-bits", "--values", "1,2", *fixed]) == 1
    assert "DAC: bits must be a whole number from 2 to 24, got 1" in capsys.readouterr().err


def test_votes(cache: str, capsys, tmp_path: Path) -> None:
    fixed = ["--epochs", "1", "--cache", cache, "--quiet", "--level", "0.5", "--draws", "5", "--rows", "80"]
    assert main(["vote", *fixed, "--picture", str(tmp_path / "v.png")]) == 0
    assert "executions" in capsys.readouterr().out and (tmp_path / "v.png").stat().st_size > 5000
    assert main(["vote", *fixed, "--json"]) == 0
    curves = json.loads(capsys.readouterr().out)["curves"]
    assert set(curves) == {"majority", "logit", "probability"} and len(curves["majority"]) == 5


def test_chips(cache: str, capsys) -> None:
    fixed = ["--epochs", "1", "--cache", cache, "--quiet", "--level", "0.1", "--draws", "5", "--rows", "80"]
    assert main(["chips", *fixed, "--noise", "mul", "--limits", "0.1,0.99", "--seed", "3"]) == 0
    told = capsys.readouterr().out
    assert "WeightNoise(mul=0.1)" in told and "5 chips, seed 3" in told and "yield at 0.9900: 0.000" in told
    assert main(["chips", *fixed, "--relative", "channel", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    model = trained("mlp", "digits", epochs=1, cache=cache)
    noise = nk.WeightNoise(add=0.1, relative="channel")
    expected = nk.chips(model, load("digits", "test", limit=80), hardware=[noise], draws=5, seed=0)
    assert found["accuracy"] == expected.accuracy.tolist() and found["mean"] == expected.mean
    with pytest.raises(SystemExit):
        main(["chips", *fixed, "--level", "-1"])
    assert "--level: expected a number from 0 to 3.40282e+38, got '-1'" in capsys.readouterr().err


def test_records_and_report_of_a_walk(cache: str, capsys, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    files = [tmp_path / name for name in ("a.csv", "a.json", "a.html", "a.study")]
    flags = ["--export", files[0], "--export", files[1], "--report", files[2], "--out", files[3], "--sites", "fc1"]
    assert walk(cache, *flags) == 0
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


def test_compare(cache: str, capsys, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    files = [str(tmp_path / "one.json"), str(tmp_path / "two.json"), str(tmp_path / "c.png")]
    for file, more in zip(files, (["--sites", "fc1", "fc2"], ["--sites", "fc2", "--seed", "1"]), strict=False):
        assert walk(cache, "--out", file, *more) == 0
    capsys.readouterr()
    assert main(["compare", *files[:2], "--picture", files[2]]) == 0
    text = capsys.readouterr().out
    assert "two / one" in text and "only in one" in text and "the studies differ: seed: 0 and 1" in text
    assert Path(files[2]).read_bytes()[:4] == b"\x89PNG"
    assert main(["compare", *files[:2], "--names", "old", "new", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["names"] == ["old", "new"] and result["differences"] == ["seed: 0 and 1"]
    assert [s["verdict"] for s in result["sites"]] == ["only in a", "not told apart"]
    assert result["sites"][0]["b"] is None and result["sites"][1]["b"]["site"] == "fc2:linear#0"
    assert main(["compare", files[0], files[0]]) == 0
    assert "b / a" in capsys.readouterr().out


def without_lease(*arguments: str) -> list[str]:
    """The command line in a process of its own; what a killed one had claimed is free at once."""
    code = (
        "import sys; from noisykernels._engine import cached as kept; kept.LEASE, kept.GO, kept.FIRST_GO = 0.3, 0, 1\n"
    )
    code += "from noisykernels.cli.main import main; sys.exit(main(sys.argv[1:]))"
    return [sys.executable, "-c", code, *arguments]


def test_killed_and_resumed_is_the_same_study(cache: str, tmp_path: Path) -> None:
    """kill -9 in the middle; the file is moved; another number of threads. Relative paths count from where one is."""
    fixed = ["grid", "--epochs", "1", "--cache", cache, "--quiet", "--levels", "log:0.01:100:101", "--draws", "12"]
    subprocess.run(without_lease(*fixed, "--out", str(tmp_path / "alone.json")), env=environment(), check=True)
    store, out = tmp_path / "s.db", "--out=resumed.json"
    process = subprocess.Popen(without_lease(*fixed, out, "--store", str(store)), env=environment(), cwd=tmp_path)
    while process.poll() is None:
        if store.exists():
            with closing(sqlite3.connect(store)) as db:
                if db.execute("SELECT count(*) FROM tasks").fetchone()[0] > 1:
                    break
        time.sleep(0.02)
    process.kill()
    assert process.wait() == -signal.SIGKILL and not (tmp_path / "resumed.json").exists()
    for end in ("", "-wal", "-shm"):
        if (left := Path(f"{store}{end}")).exists():
            left.rename(tmp_path / f"moved.db{end}")
    other = environment() | {"OMP_NUM_THREADS": "2"}
    command = without_lease("resume", "moved.db", "--cache", cache, out, "--quiet")
    done = subprocess.run(command, env=other, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "study: resumed.json" in done.stdout, done.stderr
    alone, resumed = (nk.Study.load(tmp_path / f"{name}.json") for name in ("alone", "resumed"))
    assert resumed == alone and not store.exists()


def test_interrupted_says_how_to_go_on(cache: str, tmp_path: Path, monkeypatch, capsys) -> None:
    store = tmp_path / "a b.db"
    with monkeypatch.context() as patch:
        patch.setattr("noisykernels.cli.commands.Study.table", interrupt)
        assert walk(cache, "--sites", "fc1", "--store", store) == 130
    go_on = f"python -m noisykernels resume '{store}' --cache {cache} --quiet"
    assert capsys.readouterr().err == f"interrupted; nothing was written; results are kept, go on with: {go_on}\n"
    again = shlex.split(go_on)[3:]
    assert main(again) == 0
    assert "fc1:linear#0" in capsys.readouterr().out
    monkeypatch.setattr("noisykernels.cli.commands.Study.table", interrupt)
    assert main(again) == 130
    assert capsys.readouterr().err.endswith(f"{go_on}\n")


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, "there is no such file"), (b"a,b", "not an SQLite file"), (b"", "not a results store, but an empty"),
        ({}, "holds no command: it was not filled by walk or grid"), ({"command": "{"}, "its command cannot be read"),
        ({"command": '["train"]'}, r"no walk, grid, mixed or parameter, but \['train'\]"),
        ({"command": "[]"}, "no walk, grid"),
    ],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_resumed(content: object, text: str, tmp_path: Path, capsys) -> None:
    path = tmp_path / "s.db"
    if isinstance(content, dict):
        with ExitStack() as stack:
            for name, note in content.items():
                stack.enter_context(noting(name, note))
            Store(path, {"seed": 1}).close()
    elif isinstance(content, bytes):
        path.write_bytes(content)
    before = path.read_bytes() if path.exists() else None
    assert main(["resume", str(path)]) == 1
    said = capsys.readouterr()
    assert re.match(f"noisykernels resume: {path}: .*{text}", said.err) and said.err.count("\n") == 1 and not said.out
    assert (path.read_bytes() if path.exists() else None) == before


def test_studies_that_cannot_be_read(tmp_path: Path, capsys) -> None:
    pytest.importorskip("matplotlib")
    bad = tmp_path / "bad.json"
    bad.write_text("{}")
    for arguments in (["report", bad], ["compare", bad, bad], ["report", tmp_path / "none.json"],
                      ["report", bad, "--out", tmp_path / "no" / "a.html"],
                      ["compare", bad, bad, "--picture", "a.txt"]):  # fmt: skip
        assert main([str(a) for a in arguments]) == 1
        said = capsys.readouterr()
        assert said.err.startswith(f"noisykernels {arguments[0]}: ") and said.err.count("\n") == 1 and not said.out
    assert list(tmp_path.iterdir()) == [bad]


@pytest.mark.parametrize("flags", [["--export", "a.xls"], ["--export", "no/a.csv"], ["--report", "no/a.html"]])
def test_files_that_cannot_be_written_are_refused_before_any_work(flags: list[str], tmp_path: Path, capsys) -> None:
    cache = tmp_path / "cache"
    assert main(["walk", "--epochs", "0", "--cache", str(cache), *flags]) == 1
    said = capsys.readouterr().err
    assert said.startswith("noisykernels walk: ") and said.count("\n") == 1 and not cache.exists()


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


def test_workers_and_plateaus(tmp_path: Path, capsys) -> None:
    fixed = ["--model", "mlp", "--data", "digits", "--epochs", "1", "--cache", str(tmp_path), "--quiet", "--sites", "0"]
    grid = ["grid", *fixed, "--levels", "0.01,1,1e4", "--draws", "2", "--threads", "1", "--json"]
    assert main(grid) == 0
    alone = capsys.readouterr().out
    assert main([*grid, "--workers", "1"]) == 0
    assert capsys.readouterr().out == alone
    assert main([*grid, "--plateaus", "0.3", "--out", str(tmp_path / "a.json")]) == 0
    assert "settled" in {r.status for r in Study.load(tmp_path / "a.json").records}


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
    # A child inherits that SIGINT is ignored, as in a background job of a shell; a handler of ours it does not inherit.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True)
    finally:
        signal.signal(signal.SIGINT, before)
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
