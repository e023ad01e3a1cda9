"""The PTX interpreter (tests/cuda/simt/ptx.py): its instructions, and what it notices."""

import ctypes
import ctypes.util
import struct
from fractions import Fraction

import numpy as np
import pytest
import torch
from simt import ptx
from simt.ptx_files import Launch, Module, PtxError

RNG = np.random.default_rng(1)

# -------------------------------------------------------------------------------------------------------- instructions


def run_ptx(
    body: str,
    arrays: list[np.ndarray],
    *,
    threads: int = 32,
    blocks: int = 1,
    shared: int = 0,
    late: bool = False,
) -> list[np.ndarray]:
    """The arrays after a kernel whose %p0, %p1, ... point to them; %t is the thread, tile its shared memory."""
    params = ",\n".join(f"\t.param .u64 p{k}" for k in range(len(arrays)))
    pointers = "\n".join(f"ld.param.u64 %p{k}, [p{k}];" for k in range(len(arrays)))
    text = f""".entry one(
{params}
)
{{
.reg .b64 %p<9>, %d<9>;
.reg .b32 %t, %r<20>;
.reg .b16 %h<9>;
.reg .pred %q<3>;
.shared .align 16 .b8 tile[{shared}];
mov.u32 %t, %tid.x;
{pointers}
{body}
ret;
}}"""
    memory = {(k + 1) << 20: array.tobytes() for k, array in enumerate(arrays)}
    launch = Launch(0, (blocks, 1, 1), (threads, 1, 1), 0, [struct.pack("q", a) for a in memory], memory, memory)
    machine = ptx.Machine(Module(text).kernel("one"), launch, late)
    machine.run()
    after = memory | {address: got for address, got, _ in machine.wrong()}
    return [np.frombuffer(after[a], x.dtype).reshape(x.shape) for a, x in zip(memory, arrays, strict=True)]


def compute(line: str, dtype: type, *operands: np.ndarray) -> np.ndarray:
    """One instruction on arrays: to $y, from $0, $1, ..."""
    arrays = [np.zeros(len(operands[0]), dtype), *operands]
    registers = [{2: "%h", 4: "%r", 8: "%d"}[a.itemsize] + str(k) for k, a in enumerate(arrays)]
    body = ""
    for k, array in enumerate(arrays):
        body += f"mul.wide.u32 %d8, %t, {array.itemsize};\nadd.s64 %p{k}, %p{k}, %d8;\n"
        body += f"ld.global.b{8 * array.itemsize} {registers[k]}, [%p{k}];\n"
    body += line.replace("$y", registers[0])
    for k, register in enumerate(registers[1:]):
        body = body.replace(f"${k}", register)
    body += f"\nst.global.b{8 * arrays[0].itemsize} [%p0], {registers[0]};"
    return run_ptx(body, arrays, threads=len(arrays[0]))[0]


def bits(dtype: type, count: int) -> np.ndarray:
    return np.frombuffer(RNG.bytes(count * np.dtype(dtype).itemsize), dtype)


def same(got: np.ndarray, want: np.ndarray) -> bool:
    """Bit for bit, except for which NaN."""
    both_nan = np.isnan(got) & np.isnan(want)
    unsigned = f"u{got.itemsize}"
    return got.dtype == want.dtype and bool(np.all(both_nan | (got.view(unsigned) == want.view(unsigned))))


SPECIAL = [0.0, -0.0, 1.0, -1.5, np.inf, -np.inf, np.nan, 1e-45, -1e-45, 1e-38, 3e38, 1 + 2.0**-12, 1 - 2.0**-12]
TIES = [1 + 2.0**-8, 1 + 3 * 2.0**-8, 1 + 2.0**-11, 1 + 3 * 2.0**-11]  # of bfloat16, of float16


def triples(dtype: type) -> list[np.ndarray]:
    """All special values with each other, random bits, and sums that nearly cancel or are nearly ties."""
    with np.errstate(all="ignore"):
        special = np.array([x.ravel() for x in np.meshgrid(SPECIAL, SPECIAL, [*SPECIAL, 2.0**-80])]).astype(dtype)
        random = np.array([bits(dtype, 4000) for _ in range(3)])
        x, y = (RNG.standard_normal(4000).astype(dtype) for _ in range(2))
        near = np.array([x, y, -x * y * RNG.choice(np.array([1, 2.0**-24, 2.0**-53, 2.0**30], dtype), 4000)])
        return list(np.concatenate([special, random, near], axis=1).astype(dtype))


def test_fma_is_rounded_once() -> None:
    libm = ctypes.CDLL(ctypes.util.find_library("m"))
    libm.fmaf.restype, libm.fmaf.argtypes = ctypes.c_float, [ctypes.c_float] * 3
    x, y, z = triples(np.float32)
    want = np.array([libm.fmaf(*(float(v) for v in t)) for t in zip(x, y, z, strict=True)], np.float32)
    with np.errstate(all="ignore"):
        assert not same((x.astype(np.float64) * y + z).astype(np.float32), want)  # the operands tell the difference
    assert same(compute("fma.rn.f32 $y, $0, $1, $2;", np.float32, x, y, z), want)


def test_fma_of_doubles() -> None:
    x, y, z = triples(np.float64)
    got = compute("fma.rn.f64 $y, $0, $1, $2;", np.float64, x, y, z)
    checked = 0
    for a, b, c, result in zip(x, y, z, got, strict=True):
        if np.isfinite([a, b, c]).all() and (exact := Fraction(a) * Fraction(b) + Fraction(c)) != 0:
            try:
                assert result == float(exact)
                checked += 1
            except OverflowError:
                assert np.isinf(result)
    assert checked > 4000


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_arithmetic(dtype: type) -> None:
    kind = f"f{8 * np.dtype(dtype).itemsize}"
    x, y, _ = triples(dtype)
    with np.errstate(all="ignore"):
        for name, want in {"add": x + y, "sub": x - y, "mul": x * y, "div": x / y}.items():
            assert same(compute(f"{name}.rn.{kind} $y, $0, $1;", dtype, x, y), want), name
        assert same(compute(f"sqrt.rn.{kind} $y, $0;", dtype, x), np.sqrt(x))
    for name, function in {"min": min, "max": max}.items():
        got = compute(f"{name}.{kind} $y, $0, $1;", dtype, x, y)
        # As pairs, so that -0 is below 0; a NaN loses.
        order = lambda v: (v, not np.signbit(v))  # noqa: E731
        pairs = zip(x, y, strict=True)
        want = [b if np.isnan(a) else a if np.isnan(b) else function(a, b, key=order) for a, b in pairs]
        assert same(got, np.array(want, dtype)), name


def signed(value: int, width: int) -> int:
    value %= 1 << width
    return value - (1 << width) if value >> (width - 1) else value


INTEGERS = {
    "add.s32": lambda x, y: x + y,
    "sub.s64": lambda x, y: x - y,
    "mul.lo.s32": lambda x, y: x * y,
    "mul.lo.s64": lambda x, y: x * y,
    "mul.hi.s32": lambda x, y: signed(x, 32) * signed(y, 32) >> 32,
    "mul.hi.u32": lambda x, y: x * y >> 32,
    "mul.hi.s64": lambda x, y: signed(x, 64) * signed(y, 64) >> 64,
    "mul.hi.u64": lambda x, y: x * y >> 64,
    "div.u32": lambda x, y: x // y,
    "rem.u64": lambda x, y: x % y,
    "div.s32": lambda x, y: int(Fraction(signed(x, 32), signed(y, 32))),
    "div.s64": lambda x, y: int(Fraction(signed(x, 64), signed(y, 64))),
    "rem.s32": lambda x, y: signed(x, 32) - int(Fraction(signed(x, 32), signed(y, 32))) * signed(y, 32),
    "min.s32": lambda x, y: min(signed(x, 32), signed(y, 32)),
    "max.u64": max,
    "and.b32": lambda x, y: x & y,
    "xor.b64": lambda x, y: x ^ y,
}


@pytest.mark.parametrize("op", INTEGERS)
def test_integers(op: str) -> None:
    width = int(op[-2:])
    x, y = bits(f"u{width // 8}", 500).copy(), bits(f"u{width // 8}", 500).copy()
    x[::3] >>= 20
    y[::2] >>= 13
    y |= 1
    got = compute(f"{op} $y, $0, $1;", x.dtype, x, y)
    want = [INTEGERS[op](int(a), int(b)) % (1 << width) for a, b in zip(x, y, strict=True)]
    assert got.tolist() == want


def test_bits() -> None:
    x, y, z = (bits("u4", 500) for _ in range(3))
    by = RNG.integers(0, 70, 500).astype(np.uint32)
    for op, operands, want in (
        ("mul.wide.u32", (x, y), lambda a, b: a * b),
        ("mul.wide.s32", (x, y), lambda a, b: signed(a, 32) * signed(b, 32)),
        ("mad.lo.s32", (x, y, z), lambda a, b, c: a * b + c),
        ("shl.b32", (x, by), lambda a, n: a << n),
        ("shr.u32", (x, by), lambda a, n: a >> n),
        ("shr.s32", (x, by), lambda a, n: signed(a, 32) >> n),
        ("shf.l.wrap.b32", (x, y, by), lambda a, b, n: ((b << 32 | a) << n % 32) >> 32),
        ("shf.r.wrap.b32", (x, y, by), lambda a, b, n: (b << 32 | a) >> n % 32),
        ("shf.r.clamp.b32", (x, y, by), lambda a, b, n: (b << 32 | a) >> min(n, 32)),
        ("bfe.u32", (x, by, y & 31), lambda a, at, n: a >> at & (1 << n) - 1),
        ("bfe.s32", (x, by & 15, (y & 15) + 1), lambda a, at, n: signed(a >> at, n)),
        ("popc.b32", (x,), int.bit_count),
        ("not.b32", (x,), lambda a: ~a),
        ("cvt.s64.s32", (x,), lambda a: signed(a, 32)),
        ("cvt.u64.u32", (x,), int),
        ("cvt.s32.s8", (x,), lambda a: signed(a, 8)),
    ):
        wide = "wide" in op or "64" in op
        got = compute(f"{op} $y, {', '.join(f'${k}' for k in range(len(operands)))};", np.uint64 if wide else np.uint32,
                      *operands)  # fmt: skip
        expected = [want(*map(int, each)) % (1 << (64 if wide else 32)) for each in zip(*operands, strict=True)]
        assert got.tolist() == expected, op
    for table in (0x00, 0xE8, 0x96, 0x1B, 0xFF):
        got = compute(f"lop3.b32 $y, $0, $1, $2, {table};", np.uint32, x, y, z)
        for k in range(32):
            index = (x >> k & 1) << 2 | (y >> k & 1) << 1 | z >> k & 1
            assert np.array_equal(got >> k & 1, table >> index & 1)
    # Bytes 4, 1, the sign of 7 and 0, from the lowest on.
    got = compute("prmt.b32 $y, $0, $1, 0x0F14;", np.uint32, x, y)
    sign = np.where(y >> 31, 0xFF, 0).astype(np.uint32)
    assert np.array_equal(got, y & 0xFF | (x >> 8 & 0xFF) << 8 | sign << 16 | (x & 0xFF) << 24)


def test_conversions() -> None:
    x = np.concatenate([triples(np.float32)[0], np.array(TIES, np.float32)])
    tensor = torch.from_numpy(x)
    bfloat16 = tensor.bfloat16().view(torch.int16).numpy().view(np.uint16)
    half = tensor.half().numpy()
    numbers = ~np.isnan(x)
    for op, want in (("cvt.rn.bf16.f32", bfloat16), ("cvt.rn.f16.f32", half.view(np.uint16))):
        got = compute(f"{op} $y, $0;", np.uint16, x)
        assert np.array_equal(got[numbers], want[numbers])
    got = compute("cvt.rn.bf16x2.f32 $y, $0, $1;", np.uint32, x, x[::-1].copy())
    both = numbers & numbers[::-1]
    assert np.array_equal(got[both], (bfloat16.astype(np.uint32) << 16 | bfloat16[::-1])[both])
    assert same(compute("cvt.f32.f16 $y, $0;", np.float32, half.view(np.uint16)), half.astype(np.float32))
    assert same(compute("cvt.f32.bf16 $y, $0;", np.float32, bfloat16), tensor.bfloat16().float().numpy())
    words = np.array([0x3F800FFF, 0x3F801000, 0xBF801000, 0x3F803000, 0x7F7FFFFF, 0x7F800000], np.uint32)
    kept = [0x3F800000, 0x3F802000, 0xBF802000, 0x3F804000, 0x7F800000, 0x7F800000]
    assert compute("cvt.rna.tf32.f32 $y, $0;", np.uint32, words.view(np.float32)).tolist() == kept
    odd = np.array([0.5, 1.5, -2.5, 3e9, -3e9, np.nan, -0.7], np.float32)
    assert compute("cvt.rni.s32.f32 $y, $0;", np.int32, odd).tolist() == [0, 2, -2, 2**31 - 1, -(2**31), 0, -1]
    assert compute("cvt.rzi.u32.f32 $y, $0;", np.uint32, odd).tolist() == [0, 1, 0, 3 * 10**9, 0, 0, 0]
    for kind, dtype in (("f32", np.float32), ("f64", np.float64)):
        values = np.array([*SPECIAL, 0.5, -0.5, 1.5, -2.5, 2.5, -0.7, 2.0**23 + 1, 2.0**24 - 1]).astype(dtype)
        whole = [0, -0.0, 1, -1, np.inf, -np.inf, np.nan, 0, -0.0, 0, np.float32(3e38), 1, 0, 0, -0.0, 1, -2, 2, -0.0]
        even = [0, -0.0, 1, -2, np.inf, -np.inf, np.nan, 0, -0.0, 0, np.float32(3e38), 1, 1, 0, -0.0, 2, -2, 2, -1]
        for how, want in (("rzi", whole), ("rni", even)):
            wanted = np.array([*want, 2.0**23 + 1, 2.0**24 - 1]).astype(dtype)
            wanted[10] = values[10]  # is whole
            assert same(compute(f"cvt.{how}.{kind}.{kind} $y, $0;", dtype, values), wanted), how
    for kind, dtype in (("s32", np.int32), ("u32", np.uint32), ("s64", np.int64), ("u64", np.uint64)):
        integers = bits(dtype, 500) >> np.asarray(RNG.integers(0, 40, 500) % (8 * np.dtype(dtype).itemsize), dtype)
        got = compute(f"cvt.rn.f32.{kind} $y, $0;", np.float32, integers)
        assert got.tolist() == [rounded(int(n)) for n in integers], kind


def rounded(n: int) -> float:
    """To the nearest number of 24 bits, ties to even."""
    shift = max(0, abs(n).bit_length() - 24)
    kept, rest = divmod(abs(n), 1 << shift)
    kept += 2 * rest > 1 << shift or (2 * rest == 1 << shift and kept % 2)
    return float(kept << shift) * (-1 if n < 0 else 1)


def test_comparisons() -> None:
    x, y, _ = triples(np.float32)
    unordered = np.isnan(x) | np.isnan(y)
    for name, want in {
        "lt": x < y,
        "le": x <= y,
        "gt": x > y,
        "ge": x >= y,
        "eq": x == y,
        "ne": (x != y) & ~unordered,
        "nan": unordered,
        "num": ~unordered,
        "ltu": (x < y) | unordered,
        "neu": (x != y) | unordered,
    }.items():
        line = f"setp.{name}.f32 %q0, $0, $1; setp.{name}.or.f32 %q1, $0, $1, %q0; and.pred %q2, %q0, %q1;"
        got = compute(f"{line} selp.u32 $y, 1, 0, %q2;", np.uint32, x, y)
        assert np.array_equal(got, want), name
    line = "setp.ge.f32 %q0, $0, $1; setp.lt.and.f32 %q1, $0, $1, !%q0; selp.u32 $y, 1, 0, %q1;"
    assert np.array_equal(compute(line, np.uint32, x, y), x < y)
    line = "mov.u32 $y, 0; setp.lt.s32 %q0, $0, 0; @%q0 mov.u32 $y, 1; @!%q0 bra $done; add.u32 $y, $y, 1; $done:"
    z = bits("i4", 100)
    assert np.array_equal(compute(line, np.uint32, z), np.where(z < 0, 2, 0))


# ---------------------------------------------------------------------------------------------- several threads at once


@pytest.mark.parametrize("kind", ["bf16", "f16", "tf32"])
def test_mma(kind: str) -> None:
    depth, each = (8, 1) if kind == "tf32" else (16, 2)
    a, b, c = (RNG.standard_normal(shape).astype(np.float32) for shape in ((16, depth), (depth, 8), (16, 8)))
    torch_type = {"bf16": torch.bfloat16, "f16": torch.float16}.get(kind)
    if torch_type is not None:
        narrow = [torch.from_numpy(x).to(torch_type) for x in (a, b)]
        a, b = (x.float().numpy() for x in narrow)
        words = [x.view(torch.int16).numpy().view(np.uint16) for x in narrow]
    else:  # its last 13 bits do not count
        words = [x.view(np.uint32) for x in (a, b)]
        a, b = ((x & np.uint32(0xFFFFE000)).view(np.float32) for x in words)
    # The layouts as PTX's manual lists them, by the element i of a thread.
    group, within = np.arange(32) // 4, np.arange(32) % 4

    def of_a(i: int) -> np.ndarray:
        if kind == "tf32":
            return words[0][group + 8 * (i in (1, 3)), within + 4 * (i >= 2)]
        return words[0][group + 8 * (i in (2, 3, 6, 7)), 2 * within + (i & 1) + 8 * (i >= 4)]

    def of_b(i: int) -> np.ndarray:
        if kind == "tf32":
            return words[1][within + 4 * i, group]
        return words[1][2 * within + (i & 1) + 8 * (i >= 2), group]

    fragments = [np.ascontiguousarray(np.stack([f(i) for i in range(n * each)], 1)).view(np.uint32)
                 for f, n in ((of_a, 4), (of_b, 2))]  # fmt: skip
    totals = np.stack([c[group + 8 * (i >= 2), 2 * within + (i & 1)] for i in range(4)], 1)
    body = f"""
mul.wide.u32 %d0, %t, 16; add.s64 %p0, %p0, %d0; add.s64 %p2, %p2, %d0;
mul.wide.u32 %d1, %t, 8; add.s64 %p1, %p1, %d1;
ld.global.v4.b32 {{%r0, %r1, %r2, %r3}}, [%p0];
ld.global.v2.b32 {{%r4, %r5}}, [%p1];
ld.global.v4.b32 {{%r6, %r7, %r8, %r9}}, [%p2];
mma.sync.aligned.m16n8k{depth}.row.col.f32.{kind}.{kind}.f32
    {{%r6, %r7, %r8, %r9}}, {{%r0, %r1, %r2, %r3}}, {{%r4, %r5}}, {{%r6, %r7, %r8, %r9}};
st.global.v4.b32 [%p2], {{%r6, %r7, %r8, %r9}};"""
    got = run_ptx(body, [*fragments, totals])[2]
    want = (a.astype(np.float64) @ b + c).astype(np.float32)
    assert np.array_equal(got, np.stack([want[group + 8 * (i >= 2), 2 * within + (i & 1)] for i in range(4)], 1))


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("transposed", [False, True])
def test_ldmatrix(count: int, transposed: bool) -> None:
    rows, order = bits("u2", 32 * 8).reshape(32, 8), RNG.permutation(32).astype(np.uint32)
    names = ", ".join(f"%r{k}" for k in range(4, 4 + count))
    body = f"""
mul.wide.u32 %d0, %t, 16; add.s64 %p0, %p0, %d0; add.s64 %p2, %p2, %d0;
mul.wide.u32 %d1, %t, 4; add.s64 %p1, %p1, %d1;
ld.global.v4.u32 {{%r0, %r1, %r2, %r3}}, [%p0];
mov.u32 %r8, tile; shl.b32 %r9, %t, 4; add.u32 %r9, %r9, %r8;
st.shared.v4.u32 [%r9], {{%r0, %r1, %r2, %r3}};
bar.warp.sync -1;
ld.global.u32 %r9, [%p1]; mad.lo.u32 %r9, %r9, 16, %r8;
ldmatrix.sync.aligned.m8n8.x{count}{".trans" * transposed}.shared.b16 {{{names}}}, [%r9];
st.global.v4.u32 [%p2], {{%r4, %r5, %r6, %r7}};"""
    got = run_ptx(body, [rows, order, np.zeros((32, 4), np.uint32)], shared=512)[2]
    matrices = rows[order].reshape(4, 8, 8)
    for k in range(count):
        wanted = matrices[k].T if transposed else matrices[k]
        assert np.array_equal(got[:, k], np.ascontiguousarray(wanted).view(np.uint32).ravel())


def test_shuffles_and_votes() -> None:
    lane = np.arange(32)
    line = "shfl.sync.{} %r0|%q0, %t, {}, {}, -1; selp.u32 %r1, 100, 0, %q0; add.u32 %r0, %r0, %r1;"
    store = "mul.wide.u32 %d0, %t, 4; add.s64 %p0, %p0, %d0; st.global.u32 [%p0], %r0;"
    for what, by, limits, want in (
        ("bfly.b32", 5, 31, (lane ^ 5) + 100),
        ("up.b32", 3, 0, np.where(lane >= 3, lane - 3 + 100, lane)),
        ("down.b32", 3, 31, np.where(lane < 29, lane + 3 + 100, lane)),
        ("idx.b32", 2, 24 << 8 | 31, lane // 8 * 8 + 2 + 100),
        ("down.b32", 4, 16 << 8 | 31, np.where(lane % 16 < 12, lane + 4 + 100, lane)),
    ):
        got = run_ptx(line.format(what, by, limits) + store, [np.zeros(32, np.uint32)])[0]
        assert np.array_equal(got, want), what
    # Of the lanes of either half alone.
    body = """
setp.lt.u32 %q0, %t, 16; selp.b32 %r2, 0xffff, 0xffff0000, %q0; setp.lt.u32 %q1, %t, 20;
@%q0 vote.sync.ballot.b32 %r0, %q1, %r2; @!%q0 vote.sync.ballot.b32 %r0, %q1, %r2;"""
    got = run_ptx(body + store, [np.zeros(32, np.uint32)])[0]
    assert np.array_equal(got, np.where(lane < 16, 0xFFFF, 0xF0000))


COPY = """
mul.wide.u32 %d0, %t, 16; add.s64 %p0, %p0, %d0; mul.wide.u32 %d1, %t, 4; add.s64 %p1, %p1, %d1;
mov.u32 %r0, tile; shl.b32 %r1, %t, 4; add.u32 %r1, %r1, %r0; ld.global.u32 %r2, [%p1];
"""


@pytest.mark.parametrize("late", [False, True])
def test_asynchronous_copy(late: bool) -> None:
    """As many bytes as the operand says, zeros beyond; what stands behind them is not read."""
    source = bits("u1", 31 * 16 + 4)
    given = np.array([0, 4, 8, 16] * 7 + [16, 16, 0, 4], np.uint32)
    body = (
        COPY
        + """cp.async.ca.shared.global [%r1], [%p0], 16, %r2; cp.async.commit_group; cp.async.wait_group 0;
ld.shared.v4.u32 {%r4, %r5, %r6, %r7}, [%r1]; mul.wide.u32 %d0, %t, 16; add.s64 %p2, %p2, %d0;
st.global.v4.u32 [%p2], {%r4, %r5, %r6, %r7};"""
    )
    got = run_ptx(body, [source, given, np.zeros(512, np.uint8)], shared=512, late=late)[2].reshape(32, 16)
    want = np.where(np.arange(16) < given[:, None], np.concatenate([source, np.zeros(12, np.uint8)]).reshape(32, 16), 0)
    assert np.array_equal(got, want)


# What a bug is, its kernel, and what is reported: of 64 threads in two blocks, with 64 words in p0.
WORD = "mul.wide.u32 %d0, %t, 4; add.s64 %d1, %p0, %d0; mov.u32 %r8, tile; shl.b32 %r9, %t, 2; add.u32 %r9, %r9, %r8;"
BUGS = {
    "unknown": ("ex2.approx.f32 %r0, %r1;", "unknown instruction"),
    "an unknown modifier": ("add.rn.ftz.f32 %r0, %r1, %r2;", "unknown instruction"),
    "an unknown register": ("mov.u32 %r0, %x7;", "not understood"),
    "division by zero": ("mov.u32 %r0, 0; div.u32 %r0, %t, %r0;", "division by zero"),
    "beyond": ("ld.global.u32 %r0, [%d1+256];", "thread (0, 0, 0): access beside device memory"),
    "before": ("ld.global.u32 %r0, [%d1+-4];", "thread (0, 0, 0): access beside device memory"),
    "misaligned": ("ld.global.v2.u32 {%r0, %r1}, [%d1];", "thread (1, 0, 0): misaligned"),
    "beside shared": ("st.shared.u32 [%r9+4], %t;", "thread (63, 0, 0): access beside shared memory"),
    "beside shared, generic": (
        "cvt.u64.u32 %d2, %r9; cvta.shared.u64 %d2, %d2; st.u32 [%d2+4], %t;",
        "thread (63, 0, 0): access beside shared memory",
    ),
    "not written": ("ld.shared.u32 %r0, [%r9];", "not written"),
    "written and read": ("st.shared.u32 [%r9], %t; xor.b32 %r9, %r9, 4; ld.shared.u32 %r0, [%r9];", "race"),
    "read and written": (
        "st.shared.u32 [%r9], %t; bar.sync 0; ld.shared.u32 %r0, [tile]; st.shared.u32 [%r9], %t;",
        "race: another thread reads",
    ),
    "read by all and written by the last": (
        "st.shared.u32 [%r9], %t; bar.sync 0; ld.shared.u32 %r0, [tile]; setp.eq.u32 %q0, %t, 63; "
        "@%q0 st.shared.u32 [tile], %t;",
        "thread (63, 0, 0): race: another thread reads",
    ),
    "a warp's barrier for a block's": (
        "st.shared.u32 [%r9], %t; bar.warp.sync -1; xor.b32 %r9, %r9, 128; ld.shared.u32 %r0, [%r9];",
        "race",
    ),
    "one word by all": ("st.shared.u32 [tile], %t;", "race: several"),
    "two blocks": ("st.global.u32 [%d1], %t;", "race: several"),
    "written by one block and read by the next": (
        "mov.u32 %r0, %ctaid.x; or.b32 %r1, %r0, %t; setp.eq.u32 %q0, %r1, 0; @%q0 st.global.u32 [%p0], %t; "
        "setp.eq.u32 %q0, %r0, 1; setp.eq.and.u32 %q0, %t, 0, %q0; @%q0 ld.global.u32 %r1, [%p0];",
        "block (1, 0, 0), thread (0, 0, 0): race: another thread writes",
    ),
    "divergent": ("setp.lt.u32 %q0, %t, 32; @%q0 bar.sync 0;", "threads wait for each other, 64 have ended"),
    "lane ended": ("setp.eq.u32 %q0, %t, 7; @%q0 ret; shfl.sync.idx.b32 %r0, %t, 0, 31, -1;", "wait for each other"),
    "not in the mask": ("shfl.sync.idx.b32 %r0, %t, 0, 31, 0x7fffffff;", "thread (31, 0, 0): the calling lane"),
    "from outside the mask": (
        "setp.lt.u32 %q0, %t, 8; @!%q0 ret; shfl.sync.idx.b32 %r0, %t, 8, 31, 0xff;",
        "a shuffle reads a lane",
    ),
    "no wait": ("mov.u32 %r1, 0; cp.async.ca.shared.global [%r9], [%d1], 4;", "nobody has waited"),
    "too weak a wait": (
        "cp.async.ca.shared.global [%r9], [%d1], 4; cp.async.commit_group; cp.async.wait_group 1; "
        "ld.shared.u32 %r0, [%r9]; cp.async.wait_all;",
        "not written",
    ),
    "too weak a wait at the second time": (
        "cp.async.ca.shared.global [%r9], [%d1], 4; cp.async.wait_all; cp.async.ca.shared.global [%r9], [%d1], 4; "
        "cp.async.commit_group; cp.async.wait_group 1; ld.shared.u32 %r0, [%r9]; cp.async.wait_all;",
        "not written",
    ),
    "no barrier after the wait": (
        "cp.async.ca.shared.global [%r9], [%d1], 4; cp.async.wait_all; xor.b32 %r9, %r9, 4; ld.shared.u32 %r0, [%r9];",
        "race",
    ),
    "too small a copy": ("cp.async.ca.shared.global [%r9], [%d1], 8;", "misaligned"),
    "more than there is": ("cp.async.ca.shared.global [%r9], [%d1], 4, 8;", "a source larger"),
    "no end": ("$again: bra $again;", "it does not end"),
}


@pytest.mark.parametrize("bug", BUGS)
def test_bugs_are_reported(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ptx, "MOST_BRANCHES", 1000)
    body, message = BUGS[bug]
    with pytest.raises(PtxError) as error:
        run_ptx(WORD + body, [np.zeros(64, np.uint32)], threads=64, blocks=2, shared=256, late=True)
    assert message in str(error.value)


def test_a_refill_without_a_barrier_is_a_race_when_copies_are_quick() -> None:
    body = (
        WORD
        + """
st.shared.u32 [%r9], %t; bar.sync 0; xor.b32 %r9, %r9, 4; ld.shared.u32 %r0, [%r9]; BARRIER
xor.b32 %r9, %r9, 4; cp.async.ca.shared.global [%r9], [%d1], 4; cp.async.wait_all;"""
    )
    for barrier, late, noticed in (("", False, True), ("bar.warp.sync -1;", False, False), ("", True, True)):
        kernel = body.replace("BARRIER", barrier)
        if noticed:
            with pytest.raises(PtxError, match="race"):
                run_ptx(kernel, [np.zeros(64, np.uint32)], threads=64, shared=256, late=late)
        else:
            run_ptx(kernel, [np.zeros(64, np.uint32)], threads=64, shared=256, late=late)
