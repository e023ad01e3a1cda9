"""The store under kill -9, power cuts, full disks, refusals, removal and Ctrl-C: what was confirmed is there."""

from __future__ import annotations

import dis
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest
from stores import KEY

from noisykernels._engine import store_file
from noisykernels._engine.store import Store, StoreError

ROOT = Path(__file__).parents[2]
needs_shim = pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("cc") is None, reason="needs a C compiler and Linux' LD_PRELOAD"
)


def faults(*arguments: str, root: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Runs the helper that counts, kills, cuts and refuses file operations; prints its table."""
    script = [sys.executable, str(root / "tests/helpers/store_faults.py"), *arguments]
    done = subprocess.run(script, capture_output=True, text=True)
    print(done.stdout, done.stderr, sep="\n")
    return done


def every(*steps: int) -> list[Any]:
    return [*steps, pytest.param(1, marks=pytest.mark.full)]


# File operations ----------------------------------------------------------------------------------


@needs_shim
@pytest.mark.parametrize("step", every(5))
def test_killed_at_each_file_operation(step: int) -> None:
    """Before each call, in the middle of each write, and while another process has the store open."""
    assert faults("kills", "--every", str(step)).returncode == 0


@needs_shim
@pytest.mark.parametrize("step", every(5))
def test_the_power_goes_at_each_moment(step: int) -> None:
    """What was not synchronised is gone, or there in parts: sectors, lengths and names each by itself."""
    assert faults("cuts", "--every", str(step)).returncode == 0


@needs_shim
@pytest.mark.parametrize("step", every(13))
def test_the_system_refuses_each_file_operation(step: int) -> None:
    """Full disk, quota, broken disk, read-only file system, once or from then on: one sentence, and a whole store."""
    assert faults("errors", "--every", str(step)).returncode == 0


DEFECTS = {
    "a half-written file is damaged": ("kills", "store_file.py", 'db.execute("PRAGMA writable_schema = ON")', "pass"),
    "the last results are in memory": ("cuts", "store.py", "synchronous = FULL", "synchronous = NORMAL"),
    "the name is in memory": ("cuts", "store_file.py", "os.fsync(folder)", "pass"),
    "made by a log": ("errors", "store_file.py", '("PRAGMA sync', '("PRAGMA journal_mode = WAL", "PRAGMA sync'),
    "made in place": ("kills", "store_file.py", "_fill(part, meta)", "_fill(file, meta), _fill(part, meta)"),
}  # fmt: skip


@needs_shim
@pytest.mark.full
@pytest.mark.parametrize("name", DEFECTS)
def test_defects_of_the_store_are_found(name: str, tmp_path: Path) -> None:
    """The store of former days, and worse ones."""
    what, module, before, after = DEFECTS[name]
    for part in ("tests/helpers", "noisykernels/_engine"):
        shutil.copytree(ROOT / part, tmp_path / part)
    file = tmp_path / "noisykernels/_engine" / module
    assert before in file.read_text()
    file.write_text(file.read_text().replace(before, after, 1))
    done = faults(what, "--every", "3", root=tmp_path)
    assert done.returncode == 1 and "all  " in done.stdout  # a table, not an error of the helper


@pytest.fixture
def small_disk(tmp_path: Path) -> Any:
    """Mounts a disk of so many KiB; called again, it gets larger."""
    place, mounted = tmp_path / "disk", False
    place.mkdir()

    def sized(kib: int) -> Path:
        nonlocal mounted
        how = ["-o", f"remount,size={kib}k"] if mounted else ["-t", "tmpfs", "-o", f"size={kib}k"]
        if subprocess.run(["mount", *how, "tmpfs", str(place)], capture_output=True).returncode:
            pytest.skip("file systems cannot be mounted here")
        mounted = True
        return place

    yield sized
    if mounted:
        subprocess.run(["umount", str(place)], check=True)


@pytest.mark.skipif(shutil.which("mount") is None, reason="needs mount")
@pytest.mark.parametrize("kib", [8, 24, 36, 44, 60, 80, 100, 120, 400])
def test_a_disk_that_fills_up(small_disk: Callable[[int], Path], kib: int) -> None:
    """From too small for an empty store to large enough: what went in is there when there is space again."""
    file, confirmed = small_disk(kib) / "study.db", 0
    said: list[str] = []
    for _ in range(2):  # the second time on a disk that is full already
        try:
            with Store(file, KEY) as s:
                for n in range(confirmed, 20):
                    s.finish({f"{n:02}": ["x" * 3000]}, "me")
                    confirmed = n + 1
        except StoreError as error:
            said.append(str(error))
    assert all(re.fullmatch(re.escape(str(file)) + ": cannot be .*: No space left on device", each) for each in said)
    assert file.exists() or not list(file.parent.iterdir())
    small_disk(4096)
    with Store(file, KEY) as s:
        assert list(s.done()) == [f"{n:02}" for n in range(confirmed)]
        s.finish({"99": 1}, "me")
    assert [p.name for p in file.parent.iterdir()] == ["study.db"]
    assert (confirmed == 20) == (kib == 400) == (not said)


# Removal ------------------------------------------------------------------------------------------


def removed(file: Path) -> None:
    shutil.rmtree(file.parent)


def renamed(file: Path) -> None:
    file.rename(file.with_name("other.db"))


def replaced(file: Path) -> None:
    shutil.copy(file, file.with_name("copy"))
    file.with_name("copy").replace(file)


def without_its_log(file: Path) -> None:
    file.with_name(f"{file.name}-wal").unlink()


@pytest.mark.parametrize("change", [removed, renamed, replaced, without_its_log])
def test_removed_while_it_is_open(tmp_path: Path, change: Callable[[Path], None]) -> None:
    """Nothing is confirmed that nobody will find."""
    file = tmp_path / "folder" / "study.db"
    file.parent.mkdir()
    with Store(file, KEY) as s:
        s.finish({"a": 1}, "me")
        change(file)
        for _ in range(2):
            with pytest.raises(StoreError, match=r"study\.db: was removed or replaced while it was open"):
                s.finish({"b": 1}, "me")


# Ctrl-C -------------------------------------------------------------------------------------------


@cache
def heard(code: CodeType) -> set[int]:
    """Before which instructions signals are looked for: those that follow a call."""
    steps = list(dis.get_instructions(code))
    return {after.offset for call, after in pairwise(steps) if call.opname.startswith(("CALL", "RESUME"))}


def interrupted(work: Callable[[], object], n: int) -> bool:
    """Ctrl-C at the n-th instruction of the store, within `work`, that hears of it; whether there are so many."""
    left = n

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal left
        if Path(frame.f_code.co_filename).name not in ("store.py", "store_file.py", "contextlib.py"):
            return None
        frame.f_trace_opcodes = True
        if event == "opcode" and frame.f_lasti in heard(frame.f_code):
            left -= 1
            if not left:
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return left <= 0


def test_interrupted_at_each_instruction(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No transaction stays open, no lock is kept, and it is the KeyboardInterrupt that comes out."""
    monkeypatch.setattr(store_file, "_BUSY_SECONDS", 0.0)
    with Store(path, KEY) as s, Store(path, KEY) as other:
        for each in (s, other):
            assert each._db is not None
            each._db.execute("PRAGMA synchronous = OFF")
        works: list[Callable[[int], object]] = [
            lambda n: s.done(), lambda n: s.claim(["mine"], "me", 60, 1), lambda n: s.heartbeat("me"),
            lambda n: s.finish({f"{n}": 1}, "me"),  # comes last: what there is takes time to read
        ]  # fmt: skip
        for work in works:
            for n in range(1, 10_000):
                try:
                    assert not interrupted(lambda n=n, work=work: work(n), n)
                    break
                except KeyboardInterrupt:  # as a study does, while the exception is on its way
                    s.release("me")
                other.finish({"other": 1}, "other")
                assert other.claim(["other's"], "other", 60, 1) == ["other's"] and other.release("other") == 1
                free = threading.Thread(target=s.heartbeat, args=("me",), daemon=True)
                free.start()
                free.join(10)
                assert not free.is_alive()
            assert n > 20
