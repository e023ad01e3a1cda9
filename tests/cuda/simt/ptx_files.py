"""What the PTX interpreter reads: files of PTX, and launches that tests/cuda/simt/cuda_runtime.h has recorded."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path


class PtxError(RuntimeError):
    """What a GPU or its sanitizer would object to, or what is not known here."""


@dataclass(frozen=True)
class Launch:
    """A launch as tests/cuda/simt/cuda_runtime.h records it: its arguments, and device memory before and after it."""

    kernel: int  # address of the kernel, from the start of the program that recorded it
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    dynamic: int  # bytes of dynamic shared memory
    params: list[bytes]
    before: dict[int, bytes]  # by address
    after: dict[int, bytes]


def read_launches(path: Path) -> Iterator[Launch]:
    with path.open("rb") as file:

        def numbers(count: int) -> tuple[int, ...]:
            return struct.unpack(f"={count}q", file.read(8 * count))

        def block() -> bytes:
            return file.read(*numbers(1))

        while file.peek(1):
            kernel, *sizes, dynamic, params = numbers(9)
            arguments = [block() for _ in range(params)]
            memories = []
            for _ in range(2):
                (count,) = numbers(1)
                memories.append({numbers(1)[0]: block() for _ in range(count)})
            yield Launch(kernel, tuple(sizes[:3]), tuple(sizes[3:]), dynamic, arguments, *memories)


@dataclass(frozen=True)
class Instruction:
    op: str
    args: tuple[str, ...]
    guard: str  # its predicate, "" for none
    negated: bool
    place: str  # text and lines, for reports


@dataclass
class Kernel:
    params: dict[str, tuple[int, int]] = field(default_factory=dict)  # offset, bytes
    code: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    registers: dict[str, str] = field(default_factory=dict)  # their types
    shared: dict[str, int] = field(default_factory=dict)  # offsets
    shared_bytes: int = 0

    def declare(self, text: str) -> None:
        """One statement `.reg ...` or `.shared ...`."""
        if match := re.fullmatch(r"\.reg \.(\w+) (.+)", text):
            for name in re.split(r", ?", match[2]):
                stem, count = re.fullmatch(r"([%\w$]+)(?:<(\d+)>)?", name).groups()  # type: ignore[union-attr]
                for register in [stem] if count is None else [f"{stem}{k}" for k in range(int(count))]:
                    if self.registers.setdefault(register, match[1])[1:] != match[1][1:]:
                        raise PtxError(f"a register of two types: {text}")
        elif match := re.fullmatch(r"(?:\.extern )?\.shared (?:\.align (\d+) )?\.\w(\d+) ([\w$]+)(?:\[(\d*)\])?", text):
            align, bits, name, count = match.groups()
            align = int(align or int(bits) // 8)
            self.shared[name] = -(-self.shared_bytes // align) * align
            self.shared_bytes = self.shared[name] + int(bits) // 8 * int("1" if count is None else count or 0)
        else:
            raise PtxError(f"unknown declaration: {text}")


def operands(text: str) -> tuple[str, ...]:
    """At the commas outside of braces and brackets."""
    return tuple(part.strip() for part in re.findall(r"(?:\{[^}]*\}|\[[^\]]*\]|[^,{\[])+", text))


class Module:
    """A file of PTX; its kernels are parsed when they are asked for."""

    def __init__(self, text: str) -> None:
        self.lines = text.splitlines()
        self.files = {m[1]: Path(m[2]).name for m in re.finditer(r'^\s*\.file\s+(\d+) "([^"]*)"', text, re.M)}
        self.starts, self.module_shared = {}, []
        for number, line in enumerate(self.lines):
            if match := re.search(r"\.entry ([\w$]+)\(", line):
                self.starts[match[1]] = number
            elif re.match(r"(\.extern )?\.shared ", line):
                self.module_shared.append(line.strip().rstrip(";"))
        self.kernel = cache(self._kernel)

    def name(self, end: str) -> str:
        """The kernel whose mangled name ends so: compilers name unnamed namespaces differently."""
        (name,) = (name for name in self.starts if name.endswith(end))
        return name

    def _kernel(self, name: str) -> Kernel:
        kernel, number, offset = Kernel(), self.starts[name] + 1, 0
        while match := re.match(r"\s*\.param (?:\.align (\d+) )?\.\w(\d+) ([\w$]+)(?:\[(\d+)\])?", self.lines[number]):
            size = int(match[2]) // 8 * int(match[4] or 1)
            align = int(match[1] or size)
            offset = -(-offset // align) * align
            kernel.params[match[3]] = offset, size
            offset, number = offset + size, number + 1
        for declaration in sorted(self.module_shared):  # those of known size first
            kernel.declare(declaration)
        while self.lines[number] != "{":
            number += 1
        source, rest = "", ""
        while self.lines[number := number + 1] != "}":
            line = re.sub(r"//.*", "", self.lines[number]).strip()
            if line.startswith(".loc"):
                source = self._source(line)
                continue
            rest = f"{rest} {line}"
            while match := re.match(r"\s*(?:[{}]|([\w$]+):|(@(!?)([%\w]+)\s+)?([.\w:]+)\s*([^;]*);)", rest):
                rest = rest[match.end() :]
                label, _, negated, guard, op, args = match.groups()
                text = " ".join(match[0].split())
                if label:
                    kernel.labels[label] = len(kernel.code)
                elif op and op.startswith((".reg", ".shared")):
                    kernel.declare(text.rstrip(";").rstrip())
                elif op and not op.startswith(".pragma"):
                    place = f"{text} ({source}, PTX line {number + 1})"
                    kernel.code.append(Instruction(op, operands(args), guard or "", bool(negated), place))
        return kernel

    def _source(self, line: str) -> str:
        places = re.findall(r"(?:\.loc|inlined_at)\s+(\d+) (\d+) \d+", line)
        return " inlined at ".join(f"{self.files[file]}:{number}" for file, number in places)
