"""A results store killed, without power, or refused by the system at each file operation: what is lost, as a table.

`python tests/helpers/store_faults.py kills` (or `cuts`, `errors`; without a word all three) does all operations,
`--every 7` each seventh. Exits with 1 unless every store opens again with all that was confirmed, and ends as one that
was left alone.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import random
import shutil
import signal
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import file_faults as faults
from bare_store import Store, StoreError, note_of, noting
from power_cut import Disk

KEY = {"seed": 7, "weights": "ab" * 32}
TASKS = [f"site|{n}" for n in range(9)]
RESULTS = {task: {"correct": [seed * n for n in range(700)]} for seed, task in enumerate(TASKS, 1000)}  # a page each
ERRORS = {  # and what it is met by
    "ENOSPC": ("create", "write", "truncate", "link"), "EDQUOT": ("create", "write", "truncate", "link"),
    "EIO": ("open", "create", "write", "truncate", "sync", "unlink", "link", "map"),
    "EROFS": ("create", "truncate", "unlink", "link", "write"),
}  # fmt: skip
LUCKS = 3  # power cuts at each moment, beside the one after which nothing unsure is left

Tell = Callable[[str], None]


def silent(_: str) -> None:
    """Nobody listens."""


def life(path: Path, tasks: Sequence[str], confirm: Tell = silent, phase: Tell = silent) -> None:
    """A coordinator from its start to its end: it says what it has confirmed, and what it is at."""
    phase("opening")
    with noting("command", "walk"), Store(path, KEY) as s:
        assert s._db is not None
        s._db.execute("PRAGMA wal_autocheckpoint = 9")  # pages, so that checkpoints come between these few tasks too
        phase("writing")
        while missing := s.missing(tasks):
            taken = s.claim(missing, f"{os.getpid()}", 1e-6, 2)
            s.finish({task: RESULTS[task] for task in taken}, f"{os.getpid()}")
            for task in taken:
                confirm(task)
        s.heartbeat(f"{os.getpid()}")
        s.release(f"{os.getpid()}")
        phase("closing")


def lives(path: Path, confirm: Tell = silent, phase: Tell = silent) -> None:
    """Two coordinators, one after the other: one makes the store, one finds it."""
    life(path, TASKS[:5], confirm, lambda name: phase(f"new store, {name}"))
    life(path, TASKS[5:], confirm, lambda name: phase(f"old store, {name}"))


def verdict(path: Path, confirmed: Sequence[str]) -> str:
    """What has become of a store: "whole", or what is wrong."""
    try:
        if path.exists() and note_of(path, "command") != "walk":
            return "lost"
        with Store(path, KEY) as s:
            done = s.done()
        if set(confirmed) - set(done):
            return "lost"
        life(path, TASKS)
        with Store(path, KEY) as s:
            end = s.done()
    except StoreError as error:
        print(error, file=sys.stderr)
        return "refused"
    same = done.items() <= RESULTS.items() and end == RESULTS
    left = [p for p in path.parent.iterdir() if p != path and ".part" not in p.name]  # who makes it may leave parts
    return "whole" if same and not left else "different"


def child(work: Callable[[Tell], None]) -> tuple[int, list[str]]:
    """Does something in a child; how that ended, and the lines that it told."""
    out, inward = os.pipe()
    pid = os.fork()
    if not pid:
        code = 1
        try:
            work(lambda line: os.write(inward, f"{line}\n".encode()) and None)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(inward)
    with os.fdopen(out) as told:
        lines = told.read().splitlines()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), lines


def emptied(folder: Path) -> Path:
    """The path of a store in a folder that is new."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder / "study.db"


def operations(folder: Path) -> list[faults.Record]:
    """All operations of `lives`, with notes of what was confirmed (task) and begun (: phase)."""
    path, log = emptied(folder), folder.with_name("log")

    def work(tell: Tell) -> None:
        with log.open("wb", buffering=0) as file:
            faults.begin(folder, log=file.fileno())
            lives(path, faults.say, lambda name: faults.say(f": {name}"))
            faults.end()

    assert child(work)[0] == 0
    return list(faults.records(log))


class Table:
    """Counts of verdicts by row."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.rows: dict[str, Counter[str]] = {}

    def add(self, row: str, verdict: str) -> None:
        self.rows.setdefault(row, Counter())[verdict] += 1

    @property
    def whole(self) -> bool:
        """Whether nothing went wrong, of something."""
        return bool(self.rows) and all(set(row) == {"whole"} for row in self.rows.values())

    def __str__(self) -> str:
        columns = ["whole", "refused", "lost", "different", "crashed"]
        rows = {**self.rows, "all": sum(self.rows.values(), Counter())}
        wide = max(map(len, rows))
        lines = [f"{self.title:{wide}} {'tried':>6} " + " ".join(f"{c:>9}" for c in columns)]
        lines += [f"{n:{wide}} {row.total():6} " + " ".join(f"{row[c]:9}" for c in columns) for n, row in rows.items()]
        return "\n".join(lines)


# ------------------------------------------------------------------------------------------- what happens to it


def places(done: Sequence[faults.Record], kinds: Sequence[str] = faults.KINDS) -> list[str]:
    """Of each operation of these kinds, in the order in which they are counted: in which phase it is, and its kind."""
    found, phase = [], ""
    for record in done:
        if record.kind == faults.SAID and record.path.startswith(": "):
            phase = record.path[2:]
        elif record.kind == faults.MET and faults.KINDS[record.offset] in kinds:
            found.append(f"{phase}: {faults.KINDS[record.offset]}")
    return found


def killed(path: Path, n: int, action: int = faults.KILL) -> list[str] | None:
    """What a coordinator that was killed at the n-th operation had confirmed; None: it has fewer."""

    def work(tell: Tell) -> None:
        faults.begin(path.parent, n, action)
        lives(path, tell)

    code, confirmed = child(work)
    assert code in (0, -signal.SIGKILL), code
    return confirmed if code else None


def kills(folder: Path, every: int) -> Table:
    """kill -9 at each operation: before it, and in the middle of a write; and while another has the store open."""
    table = Table("killed at")
    where = places(operations(folder))
    for n in range(1, len(where) + 1, every):
        for row, action in ((where[n - 1], faults.KILL), (f"{where[n - 1]}, torn", faults.TEAR)):
            if action == faults.KILL or where[n - 1].endswith("write"):
                path = emptied(folder)
                confirmed = killed(path, n, action)
                assert confirmed is not None
                table.add(row, verdict(path, confirmed))
    for n in range(1, 10_000, every):
        path = emptied(folder)
        with beside(path) as goes_on:
            confirmed = killed(path, n)
            found = goes_on()
        if confirmed is None:
            break
        seen = set(confirmed) <= set(found)
        table.add("any, while another has it open", verdict(path, found) if seen else "lost")
    return table


@contextlib.contextmanager
def beside(path: Path) -> Iterator[Callable[[], list[str]]]:
    """Another coordinator, which has the store open; called, it finds something, and says what there is now."""
    told, tell = os.pipe()
    asked, ask = os.pipe()
    if not (pid := os.fork()):
        try:
            with noting("command", "walk"), Store(path, KEY) as s:
                os.write(tell, b"\n")
                os.read(asked, 1)
                s.finish({TASKS[4]: RESULTS[TASKS[4]]}, "other")
                os.write(tell, "\n".join(s.done()).encode())
        finally:
            os._exit(0)
    os.close(tell)
    assert os.read(told, 1) == b"\n"

    def goes_on() -> list[str]:
        os.write(ask, b"\n")
        with os.fdopen(told) as lines:
            return lines.read().split()

    yield goes_on
    os.close(ask)
    os.close(asked)
    os.waitpid(pid, 0)


def cuts(folder: Path, every: int) -> Table:
    """The power goes at each moment; several disks may be left by each."""
    table = Table("power cut at")
    done, after = operations(folder), folder.with_name("after")
    confirmed: list[str] = []
    disk, phase = Disk(folder), ""
    for n, record in enumerate(done):
        if record.kind == faults.MET:
            continue
        if record.kind == faults.SAID and record.path.startswith(": "):
            phase = record.path[2:]
        elif record.kind == faults.SAID:
            confirmed.append(record.path)
        else:
            disk.do(record)
        if n % every:
            continue
        for luck in (None, *(random.Random(1000 * n + k) for k in range(LUCKS))):
            path = emptied(after)
            for name, content in disk.left(luck).items():
                (after / name).write_bytes(content)
            table.add(f"{phase}: {record.kind}", verdict(path, confirmed))
    return table


def errors(folder: Path, every: int) -> Table:
    """The system refuses the n-th operation, or all from there on, as on a full disk; then there is space again."""
    table = Table("refused at")
    done = operations(folder)
    for name, kinds in ERRORS.items():
        where = places(done, kinds)
        for n in range(1, len(where) + 1, every):
            for how, action in (("", faults.FAIL), (", and all that follow", faults.FAIL_FROM)):
                path = emptied(folder)
                code, told = child(partial(refused, path, kinds, n, action, getattr(errno, name)))
                found = verdict(path, told) if code == 0 else "crashed"
                table.add(f"{name}{how}: {where[n - 1]}", found)
    return table


def refused(path: Path, kinds: Sequence[str], n: int, action: int, error: int, tell: Tell) -> None:
    """What a coordinator has confirmed until it is refused, and when it goes on."""
    faults.begin(path.parent, n, action, kinds=kinds, error=error)
    try:
        lives(path, tell)
    except StoreError as refusal:
        if not str(refusal).startswith(f"{path}: cannot be ") or "\n" in str(refusal):
            raise
    finally:
        faults.end()
    lives(path, tell)


def main() -> None:
    """Prints the tables."""
    faults.preloaded()
    known = {"kills": kills, "cuts": cuts, "errors": errors}
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("what", nargs="?", choices=[*known])
    arguments.add_argument("--every", type=int, default=1, help="each so manyth operation")
    asked = arguments.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary).resolve() / "store"
        tables = [known[name](folder, asked.every) for name in ([asked.what] if asked.what else known)]
    print(*tables, sep="\n\n")
    sys.exit(not all(table.whole for table in tables))


if __name__ == "__main__":
    main()
