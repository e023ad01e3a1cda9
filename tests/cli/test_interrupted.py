"""Ctrl-C at any moment, during imports, while a walk runs, while files are written: status 130 and one sentence."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from command_runs import environment, interrupt, small_walk

from noisykernels.cli.main import main

# Runs the program in a child for each moment at which the signal comes, once or twice: a share of all that the
# interpreter reports to audit hooks (imports, files, ...) in a first run, which is not interrupted; or seconds.
DRIVER = """
import atexit, json, os, signal, sys, tempfile
from noisykernels.cli.program import program
warm, shares, times, total, words = json.loads(sys.argv[1])
if warm:
    import noisykernels.cli.main
first = [] if total else [(None, 0, None)]  # which counts
for share, again, seconds in [*first, *((s, a, None) for s, a in shares), *((None, 0, t) for t in times)]:
    moments = [] if share is None else [1 + int(share * total) + k for k in (0, again)]
    folder = tempfile.mkdtemp(dir=".")
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        pid = os.fork()
        if pid == 0:
            os.chdir(folder)
            os.dup2(out.fileno(), 1), os.dup2(err.fileno(), 2)
            sys.argv = ["noisykernels", *words]
            count = 0

            def interrupt(*_):
                os.kill(os.getpid(), signal.SIGINT)

            def hook(event, _):
                global count
                count += 1
                if count in moments:
                    interrupt()

            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGALRM, interrupt)
            atexit.register(signal.signal, signal.SIGALRM, signal.SIG_IGN)  # at last, as the program does with its own
            if total is None:
                atexit.register(lambda: print(count, file=sys.stderr))
            if seconds is not None:
                signal.setitimer(signal.ITIMER_REAL, *seconds)
            sys.addaudithook(hook)
            program()
        _, status = os.waitpid(pid, 0)
        told = []
        for file in (out, err):
            file.seek(0)
            told.append(file.read().decode())
    if total is None:
        assert status == 0, told
        total = int(told[1])
    else:
        left = [name for name in os.listdir(folder) if name.endswith(".part")]
        print(json.dumps([moments or seconds, os.waitstatus_to_exitcode(status), *told, left]), flush=True)
"""


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A walk of a network that is trained already."""
    pytest.importorskip("sklearn")
    fixed = ["--epochs", "1", "--cache", str(tmp_path_factory.mktemp("checkpoints")), "--quiet"]
    assert main(["train", *fixed, "--json"]) == 0
    return ["walk", *fixed, "--rows", "60", "--store", "s.db", "--out", "a.json", "--export", "a.csv"]


def driven(folder: Path, words: list[str], *, warm: bool, shares: list[Any], times: Any = (), total: Any = None) -> Any:
    """What came of each run: moments, status, standard output and error, files left half-written."""
    code = json.dumps([warm, shares, times, total, words])
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, code], stdout=subprocess.PIPE, text=True, check=True,
        env=environment() | {"PYTHONWARNINGS": "ignore"}, cwd=folder,
    )  # fmt: skip
    return [json.loads(line) for line in done.stdout.splitlines()]


def check(found: list[list[Any]], least: int) -> None:
    """130 and one sentence; or, where the signal came after the last file, as if it had not come."""
    ended = 0
    for moments, status, out, told, left in found:
        where = f"{moments}: status {status}, {told!r}"
        assert not left, f"{where}, {left}"
        if status == 0:
            assert not told and out.endswith("a.csv\n"), where
        else:
            assert status == 130 and told.startswith("interrupted; ") and told.count("\n") == 1, where
            ended += 1
    assert ended >= least, f"{ended} of {len(found)} were interrupted"


def spread(count: int) -> list[tuple[float, int]]:
    """Moments over the whole length of a run, some with a second signal soon after the first."""
    return [((k + 0.5) / count, (0, 1, 3, 30)[k % 4]) for k in range(count)]


def test_interrupted_at_any_moment(walk: list[str], tmp_path: Path) -> None:
    words = [*walk, "--levels", "0.1,1", "--draws", "1", "--sites", "fc1", "fc2"]
    check(driven(tmp_path, words, warm=True, shares=spread(6)), 4)
    check(driven(tmp_path, words, warm=False, shares=[(0, 1), (0.1, 0), (0.9, 1)], total=30_000), 3)  # imports


@pytest.mark.full
@pytest.mark.parametrize("more", [["--levels", "0.1,1,10", "--draws", "2"], ["--rel-ci", "0.2", "--workers", "2"]])
def test_interrupted_at_many_moments(walk: list[str], more: list[str], tmp_path: Path) -> None:
    words = [*walk, "--sites", "fc1", "fc2", *more]
    times = [(0.01 * 1.1**k, 0.0 if k % 2 else 0.02) for k in range(40)]  # the second: again and again
    check(driven(tmp_path, words, warm=True, shares=spread(60), times=times), 50)
    check(driven(tmp_path, words, warm=False, shares=spread(30), times=times), 30)


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


def test_interrupted_while_drawing_says_what_was_written(cache: str, tmp_path: Path, monkeypatch, capsys) -> None:
    """The table is there already, and the study if one was asked for."""
    pytest.importorskip("matplotlib")
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", interrupt)
    picture, out = tmp_path / "walk.png", tmp_path / "walk.json"
    assert small_walk(cache, "--picture", picture) == 130
    text = capsys.readouterr()
    assert "midpoint" in text.out and text.err == "interrupted; nothing was written\n"
    assert list(tmp_path.iterdir()) == []
    assert small_walk(cache, "--picture", picture, "--out", out) == 130
    assert capsys.readouterr().err == f"interrupted; written: {out}\n"
    assert list(tmp_path.iterdir()) == [out]


def test_interrupted_after_the_training_names_the_checkpoint(tmp_path: Path, monkeypatch, capsys) -> None:
    pytest.importorskip("sklearn")
    monkeypatch.setattr("noisykernels.walk", interrupt)
    assert main(["walk", "--epochs", "0", "--cache", str(tmp_path), "--quiet"]) == 130
    (checkpoint,) = tmp_path.iterdir()
    assert capsys.readouterr().err == f"interrupted; written: {checkpoint}\n"
