"""Levels relative to a row's size: its definition to the bit, what changes no bit of it, and where it enters."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from operators import CASES, assert_same_bits
from torch import Tensor

import noisykernels as nk
from noisykernels._C import cpu_levels, set_cpu_level
from noisykernels.noise.contract import STATISTICS
from noisykernels.noise.units import by_torch
from noisykernels.reference import noise as reference
from noisykernels.reference.units import row_size

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def naive(x: Tensor, statistic: str) -> Tensor:
    """Of finite rows, in float64, rounding as it comes."""
    rows = x.double().flatten(1)
    if statistic == "max":
        return rows.abs().amax(1)
    centred = rows - rows.mean(1, keepdim=True) if statistic == "std" else rows
    return centred.square().mean(1).sqrt()


def hard_rows(dtype: torch.dtype) -> list[Tensor]:
    """Of all lengths and sizes: tiny, huge, far from zero, of one element, with an outlier, with no finite value."""
    g, limits = torch.Generator().manual_seed(1), torch.finfo(dtype)
    wide: Any = {"dtype": torch.float64}
    sizes = (1, 2, 3, 7, 8, 15, 16, 17, 127, 128, 129, 1000)
    found = [torch.randn(3, n, generator=g, **wide) for n in sizes]
    found += [found[-1] * 2.0**k for k in (-14, -130, -160, -1000, 12, 120, 1000)]
    found += [1000 + found[-8], torch.full((2, 300), 0.1, **wide), torch.zeros(2, 40, **wide)]
    found += [torch.full((1, 9), limits.tiny / 4, **wide), torch.full((1, 130), limits.max / 4, **wide)]
    outlier = torch.full((1, 9000), 1e-3, dtype=torch.float64)
    outlier[0, 77] = 1.0
    odd = torch.tensor([[math.inf, 1.0, -2.0], [math.nan, -math.inf, 0.0], [math.nan] * 3, [0.5, 0.25, -math.inf]])
    return [t.to(dtype) for t in (*found, outlier, odd.double())]


# ------------------------------------------------------------------------------------------------- definition


@pytest.mark.parametrize("statistic", STATISTICS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_size_is_that_of_the_contract_to_the_bit(dtype: torch.dtype, statistic: str) -> None:
    """On every level of the CPU. Of torch's operators, which other devices run, but for the last bit: torch's root of
    float64 is one of MKL's on the CPU, which is not rounded to the nearest (`test_cuda.py` has the rest).
    """
    before = cpu_levels()
    try:
        for level in before:
            set_cpu_level(level)
            for rows in hard_rows(dtype):
                sizes = [row_size(row.double(), statistic) for row in rows]
                expected = torch.tensor(sizes, dtype=torch.float64)
                assert_same_bits(nk.noise.row_scale(rows, statistic), expected)
                torch.testing.assert_close(by_torch(rows, STATISTICS.index(statistic)), expected, rtol=2**-52, atol=0)
    finally:
        set_cpu_level("auto")


@pytest.mark.parametrize("statistic", STATISTICS)
@pytest.mark.parametrize("count", [1, 5, 512, 4096, 100_000])
def test_a_size_is_what_it_is_called(count: int, statistic: str) -> None:
    """Against sums in float64: the grid moves it by no more than float32 tells apart; a deviation, which may be small
    beside the values, by half a step of that grid, as it moves by no more than the elements do."""
    half_step = 2.0 ** -(25 if count <= 8192 else 21)
    for x in (torch.randn(4, count), 3 + torch.randn(4, count), torch.rand(4, count).exp()):
        found, plain = nk.noise.row_scale(x, statistic), naive(x, statistic)
        most = 2.0**-23 * plain
        if statistic == "std":
            most += half_step * 2.0 ** x.double().abs().amax(1).log2().ceil()
        assert ((found - plain).abs() <= most).all()


def test_the_grid_is_as_fine_as_is_promised() -> None:
    """An outlier beside many small ones that are all rounded alike: the worst there is."""
    for count, bits in ((8192, 24), (2**16, 22), (2**20, 20)):
        x = torch.full((1, count), 1.49 * 2.0**-bits)
        x[0, 0] = 1 - 2.0**-24
        error = float(nk.noise.row_scale(x, "rms") / naive(x, "rms")) - 1
        assert abs(error) <= count**0.5 * 2.0**-bits


@pytest.mark.parametrize("statistic", STATISTICS)
def test_nothing_but_the_set_of_elements_counts(statistic: str) -> None:
    x = torch.randn(6, 4, 9, 5) * torch.logspace(-3, 3, 6).view(-1, 1, 1, 1)
    size = nk.noise.row_scale(x, statistic)
    order = torch.randperm(180)
    others = {
        "order": x.flatten(1)[:, order],
        "layout": x.to(memory_format=torch.channels_last),
        "strides": x.transpose(1, 3),
        "not finite": torch.cat([x.flatten(1), torch.full((6, 30), -math.inf), torch.full((6, 1), math.nan)], 1),
    }
    for name, other in others.items():
        assert torch.equal(nk.noise.row_scale(other, statistic), size), name
    for parts in (x.split(1), x.split([2, 4])):
        assert torch.equal(torch.cat([nk.noise.row_scale(part, statistic) for part in parts]), size)
    threads = torch.get_num_threads()
    try:
        wide = x.repeat(100, 1, 1, 1)
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            assert torch.equal(nk.noise.row_scale(wide, statistic), size.repeat(100))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("statistic", STATISTICS)
def test_empty_values_have_sizes(statistic: str) -> None:
    for shape, rows in (((0, 3), 0), ((3, 0), 3), ((0,), 0), ((), 1), ((4,), 4)):
        found = nk.noise.row_scale(torch.ones(shape), statistic)
        assert found.shape == (rows,) and found.dtype == torch.float64
        assert_same_bits(by_torch(torch.ones(shape), STATISTICS.index(statistic)), found)


# ------------------------------------------------------------------------------------------------- operators


def ids(case: Any, shared: bool) -> dict[str, Any]:
    draws = dict(draws=torch.tensor([4, 1]), shared=shared) if case.batched else {}
    return dict(seed=torch.tensor(77), site=2, **draws, **({"first_row": 3} if case.batched else {}))


@pytest.mark.parametrize("relative", STATISTICS)
@pytest.mark.parametrize("op", CASES)
def test_operators_draw_what_the_reference_draws(op: str, relative: str) -> None:
    case = CASES[op]
    for shared in (True, False)[: 1 + case.batched]:
        rows = 4 if shared else 8
        for noise in (
            nk.Noise(add=0.5, relative=relative),
            nk.Noise(add=0.5, mul=0.25, relative=relative),
            nk.Noise(add=0.5, mul=0.25, order="add_mul", kind="uniform", relative=relative),
            nk.Noise(add=0.5, mul=0.25, fold=True, relative=relative),
        ):
            operands = case.operands(rows, torch.float32)
            of_call = ids(case, shared)
            assert_same_bits(case.call(operands, noise, **of_call), case.expected(operands, noise, **of_call))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_type_and_a_row_alone(dtype: torch.dtype) -> None:
    x = torch.randn(5, 3, 8).to(dtype) * torch.tensor([1.0, 100.0, 0.0, 1e-3, 7.0]).view(-1, 1, 1).to(dtype)
    noise = nk.Noise(add=0.1, relative="rms")
    y = nk.perturb(x, noise, seed=1)
    assert_same_bits(y, reference.perturb(x, noise, seed=1))
    assert torch.equal(y[2], x[2])  # a row of zeros has no noise, and no NaN
    for i in range(5):
        assert torch.equal(nk.perturb(x[i : i + 1], noise, seed=1, first_row=i)[0], y[i])
    padded = torch.cat([x, x[:2]])
    assert torch.equal(nk.perturb(padded, noise, seed=1)[:5], y)


def test_levels_by_channel_and_draw_are_shares_too() -> None:
    x = torch.randn(4, 3, 6)
    for add in (nk.per_channel([0.0, 1.0, 2.0], ndim=3), nk.per_draw([0.5, 1.0], ndim=3), torch.tensor(0.25)):
        noise = nk.Noise(add=add, relative="max")
        made = nk.perturb(x, noise, seed=1, draws=[0, 3], shared=True)
        assert_same_bits(made, reference.perturb(x, noise, seed=1, draws=[0, 3], shared=True))


def test_what_is_infinite_stays_so_and_others_have_noise() -> None:
    x = torch.tensor([[math.inf, 1.0, -1.0, math.nan]])
    y = nk.perturb(x, nk.Noise(add=0.5, relative="rms"), seed=1)
    assert (
        y[0, 0] == math.inf and y[0, 3].isnan() and bool((y[0, 1:3] != x[0, 1:3]).all() and y[0, 1:3].isfinite().all())
    )


def test_a_share_has_the_law_of_its_unit() -> None:
    """200,000 normals: their deviation is within 1 % of the share but once in 10^9 cases (6 sigma)."""
    x = torch.randn(2, 100_000) * torch.tensor([[10.0], [0.01]])
    y = nk.perturb(x, nk.Noise(add=0.3, relative="rms"), seed=3)
    ratio = (y - x).double().std(1) / (0.3 * x.double().square().mean(1).sqrt())
    assert ((ratio - 1).abs() < 0.0135).all()


# ------------------------------------------------------------------------------------------ gradients, transforms


def test_the_size_takes_part_in_no_gradient() -> None:
    x, w = torch.randn(3, 4, dtype=torch.float64, requires_grad=True), torch.randn(5, 4, dtype=torch.float64)
    noise, scale = nk.Noise(add=0.5, mul=0.2, relative="rms"), nk.noise.row_scale(F.linear(x, w), "rms")
    level = 0.5 * scale.view(1, 3, 1)
    fixed = nk.Noise(add=level, mul=0.2)
    for op in (lambda n: nk.linear(x, w, noise=n, seed=1), lambda n: nk.perturb(F.linear(x, w), n, seed=1)):
        (found,), (expected,) = (torch.autograd.grad(op(n).square().sum(), x) for n in (noise, fixed))
        assert torch.equal(found, expected)


def test_forward_mode_and_transforms() -> None:
    x, noise = torch.randn(3, 4), nk.Noise(add=0.5, mul=0.2, relative="max")

    def f(x: Tensor) -> Tensor:
        return nk.perturb(x, noise, seed=1)

    _, tangent = torch.func.jvp(f, (x,), (torch.ones_like(x),))
    assert torch.allclose(tangent, torch.func.vjp(f, x)[1](torch.ones(3, 4))[0])  # elementwise: both are the factor
    many = torch.randn(2, 3, 4)
    assert torch.equal(torch.func.vmap(f)(many), torch.stack([f(x) for x in many]))


def test_opcheck() -> None:
    for x in (torch.randn(3, 4), torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last), torch.ones(())):
        torch.library.opcheck(torch.ops.noisykernels.row_scale.default, (x, 0))


@pytest.mark.parametrize("op", ["perturb 4-d", "linear relu", "conv2d grouped relu", "matmul broadcast"])
def test_compiled_equals_eager(op: str) -> None:
    case, noise = CASES[op], nk.Noise(add=0.5, relative="rms")
    torch._dynamo.reset()

    def f(operands: list[Tensor], level: Tensor) -> Tensor:
        return case.call(operands, noise.scaled(level), seed=torch.tensor(7), draws=torch.tensor([4, 1]), shared=True)

    operands = case.operands(4, torch.float32)
    with torch._dynamo.config.patch(error_on_recompile=True):
        compiled = torch.compile(f, backend="aot_eager", fullgraph=True)
        for level in (torch.tensor(1.0), torch.tensor(0.25)):
            assert_same_bits(compiled(operands, level), f(operands, level))
    torch._dynamo.reset()


def test_autocast_computes_the_contraction_as_it_does_without_noise() -> None:
    x, w = torch.randn(3, 4), torch.randn(5, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, clean = nk.linear(x, w, noise=nk.Noise(add=0.1, relative="rms"), seed=1), F.linear(x, w)
    assert_same_bits(y, reference.perturb(clean, nk.Noise(add=0.1, relative="rms"), seed=1))


def test_layers() -> None:
    layer = nk.NoisyLinear(4, 3, noise=nk.Noise(add=0.1, relative="rms"))
    torch.manual_seed(0)
    assert layer(torch.zeros(2, 4)).shape == (2, 3)
    assert "relative='rms'" in repr(layer)
    noisy = nk.InputNoise(add=0.5, relative="max")
    x, w = torch.randn(3, 4), torch.eye(4)
    y = nk.linear(x, w, hardware=[noisy], seed=1)
    level = 0.5 * nk.noise.row_scale(x, "max").view(1, 3, 1)
    assert torch.equal(y, nk.perturb(x, nk.Noise(add=level), seed=1, operand="input"))


# ------------------------------------------------------------------------------------------------- the description


def test_two_noises_of_different_units_are_two() -> None:
    same = nk.Noise(add=1.0, relative="rms")
    assert same == nk.Noise(add=1.0, relative="rms") and hash(same) == hash(nk.Noise(add=1.0, relative="rms"))
    assert same not in (nk.Noise(add=1.0), nk.Noise(add=1.0, relative="max"))
    assert same.scaled(2.0) == nk.Noise(add=2.0, relative="rms")
    assert nk.Noise.amplitude(1.0, 0.0, relative="rms") == nk.Noise(mul=1.0)
    assert nk.Noise.amplitude(1.0, 0.5, relative="rms") == nk.Noise(add=0.5, mul=0.5, relative="rms")
    assert repr(same) == "Noise(add=1.0, relative='rms')"


ONES, RMS = torch.ones(2, 2), nk.Noise(add=1.0, relative="rms")
RANGES = nk.Noise(add=1.0, relative=nk.noise.Ranges({"a": 1.0}))
BAD: list[tuple[Any, str]] = [
    (lambda: nk.Noise(add=1.0, relative="mean"), "must be None, 'rms', 'max', 'std' or Ranges, got 'mean'"),
    (lambda: nk.Noise(add=1.0, relative=2), "relative must be .* got 2"),  # type: ignore[arg-type]
    (lambda: nk.Noise(add=1.0, relative=True), "relative must be .* got True"),  # type: ignore[arg-type]
    (lambda: nk.Noise(mul=1.0, relative="rms"), "relative='rms' is about the level add, which is not given"),
    (lambda: nk.Noise(relative="rms"), "relative='rms' is about the level add"),
    (lambda: nk.InputNoise(add=1.0, relative="layer"), "InputNoise: relative must be one of rms, max, std"),
    (lambda: nk.InputNoise(mul=1.0, relative="rms"), "about the level add"),
    (lambda: RANGES.at("fc"), "no size of site 'fc'"),
    (lambda: nk.perturb(ONES, RANGES, seed=1), "perturb: .* name of a site"),
    (lambda: nk.perturb(ONES.long(), RMS, seed=1), "x must be float32, float64, bfloat16 or float16, got"),
    (lambda: nk.linear(ONES, ONES.double(), noise=RMS, seed=1), "x and weight must have one floating dtype"),
    (lambda: nk.linear(ONES, torch.ones(3, 4), noise=RMS, seed=1), "weight .N, K."),
    (lambda: nk.linear(ONES, ONES, noise=RMS, seed=1, draws=[0, 1, 2]), "rows"),
    (lambda: nk.linear(ONES, ONES, noise=nk.Noise(add=torch.tensor(-1.0), relative="rms")), "not negative"),
]


@pytest.mark.parametrize("case", range(len(BAD)))
def test_what_cannot_be_is_refused(case: int) -> None:
    make, message = BAD[case]
    with pytest.raises((ValueError, RuntimeError), match=message):
        make()
