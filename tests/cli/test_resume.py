"""A store is data: what its note may say, whoever wrote it, and what is asked of who resumes."""

from __future__ import annotations

import argparse
import io
import json
import re
import shlex
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import torch

from noisykernels._engine.store import Store, note_of, noting
from noisykernels.cli.main import main
from noisykernels.cli.notes import ASKED, TAKEN, words
from noisykernels.cli.parser import parser
from noisykernels.cli.reading import a_path, a_text
from noisykernels.cli.resume import resumed
from noisykernels.study import Study

WALK = [
    "walk",
    "--epochs",
    "1",
    "--rows",
    "20",
    "--levels",
    "0.1,1,10",
    "--draws",
    "1",
    "--sites",
    "fc1",
    "--threads=1",
]
COMMANDS = ("walk", "grid", "mixed", "parameter")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The present folder, in a home with a file to lose."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".bashrc").write_text("mine")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


@pytest.fixture(scope="module")
def filled(cache: str, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A store that `WALK` has filled."""
    path = tmp_path_factory.mktemp("store") / "s.db"
    assert main([*WALK, "--quiet", "--cache", cache, "--store", str(path)]) == 0
    return path.read_bytes()


def noted(path: Path, filled: bytes, note: object) -> Path:
    """The store with another note."""
    path.write_bytes(filled)
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("UPDATE meta SET value = ? WHERE name = 'note command'", (note,))
    return path


def everything(folder: Path) -> dict[str, bytes | None]:
    return {
        str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None
        for p in sorted(folder.rglob("*"))
        if not p.name.endswith((".db", ".db-wal", ".db-shm"))
    }


def may_name_a_file(action: argparse.Action) -> bool:
    """Whether what an option makes of a word is a path, or the word itself, of any letters."""
    if action.nargs == 0 or action.choices is not None or action.dest == "sites":  # names in a model
        return False
    try:
        return isinstance((action.type or str)("../a.csv"), str | Path)
    except (argparse.ArgumentTypeError, ValueError):
        return False


@pytest.mark.parametrize("kind", [a_path, Path, str, None, a_text])
def test_an_option_for_a_file_is_known_as_one(kind: Callable[[str], object] | None) -> None:
    planted = argparse.ArgumentParser().add_argument("--planted", type=kind)
    assert may_name_a_file(planted) and not may_name_a_file(argparse.ArgumentParser().add_argument("--n", type=int))


def test_each_option_is_taken_or_asked_anew_and_none_that_is_taken_names_a_file() -> None:
    """A new option of these commands must be put on one of the lists."""
    commands = parser()._subparsers._group_actions[0].choices
    for name in COMMANDS:
        for action in commands[name]._actions:
            if action.dest not in ("help", "store"):
                assert (action.dest in TAKEN) != (action.dest in ASKED), action.dest
                assert action.dest in ASKED or not may_name_a_file(action), action.dest
    assert ASKED == {a.dest for a in commands["resume"]._actions} - {"help", "store", "yes"}


def test_the_note_holds_the_study_and_no_file(cache: str, place: Path) -> None:
    files = ["--cache", cache, "--store", "s.db", "--out", "a.json", "--export=a.csv", "--quiet", "--json"]
    told = ["--epochs", "1", "--rows", "20", "--sites", "fc1", "fc2", "--levels", "log:0.01:100:5", "--draws", "1"]
    assert main(["grid", *files, *told]) == 0
    threads = ["--threads", str(torch.get_num_threads())]
    assert json.loads(note_of("s.db", "command")) == ["grid", *told[:2], *threads, *told[2:]]
    assert main(["resume", "s.db", "--cache", cache, "--out", "b.json", "--quiet"]) == 0
    assert Study.load("a.json") == Study.load("b.json")


@pytest.mark.parametrize(
    "line",
    [
        "walk --levels 0.1,0.30000000000000004,1e-300", "walk --levels lin:0:2:21", "walk --levels 1e-05,2",
        "grid --levels 1 --plateaus 0.03 --target weight --relative layer --noise mul --kind uniform",
        "mixed --ratios 0,0.1 --order add_mul", "parameter leak --values 0.2,0.3 --seed 18446744073709551615",
        "walk --sites 'a b' 'c*' 3 -1", "parameter leak --values 1 --sites fc1",
        "grid --levels 1 --target weight --arrays call", "parameter leak --values 1 --arrays parameter",
        "walk --groups all", "grid --groups 'a b=c*' a=3 b=-1 --levels 1", "walk --sites=--out=x",
        "walk --at ratio:0.95",
        "walk --detail attention", "walk --rel-ci 0.1 --memory 0.5 --engine plain",
    ],
)  # fmt: skip
def test_a_note_read_again_is_the_same_command(line: str) -> None:
    typed = parser().parse_args(shlex.split(line))
    again = parser().parse_args([typed.command, *words(typed, TAKEN)])
    assert {**vars(again), "own": 0, "given": 0} == {**vars(typed), "own": 0, "given": 0}
    assert [typed.command, *words(again, TAKEN)] == [typed.command, *words(typed, TAKEN)]


FILES = ["--out", "--report", "--export", "--picture", "--cache", "--root", "--store"]
FORMS = [
    lambda flag, path: [flag, path], lambda flag, path: [f"{flag}={path}"], lambda flag, path: [f"{flag[:5]}={path}"],
    lambda flag, path: [flag[:5], path],
]  # fmt: skip


@pytest.mark.parametrize("flag", FILES)
def test_a_note_writes_and_reads_no_file(flag: str, cache: str, place: Path, filled: bytes, capsys) -> None:
    """Absolute, upward, in this folder, through a link; long, short, with `=`."""
    (place / "here" / "link.csv").symlink_to(place / ".bashrc")
    paths = [str(place / ".bashrc"), "../.bashrc", "link.csv", "new.csv", "../new.html", str(place / "made" / "a.json")]
    before = everything(place)
    for path in paths:
        for form in FORMS:
            store = noted(place / "here" / "s.db", filled, json.dumps([*WALK, *form(flag, path)]))
            short = not form(flag, path)[0].startswith(flag)
            assert main(["resume", str(store), "--cache", cache, "--quiet"]) == short
            said = capsys.readouterr()
            if short:
                assert "unrecognized arguments" in said.err and everything(place) == before
                continue
            shown = "walk --epochs 1 --threads 1 --rows 20 --sites fc1 --levels 0.1,1,10 --draws 1\n"
            assert said.err.startswith(f"noisykernels resume: {store} goes on with: python -m noisykernels {shown}")
            assert path not in said.err and "fc1:linear#0" in said.out
            assert flag == "--store" or f"give resume what you want of it: {flag}\n" in said.err
            assert everything(place) == before
            assert json.loads(note_of(store, "command")) == shown.split()


def test_an_option_on_no_list_is_not_taken(place: Path, filled: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("noisykernels.cli.resume.ASKED", frozenset())
    monkeypatch.setattr("noisykernels.cli.resume.TAKEN", frozenset({"model"}))
    noted(Path("s.db"), filled, json.dumps([*WALK, *(f"{flag}=../.bashrc" for flag in FILES)]))
    args = resumed(parser().parse_args(["resume", "s.db", "--yes"]))
    told = vars(parser().parse_args(["walk", "--store", "s.db"]))
    assert {k: v for k, v in vars(args).items() if k in told and k not in ("own", "given")} == {
        k: v for k, v in told.items() if k not in ("own", "given")
    }


def test_what_is_asked_for_is_written(cache: str, place: Path, filled: bytes, capsys) -> None:
    noted(Path("s.db"), filled, json.dumps([*WALK, "--out", "../.bashrc", "--json"]))
    assert main(["resume", "s.db", "--cache", cache, "--out", "a.json", "--export", "a.csv", "--quiet"]) == 0
    assert "study: a.json\nrecords: a.csv\n" in capsys.readouterr().out
    assert len(Study.load("a.json").records) == 3 and (place / ".bashrc").read_text() == "mine"
    assert main(["resume", "s.db", "--cache", cache, "--json", "--quiet"]) == 0
    assert json.loads(capsys.readouterr().out)["midpoints"]


def test_a_file_that_the_command_does_not_write_is_refused(place: Path, filled: bytes, capsys) -> None:
    noted(Path("s.db"), filled, json.dumps(["mixed"]))
    assert main(["resume", "s.db", "--report", "a.html"]) == 1
    assert capsys.readouterr().err == (
        "noisykernels resume: --report: does not go with the command of s.db, which is mixed\n"
    )


@pytest.mark.parametrize(
    ("note", "said"),
    [
        ('"walk"', "damaged"), ("{}", "damaged"), ("null", "damaged"), ("[1]", "damaged"), ('["walk", 1]', "damaged"),
        ('["walk", null]', "damaged"), ('["walk", ["--out", "x"]]', "damaged"), ("[" * 100_000, "damaged"),
        (b"\xff\x00", "damaged"), (7, "its command is no walk|damaged"), (json.dumps(["walk", "x" * 2**20]), "damaged"),
        ('["vote"]', "no walk, grid, mixed or parameter, but .'vote'."), ('["resume", "s.db"]', "no walk, grid"),
        ('["report", "s.db"]', "no walk, grid"), ('["--help"]', "no walk, grid"),
        ('["walk", "--help"]', "asks for help"),
        ('["walk", "-h"]', "asks for help"), ('["walk", "--he"]', "unrecognized"),
        ('["walk", "s.db"]', "unrecognized"),
        ('["walk", "--fly"]', "unrecognized arguments: --fly"),
        ('["walk", "--model", "vgg"]', "expected one of lenet5, .*'vgg'"),
        ('["walk", "--model", "../../x"]', "expected one of"), ('["walk", "--data", "/etc"]', "expected one of"),
        ('["walk", "--levels", "lin:0:1:x"]', "expected 0.1,0.3,1"), ('["walk", "--o", "x"]', "unrecognized"),
        ('["walk", "@/etc/passwd"]', "unrecognized"), ('["walk", "--device", "/dev/sda"]', "expected one of cpu"),
        ('["walk", "--", "x"]', "unrecognized"), ('["parameter"]', "required"),
        ('["walk", "--epochs", "1e9"]', "expected a whole number"),
    ],
    ids=lambda v: str(v)[:30],
)  # fmt: skip
def test_a_note_that_cannot_be_read(note: object, said: str, place: Path, filled: bytes, capsys) -> None:
    noted(Path("s.db"), filled, note)
    before = everything(place)
    assert main(["resume", "s.db"]) == 1
    told = capsys.readouterr()
    assert re.match(f"noisykernels resume: s.db: .*({said})", told.err) and told.err.count("\n") == 1 and not told.out
    assert everything(place) == before


@pytest.mark.parametrize(
    "name", ["fc1\x1b[2J\x1b]0;mine\x07", "\u202egpj.exe", "a\nnoisykernels: all is well", "\udce9"]
)
def test_what_a_note_says_does_nothing_to_the_terminal(
    name: str, cache: str, place: Path, filled: bytes, capsys
) -> None:
    noted(Path("s.db"), filled, json.dumps(["walk", "--epochs=1", "--rows=9", "--levels=1,2,3", "--sites", name]))
    assert main(["resume", "s.db", "--cache", cache, "--quiet"]) == 1
    told = capsys.readouterr().err
    assert "goes on with" in told and "no site" in told
    assert told.count("\n") == 2 and all(line.isprintable() for line in told.splitlines())
    noted(Path("s.db"), filled, json.dumps(["walk", f"--{name}"]))
    assert main(["resume", "s.db"]) == 1
    assert all(line.isprintable() for line in capsys.readouterr().err.splitlines())


def test_a_store_of_something_else_is_not_resumed(place: Path, filled: bytes, capsys) -> None:
    """The note says one study, the key another: the results are not mixed."""
    noted(Path("s.db"), filled, json.dumps([*WALK, "--seed", "5"]))
    assert main(["resume", "s.db", "--quiet", "--yes", "--cache", "new"]) == 1
    assert "results of another study" in capsys.readouterr().err


def test_a_store_without_a_note_of_ours(place: Path, capsys) -> None:
    with noting("author", "me"):
        Store("s.db", {"seed": 1}).close()
    assert main(["resume", "s.db"]) == 1
    assert "holds no command" in capsys.readouterr().err


@pytest.mark.parametrize("answer", [None, "", "n\n", "yes, but no\n", "y\n", " YES \n"])
def test_nothing_is_trained_without_a_yes(
    answer: str | None, place: Path, filled: bytes, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the note would have trained is named first; where there is no one to ask, --yes says it."""
    store = noted(Path("s.db"), filled, json.dumps([*WALK, "--train-seed", "9"]))
    terminal = io.StringIO(answer or "")
    monkeypatch.setattr(terminal, "isatty", lambda: answer is not None)
    monkeypatch.setattr("sys.stdin", terminal)
    yes = answer is not None and answer.strip().lower() in ("y", "yes")
    before = everything(place)
    assert main(["resume", str(store), "--cache", "new", "--quiet"]) == 1  # at the latest, as the store is another's
    said = capsys.readouterr().err
    assert "train mlp on digits for 1 epochs" in said and ("results of another study" in said) == yes
    assert yes == Path("new").exists() and (yes or everything(place) == before)
    assert answer is not None or said.endswith("Nothing was done: give resume --yes for it\n")


def test_what_is_here_is_not_asked_about(cache: str, place: Path, filled: bytes, monkeypatch) -> None:
    Path("s.db").write_bytes(filled)
    monkeypatch.setattr("sys.stdin", None)
    assert main(["resume", "s.db", "--cache", cache, "--quiet"]) == 0


def test_a_download_is_asked_for(place: Path, filled: bytes, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("noisykernels.datasets.vision.SYSTEM_FOLDER", place / "nothing")
    noted(Path("s.db"), filled, json.dumps(["walk", "--data", "mnist", "--epochs", "0"]))
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert main(["resume", "s.db", "--cache", "new", "--root", "data"]) == 1
    assert "download mnist and train mlp on mnist for 0 epochs? Nothing was done" in capsys.readouterr().err
    assert not Path("new").exists() and not Path("data").exists()
