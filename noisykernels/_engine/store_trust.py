"""Opens a store that may come from anyone: what lies beside it and in it is a store's own, or nothing is touched.

SQLite follows what lies beside a file: a log that is a symbolic link is written through, and a rollback journal, which
a store never has, may name any file to be deleted. No torch here.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

from noisykernels._engine.store_file import BESIDE, SCHEMA, StoreError, check_kind, connect

__all__ = ["opened"]


def opened(path: Path, file: Path) -> sqlite3.Connection:
    """A connection to a store, to be read and written.

    Args:
        path: as the user named it.
        file: absolute, without symbolic links.

    Raises:
        StoreError: not a results store, or more than one.
    """
    for end in BESIDE:
        beside = file.with_name(file.name + end)
        if beside.is_symlink() or (beside.exists() and (end == "-journal" or not beside.is_file())):
            raise StoreError(f"{path}: {beside.name} beside it is none of a results store: look at it, and delete it")
    check_kind(path, file)
    db = connect(file, "mode=rw")  # a killed process may have left a log to be read
    try:
        db.execute("PRAGMA trusted_schema = OFF")
        held = sorted(sql for (sql,) in db.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL"))
        if held != sorted(SCHEMA):
            raise StoreError(f"{path}: damaged: it holds something else than the tables of a results store")
    except BaseException:
        db.close()
        raise
    return db
