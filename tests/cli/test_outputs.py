"""Files of commands: found fit before any work, written after the table, each as far as it goes."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest

from noisykernels.cli.main import main
from noisykernels.study import Result, Study
from noisykernels.zoo import pretrained

FILES = {  # command: its options that name a file to write
    "walk": ("--out", "--report", "--export", "--picture", "--store"),
    "grid": ("--out", "--report", "--export", "--picture", "--store"),
    "mixed": ("--picture", "--store"),
    "parameter": ("--out", "--report", "--export", "--picture", "--store"),
    "vote": ("--out", "--picture"),
    "chips": ("--out",),
}
ENDINGS = {"--export": ".csv", "--picture": ".png"}


@pytest.fixture(scope="module")
def fixed(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    return ["--epochs", "1", "--cache", str(tmp_path_factory.mktemp("checkpoints")), "--quiet", "--rows", "30"]


@pytest.fixture
def walk(fixed: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    return ["walk", *fixed, "--levels", "0.1,1,10", "--draws", "1", "--sites", "fc1"]


@pytest.mark.parametrize(("command", "flag"), [(c, f) for c, flags in FILES.items() for f in flags])
def test_a_path_that_cannot_be_written_is_found_before_any_work(
    command: str, flag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")

    def work(*_: object, **__: object) -> None:
        raise AssertionError("work has begun")

    monkeypatch.setattr("noisykernels.cli.commands.trained", work)
    monkeypatch.chdir(tmp_path)
    end = ENDINGS.get(flag, "")
    Path(f"folder{end}").mkdir()
    Path("file").write_text("mine")
    Path(f"loop{end}").symlink_to(f"loop{end}")
    more = ["leak", "--values", "0.1"] if command == "parameter" else []
    with pytest.raises(SystemExit):
        main([command, *more, flag, ""])
    assert capsys.readouterr().err == f"noisykernels {command}: argument {flag}: expected a path, got ''\n"
    for path in (f"folder{end}", ".", "..", f"file/a{end}", f"no/a{end}", f"loop{end}", f"/proc/no{end}",
                 "a" * 300 + end):  # fmt: skip
        before = sorted(tmp_path.rglob("*"))
        assert main([command, *more, flag, path]) == 1
        said = capsys.readouterr()
        assert said.err.startswith(f"noisykernels {command}: {Path(path)}: ") and said.err.count("\n") == 1, said.err
        assert not said.out and sorted(tmp_path.rglob("*")) == before
    with pytest.raises(AssertionError, match="work has begun"):
        main([command, *more, flag, f"new{end}"])


def test_the_folder_of_mixed_studies(
    fixed: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("mine")
    line = ["mixed", *fixed, "--ratios", "0.5", "--levels", "0.1,1,10", "--draws", "1", "--sites", "fc1", "--out"]
    for path, said in (("file", "is a file, expected a folder"), ("no/a", "the folder does not exist")):
        assert main([*line, path]) == 1
        assert capsys.readouterr().err == f"noisykernels mixed: {path}: {said}\n"
    for _ in range(2):  # the second time it is there
        assert main([*line, "made"]) == 0
        assert capsys.readouterr().out.endswith("written: made/ratio-0.5.json\n")


def test_each_file_has_a_path_of_its_own(walk: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    Path("link.csv").symlink_to("a.csv")
    for flags in (["--out", "a.csv", "--export", "a.csv"], ["--out", "s.db", "--store", "s.db"],
                  *(["--out", f"s.db{end}", "--store", "s.db"] for end in ("-wal", "-shm", "-journal")),
                  ["--out", "./a.csv", "--export", "link.csv"], 2 * ["--export", "a.csv"]):  # fmt: skip
        assert main([*walk, *flags]) == 1
        said = capsys.readouterr()
        assert "is asked for twice, expected a file of its own\n" in said.err and not said.out
    assert sorted(map(str, Path().iterdir())) == ["link.csv"]
    assert main([*walk, "--out", "a.json"]) == 0
    before = Path("a.json").read_bytes()
    for line in (["report", "a.json", "--out", "a.json"], ["compare", "a.json", "a.json", "--out", "a.json"]):
        assert main(line) == 1
        assert "a.json: is asked for twice" in capsys.readouterr().err
    assert Path("a.json").read_bytes() == before
    assert main([*walk, "--out", "/dev/null", "--report", "/dev/null"]) == 0


def test_a_store_or_a_cache_that_can_be_none_is_told_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("sklearn")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pretrained, "train", None)
    os.mkfifo("pipe")
    for path in ("/dev/null", "pipe"):
        assert main(["walk", "--cache", "new", "--store", path]) == 1
        said = f"{path}: is a device, a pipe or a socket, expected a regular file"
        assert capsys.readouterr().err == f"noisykernels walk: {said}\n"
    assert main(["walk", "--cache", "/dev/null"]) == 1
    assert "noisykernels walk: /dev/null/mlp-digits" in (said := capsys.readouterr().err) and said.count("\n") == 1
    assert "not a directory" in said and sorted(map(str, Path().iterdir())) == ["pipe"]


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_what_can_be_written_is_and_the_rest_is_named(
    form: list[str], walk: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The disk is full for one file, a folder goes away under another: the table is there, and so are the others."""
    assert main([*walk, *form]) == 0
    table = capsys.readouterr().out

    def table_first(study: Study, path: Path, **_: object) -> None:
        assert capsys.readouterr().out == table
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("noisykernels.study.study.Study.save", table_first)
    monkeypatch.setattr("noisykernels.cli.commands.draw_picture", lambda study, path: Path("folder").rmdir())
    Path("folder").mkdir()
    flags = [
        "--out",
        "a.json",
        "--picture",
        "a.png",
        "--export",
        "folder/a.csv",
        "--export",
        "b.csv",
        "--report",
        "c.html",
    ]
    monkeypatch.setattr("noisykernels.cli.commands.Study.export", export_without_making_folders)
    assert main([*walk, *form, *flags]) == 1
    said = capsys.readouterr()
    assert said.err.startswith("noisykernels walk: a.json: no space left on device; folder/a.csv: ")
    assert said.err.count("\n") == 1 and sorted(map(str, Path().iterdir())) == ["b.csv", "c.html"]
    assert said.out == ("" if form else "picture: a.png\nrecords: b.csv\nreport: c.html\n")


def export_without_making_folders(self: Study, path: Path, **_: object) -> None:
    path.write_text("records")


def test_a_full_device(walk: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    if not Path("/dev/full").is_char_device():
        pytest.skip("no such device here")
    assert main([*walk, "--out", "/dev/full", "--export", "a.csv"]) == 1
    said = capsys.readouterr()
    assert said.err == "noisykernels walk: /dev/full: no space left on device\n"
    assert "fc1:linear#0" in said.out and said.out.endswith("records: a.csv\n") and Path("a.csv").exists()


def test_files_are_written_into_pipes_and_through_links(walk: list[str]) -> None:
    """Each kind of file; a private one stays private."""
    Path("private.json").write_text("old")
    Path("private.json").chmod(0o600)
    Path("link.json").symlink_to("private.json")
    got: dict[str, bytes] = {}
    names = {"--export": "p.csv", "--report": "p.html", "--picture": "p.pdf"}
    for name in names.values():
        os.mkfifo(name)
    readers = [threading.Thread(target=lambda n=n: got.update({n: Path(n).read_bytes()})) for n in names.values()]
    for reader in readers:
        reader.start()
    assert main([*walk, "--out", "link.json", *(word for pair in names.items() for word in pair)]) == 0
    for reader in readers:
        reader.join(30)
    assert got["p.csv"].startswith(b"site,") and got["p.html"].startswith(b"<!DOCTYPE") and got["p.pdf"][:4] == b"%PDF"
    assert all(Path(name).is_fifo() for name in names.values())
    assert Path("link.json").is_symlink() and Path("private.json").stat().st_mode & 0o777 == 0o600
    assert len(Study.load("private.json").records) == 3


def test_a_study_into_an_open_file(walk: list[str], capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert main([*walk, "--json", "--out", "/dev/stdout"]) == 0
    first, second = capfdbinary.readouterr().out.decode().split("\n}\n")
    assert json.loads(first + "\n}")["midpoints"]
    Path("a.json").write_text(second)
    assert Result.load("a.json") == Study.load("a.json")


def test_a_result_without_a_table_is_kept(
    walk: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_table(self: Study) -> str:
        raise ValueError("no midpoints")

    monkeypatch.setattr("noisykernels.study.study.Study.table", no_table)
    assert main([*walk, "--out", "a.json"]) == 1
    assert capsys.readouterr().err == "noisykernels walk: no midpoints\n" and len(Study.load("a.json").records) == 3
