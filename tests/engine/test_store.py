"""The results store: nothing is lost, done twice or overwritten, whoever is killed; what does not fit is refused."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest
import torch
from stores import KEY, refused

from noisykernels._engine import store, store_file
from noisykernels._engine.store import Store, StoreError, note_of, noting
from noisykernels._engine.store_file import network_file_system
from noisykernels._engine.store_keys import task_key

HELPERS = str(Path(__file__).parents[1] / "helpers")
KEYS = [task_key("fc:linear#0", [0.1 * n], [0], (0, 100)) for n in range(200)]

# A coordinator in a process of its own. It has the store alone, to start quickly, and says what it finished.
WORKER = """
import json, os, sys, time
sys.path.insert(0, sys.argv[1])
from bare_store import Store
assert "torch" not in sys.modules
path, keys, pause = sys.argv[2], json.loads(sys.argv[3]), float(sys.argv[4])
owner = f"process {os.getpid()}"
with Store(path, json.loads(sys.argv[5])) as s:
    print("open", flush=True)
    while s.missing(keys):
        for task in s.claim(keys, owner, 0.05 if pause else 60, 4):
            time.sleep(pause)
            s.finish({task: {"correct": sum(task.encode())}}, owner)
            print(task, flush=True)
        if not pause and not s.claim(keys, owner, 60, 0) and s.heartbeat(owner) == 0:
            time.sleep(0.005)
"""


def result_of(task: str) -> dict[str, int]:
    return {"correct": sum(task.encode())}


def start(path: Path, keys: list[str], pause: float = 0.0) -> subprocess.Popen[str]:
    script = [sys.executable, "-c", WORKER, HELPERS, str(path), json.dumps(keys), str(pause), json.dumps(KEY)]
    return subprocess.Popen(script, stdout=subprocess.PIPE, text=True)


# Results ------------------------------------------------------------------------------------------


def test_round_trip(path: Path) -> None:
    with Store(path, KEY) as s:
        assert s.done() == {} and s.missing(["b", "a", "b"]) == ["b", "a"]
        for task in ("b", "a"):
            s.finish({task: {"correct": [1, 2], "nan": 0, "text": "ü|'\n"}}, "me")
    with Store(path, KEY) as s:
        assert list(s.done()) == ["a", "b"]
        assert s.done()["a"] == {"correct": [1, 2], "nan": 0, "text": "ü|'\n"}
        assert s.missing(["c", "b", "a"]) == ["c"]
    assert sorted(p.name for p in path.parent.iterdir()) == [path.name]  # no log, no part is left


def test_the_longest_name(path: Path) -> None:
    """Of which there can be a journal: 255 characters with its ending."""
    with Store(path.with_name("n" * 247), KEY) as s:
        s.finish({"a": 1}, "me")
    with Store(path.with_name("n" * 247), KEY) as s:
        assert s.done() == {"a": 1}


def test_a_result_never_changes(path: Path) -> None:
    with Store(path, KEY) as s:
        s.finish({"a": {"x": 1, "y": 2}}, "me")
        s.finish({"a": {"y": 2, "x": 1}}, "you")
        with pytest.raises(StoreError, match=r'determinism violated: task a has .*"x":1.* from me, and you .*"x":3'):
            s.finish({"a": {"x": 3, "y": 2}}, "you")
        for bad in (float("nan"), {"x": float("inf")}, object()):
            with pytest.raises((ValueError, TypeError)):
                s.finish({"b": bad}, "me")
        assert s.done() == {"a": {"x": 1, "y": 2}}


def test_more_levels_draws_and_sites_repeat_nothing(path: Path) -> None:
    def keys(sites: int, levels: int, draws: int) -> list[str]:
        return [
            task_key(f"s{s}", [v / 10], [d], (0, 9)) for s in range(sites) for v in range(levels) for d in range(draws)
        ]

    total = 0
    for size in ((1, 2, 2), (1, 4, 2), (1, 4, 3), (2, 4, 3)):
        with Store(path, KEY) as s:
            new = s.claim(keys(*size), "me", 60, 1000)
            assert not set(new) & set(s.done())
            for task in new:
                s.finish({task: 0}, "me")
            total += len(new)
            assert total == len(keys(*size)) == len(s.done())


def test_task_key() -> None:
    assert task_key("conv1:conv2d#0", [0.1], [0, 1, 2], (0, 2000)) == "conv1:conv2d#0|0x1.999999999999ap-4|0,1,2|0:2000"
    assert task_key("s", [0.1 + 0.2], [0], (0, 1)) != task_key("s", [0.3], [0], (0, 1))
    assert task_key("s", [1], torch.tensor([3]), (0, 1)) == task_key("s", [1.0], [3], (0, 1))  # type: ignore[arg-type]
    for bad in (
        ("s", [1.0], [], (0, 1)),
        ("s", [1.0], [-1], (0, 1)),
        ("s", [1.0], [0], (1, 1)),
        ("s", [float("nan")], [0], (0, 1)),
    ):
        with pytest.raises(ValueError, match="task_key"):
            task_key(*bad)


# Claims -------------------------------------------------------------------------------------------


def test_claims(path: Path) -> None:
    with Store(path, KEY) as a, Store(path, KEY) as b:
        a.finish({"t0": 0}, "a")
        tasks = [f"t{n}" for n in range(6)]
        assert a.claim(tasks, "a", 60, 2) == ["t1", "t2"]
        assert a.claim(tasks, "a", 60, 1) == ["t3"]  # nor its own again
        assert b.claim([*tasks, "t4"], "b", 60, 10) == ["t4", "t5"]
        assert b.claim(tasks, "b", 60, 10) == []
        a.finish({"t1": 0}, "a")
        assert (a.heartbeat("a"), a.release("a"), a.release("a")) == (2, 2, 0)
        assert b.claim(tasks, "b", 60, 10) == ["t2", "t3"]
        for bad in ((0, 1), (float("inf"), 1), (-1, 1), (1, -1)):
            with pytest.raises(ValueError, match="claim"):
                a.claim(tasks, "a", *bad)


def test_leases_expire(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1_000_000_000
    monkeypatch.setattr(store, "_now", lambda: now)
    with Store(path, KEY) as s:
        assert s.claim(["t"], "a", 10, 1) == ["t"]
        now += 9_999_999
        assert s.claim(["t"], "b", 10, 1) == []
        assert s.heartbeat("a") == 1
        now += 5_000_000
        assert s.heartbeat("a") == 1
        now += 9_999_999
        assert s.claim(["t"], "b", 10, 1) == []
        now += 1
        assert s.claim(["t"], "b", 10, 1) == ["t"]  # taken over
        assert (s.heartbeat("a"), s.heartbeat("b"), s.release("a")) == (0, 1, 0)
        now -= 3_600_000_000  # the clock is set back: the lease from the future does not last an hour and more
        assert s.claim(["t"], "c", 10, 1) == ["t"]
        s.finish({"t": 1}, "a")  # late, and right
        s.finish({"t": 1}, "c")
        assert s.claim(["t"], "b", 10, 1) == [] and s.heartbeat("c") == 0


def test_two_processes_share_the_tasks(path: Path) -> None:
    processes = [start(path, KEYS) for _ in range(2)]  # either may make the file
    said = [p.communicate(timeout=60)[0].split("\n")[1:-1] for p in processes]
    assert [p.returncode for p in processes] == [0, 0]
    assert sorted(said[0] + said[1]) == sorted(KEYS)  # each once
    with Store(path, KEY) as s:
        assert s.done() == {task: result_of(task) for task in sorted(KEYS)}


def test_killed_at_any_moment(path: Path, tmp_path: Path) -> None:
    """Ten times kill -9 of a process that writes: what it said was finished is there, and in the end everything is."""
    random.seed(0)
    before: dict[str, object] = {}
    for kill in range(10):
        process = start(path, KEYS, pause=0.001)
        assert process.stdout is not None
        if kill:  # the first one is killed while it starts, or makes the file
            process.stdout.readline()
        time.sleep(random.uniform(0.0, 0.04) if kill else 0.06)
        process.kill()
        said = process.stdout.read().split("\n")[:-1]
        process.wait()
        with Store(path, KEY) as s:
            done = s.done()
        assert before.items() <= done.items() and set(said) - {"open"} <= set(done)
        before = done
    assert 0 < len(before) < len(KEYS)
    assert start(path, KEYS, pause=0.001).wait(timeout=60) == 0
    assert start(tmp_path / "uninterrupted.db", KEYS, pause=0.001).wait(timeout=60) == 0
    with Store(path, KEY) as s, Store(tmp_path / "uninterrupted.db", KEY) as u:
        assert list(s.done().items()) == list(u.done().items()) and len(u.done()) == len(KEYS)


def test_threads_share_a_store(path: Path) -> None:
    with Store(path, KEY) as s:

        def work(owner: str) -> None:
            while found := s.claim(KEYS, owner, 60, 5):
                for task in found:
                    s.finish({task: owner}, owner)  # a second result would differ

        threads = [threading.Thread(target=work, args=(str(n),)) for n in range(4)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        assert len(s.done()) == len(KEYS)


# Refusals -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"correct,rows\n" * 1000, b"SQLite format 3", b"\0" * 4096], ids=str)
def test_not_sqlite(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    refused(path, "not an SQLite file")


def test_of_something_else(path: Path) -> None:
    path.touch()
    refused(path, "not a results store, but an empty file")
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE tasks (task, result)")
    refused(path, "not a results store, but an SQLite file of something else")
    with closing(sqlite3.connect(path)) as db:  # in use, and killed: what is in its log stays in its log
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("INSERT INTO tasks VALUES (1, 2)")
        db.commit()
        other = path.with_name("other.db")
        for end in ("", "-wal"):
            shutil.copy(f"{path}{end}", f"{other}{end}")
    refused(other, "something else")


def test_newer_format(path: Path) -> None:
    Store(path, KEY).close()
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 2")
    refused(path, "format version 2; this release reads version 1")


def filled(path: Path) -> bytearray:
    with Store(path, KEY) as s:
        for task in KEYS:
            s.finish({task: {"correct": 123456789}}, "me")
    return bytearray(path.read_bytes())


def test_damaged_structure(path: Path) -> None:
    content = filled(path)
    path.write_bytes(content[: len(content) // 2])
    refused(path, "damaged: ")
    half = len(content) // 2 // 4096 * 4096
    path.write_bytes(content[:half] + b"\xff" * 4096 + content[half + 4096 :])
    refused(path, "damaged: ")
    path.write_bytes(content[:100] + b"\xff" * 3996 + content[4096:])
    refused(path, "damaged: ")


def test_damaged_value(path: Path) -> None:
    content = filled(path)
    path.write_bytes(content.replace(b"123456789", b"123456780", 1))
    with Store(path, KEY) as s, pytest.raises(StoreError, match=r"damaged: the checksum of task .* does not fit"):
        s.done()
    path.write_bytes(content.replace(b'{"plan"', b'["plan"'))
    refused(path, "damaged: ")


def test_damaged_under_way(path: Path) -> None:
    content = filled(path)
    with Store(path, KEY) as s:
        path.write_bytes(b"\xff" * len(content))
        assert s._db is not None
        s._db.execute("PRAGMA shrink_memory")  # forgets the pages that it has read
        with pytest.raises(StoreError, match="damaged: "):
            s.done()


def test_log_without_its_file(path: Path) -> None:
    with Store(path, KEY) as s:
        s.finish({"a": 1}, "me")
        path.rename(path.with_name("b"))
        refused(path, "the file is gone, but .*-wal of it is there")


def test_made_whole_or_not_at_all(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(part: Path, file: Path) -> None:
        assert part.exists() and not file.exists()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "link", interrupted)
        with pytest.raises(KeyboardInterrupt):
            Store(path, KEY)
    assert list(path.parent.iterdir()) == []
    link, other = os.link, Store(path.with_name("other.db"), KEY)
    other.finish({"a": 1}, "me")
    other.close()

    def second(part: Path, file: Path) -> None:  # another process is first
        other.path.rename(file)
        link(part, file)

    monkeypatch.setattr(os, "link", second)
    with Store(path, KEY) as s:
        assert s.done() == {"a": 1}


def test_unwritable(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused(Path("/proc/study.db"), "cannot be (written|used|read or written)")  # read-only to root as well
    with pytest.raises(StoreError, match="its folder does not exist"):
        Store(path.with_name("none") / "study.db", KEY)
    assert not path.with_name("none").exists()
    refused(path.parent, "is a folder")
    Store(path, KEY).close()
    for place in (path.parent, path):
        with monkeypatch.context() as patch:
            patch.setattr(os, "access", lambda p, mode, place=place: p != place)
            refused(path, f"cannot be written: {re.escape(str(place))} is read-only")


def test_locked(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Store(path, KEY).close()
    monkeypatch.setattr(store_file, "_BUSY_SECONDS", 0.05)
    with Store(path, KEY) as s, closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match=r"locked: another process kept it locked for 0\.05 s"):
            s.finish({"a": 1}, "me")
        assert s.done() == {}  # readers never wait
        db.execute("ROLLBACK")
        s.finish({"a": 1}, "me")


def test_closed_and_forked(path: Path) -> None:
    with Store(path, KEY) as s:
        if (child := os.fork()) == 0:
            code = 1
            try:
                s.close()  # does nothing: the parent goes on
                assert s._db is not None
                s.finish({"a": 2}, "child")
            except StoreError as error:
                code = 0 if "a forked child must open its own" in str(error) else 2
            finally:
                os._exit(code)
        assert os.waitpid(child, 0)[1] == 0
        s.finish({"a": 1}, "parent")
    s.close()
    with pytest.raises(StoreError, match="the Store is closed"):
        s.done()


# Notes --------------------------------------------------------------------------------------------


def test_notes(path: Path) -> None:
    with noting("command", "walk 'ü'"), noting("key", "no key"):
        Store(path, KEY).close()
    assert note_of(path, "command") == "walk 'ü'" and note_of(path, "key") == "no key" and note_of(path, "x") is None
    with Store(path, KEY) as s:  # its own key is untouched; outside of a block notes stay
        s.finish({"a": 1}, "me")
        assert note_of(str(path), "command") == "walk 'ü'"
        with noting("command", "grid"), Store(path, KEY):
            pass
        assert note_of(path, "command") == "grid"
    with noting("command", "other"), pytest.raises(StoreError, match="another study"):
        Store(path, {**KEY, "seed": 8})
    assert note_of(path, "command") == "grid"


def test_notes_of_a_killed_process(path: Path) -> None:
    """What is only in the log yet is read, and stays."""
    code = "import os, sys; from noisykernels._engine.store import *\n"
    code += f"with noting('command', 'walk'): s = Store(sys.argv[1], {KEY!r})\n"
    code += "s.finish({'a': 1}, 'me'); os.kill(os.getpid(), 9)"
    assert subprocess.run([sys.executable, "-c", code, str(path)]).returncode == -9
    assert path.with_name(path.name + "-wal").stat().st_size > 0
    assert note_of(path, "command") == "walk"
    with Store(path, KEY) as s:
        assert s.done() == {"a": 1}


def test_notes_of_foreign_files(path: Path) -> None:
    def said() -> str:
        before = {p.name: p.read_bytes() for p in path.parent.iterdir() if p.is_file()}
        with pytest.raises(StoreError, match=re.escape(f"{path}: ")) as caught:
            note_of(path, "command")
        assert {p.name: p.read_bytes() for p in path.parent.iterdir() if p.is_file()} == before
        return str(caught.value)

    assert "there is no such file" in said()
    path.write_text("correct,rows")
    assert "not an SQLite file" in said()
    path.unlink()
    path.touch()
    assert "an empty file" in said()
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE meta (name, value)")
    assert "an SQLite file of something else" in said()
    path.unlink()
    content = filled(path)
    path.write_bytes(content[:100] + b"\xff" * 3996 + content[4096:])
    assert "damaged" in said()
    path.unlink()
    path.mkdir()
    assert "there is no such file" in said()


MOUNTS = r"""22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime shared:1 master:2 - ext4 /dev/vda rw
28 27 0:40 / /home rw,relatime - nfs4 server:/home rw,vers=4.2
29 28 8:1 / /home/me/local\040disk rw - xfs /dev/sda1 rw
30 27 0:41 / /mnt/a rw - cifs //server/a rw
31 27 0:42 / /mnt/b rw - fuse.sshfs me@server:/ rw
32 27 0:43 / /scratch rw - lustre 10.0.0.1@tcp:/scratch rw
33 27 0:44 / /auto rw - autofs systemd-1 rw
34 33 0:45 / /auto rw - smb3 //server/auto rw
35 27 0:46 / /mnt/c rw - 9p drvfs rw
36 27 0:47 / /mnt/d rw - fuse.mergerfs a:b rw
nonsense
"""


def test_network_file_systems(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place, kind in {
        "/a": None, "/home/me/x": "nfs4", "/homes/x": None, "/home/me/local disk/x": None, "/mnt/a/x": "cifs",
        "/mnt/b/x": "fuse.sshfs", "/scratch/x/y": "lustre", "/auto/x": "smb3", "/mnt/c/x": "9p", "/mnt/d/x": None,
    }.items():  # fmt: skip
        assert network_file_system(place, MOUNTS) == kind, place
    for kind in ("nfs", "smbfs", "gpfs", "beegfs"):
        assert network_file_system("/x", f"1 0 0:1 / / rw - {kind} a rw") == kind
    assert network_file_system("/x", "") is None

    listing = path.with_name("mountinfo")
    listing.write_text(f"1 0 0:1 / / rw - ext4 a rw\n2 1 0:2 / {path.parent.resolve()} rw - nfs4 b rw\n")
    monkeypatch.setattr(store_file, "_MOUNTS", listing)
    refused(path, r"lies on a network file system \(nfs4\), where locks .* put it on a local disk")
