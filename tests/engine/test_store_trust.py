"""A store that somebody sends, with what may lie beside it and in it: no other file is touched."""

from __future__ import annotations

import os
import sqlite3
import struct
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import torch
from torch import nn

import noisykernels as nk
from noisykernels._engine.store import Store, StoreError, note_of, noting

KEY = {"seed": 1}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store with a result, beside a file to lose."""
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "sent").mkdir()
    path = tmp_path / "sent" / "s.db"
    with noting("command", "[]"), Store(path, KEY) as store:
        store.finish({"a": 1}, "me")
    return path


def journal(path: Path, victim: Path) -> None:
    """A rollback journal of the file as it is, that says it belongs to a group of journals named in the victim."""
    page, name = path.read_bytes()[:4096], str(victim).encode()
    sector, nonce = 512, 7
    head = b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7" + struct.pack(">5I", 1, nonce, path.stat().st_size // 4096, sector, 4096)
    check = (nonce + sum(page[i] for i in range(4096 - 200, 0, -200))) & 0xFFFFFFFF
    body = head.ljust(sector, b"\0") + struct.pack(">I", 1) + page + struct.pack(">I", check)
    body += struct.pack(">I", 2**30 // 4096 + 1) + name + struct.pack(">2I", len(name), sum(name)) + head[:8]
    path.with_name("s.db-journal").write_bytes(body)


def test_sqlite_itself_would_delete_the_file(path: Path) -> None:
    """What this is about; if it fails, SQLite has become stricter, or the journal here is wrong."""
    mine = path.parent.parent / "mine"
    journal(path, mine)
    with closing(sqlite3.connect(path)) as db:
        db.execute("SELECT * FROM meta").fetchall()
    assert not mine.exists()


def linked(end: str) -> Callable[[Path], None]:
    return lambda path: path.with_name(f"s.db{end}").symlink_to("../mine")


def told(*statements: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        with closing(sqlite3.connect(path, isolation_level=None)) as db:
            for statement in statements:
                db.execute(statement)

    return change


FOREIGN = {
    "a log elsewhere": (linked("-wal"), "s.db-wal beside it is none of"),
    "shared memory elsewhere": (linked("-shm"), "s.db-shm beside it is none of"),
    "a journal elsewhere": (linked("-journal"), "s.db-journal beside it is none of"),
    "a link to nothing": (lambda p: p.with_name("s.db-wal").symlink_to("../new"), "s.db-wal beside it is none of"),
    "a folder": (lambda p: p.with_name("s.db-shm").mkdir(), "s.db-shm beside it is none of"),
    "a journal": (lambda p: journal(p, p.parent.parent / "mine"), "s.db-journal beside it is none of"),
    "a trigger": (
        told("CREATE TRIGGER t AFTER INSERT ON tasks BEGIN DELETE FROM meta; END"), "something else than the tables"
    ),
    "a view for a table": (
        told("DROP TABLE meta", "CREATE VIEW meta AS SELECT 'note command' AS name, '[]' AS value"),
        "something else than the tables",
    ),
    "another table": (told("CREATE TABLE more (x)"), "something else than the tables"),
    "a table of another form": (
        told("DROP TABLE claims", "CREATE TABLE claims (task, owner, lease_until, heartbeat)"),
        "something else than the tables",
    ),
    "a virtual table": (told("CREATE VIRTUAL TABLE v USING rtree(id, a, b)"), "something else than the tables"),
    "an index": (told("CREATE INDEX i ON tasks (abs(crc))"), "something else than the tables"),
}  # fmt: skip


@pytest.mark.parametrize("case", FOREIGN)
def test_what_is_not_a_stores_own_is_refused(case: str, path: Path) -> None:
    change, said = FOREIGN[case]
    change(path)
    before = {p: p.read_bytes() for p in path.parent.rglob("*") if p.is_file()}
    for use in (lambda: note_of(path, "command"), lambda: Store(path, KEY)):
        with pytest.raises(StoreError, match=said):
            use()
    assert (path.parent.parent / "mine").read_text() == "mine" and not (path.parent.parent / "new").exists()
    assert {p: p.read_bytes() for p in before} == before


@pytest.mark.parametrize("key", ["[]", "3", "null", "[" * 100_000, '{"seed":' * 100_000, "9" * 5000, '{"seed"', ""])
def test_a_key_that_is_none_is_damage(key: str, path: Path) -> None:
    told("UPDATE meta SET value = '" + key + "' WHERE name = 'key'")(path)
    with pytest.raises(StoreError, match=r"s\.db: damaged: what it belongs to cannot be read$"):
        Store(path, KEY)


@pytest.mark.parametrize("made", [os.mkfifo, lambda path: path.symlink_to("/dev/null")])
def test_a_pipe_or_a_device_is_no_store(made: Callable[[Path], None], tmp_path: Path) -> None:
    """Nothing is waited for."""
    made(tmp_path / "s.db")
    with pytest.raises(StoreError, match=r"s\.db: is a device, a pipe or a socket, expected a regular file"):
        Store(tmp_path / "s.db", KEY)


@pytest.mark.parametrize("links", [{"s.db": "s.db"}, {"s.db": "b", "b": "s.db"}, {"folder": "folder"}])
def test_links_that_lead_nowhere_are_no_store(links: dict[str, str], tmp_path: Path) -> None:
    for name, target in links.items():
        (tmp_path / name).symlink_to(target)
    path = tmp_path / "folder" / "s.db" if "folder" in links else tmp_path / "s.db"
    for use in (lambda: note_of(path, "command"), lambda: Store(path, KEY)):
        with pytest.raises(StoreError, match=r"s\.db: cannot be used: Too many levels of symbolic links"):
            use()
    data = torch.ones(4, 2), torch.arange(4) % 2
    with pytest.raises(StoreError, match="Too many levels of symbolic links"):
        nk.walk(nn.Linear(2, 2), data, noise=nk.Noise(add=1.0), levels=[1.0], draws=1, seed=1, store=path)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(links)


def test_a_store_opened_through_a_link_and_one_in_use_are_stores(path: Path) -> None:
    (path.parent / "link.db").symlink_to(path)
    with Store(path, KEY), Store(path.parent / "link.db", KEY) as again:
        assert again.done() == {"a": 1} and note_of(path.parent / "link.db", "command") == "[]"
