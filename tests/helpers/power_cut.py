"""What a disk holds after a power cut, worked out from what was written to it: the worst that a file system may do.

Sure is what a file held when it was last synchronised, and which names the folder had when that was. Of what came
later, each sector of each write, each truncation and each name may be there or not, by itself.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path

from file_faults import Record

SECTOR = 512


@dataclass(eq=False)
class File:
    """What is sure of a file, and what has been done to it since: truncations (length, None), writes (offset, data)."""

    sure: bytes = b""
    since: list[tuple[int, bytes | None]] = field(default_factory=list)

    def left(self, luck: random.Random | None) -> bytes:
        """What is left of it; with no luck nothing unsure is."""
        content = bytearray(self.sure)
        if luck is None:
            return bytes(content)
        whole = len(content)
        for offset, data in self.since:
            if data is None:
                whole = offset
                if luck.random() < 0.5:
                    content = content[:offset].ljust(offset, b"\0")
                continue
            whole = max(whole, offset + len(data))
            first = offset - offset % SECTOR
            for sector in range(first, offset + len(data), SECTOR):
                low, high = max(sector, offset), min(sector + SECTOR, offset + len(data))
                if luck.random() < 0.5:
                    content = content.ljust(low, b"\0")
                    content[low:high] = data[low - offset : high - offset]
        if luck.random() < 0.5:  # its new length, without the data
            content = content[:whole].ljust(whole, b"\0")
        return bytes(content)

    def synchronised(self) -> None:
        content = bytearray(self.sure)
        for offset, data in self.since:
            if data is None:
                content = content[:offset].ljust(offset, b"\0")
            else:
                content = content.ljust(offset, b"\0")
                content[offset : offset + len(data)] = data
        self.sure, self.since = bytes(content), []


class Disk:
    """A folder of files, as operations made it."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)
        self.names: dict[str, list[File | None]] = {}  # what each name stood for: surely, and then since
        self.open: dict[int, File] = {}

    def do(self, record: Record) -> None:
        """One operation more."""
        now = {name: states[-1] for name, states in self.names.items()}
        if record.kind in ("open", "create"):
            file = now.get(record.path)
            if file is None and record.path != self.folder:
                file = File()
                self._named(record.path, file)
            self.open[record.descriptor] = file or File()
            if record.path == self.folder:
                del self.open[record.descriptor]
        elif record.kind == "write":
            self.open[record.descriptor].since.append((record.offset, record.data))
        elif record.kind == "truncate":
            self.open[record.descriptor].since.append((record.size, None))
        elif record.kind == "sync" and record.descriptor in self.open:
            self.open[record.descriptor].synchronised()
        elif record.kind == "sync":
            self.names = {name: states[-1:] for name, states in self.names.items()}
        elif record.kind == "unlink":
            self._named(record.path, None)
        elif record.kind == "link":
            self._named(record.second, now[record.path])
        elif record.kind == "rename":
            self._named(record.second, now[record.path])
            self._named(record.path, None)
        elif record.kind == "close":
            self.open.pop(record.descriptor, None)

    def _named(self, name: str, file: File | None) -> None:
        self.names.setdefault(name, [None]).append(file)

    def left(self, luck: random.Random | None) -> dict[str, bytes]:
        """Content of each file that is left, by its name within the folder."""
        found: dict[str, bytes] = {}
        contents: dict[File, bytes] = {}  # a file may have two names
        for name, states in self.names.items():
            file = states[0] if luck is None else luck.choice(states)
            if file is None:
                continue
            if file not in contents:
                contents[file] = file.left(luck)
            if name.endswith("-shm"):  # mapped: what reaches the disk nobody says
                contents[file] = bytes(32768) if luck is None else luck.randbytes(32768)
            found[name[len(self.folder) + 1 :]] = contents[file]
        return found
