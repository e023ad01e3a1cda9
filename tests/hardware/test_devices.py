"""Device models: whose noise it is, their gradients, what torch makes of them, a device of one's own."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from device_arrays import FALSE_ALARM, FEATURES, OPS, SEED, SIGMAS, SITE, Seen, eps, every_op, held, weights
from scipy import stats
from torch import Tensor

import noisykernels as nk

pytestmark = pytest.mark.usefixtures("one_thread")


# ------------------------------------------------------------------------------------------- whose noise it is

MODELS: dict[str, Callable[[], list[nk.hardware.Device]]] = {
    "pair": lambda: [nk.hardware.DifferentialPair(0.05, levels=16, over="channel")],
    "pcm": lambda: [nk.hardware.PCM(1e5, compensate=True)],
    "converters": lambda: [nk.hardware.DAC(4, "row"), nk.hardware.ADC(6, "row", rounding="floor")],
    "columns": lambda: [nk.hardware.ColumnGain(0.1), nk.hardware.ColumnOffset(0.3)],
    "all": lambda: [
        nk.hardware.DAC(5, 31.0), nk.hardware.PCM(10.0), nk.hardware.DifferentialPair(0.02),
        nk.hardware.ColumnGain(0.1), nk.hardware.ColumnOffset(0.3),
        nk.hardware.ADC(8, "row"),
    ],
}  # fmt: skip


def single_products(shape: tuple[int, ...]) -> Tensor:
    """Inputs with one value that is not zero in each row: any order of summation gives the same bits."""
    x = torch.zeros(shape).flatten(1)
    for row in range(len(x)):
        x[row, (7 * row + 3) % x.shape[1]] = row + 2
    return x.view(shape)


@every_op
@pytest.mark.parametrize("model", MODELS)
def test_a_result_does_not_depend_on_its_company(op: str, model: str) -> None:
    """To the bit: splits and shuffles of the batch, draws together or alone, shared or not, channels_last."""
    function, x_shape, _, options = OPS[op]
    x, weight = single_products(x_shape), weights(op)
    hardware = MODELS[model]()

    def run(x: Tensor = x, weight: Tensor = weight, draws: Any = (4, 0, 9), **more: Any) -> Tensor:
        return function(x, weight, hardware=hardware, seed=SEED, site=SITE, draws=list(draws), **options, **more)

    whole = run(shared=True)
    by_draw = whole.view(3, len(x), *whole.shape[1:])
    assert torch.equal(run(torch.cat([x] * 3)), whole)
    for d, draw in enumerate((4, 0, 9)):
        assert torch.equal(run(draws=[draw]), by_draw[d])
    parts = [
        run(x[a:b], shared=True, first_row=a).view(3, b - a, *whole.shape[1:]) for a, b in ((0, 1), (1, 4), (4, 6))
    ]
    assert torch.equal(torch.cat(parts, 1), by_draw)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    assert torch.equal(run(x[order], draws=[9], rows=order), by_draw[2][order])
    if op != "linear":
        last = torch.channels_last
        assert torch.equal(run(x.to(memory_format=last), weight.to(memory_format=last), shared=True), whole)
    random = model != "converters"
    assert torch.equal(by_draw[0], by_draw[1]) != random
    assert torch.equal(hardware_again(run, model, hardware), whole)


def hardware_again(run: Callable[..., Tensor], model: str, hardware: list[nk.hardware.Device]) -> Tensor:
    """With a copy of the devices."""
    hardware[:] = copy.deepcopy(hardware)
    return run(shared=True)


def test_what_is_held_does_not_depend_on_the_memory_format() -> None:
    """Of a weight with enough values for vector instructions, whose logarithms differ in the last bit from others."""
    weight = torch.randn(12, 6, 7, 7)
    for device in (nk.hardware.DifferentialPair(0.05, levels=9, over="channel"), nk.hardware.PCM(1e5, compensate=True)):
        seen = Seen()
        for w in (weight, weight.to(memory_format=torch.channels_last), weight.flip(3).clone().flip(3)):
            nk.conv2d(torch.zeros(1, 6, 7, 7), w, hardware=[device, seen], seed=SEED)
        assert torch.equal(seen.weights[1], seen.weights[0]) and torch.equal(seen.weights[2], seen.weights[0])


def test_chips_and_sites_differ() -> None:
    weight = torch.ones(20, 20)
    for device in (nk.hardware.DifferentialPair(0.1), nk.hardware.PCM()):
        chips = [held(device, weight, draw=d, seed=s) - 1 for d in (0, 1) for s in (0, 1)]
        values = torch.stack(chips).flatten(1).double()
        assert len(values.unique()) > 0.9 * values.numel()
        # correlation of 400 pairs: deviation 1 / 20
        assert torch.corrcoef(values).fill_diagonal_(0).abs().max() < SIGMAS / 20


def test_two_devices_may_not_draw_from_one_stream() -> None:
    x, w = torch.zeros(1, 2), torch.zeros(2, 2)
    for pair, operand in (
        ([nk.hardware.PCM(), nk.hardware.PCM()], "programming"),
        ([nk.hardware.ColumnOffset(1.0), nk.hardware.ColumnGain(1.0), nk.hardware.ColumnOffset(2.0)], "column_offset"),
        ([nk.MacNoise(read=0.1, explicit=True), nk.hardware.PCM()], "read"),
    ):
        with pytest.raises(ValueError, match=f"linear: hardware must have at most one device that draws '{operand}'"):
            nk.linear(x, w, hardware=pair, seed=0)
    explicit, memory = nk.MacNoise(per_product=0.1, per_step=0.2, explicit=True), nk.hardware.PCM()
    x, w = torch.ones(2, 3), torch.ones(4, 3)  # a level that is not given draws nothing
    alone = nk.linear(torch.eye(3), w, hardware=[memory], seed=1).T
    together = nk.linear(x, w, hardware=[memory, explicit], seed=1)
    assert torch.equal(together, nk.linear(x, alone, hardware=[explicit], seed=1))
    nk.linear(x, w, hardware=[nk.hardware.PCM(), nk.WeightNoise(add=0.1), nk.MacNoise(read=0.1)], seed=0)


# ------------------------------------------------------------------------------------------- torch


@every_op
@pytest.mark.parametrize("model", ["pair", "pcm", "columns"])
def test_gradcheck(op: str, model: str) -> None:
    """The smooth ones, in float64. max|W| takes part in no gradient: the largest weight is held."""
    function, x_shape, w_shape, options = OPS[op]
    hardware: list[nk.hardware.Device] = {
        "pair": [nk.hardware.DifferentialPair(0.1, clip=False)],
        "pcm": [nk.hardware.PCM(1e4, programming=0.2, read=0.5)],
        "columns": [nk.hardware.ColumnGain(0.3), nk.hardware.ColumnOffset(0.3)],
    }[model]
    fixed = weights(op, torch.float64).sign() * torch.empty(w_shape, dtype=torch.float64).uniform_(0.3, 0.9)
    fixed.view(-1)[:2] = torch.tensor([2.0, -0.5])
    some = torch.zeros(w_shape, dtype=torch.bool)
    some.view(-1)[1:6] = True
    x = torch.randn((2, *x_shape[1:]), dtype=torch.float64, requires_grad=True)

    def run(free: Tensor, x: Tensor) -> Tensor:
        weight = fixed.masked_scatter(some, free)
        return function(x, weight, hardware=hardware, seed=SEED, site=SITE, draws=[0, 3], shared=True, **options)

    assert torch.autograd.gradcheck(run, (fixed[some].clone().requires_grad_(), x), fast_mode=True)


def test_gradients_are_finite_where_weights_vanish() -> None:
    w = torch.tensor([[0.0, 1e-30, -1e-8, 1.0]], requires_grad=True)
    for device in (nk.hardware.DifferentialPair(0.1, levels=4), nk.hardware.PCM(100.0, compensate=True)):
        (grad,) = torch.autograd.grad(held(device, w).sum(), w)
        assert grad.isfinite().all(), device
        zeros = torch.zeros(1, 3, requires_grad=True)
        (grad,) = torch.autograd.grad(held(device, zeros).sum(), zeros)
        assert grad.isfinite().all(), device


@pytest.mark.parametrize("op", ["linear", "conv_transpose2d"])
def test_compiled_in_one_graph(op: str) -> None:
    """The same bits as in eager mode, and no second graph for another seed or another draw."""
    function, x_shape, _, options = OPS[op]
    x, weight, hardware = single_products(x_shape), weights(op), MODELS["all"]()
    graphs = 0

    def count(module: Any, _: Any) -> Any:
        nonlocal graphs
        graphs += 1
        return module.forward

    def run(x: Tensor, seed: Tensor, draws: Tensor) -> Tensor:
        return function(x, weight, hardware=hardware, seed=seed, draws=draws, shared=True, **options)

    torch._dynamo.reset()
    compiled = torch.compile(run, fullgraph=True, backend=count)
    for seed, draws in ((1, [0, 1]), (2, [5, 9])):
        arguments = (x, torch.tensor(seed), torch.tensor(draws))
        assert torch.equal(compiled(*arguments), run(*arguments))
    assert graphs == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_round_once(dtype: torch.dtype) -> None:
    """What float32 makes of the same values, rounded."""
    weight = weights("linear").to(dtype)
    for device in (nk.hardware.DifferentialPair(0.05, levels=9), nk.hardware.PCM(1e4, compensate=True)):
        assert torch.equal(held(device, weight), held(device, weight.float()).to(dtype))
    x = (torch.randn(5, 4) * 3).to(dtype)
    for hardware in (
        [nk.hardware.DAC(6, 2.0)],
        [nk.hardware.ADC(6, "row")],
        [nk.hardware.ColumnOffset(0.1)],
        [nk.hardware.ColumnGain(0.1)],
    ):
        one, other = (nk.linear(v, torch.eye(4, dtype=v.dtype), hardware=hardware, seed=1) for v in (x, x.float()))
        assert torch.equal(one, other.to(dtype))


@every_op
def test_autocast_decides_the_type(op: str) -> None:
    """That of the contraction, with a bias too; what the array holds is made in float32."""
    function, x_shape, _, options = OPS[op]
    weight, seen = weights(op), Seen()
    hardware = [nk.hardware.PCM(10.0), seen, nk.hardware.ColumnOffset(0.1), nk.hardware.ADC(8, "row")]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for bias in (None, torch.zeros(FEATURES)):
            y = function(torch.randn(x_shape), weight, bias, hardware=hardware, seed=SEED, site=SITE, **options)
            assert y.dtype == torch.bfloat16
    assert torch.equal(seen.weights[0], held(nk.hardware.PCM(10.0), weight, op))


@every_op
def test_vmap_over_inputs_is_a_loop(op: str) -> None:
    function, x_shape, _, options = OPS[op]
    weight, several = weights(op), torch.stack([single_products(x_shape), -single_products(x_shape)])

    def run(x: Tensor) -> Tensor:
        return function(x, weight, hardware=MODELS["all"](), seed=SEED, **options)

    assert torch.equal(torch.func.vmap(run)(several), torch.stack([run(x) for x in several]))


def test_the_noise_is_made_where_the_operands_are() -> None:
    """An integer seed is on the CPU; the noise is on the operands' device all the same."""
    x, weight = torch.zeros(2, 3, device="meta"), torch.zeros(4, 3, device="meta")
    hardware = [
        nk.hardware.DifferentialPair(0.1),
        nk.hardware.PCM(),
        nk.hardware.ColumnGain(0.1),
        nk.hardware.ColumnOffset(0.1),
        nk.hardware.ADC(8, "row"),
    ]
    y = nk.linear(x, weight, hardware=hardware, seed=1)
    assert y.device.type == "meta" and y.shape == (2, 4)


def test_nothing_to_do() -> None:
    for model in MODELS.values():
        assert nk.linear(torch.zeros(0, 3), torch.ones(4, 3), hardware=model(), seed=1).shape == (0, 4)
        y = nk.linear(
            torch.zeros(2, 0), torch.zeros(4, 0), hardware=[nk.hardware.DAC(4, "row"), nk.hardware.ADC(4, 1.0)], seed=1
        )
        assert torch.equal(y, torch.zeros(2, 4))
        assert nk.linear(torch.ones(3), torch.ones(4, 3), hardware=model(), seed=1).shape == (4,)


def test_one_after_the_other_is_the_contraction_of_what_they_make() -> None:
    """A noisy image through all of them, against the same steps one by one."""
    x, weight, bias = torch.randn(3, 4, 5, 5), weights("conv2d"), torch.randn(FEATURES)
    options = OPS["conv2d"][3]
    hardware = [
        nk.InputNoise(add=0.1),
        nk.hardware.DAC(6, 3.0),
        nk.hardware.DifferentialPair(0.1),
        nk.hardware.ColumnGain(0.1),
        nk.hardware.ADC(7, 31.5),
    ]
    y = nk.conv2d(x, weight, bias, hardware=hardware, seed=SEED, site=SITE, draws=[2], **options)
    noisy = x + 0.1 * nk.eps(x.shape, seed=SEED, site=SITE, operand="input", draw=2)
    codes = (noisy / (3 / 31)).round().clamp(-32, 31) * (3 / 31)
    array = held(nk.hardware.DifferentialPair(0.1), weight, "conv2d", draw=2)
    sums = F.conv2d(codes, array, **options)
    sums = sums * (1 + 0.1 * torch.from_numpy(eps((FEATURES,), "column_gain", 2)).float().view(-1, 1, 1))
    steps = (y - bias.view(-1, 1, 1) - sums).abs() / 0.5
    assert steps.max() < 0.51 and (sums.abs() < 31).all()  # rounded to the nearest code; a little for float32


class Stuck(nk.hardware.Device):
    """A device of a user's: see docs/guides/hardware.md."""

    operands = ("programming",)

    def weight(self, weight: Tensor, draw: nk.hardware.Draw) -> Tensor:
        u = draw.fixed(weight.shape, "programming", kind="uniform")
        return torch.where(u < 3**0.5 * (2 * 0.01 - 1), 0.0, weight)


def test_a_device_of_ones_own() -> None:
    """1 % of the cells, others on another chip; none of them twice in a list."""
    weight = torch.ones(300, 400)
    first, second = (held(Stuck(), weight, draw=d) == 0 for d in (0, 1))
    for stuck, share in ((first, 0.01), (second, 0.01), (first & second, 0.0001)):
        low, high = stats.binom.interval(1 - FALSE_ALARM, weight.numel(), share)
        assert low <= int(stuck.sum()) <= high
    with pytest.raises(ValueError, match="at most one device that draws 'programming'"):
        nk.linear(torch.ones(1, 4), torch.ones(3, 4), hardware=[Stuck(), nk.hardware.PCM()])


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (
            lambda: nk.hardware.DifferentialPair(0.1, levels=8),
            "DifferentialPair(sigma=0.1, g_max=1.0, levels=8, over='layer', ",
        ),
        (lambda: nk.hardware.PCM(20.0), "PCM(time=20.0, over='layer', "),
        (lambda: nk.hardware.DAC(4, "row"), "DAC(bits=4, limit='row', signed=True, rounding='nearest')"),
        (lambda: nk.hardware.ADC(4, torch.ones(3)), "ADC(bits=4, limit=<[3]>, signed=True, rounding='nearest')"),
        (lambda: nk.hardware.ColumnGain(torch.tensor(0.5)), "ColumnGain(sigma=0.5)"),
    ],
)
def test_shown(make: Callable[[], nk.hardware.Device], text: str) -> None:
    assert repr(make()).startswith(text)
