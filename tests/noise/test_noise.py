"""The compiled noise equals the oracle to the bit on every CPU level, whatever a call's form."""

from __future__ import annotations

import functools
import platform
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import noisykernels._C as _C
from noisykernels import Noise, eps, per_channel, per_draw, per_row, perturb
from noisykernels.reference import noise as reference

NOISES = {
    "add": Noise(add=0.3),
    "mul": Noise(mul=0.7),
    "mul_add": Noise(add=0.3, mul=0.7),
    "add_mul": Noise(add=0.3, mul=0.7, order="add_mul"),
    "fold": Noise(add=0.3, mul=0.7, fold=True),
    "uniform": Noise(add=0.3, mul=0.7, kind="uniform"),
    "laplace": Noise(add=0.3, mul=0.7, kind="laplace", order="add_mul"),
}
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
LAST_ROW = LAST_DRAW = 2**32 - 1
LAST_SITE = 2**24 - 1
# Vector tails of every size, short rows that are drawn together, whole and broken chunks.
LENGTHS = [*range(1, 71), 100, 127, 128, 129, 252, 255, 256, 257, 511, 512, 513, 1000, 4096 + 3]
PLACES = [  # seed, site, draw, first row
    (0, 0, 0, 0),
    (1, LAST_SITE, LAST_DRAW, LAST_ROW - 4),
    (2**63, 5, 77, 2**31 - 2),
    (2**64 - 1, LAST_SITE - 1, 2**31, 12345),
]


each_example = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # a level stays for all examples
)


def assert_same_bits(actual: Tensor, expected: Tensor) -> None:
    """Equal to the last bit, signs of zeros included; any NaN equals any other."""
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    bits = {8: torch.int64, 4: torch.int32, 2: torch.int16}[actual.element_size()]
    same = actual.contiguous().view(bits) == expected.contiguous().view(bits)
    same |= actual.isnan() & expected.isnan()
    assert bool(same.all()), f"{int((~same).sum())} differ, first {(~same).nonzero()[0].tolist()}"


def values(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Values of many sizes, with zeros of both signs among them."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=g) * 10 ** (4 * torch.rand(shape, generator=g) - 2)
    x[torch.rand(shape, generator=g) < 0.05] = -0.0
    return x.to(dtype)


# --------------------------------------------------------------------------- equal to the oracle


def test_names_are_those_of_the_contract() -> None:
    assert tuple(_C.operands()) == reference.OPERANDS
    assert list(_C.noise_kinds()) == list(reference.KINDS)


def test_a_cpu_level_that_is_not_there_is_an_error() -> None:
    before = _C.cpu_level()
    with pytest.raises(ValueError, match="nonesuch"):
        _C.set_cpu_level("nonesuch")
    assert _C.cpu_level() == before


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the other levels are for x86-64")
@pytest.mark.parametrize("level", ["avx512", "avx2", "portable"])
def test_every_level_is_executed(level: str) -> None:
    """The tests that take `cpu_level` run on the levels that this machine has: say which those are not."""
    if level not in _C.cpu_levels():
        pytest.skip(f"this machine cannot run the level {level}: its kernels are not tested here")
    _C.set_cpu_level(level)
    assert _C.cpu_level() == level
    _C.set_cpu_level("auto")


@pytest.mark.skipif(not torch.set_flush_denormal(False), reason="this processor cannot flush subnormal numbers")
@pytest.mark.parametrize("kind", reference.KINDS)
def test_a_thread_that_flushes_subnormals_draws_the_same_noise(kind: str, cpu_level: str) -> None:
    """Also on float16, whose subnormals are 6e-8 and above: normal numbers where the arithmetic is done."""
    halves = torch.arange(-2048, 2048, dtype=torch.int16).view(4, -1).view(torch.float16)
    noise = Noise(add=1e-6, mul=0.1, kind=kind)

    def drawn() -> tuple[Tensor, Tensor]:
        return eps((4, 1000), kind=kind, seed=8), perturb(halves, noise, seed=8)

    expected = drawn()
    torch.set_flush_denormal(True)
    try:
        actual = drawn()
    finally:
        torch.set_flush_denormal(False)
    for a, e in zip(actual, expected, strict=True):
        assert_same_bits(a, e)


@functools.cache
def oracle_eps(kind: str, operand: str, place: tuple[int, int, int, int], *shape: int) -> Tensor:
    seed, site, draw, row = place
    where: dict[str, Any] = {"seed": seed, "site": site, "draw": draw, "first_row": row}
    return torch.from_numpy(reference.eps(shape, kind=kind, operand=operand, **where))


def assert_eps_is_the_oracles(
    kind: str, operand: str, place: tuple[int, int, int, int], rows: int, lengths: list[int]
) -> None:
    """For every row length; a shorter row is the beginning of a longer one."""
    expected = oracle_eps(kind, operand, place, rows, max(lengths))
    seed, site, draw, row = place
    where: dict[str, Any] = {"seed": seed, "site": site, "draw": draw, "first_row": row}
    for n in lengths:
        actual = eps((rows, n), kind=kind, operand=operand, **where)
        assert_same_bits(actual, expected[:, :n])


@pytest.mark.parametrize("operand", reference.OPERANDS)
@pytest.mark.parametrize("kind", reference.KINDS)
def test_eps_is_the_oracles(kind: str, operand: str, cpu_level: str) -> None:
    for place in PLACES:
        assert_eps_is_the_oracles(kind, operand, place, 5, LENGTHS)


@pytest.mark.parametrize("kind", reference.KINDS)
def test_many_short_rows_are_the_oracles(kind: str, cpu_level: str) -> None:
    assert_eps_is_the_oracles(kind, "add", (3, 0, 0, LAST_ROW - 299), 300, list(range(1, 71)))


@pytest.mark.parametrize("kind", reference.KINDS)
def test_elements_far_inside_a_row_are_the_oracles(kind: str, cpu_level: str) -> None:
    n, noise, place = 2**20 + 5, Noise(add=1.0, kind=kind), (9, 0, 0, 4)
    assert_eps_is_the_oracles(kind, "add", place, 1, [n])
    noisy = perturb(torch.zeros(1, n), noise, seed=9, first_row=4)
    assert_same_bits(noisy, oracle_eps(kind, "add", place, 1, n) + 0.0)


# Counters (site, draw, row, block), found by inverting the bijection, whose block begins with the
# words that are extreme for the transforms: smallest and largest u, u at the logarithm's split,
# both ends of the quarter turn, all signs.
EXTREMES = {
    (0x00000000, 0x20000000): (8984905, 2413749697, 3662198398, 2856),
    (0x00000001, 0x5FFFFFFF): (11834405, 517035704, 1912817237, 626),
    (0xFFFFFFFF, 0x1FFFFFFF): (4023263, 1014356128, 752347219, 3335),
    (0xFFFFFFFE, 0xE0000000): (2098712, 600851986, 623755360, 1744),
    (0xFFFFFEFF, 0x80000000): (2457086, 1385503371, 2558863937, 281),
    (0x55555555, 0x3FFFFFFF): (13899456, 3567426790, 2305126113, 1043),
    (0x55555580, 0x9FFFFFFF): (9040859, 307621063, 3260025655, 3596),
    (0xAAAAAAAA, 0xFFFFFFFF): (5496837, 744996706, 498713752, 1164),
    (0xAAAAAB00, 0x60000000): (4422230, 3895037129, 28275011, 3612),
    (0x80000000, 0x00000000): (7718792, 847030340, 1094255537, 1056),
    (0x7FFFFFFF, 0xDFFFFFFF): (645060, 3623529526, 2085322319, 3488),
}


@pytest.mark.parametrize("pair", EXTREMES)
@pytest.mark.parametrize("kind", reference.KINDS)
def test_extreme_words_give_the_oracles_values(kind: str, pair: tuple[int, int], cpu_level: str) -> None:
    site, draw, row, block = EXTREMES[pair]
    words = reference.block_words(2024, site, "add", draw, row, block)
    assert tuple(words[:2]) == pair
    where: dict[str, Any] = {"seed": 2024, "site": site, "draw": draw, "first_row": row}
    actual = eps((1, 4 * block + 4), kind=kind, **where)[0, -4:]
    assert_same_bits(actual, torch.from_numpy(reference.KINDS[kind](words)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", NOISES)
def test_perturb_is_the_oracles(name: str, dtype: torch.dtype, cpu_level: str) -> None:
    ids: dict[str, Any] = {"seed": 2**64 - 1, "site": LAST_SITE, "first_row": LAST_ROW - 2}
    ids["draws"] = [0, LAST_DRAW]
    for n in [*range(1, 18), 31, 33, 63, 65, 127, 129, 256, 511, 513, 1000, 4096 + 3]:
        x = values(6, n, dtype=dtype, seed=n)
        expected = reference.perturb(x, NOISES[name], **ids)
        assert_same_bits(perturb(x, NOISES[name], **ids), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", NOISES)
def test_special_values_are_the_oracles(name: str, dtype: torch.dtype, cpu_level: str) -> None:
    """NaN, infinities, the largest, smallest and subnormal values; their neighbours stay finite."""
    f = torch.finfo(dtype)
    special = [torch.nan, torch.inf, -torch.inf, f.max, -f.max, f.tiny, f.smallest_normal / 4, -0.0]
    x = values(3, 40, dtype=dtype)
    x[:, 5:37:4] = torch.tensor(special, dtype=torch.float64).to(dtype)
    y = perturb(x, NOISES[name], seed=1)
    assert_same_bits(y, reference.perturb(x, NOISES[name], seed=1))
    assert bool(y[:, 5].isnan().all())
    assert bool(y[x.abs() < 1000].isfinite().all())


GOLDEN = {
    "gaussian": "bf4472ed bf805266 bf92b3e9 bfc53290 be7c53fc bf5ebebb 3fb75a23 becebda7",
    "uniform": "3fc7d7c0 bf4b0f8d 3f0c5878 bf49203f bf94d057 bf15cd76 3f927fcf 3fb9aab2",
    "laplace": "bf10438b be3c49e6 bfa6db4d be3a3e22 3e94092c be05fa61 3f4878e6 3f1d9531",
}


@pytest.mark.parametrize("kind", reference.KINDS)
def test_stream_is_frozen(kind: str, cpu_level: str) -> None:
    """Bits of version 1 of the stream. They change with a major release only."""
    assert _C.STREAM_VERSION == 1
    actual = eps((2, 4), kind=kind, seed=0x0123456789ABCDEF, site=42, draw=7, first_row=1000)
    assert " ".join(f"{b:08x}" for b in actual.numpy().view("uint32").flat) == GOLDEN[kind]


# ------------------------------------------------------------------------------------ invariances


@pytest.mark.parametrize("name", NOISES)
def test_threads_do_not_matter(name: str, cpu_level: str, threads: Callable[[int], None]) -> None:
    for shape in [(5, 5003), (1, 25001), (4000, 7), (2, 3, 61, 67)]:
        x = values(*shape)
        expected = reference.perturb(x, NOISES[name], seed=1)
        for count in (1, 2, 3):
            threads(count)
            assert_same_bits(perturb(x, NOISES[name], seed=1), expected)


@each_example
@given(data=st.data())
def test_splits_and_permutations_of_rows_do_not_matter(data: st.DataObject, cpu_level: str) -> None:
    rows, n = data.draw(st.integers(1, 9)), data.draw(st.sampled_from([1, 3, 10, 64, 300]))
    noise = NOISES[data.draw(st.sampled_from(list(NOISES)))]
    first = data.draw(st.sampled_from([0, 2**31 - 3, LAST_ROW - rows + 1]))
    x = values(rows, n)
    whole = perturb(x, noise, seed=5, first_row=first)
    cut = data.draw(st.integers(0, rows))
    parts = [perturb(x[a:b], noise, seed=5, first_row=min(first + a, LAST_ROW)) for a, b in ((0, cut), (cut, rows))]
    assert_same_bits(torch.cat(parts), whole)
    order = torch.tensor(data.draw(st.permutations(range(rows))))
    assert_same_bits(perturb(x[order], noise, seed=5, rows=order + first), whole[order])


@each_example
@given(data=st.data())
def test_draws_together_are_draws_one_by_one(data: st.DataObject, cpu_level: str) -> None:
    ids = st.integers(0, LAST_DRAW) | st.sampled_from([0, 1, LAST_DRAW])
    draws = data.draw(st.lists(ids, min_size=1, max_size=4))
    noise = NOISES[data.draw(st.sampled_from(list(NOISES)))]
    x = values(data.draw(st.integers(1, 5)), data.draw(st.sampled_from([1, 7, 64, 513])))
    rows = torch.randperm(50)[: len(x)]
    single = torch.cat([perturb(x, noise, seed=5, rows=rows, draws=[d]) for d in draws])
    shared = perturb(x, noise, seed=5, rows=rows, draws=draws, shared=True)
    expanded = perturb(torch.cat([x] * len(draws)), noise, seed=5, rows=rows, draws=draws)
    assert_same_bits(shared, single)
    assert_same_bits(expanded, single)


@each_example
@given(data=st.data())
def test_strides_do_not_matter(data: st.DataObject, cpu_level: str) -> None:
    """Permuted, sliced and expanded dimensions give what a contiguous copy of the values gives."""
    dims = data.draw(st.integers(1, 5))
    sizes = data.draw(st.lists(st.integers(0, 6), min_size=dims, max_size=dims))
    order = data.draw(st.permutations(range(dims)))
    steps = data.draw(st.lists(st.integers(1, 3), min_size=dims, max_size=dims))
    x = values(*(size * step for size, step in zip(sizes, steps, strict=True)))
    x = x[tuple(slice(None, None, step) for step in steps)].permute(order)
    if data.draw(st.booleans()):
        x = x.expand(3, *x.shape)
    dtype = data.draw(st.sampled_from(DTYPES))
    noise = NOISES[data.draw(st.sampled_from(list(NOISES)))]
    x = x.to(dtype)
    copy = x.clone(memory_format=torch.contiguous_format)
    assert_same_bits(perturb(x, noise, seed=2), perturb(copy, noise, seed=2))


# Few positions and many, channels and positions that do and do not fill vectors and tiles.
CHANNELS_LAST_SHAPES = [
    *((2, 3, 5, 7), (3, 64, 8, 8), (2, 1, 9, 4), (2, 130, 1, 3), (1, 37, 23, 31), (2, 70, 17, 19)),
    *((2, 5, 3, 4, 6), (1, 21, 7, 5, 11)),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", NOISES)
def test_channels_last_does_not_matter(name: str, dtype: torch.dtype, cpu_level: str) -> None:
    for shape in CHANNELS_LAST_SHAPES:
        x = values(*shape, dtype=dtype)
        last = torch.channels_last if x.dim() == 4 else torch.channels_last_3d
        y = perturb(x.contiguous(memory_format=last), NOISES[name], seed=2)
        assert y.is_contiguous(memory_format=last)
        assert_same_bits(y, reference.perturb(x, NOISES[name], seed=2))


@pytest.mark.parametrize("kind", reference.KINDS)
def test_double_data_get_the_float32_noise_widened(kind: str, cpu_level: str) -> None:
    zeros = torch.zeros(3, 100, dtype=torch.float64)
    noisy = perturb(zeros, Noise(add=1.0, kind=kind), seed=4)
    assert_same_bits(noisy, eps((3, 100), kind=kind, seed=4).double() + 0.0)


def test_every_coordinate_matters() -> None:
    """Each of seed (both halves), site, operand, draw and row alone makes wholly other noise."""
    base: dict[str, Any] = {"seed": 1, "site": 1, "operand": "add", "draw": 1, "first_row": 1}
    change: dict[str, Any] = {"site": 2, "operand": "mul", "draw": 2, "first_row": 2}
    others = [{k: v} for k, v in change.items()] + [{"seed": 2}, {"seed": 1 + 2**32}]
    for other in others:
        same = eps((1, 1000), **base) == eps((1, 1000), **base | other)
        assert int(same.sum()) <= 3, other  # a pair agrees with probability 1e-7


# ----------------------------------------------------------------------------------------- levels


def at_level(noise: Noise, level: Tensor) -> Noise:
    """The same noise with this level in the place of each that it has."""
    add, mul = (0.0 if v is None else level for v in (noise.add, noise.mul))
    return Noise(add, mul, order=noise.order, kind=noise.kind, fold=noise.fold)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", NOISES)
@pytest.mark.parametrize("shape", [(2, 1, 1, 1, 1), (1, 3, 1, 1, 1), (1, 1, 4, 1, 1), (2, 3, 1, 1, 1), (2, 3, 4, 5, 6)])
def test_levels_that_vary_equal_separate_calls(
    shape: tuple[int, ...], name: str, dtype: torch.dtype, cpu_level: str
) -> None:
    choice = torch.randint(0, 3, shape, generator=torch.Generator().manual_seed(1))
    levels = torch.tensor([0.0, 0.1, 2.5], dtype=torch.float64)
    for memory in (torch.contiguous_format, torch.channels_last):
        x = values(6, 4, 5, 6, dtype=dtype).contiguous(memory_format=memory)

        expected = torch.empty_like(x)
        for i, level in enumerate(levels):
            here = (choice == i).expand(2, 3, 4, 5, 6).reshape(x.shape)
            expected[here] = perturb(x, at_level(NOISES[name], level), seed=8, draws=[3, 1])[here]
        actual = perturb(x, at_level(NOISES[name], levels[choice]), seed=8, draws=[3, 1])
        assert_same_bits(actual, expected)


@pytest.mark.parametrize(("helper", "dim"), [(per_draw, 0), (per_row, 1), (per_channel, 2)])
def test_level_helpers_vary_along_their_dimension(helper: Callable[..., Tensor], dim: int) -> None:
    level = helper([0.1, 0.2], ndim=4)
    assert level.dim() == 5
    assert level.shape[dim] == level.numel() == 2


@pytest.mark.parametrize("sigma", [1e-4, 1e-2, 1.0, 1e4, 1e8, 1e12, 1e16])
@pytest.mark.parametrize("name", NOISES)
def test_no_level_overflows_or_vanishes(name: str, sigma: float, cpu_level: str) -> None:
    """From 1e-4 to 1e16 in float32: finite, and every value moved by what the level says."""
    noise = NOISES[name].scaled(sigma)
    e = eps((4, 2000), kind=noise.kind, seed=1)
    for x in (torch.zeros(4, 2000), torch.full((4, 2000), -3000.0)):
        assert bool(perturb(x, noise, seed=1).isfinite().all())
    # Around zero the additive term stands alone: the exact product, and zero only where eps is.
    moved = perturb(torch.zeros(4, 2000), Noise(add=sigma, kind=noise.kind), seed=1)
    assert_same_bits(moved, torch.tensor(sigma, dtype=torch.float32) * e + 0.0)
    assert bool(((moved != 0) == (e != 0)).all())


@pytest.mark.parametrize("kind", reference.KINDS)
@pytest.mark.parametrize("order", ["mul_add", "add_mul"])
def test_multiplicative_noise_keeps_the_mean(kind: str, order: str) -> None:
    """The factor's mean over n draws is 1 within 5 m / sqrt(n): missed once in 1.7 million."""
    n, m = 2**21, 0.5
    noise = Noise(mul=m, kind=kind, order=order)
    factor = perturb(torch.ones(1, n), noise, seed=6).double()
    assert abs(factor.mean().item() - 1) <= 5 * m / n**0.5
    # The variance of a sample variance is (kurtosis - 1) m^4 / n, the kurtosis at most 6.
    assert abs(factor.var().item() - m**2) <= 5 * m**2 * (5 / n) ** 0.5


@pytest.mark.parametrize("name", ["mul_add", "add_mul", "fold"])
def test_mixed_noise_has_its_formulas_variance(name: str) -> None:
    """x = 2, a = 0.3, m = 0.7: m^2 x^2 + a^2, and m^2 a^2 more where the sum is multiplied."""
    n = 2**21
    y = perturb(torch.full((1, n), 2.0), NOISES[name], seed=6).double()
    variance = 0.7**2 * 4 + 0.3**2 + (0.7**2 * 0.3**2 if name == "add_mul" else 0.0)
    # 5 standard errors; the kurtosis of a sum or product of these Gaussians is below 4.
    assert abs(y.mean().item() - 2) <= 5 * (variance / n) ** 0.5
    assert abs(y.var().item() - variance) <= 5 * variance * (3 / n) ** 0.5


def test_noise_does_not_touch_torchs_generators() -> None:
    state = torch.get_rng_state()
    perturb(torch.zeros(3, 4), NOISES["mul_add"], seed=1)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("n", [7, 640])
@pytest.mark.parametrize("mode", range(5))
def test_a_bad_level_spoils_its_own_row_only(mode: int, n: int, cpu_level: str) -> None:
    """The operator itself, as inside a graph, where nothing looks at the levels first."""
    x, level = values(4, n), torch.full((1, 4, 1), 0.5, dtype=torch.float64)
    same = torch.tensor(0.5, dtype=torch.float64)

    def call(add: Tensor, mul: Tensor) -> Tensor:
        seed = torch.tensor(1)
        return torch.ops.noisykernels.perturb(x, 0, add, mul, seed, None, None, 0, 0, mode, 0, False)

    bad, expected = level.clone(), call(same, same)
    bad[0, 1] = torch.nan
    actual = call(bad, same) if mode == 0 else call(same, bad)
    expected[1] = torch.nan
    assert_same_bits(actual, expected)


def test_equal_noises_are_the_same_noise() -> None:
    """By mode, kind and levels; tensors by what they hold now, and never a number."""
    made = [
        lambda: Noise(), lambda: Noise(add=0.1), lambda: Noise(add=0.2), lambda: Noise(mul=0.1),
        lambda: Noise(add=0.1, kind="uniform"), lambda: Noise(add=0.1, mul=0.1),
        lambda: Noise(add=0.1, mul=0.1, order="add_mul"), lambda: Noise(add=0.1, mul=0.1, fold=True),
        lambda: Noise(add=torch.tensor(0.1)), lambda: Noise(add=torch.tensor([[[0.1, 0.2]]])),
        lambda: Noise(add=torch.tensor([[[0.1, 0.3]]])), lambda: Noise(add=torch.tensor([[0.1, 0.2]])),
    ]  # fmt: skip
    for i, one in enumerate(made):
        for j, other in enumerate(made):
            assert (one() == other()) is (i == j) is not (one() != other())
        assert hash(one()) == hash(one())
    assert len({one() for one in (*made, *made)}) == len(made)
    assert Noise(add=0.5).scaled(0.5) == Noise(add=0.25) != 0.25
    assert Noise(add=0.1, order="add_mul") == Noise(add=0.1)  # there is nothing to order
    level = torch.tensor(1.0)
    changing, other = Noise(add=level), Noise(add=torch.tensor(2.0))
    known = {changing: "found"}
    level.fill_(2.0)
    assert changing == other and known[changing] == "found"
    hidden = Noise(add=torch.tensor(1.0, device="meta"))
    assert hidden == hidden != Noise(add=torch.tensor(1.0, device="meta"))
