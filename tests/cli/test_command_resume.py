"""`resume`: a study that was killed or interrupted goes on and ends as one that was not; what cannot be resumed."""

from __future__ import annotations

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
from command_runs import environment, interrupt, small_walk

import noisykernels as nk
from noisykernels._engine.store import Store, noting
from noisykernels.cli.main import main


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
        assert small_walk(cache, "--sites", "fc1", "--store", store) == 130
    go_on = f"python -m noisykernels resume '{store}' --cache {cache} --quiet"
    assert capsys.readouterr().err == f"interrupted; nothing was written; results are kept, go on with: {go_on}\n"
    again = shlex.split(go_on)[3:]
    assert main(again) == 0
    assert "fc1:linear#0" in capsys.readouterr().out
    monkeypatch.setattr("noisykernels.cli.commands.Study.table", interrupt)
    assert main(again) == 130
    assert capsys.readouterr().err.endswith(f"{go_on}\n")


def test_with_yes_what_is_not_here_is_trained(cache: str, tmp_path: Path) -> None:
    """Nobody is asked, and the study is the same."""
    store, new, files = tmp_path / "s.db", tmp_path / "new", [tmp_path / "a.json", tmp_path / "b.json"]
    assert small_walk(cache, "--sites", "fc1", "--store", store, "--out", files[0]) == 0
    assert main(["resume", str(store), "--cache", str(new), "--yes", "--quiet", "--out", str(files[1])]) == 0
    assert nk.Study.load(files[0]) == nk.Study.load(files[1]) and any(new.iterdir())


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
