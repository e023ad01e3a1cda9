"""Executes PTX, what nvcc makes of a kernel, on the CPU: a second way to run CUDA without a GPU, inline PTX included.

All threads of a launch go at once through numpy; where they part, the ones that are furthest behind go first, until all
are at the same place again. Arithmetic is exact to the bit except for the payloads of NaN, and `mma`, whose order of
summation nobody knows: float64, rounded once. Noticed, with thread and source line: accesses out of bounds, misaligned,
or of shared memory that nobody wrote; barriers and lanes of a warp that never come; two threads that touch the same
bytes of shared or global memory, one of them writing, with nothing that orders them. Asynchronous copies arrive as late
as they may (`late`) or at once; each shows other mistakes. Not modelled: atomics, local memory, calls.

Bytes are watched in pairs, so two threads that write neighbouring single bytes look like a race.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, NoReturn

import numpy as np

from .ptx_files import Kernel, Launch, PtxError, operands
from .ptx_rules import KINDS, RULES, WINDOW, Array, from_bfloat16

Lanes = Any  # what selects lanes in an array: their numbers, or all of it
Step = Callable[[Lanes], None]

MOST_BRANCHES = 1_000_000
PAIR = 2  # bytes that are watched as one


SPECIAL: list[tuple[str, Callable[..., Step]]] = []  # instructions that a machine executes itself
TOGETHER = r"(?:bar|shfl|vote|ldmatrix|mma)\..*"  # those that wait for the other threads


def special(pattern: str) -> Callable[[Callable[..., Step]], Callable[..., Step]]:
    def add(make: Callable[..., Step]) -> Callable[..., Step]:
        SPECIAL.append((pattern, make))
        return make

    return add


@cache
def meaning(op: str) -> tuple[str, Callable[..., Any], tuple[str, ...]]:
    for table, where in ((RULES, "rule"), (SPECIAL, "special")):
        for pattern, make in table:
            if match := re.fullmatch(pattern, op):
                return where, make, match.groups()
    raise ValueError("unknown instruction")


class Machine:
    """One launch of a kernel on its memory."""

    def __init__(self, kernel: Kernel, launch: Launch, late: bool = False) -> None:
        self.kernel, self.launch, self.late = kernel, launch, late
        blocks, self.threads = int(np.prod(launch.grid)), int(np.prod(launch.block))
        self.count = blocks * self.threads
        self.ids = np.arange(self.count)
        self.block, thread = self.ids // self.threads, self.ids % self.threads
        self.lane, warps = thread % 32, -(-self.threads // 32)
        self.warp = self.block * warps + thread // 32
        self.first_lane = self.ids - self.lane
        self.live = np.zeros(blocks * warps, np.uint32)  # lanes that there are
        np.bitwise_or.at(self.live, self.warp, np.uint32(1) << self.lane.astype(np.uint32))
        self.special = {"%laneid": self.lane}
        for number, sizes, what in ((thread, launch.block, "tid"), (self.block, launch.grid, "ctaid")):
            for k, axis in enumerate("xyz"):
                self.special[f"%{what}.{axis}"] = number // int(np.prod(sizes[:k])) % sizes[k]
                self.special[f"%n{what}.{axis}"] = np.full(self.count, sizes[k])
        self.registers: dict[str, Array] = {}
        self.steps: list[Step | None] = [None] * len(kernel.code)
        self._lay_out_memory(blocks)
        # What a thread has done is before what another does if the stamp that it was done at is below the present one:
        # barriers of the block count in the upper half, those of a warp in the lower.
        self.now = np.zeros(self.count, np.int64)
        self.groups = np.zeros(self.count, np.int64)  # of asynchronous copies that each thread has closed
        self.copies: list[tuple[Array, Array, Array, Array, Array]] = []  # lanes, group, to, from, whether to copy

    # -------------------------------------------------------------------------------------------------------- reports

    def fail(self, lanes: Array, what: str) -> NoReturn:
        def of(number: int, sizes: tuple[int, ...]) -> tuple[int, ...]:
            return number % sizes[0], number // sizes[0] % sizes[1], number // sizes[0] // sizes[1]

        who = int(np.ravel(lanes)[0])
        block, thread = of(who // self.threads, self.launch.grid), of(who % self.threads, self.launch.block)
        raise PtxError(f"block {block}, thread {thread}: {what}: {self.kernel.code[self.pc].place}")

    # ------------------------------------------------------------------------------------------------------- registers

    def register(self, name: str) -> Array:
        if name not in self.registers:
            self.registers[name] = np.zeros(self.count, KINDS[self.kernel.registers[name].replace("f", "b")])
        return self.registers[name]

    def source(self, text: str, kind: str) -> Callable[[Lanes], Array]:
        """What reads an operand of some lanes."""
        dtype = KINDS[kind]
        if text.startswith("!"):
            positive = self.source(text[1:], kind)
            return lambda m: ~positive(m)
        if text in self.kernel.registers:
            array = self.register(text)
        elif text in self.special:
            array = self.special[text].astype(np.uint32)
        else:
            constant = self.constant(text, dtype)
            return lambda m: constant
        if array.dtype.itemsize == dtype.itemsize:
            return array.view(dtype).__getitem__
        unsigned = np.dtype(f"u{dtype.itemsize}")
        return lambda m: array[m].astype(unsigned).view(dtype)

    def constant(self, text: str, dtype: np.dtype) -> Array:
        if match := re.fullmatch(r"0([fFdD])([0-9a-fA-F]+)", text):
            return np.array(int(match[2], 16), "u4" if match[1] in "fF" else "u8").view(dtype)
        for offsets in (self.params, self.kernel.shared):
            if text in offsets:
                return np.array(offsets[text], dtype)
        value = int(text.rstrip("U"), 0)
        return np.array(value & (1 << 8 * dtype.itemsize) - 1, f"u{dtype.itemsize}").view(dtype)

    def target(self, text: str, kind: str) -> Array:
        """What an instruction writes: a narrow result fills its register, the sign repeated."""
        if text == "_":
            return np.zeros(self.count, KINDS[kind])
        array = self.register(text)
        return array.view(f"{KINDS[kind].kind}{array.dtype.itemsize}") if kind != "pred" else array

    def sources(self, args: tuple[str, ...], *kinds: str) -> list[Callable[[Lanes], Array]]:
        return [self.source(text, kind) for text, kind in zip(args, kinds, strict=True)]

    # ---------------------------------------------------------------------------------------------------------- memory

    def _lay_out_memory(self, blocks: int) -> None:
        """One array: device memory, then the shared memory of each block. Addresses keep their alignment to 16."""
        self.params, arguments = {}, bytearray()
        for (name, (offset, size)), value in zip(self.kernel.params.items(), self.launch.params, strict=True):
            if size != len(value):
                raise PtxError(f"a parameter of {size} bytes, not {len(value)}")
            self.params[name] = offset
            arguments += bytes(offset - len(arguments)) + value
        self.arguments = np.frombuffer(bytes(arguments), np.uint8)

        memory = sorted(self.launch.before.items())
        self.starts = np.array([address for address, _ in memory], np.int64)
        sizes = np.array([len(data) for _, data in memory], np.int64)
        places = np.concatenate([[0], np.cumsum((sizes + 31) // 16 * 16)])
        self.ends, self.places, self.device_bytes = self.starts + sizes, places[:-1], int(places[-1])
        self.shared_bytes = self.kernel.shared_bytes + self.launch.dynamic
        self.shared_stride = (self.shared_bytes + 31) // 16 * 16
        self.bytes = np.zeros(self.device_bytes + blocks * self.shared_stride, np.uint8)
        for place, (_, data) in zip(self.places, memory, strict=True):
            self.bytes[place : place + len(data)] = np.frombuffer(data, np.uint8)
        pairs = len(self.bytes) // PAIR
        self.written = np.arange(pairs) < self.device_bytes // PAIR
        self.writer, self.write_time = np.full(pairs, -1, np.int32), np.zeros(pairs, np.int64)
        # Of several threads that read, the last one, and how far they are apart: 1 in a warp, 2 a block, 3 blocks.
        self.reader, self.read_time, self.spread = self.writer.copy(), self.write_time.copy(), np.zeros(pairs, np.int8)

    def locate(self, space: str, address: Array, size: Array | int, align: int, lanes: Array) -> Array:
        """Indices of the first bytes, checked."""
        address = np.broadcast_to(address, lanes.shape).astype(np.int64)
        if np.any(bad := address % align != 0):
            self.fail(lanes[bad], f"misaligned: the address is not a multiple of {align}")
        shared = np.full(lanes.shape, space == "shared")
        if space == "":
            shared = address >= WINDOW
            address = np.where(shared, address - WINDOW, address)
        result = np.empty(lanes.shape, np.int64)
        if np.any(shared):
            if np.any(bad := shared & ((address < 0) | (address + size > self.shared_bytes))):
                self.fail(lanes[bad], "access beside shared memory")
            result = self.device_bytes + self.block[lanes] * self.shared_stride + address
        if not np.all(shared):
            which = np.searchsorted(self.starts, address, "right") - 1
            if np.any(bad := ~shared & ((which < 0) | (address + size > self.ends[which]))):
                self.fail(lanes[bad], "access beside device memory")
            result = np.where(shared, result, self.places[which] + address - self.starts[which])
        return result

    def pairs(self, at: Array, size: int) -> Array:
        return at[:, None] // PAIR + np.arange(max(1, size // PAIR))

    def apart(self, other: Array, me: Array) -> Array:
        """How far two threads are apart: 0 the same, 1 in a warp, 2 in a block, 3 not even that."""
        far = np.where(self.block[other] == self.block[me], 2, 3)
        return np.where(self.warp[other] == self.warp[me], other != me, far)

    def race(self, other: Array, time: Array, spread: Array | int, me: Array) -> Array:
        """How far apart this thread is from others that it is not ordered after; 0 if there are none."""
        far, now = np.maximum(self.apart(other, me), spread), self.now[me]
        after = (far == 1) & (time < now) | (far == 2) & (time >> 32 < now >> 32)
        return np.where((other < 0) | after, 0, far)

    def load(self, at: Array, size: int, lanes: Array) -> None:
        """Checks a read of so many bytes and remembers it."""
        pairs, me = self.pairs(at, size), lanes[:, None]
        if not (there := self.written[pairs].all(1)).all():
            self.fail(lanes[~there], "read of shared memory that was not written")
        if (racing := self.race(self.writer[pairs], self.write_time[pairs], 0, me).any(1)).any():
            self.fail(lanes[racing], "race: another thread writes what this one reads")
        spread = self.race(self.reader[pairs], self.read_time[pairs], self.spread[pairs], me)
        self.spread[pairs], self.reader[pairs], self.read_time[pairs] = spread, me, self.now[me]
        if (several := self.apart(self.reader[pairs], me)).any():
            np.maximum.at(self.spread, pairs, several.astype(np.int8))

    def store(self, at: Array, size: int, lanes: Array) -> None:
        """The same for a write."""
        pairs, me = self.pairs(at, size), lanes[:, None]
        racing = self.race(self.writer[pairs], self.write_time[pairs], 0, me)
        reading = self.race(self.reader[pairs], self.read_time[pairs], self.spread[pairs], me)
        if (bad := (racing | reading).any(1)).any():
            self.fail(lanes[bad], "race: another thread reads or writes what this one writes")
        self.writer[pairs], self.write_time[pairs], self.written[pairs] = me, self.now[me], True
        if (bad := (self.writer[pairs] != me).any(1)).any():
            self.fail(lanes[bad], "race: several threads write at once")

    def wrong(self) -> Iterator[tuple[int, bytes, bytes]]:
        """What device memory holds and should hold where it is not what was recorded: address, bytes, bytes."""
        for start, place, end in zip(self.starts, self.places, self.ends, strict=True):
            got, want = self.bytes[place : place + end - start].tobytes(), self.launch.after[int(start)]
            if got != want:
                yield int(start), got, want

    # ------------------------------------------------------------------------------------------------------- execution

    def step(self, pc: int) -> Step:
        instruction = self.kernel.code[pc]
        where, make, found = meaning(instruction.op)
        if where == "special":
            return make(self, instruction.args, *found)
        function, result, kinds = make(*found)
        if instruction.args[0].startswith("{") or instruction.args[-1].startswith("{"):
            return self.move_vector(instruction.args, result)
        target, sources = self.target(instruction.args[0], result), self.sources(instruction.args[1:], *kinds)

        def step(m: Lanes) -> None:
            target[m] = function(*(source(m) for source in sources))

        return step

    def move_vector(self, args: tuple[str, ...], kind: str) -> Step:
        """mov between a wide register and the narrow ones that make it up."""
        split = args[0].startswith("{")
        names = operands((args[0] if split else args[1]).strip("{}"))
        bits = 8 * KINDS[kind].itemsize // len(names)
        part, wide, by = f"b{bits}", KINDS[kind].type, range(0, 8 * KINDS[kind].itemsize, bits)
        if split:
            targets, source = [self.target(name, part) for name in names], self.source(args[1], kind)

            def step(m: Lanes) -> None:
                value = source(m)
                for target, shift in zip(targets, by, strict=True):
                    target[m] = value >> wide(shift)
        else:
            target, sources = self.target(args[0], kind), [self.source(name, part) for name in names]

            def step(m: Lanes) -> None:
                target[m] = sum(s(m).astype(wide) << wide(shift) for s, shift in zip(sources, by, strict=True))

        return step

    def present(self, pc: int, lanes: Array) -> Array:
        """Those of the lanes here all of whose partners are here, too."""
        instruction = self.kernel.code[pc]
        if instruction.op.startswith("bar.sync"):
            return (np.bincount(self.block[lanes], minlength=self.block[-1] + 1) == self.threads)[self.block[lanes]]
        whole = np.full(len(lanes), 0xFFFFFFFF, np.uint32)
        if instruction.op.startswith(("ldmatrix", "mma")):
            mask = wanted = whole
        else:
            mask = whole & self.source(instruction.args[-1], "u32")(lanes)
            wanted = mask & self.live[self.warp[lanes]]
        own = np.uint32(1) << self.lane[lanes].astype(np.uint32)
        if np.any(bad := mask & own == 0):
            self.fail(lanes[bad], "the calling lane is not in the mask")
        here = np.zeros_like(self.live)
        np.bitwise_or.at(here, self.warp[lanes], own)
        return wanted & ~here[self.warp[lanes]] == 0

    def run(self) -> None:
        with np.errstate(all="ignore"):
            self._run()
        if self.copies:
            self.fail(self.copies[0][0], "an asynchronous copy that nobody has waited for at the end")

    def _run(self) -> None:
        ready, waiting = {0: self.ids}, {}
        code = self.kernel.code

        def add(groups: dict[int, Array], pc: int, lanes: Array) -> None:
            if len(lanes):
                groups[pc] = np.sort(np.concatenate((groups[pc], lanes))) if pc in groups else lanes

        for _ in range(MOST_BRANCHES):
            if not ready:
                break
            pc = min(ready)
            lanes = ready.pop(pc)
            join = min(ready, default=len(code))
            while len(lanes) and pc < join:
                self.pc, instruction, acting = pc, code[pc], lanes
                if instruction.guard:
                    acting = lanes[self.register(instruction.guard)[lanes] != instruction.negated]
                if instruction.op in ("bra", "bra.uni", "ret", "exit"):
                    if instruction.op.startswith("bra"):
                        add(ready, self.kernel.labels[instruction.args[0]], acting)
                    if len(acting):
                        lanes = np.setdiff1d(lanes, acting, assume_unique=True)
                        add(ready, pc + 1, lanes)
                        break
                elif re.fullmatch(TOGETHER, instruction.op):
                    add(ready, pc + 1, np.setdiff1d(lanes, acting, assume_unique=True))
                    add(waiting, pc, acting)
                    present = self.present(pc, acting := waiting.pop(pc, acting))
                    add(waiting, pc, acting[~present])
                    if present.any():
                        self.execute(pc, acting[present])
                        add(ready, pc + 1, acting[present])
                    break
                elif len(acting):
                    self.execute(pc, acting)
                pc += 1
            else:
                add(ready, pc, lanes)
        else:
            self.fail(self.ids, "it does not end")
        if waiting:
            places = [f"{len(lanes)} at {code[pc].place}" for pc, lanes in sorted(waiting.items())]
            ended = self.count - sum(map(len, waiting.values()))
            self.pc, lanes = next(iter(waiting.items()))
            self.fail(lanes, f"threads wait for each other, {ended} have ended, {', '.join(places)}")

    def execute(self, pc: int, lanes: Array) -> None:
        step = self.steps[pc]
        try:
            if step is None:
                step = self.steps[pc] = self.step(pc)
        except (LookupError, ValueError) as error:
            self.fail(lanes, f"not understood ({error})")
        try:
            step(slice(None) if len(lanes) == self.count else lanes)
        except ZeroDivisionError:
            self.fail(lanes, "division by zero")


# ------------------------------------------------------------------------------------ instructions that touch memory

CACHING = r"(?:\.(?:nc|ca|cg|cs|lu|cv|wb|wt|L1::\w+|L2::\w+))*"
VALUES = rf"(?:\.(global|shared))?{CACHING}(?:\.v([24]))?\.([busf]\d+)"


def address_of(machine: Machine, text: str, kind: str = "u64") -> Callable[[Lanes], Array]:
    base, offset = re.fullmatch(r"\[([\w%$]+)(?:\+(-?\d+))?\]", text).groups()  # type: ignore[union-attr]
    source = machine.source(base, "u32" if machine.kernel.registers.get(base, "").endswith("32") else kind)
    return lambda m: source(m).astype(np.int64) + int(offset or 0)


def names_of(text: str) -> tuple[str, ...]:
    return operands(text.strip("{}"))


@special(r"ld\.param(?:\.v([24]))?\.([busf]\d+)")
def _(machine: Machine, args: tuple[str, ...], count: str | None, kind: str) -> Step:
    address, size = address_of(machine, args[1]), KINDS[kind].itemsize * np.arange(1, int(count or 1) + 1)
    targets = [machine.target(name, kind) for name in names_of(args[0])]
    values = np.lib.stride_tricks.sliding_window_view(machine.arguments, size[0])

    def step(m: Lanes) -> None:
        at = address(m)
        if np.any(bad := (at < 0) | (at + size[-1] > len(machine.arguments))):
            machine.fail(machine.ids[m][np.broadcast_to(bad, machine.ids[m].shape)], "access beside the parameters")
        for target, end in zip(targets, size, strict=True):
            target[m] = np.ascontiguousarray(values[at + end - size[0]]).view(KINDS[kind])[..., 0]

    return step


@special(rf"(ld|st){VALUES}")
def _(machine: Machine, args: tuple[str, ...], name: str, space: str | None, count: str | None, kind: str) -> Step:
    names, place = (args[0], args[1]) if name == "ld" else (args[1], args[0])
    address, size, all_of = address_of(machine, place), KINDS[kind].itemsize, int(count or 1)
    memory = machine.bytes.view(KINDS[kind])
    if name == "ld":
        targets = [machine.target(part, kind) for part in names_of(names)]
    else:
        sources = [machine.source(part, kind) for part in names_of(names)]

    def step(m: Lanes) -> None:
        lanes = machine.ids[m]
        at = machine.locate(space or "", address(m), all_of * size, all_of * size, lanes)
        (machine.load if name == "ld" else machine.store)(at, all_of * size, lanes)
        for k in range(all_of):
            if name == "ld":
                targets[k][m] = memory[at // size + k]
            else:
                memory[at // size + k] = sources[k](m)

    return step


@special(r"cp\.async\.(?:ca|cg)\.shared\.global(?:\.L2::\w+)?")
def _(machine: Machine, args: tuple[str, ...]) -> Step:
    to, source, size = address_of(machine, args[0]), address_of(machine, args[1]), int(args[2])
    given = machine.source(args[3] if len(args) > 3 else args[2], "u32")

    def step(m: Lanes) -> None:
        lanes = machine.ids[m]
        at, used = machine.locate("shared", to(m), size, size, lanes), np.broadcast_to(given(m), lanes.shape)
        if np.any(bad := used > size):
            machine.fail(lanes[bad], "a source larger than the destination")
        start, some = np.zeros_like(at), used > 0
        addresses = np.broadcast_to(source(m), lanes.shape)[some]
        start[some] = machine.locate("global", addresses, used[some], size, lanes[some])
        copy = (lanes, machine.groups[lanes], at, start, np.arange(size) < used[:, None])
        if machine.late:
            machine.written[machine.pairs(at, size)] = False
            machine.copies.append(copy)
        else:
            arrive(machine, copy, np.full(len(lanes), True))

    return step


def arrive(machine: Machine, copy: tuple[Array, ...], which: Array) -> None:
    """Some lanes' part of an asynchronous copy."""
    lanes, _, to, source, given = (part[which] for part in copy)
    every = np.arange(given.shape[1])
    machine.store(to, given.shape[1], lanes)
    machine.bytes[to[:, None] + every] = np.where(given, machine.bytes[source[:, None] + every * given], 0)


@special(r"cp\.async\.(commit_group|wait_group|wait_all)")
def _(machine: Machine, args: tuple[str, ...], what: str) -> Step:
    def step(m: Lanes) -> None:
        if what == "commit_group":
            machine.groups[m] += 1
            return
        limit = np.full(machine.count, -1)  # the copies of groups below it must have arrived
        limit[m] = machine.groups[m] - int(args[0]) if what == "wait_group" else machine.groups[m] + 1
        copies, machine.copies = machine.copies, []
        for copy in copies:
            due = copy[1] < limit[copy[0]]
            arrive(machine, copy, due)
            if not due.all():
                machine.copies.append(tuple(part[~due] for part in copy))  # type: ignore[arg-type]

    return step


# -------------------------------------------------------------------------- instructions of several threads together


@special(r"bar\.sync")
def _(machine: Machine, args: tuple[str, ...]) -> Step:
    if args != ("0",):
        raise ValueError("only barrier 0 of a whole block is known")

    def step(m: Lanes) -> None:
        machine.now[m] = (machine.now[m] >> 32) + 1 << 32

    return step


@special(r"bar\.warp\.sync")
def _(machine: Machine, args: tuple[str, ...]) -> Step:
    def step(m: Lanes) -> None:
        latest = np.zeros(len(machine.live), np.int64)
        np.maximum.at(latest, machine.warp[m], machine.now[m])
        machine.now[m] = latest[machine.warp[m]] + 1

    return step


@special(r"shfl\.sync\.(up|down|bfly|idx)\.b32")
def _(machine: Machine, args: tuple[str, ...], mode: str) -> Step:
    result, _, inside = args[0].partition("|")
    target, predicate = machine.target(result, "b32"), machine.target(inside or "_", "pred")
    value, *rest = machine.sources(args[1:], *("b32",) * 4)

    def step(m: Lanes) -> None:
        by, limits, mask = (np.broadcast_to(source(m), machine.ids[m].shape).astype(np.int64) for source in rest)
        lane, segment, by = machine.lane[m], limits >> 8 & 31, by & 31
        last, first = lane & segment | limits & 31 & ~segment, lane & segment
        wanted = {"up": lane - by, "down": lane + by, "bfly": lane ^ by, "idx": first | by & ~segment}[mode]
        found = wanted >= last if mode == "up" else wanted <= last
        wanted = np.where(found, wanted, lane)
        if np.any(bad := mask >> wanted & machine.live[machine.warp[m]] >> wanted & 1 == 0):
            machine.fail(machine.ids[m][bad], "a shuffle reads a lane that is not in the mask")
        values = np.broadcast_to(value(slice(None)), machine.count)
        target[m], predicate[m] = values[machine.first_lane[m] + wanted], found

    return step


@special(r"vote\.sync\.(ballot|any|all|uni)\.(?:b32|pred)")
def _(machine: Machine, args: tuple[str, ...], mode: str) -> Step:
    target = machine.target(args[0], "b32" if mode == "ballot" else "pred")
    predicate, mask = machine.sources(args[1:], "pred", "b32")

    def step(m: Lanes) -> None:
        warp, wanted = machine.warp[m], mask(m) & machine.live[machine.warp[m]]
        bits = np.zeros_like(machine.live)
        np.bitwise_or.at(bits, warp, predicate(m).astype(np.uint32) << machine.lane[m].astype(np.uint32))
        votes = bits[warp] & wanted
        every, none = votes == wanted, votes == 0
        target[m] = {"ballot": votes, "any": ~none, "all": every, "uni": every | none}[mode]

    return step


@special(r"ldmatrix\.sync\.aligned\.m8n8\.x([124])(\.trans)?\.shared\.b16")
def _(machine: Machine, args: tuple[str, ...], count: str, transposed: str | None) -> Step:
    targets, address = [machine.target(name, "b32") for name in names_of(args[0])], address_of(machine, args[1])
    memory = machine.bytes.view(np.uint16)

    def step(m: Lanes) -> None:
        lanes = machine.ids[m]
        addresses = np.broadcast_to(address(m), lanes.shape)
        given = machine.lane[lanes] < 8 * int(count)
        rows = np.zeros(machine.count, np.int64)  # where the rows begin that the lanes point to
        rows[lanes[given]] = machine.locate("shared", addresses[given], 16, 16, lanes[given])
        high, low = machine.lane[lanes] // 4, machine.lane[lanes] % 4
        for k in range(int(count)):
            halves = []
            for half in range(2):
                row, column = (2 * low + half, high) if transposed else (high, 2 * low + half)
                at = rows[machine.first_lane[lanes] + 8 * k + row] + 2 * column
                machine.load(at, 2, lanes)
                halves.append(memory[at // 2].astype(np.uint32))
            targets[k][m] = halves[0] | halves[1] << np.uint32(16)

    return step


@special(r"mma\.sync\.aligned\.m16n8k(8|16)\.row\.col\.f32\.(bf16|f16|tf32)\.\2\.f32")
def _(machine: Machine, args: tuple[str, ...], depth: str, kind: str) -> Step:
    each = 1 if kind == "tf32" else 2  # values in a register
    targets = [machine.target(name, "f32") for name in names_of(args[0])]
    a, b, c = ([machine.source(name, "b32") for name in names_of(text)] for text in args[1:])
    if 4 * each * len(b) != int(depth) or len(a) != 2 * len(b):
        raise ValueError("wrong number of registers")
    high, low = np.arange(32) // 4, np.arange(32) % 4

    def values(register: Callable[[Lanes], Array], m: Lanes, part: int) -> Array:
        """[warp, lane], float64; tensor cores do not look at the last 13 bits of a TF32 number."""
        word = np.broadcast_to(register(m), machine.ids[m].shape).reshape(-1, 32)
        if kind == "tf32":
            return (word & np.uint32(0xFFFFE000)).view(np.float32).astype(np.float64)
        half = (word >> np.uint32(16 * part)).astype(np.uint16)
        return (from_bfloat16(half) if kind == "bf16" else half.view(np.float16)).astype(np.float64)

    def step(m: Lanes) -> None:
        warps = len(machine.ids[m]) // 32
        left, right = np.zeros((warps, 16, int(depth))), np.zeros((warps, int(depth), 8))
        total = np.zeros((warps, 16, 8))
        for part in range(each):
            column = each * low + part
            for k, register in enumerate(a):
                left[:, high + 8 * (k % 2), column + 4 * each * (k // 2)] = values(register, m, part)
            for k, register in enumerate(b):
                right[:, column + 4 * each * k, high] = values(register, m, part)
        for k, register in enumerate(c):
            bits = np.broadcast_to(register(m), machine.ids[m].shape).reshape(-1, 32)
            total[:, high + 8 * (k // 2), 2 * low + k % 2] = bits.view(np.float32)
        total += left @ right
        for k, target in enumerate(targets):
            target[m] = total[:, high + 8 * (k // 2), 2 * low + k % 2].ravel()

    return step
