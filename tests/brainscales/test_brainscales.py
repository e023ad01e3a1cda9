"""BrainScaleS-2's matrix product: against whole numbers in numpy, with and without an order; gradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

import noisykernels as nk
from noisykernels.brainscales import BrainScaleS2, BSS2Linear, ConvertingReLU
from noisykernels.brainscales.layers import ClampedWeight

pytestmark = pytest.mark.usefixtures("one_thread")

SEED, SITE = 5, 3
Floats = NDArray[np.float32]
# name -> (function, shapes of x and weight, its options)
OPS: dict[str, tuple[Callable[..., Tensor], tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "linear": (nk.linear, (5, 300), (7, 300), {}),
    "linear, one chunk": (nk.linear, (5, 40), (7, 40), {}),
    "linear, 3 dimensions": (nk.linear, (3, 2, 130), (4, 130), {}),
    "conv1d": (nk.conv1d, (4, 3, 20), (5, 3, 4), {"stride": 2, "dilation": 2, "padding": 1}),
    "conv2d": (nk.conv2d, (3, 32, 6, 6), (6, 16, 3, 3), {"groups": 2, "padding": 1}),
    "conv_transpose2d": (nk.conv_transpose2d, (3, 34, 3, 3), (34, 3, 3, 3), {"groups": 2, "stride": 2}),
}
every_op = pytest.mark.parametrize("op", OPS)


def codes(op: str) -> tuple[Tensor, Tensor]:
    """Inputs and weights that are whole numbers of the whole range."""
    g = torch.Generator().manual_seed(1)
    _, x, weight, _ = OPS[op]
    return torch.randint(0, 32, x, generator=g).float(), torch.randint(-63, 64, weight, generator=g).float()


def operands(op: str, x: Tensor, weight: Tensor) -> tuple[NDArray[np.int64], NDArray[np.int64], tuple[int, ...]]:
    """For each row and output its operands, a convolution's by kernels with a single 1: (rows, outputs, K) twice."""
    options = OPS[op][3]
    plain = {"linear": F.linear}.get(op.partition(",")[0]) or getattr(F, op)
    if plain is F.linear:
        outputs = [*x.shape[1:-1], len(weight)]
        xs = x.unsqueeze(-2).expand(*x.shape[:-1], len(weight), -1).reshape(len(x), -1, x.shape[-1])
        ws = weight.expand(*x.shape[:-1], -1, -1).reshape(len(x), -1, x.shape[-1])
        return xs.long().numpy(), ws.long().numpy(), tuple(outputs)
    groups, transposed = options.get("groups", 1), "transpose" in op
    inputs = weight.shape[0] // groups if transposed else weight.shape[1]
    firsts = [g * inputs for g in range(groups)] if transposed else [0]
    xs, ws = [], []
    for c, *tap in np.ndindex(inputs, *weight.shape[2:]):
        one = torch.zeros_like(weight)
        for first in firsts:
            one[(first + c, slice(None), *tap) if transposed else (slice(None), c, *tap)] = 1
        xs.append(plain(x, one, **options))
        at = [weight[(first + c, slice(None), *tap) if transposed else (slice(None), c, *tap)] for first in firsts]
        ws.append(torch.cat(at).reshape(-1, *[1] * (x.dim() - 2)).expand(xs[-1].shape))
    found = [torch.stack([v.reshape(len(x), -1) for v in part], -1).long().numpy() for part in (xs, ws)]
    return found[0], found[1], tuple(xs[0].shape[1:])


def oracle(
    op: str, x: Tensor, weight: Tensor, gain: float = 0.002, noise_std: float = 2.0, num_sends: int = 1, draw: int = 0,
    rows: Any = None, limits: tuple[float, float] | None = None, ordered: bool = False, order: Any = None,
) -> Floats:  # fmt: skip
    """The definition again, with sums of 64-bit whole numbers and every rounding to float32 written out."""
    xs, ws, shape = operands(op, x, weight)
    n, outputs, steps = xs.shape
    chunks = -(-steps // 128)
    eps = nk.eps((n, chunks * outputs), seed=SEED, site=SITE, operand="read", draw=draw, rows=rows).numpy()
    factor = np.float32(gain * num_sends)
    y = np.zeros((n, outputs), np.int64)
    for c in range(chunks):
        mine = [k for k in (range(steps) if order is None else order) if k // 128 == c]
        products = (xs * ws)[:, :, mine]
        if ordered:
            s = np.zeros((n, outputs), np.float64)  # exact: multiples of 1 below 2^53, and the limits
            low, high = (np.float64(limit) / (float(factor) / num_sends) for limit in limits or (-128.0, 127.0))
            for _ in range(num_sends):
                for k in range(len(mine)):
                    s = np.clip(s + products[:, :, k], low, high)
            v = factor * (s / num_sends).astype(np.float32)
        else:
            v = factor * products.sum(-1).astype(np.float32)
            if limits is not None:
                v = np.clip(v, np.float32(limits[0]), np.float32(limits[1]))
        v = v + np.float32(noise_std) * eps[:, c * outputs : (c + 1) * outputs]
        assert v.dtype == np.float32
        y += np.clip(np.floor(v), -128, 127).astype(np.int64)
    return np.clip(y, -128, 127).astype(np.float32).reshape(n, *shape)


def run(op: str, x: Tensor, weight: Tensor, device: BrainScaleS2, **key: Any) -> Tensor:
    function, _, _, options = OPS[op]
    return function(x, weight, hardware=[device], seed=SEED, site=SITE, **options, **key)


# ------------------------------------------------------------------------------------------------------------- values


@every_op
@pytest.mark.parametrize("num_sends", (1, 3))
def test_results_are_those_of_whole_numbers(op: str, num_sends: int) -> None:
    x, weight = codes(op)
    y = run(op, x, weight, BrainScaleS2(num_sends=num_sends), draws=[4])
    expected = oracle(op, x, weight, num_sends=num_sends, draw=4)
    np.testing.assert_array_equal(y.numpy(), expected)
    assert len(np.unique(expected)) > 10  # LSB; else the test would say little


@every_op
def test_saturation_of_converter_and_sum(op: str) -> None:
    x, weight = codes(op)
    x, weight = x + 0.3, weight.clamp(-62, 62) - 0.4  # rounded
    x = x.clamp(0, 31)
    y = run(op, x, weight, BrainScaleS2(0.03, 1.0))
    np.testing.assert_array_equal(y.numpy(), oracle(op, x.round(), weight.round(), 0.03, 1.0))
    assert y.min() == -128 and y.max() == 127


@every_op
@pytest.mark.parametrize("num_sends", (1, 2))
def test_ordered_sums(op: str, num_sends: int) -> None:
    """Limits that are whole numbers of products, so that the sums of the oracle are exact."""
    x, weight = codes(op)
    device = BrainScaleS2(2.0**-7, num_sends=num_sends, ordered=True, low=-20, high=25)
    order = torch.randperm(device_steps(op), generator=torch.Generator().manual_seed(2))
    for given in (None, order):
        device.order = "natural" if given is None else given
        y = run(op, x, weight, device)
        how: dict[str, Any] = {"num_sends": num_sends, "limits": (-20.0, 25.0)}
        expected = oracle(op, x, weight, 2.0**-7, ordered=True, order=None if given is None else given.tolist(), **how)
        np.testing.assert_array_equal(y.numpy(), expected)
        twin = run(op, x, weight, device.unordered())
        np.testing.assert_array_equal(twin.numpy(), oracle(op, x, weight, 2.0**-7, **how))
        assert not torch.equal(y, twin)


def device_steps(op: str) -> int:
    _, _, weight, options = OPS[op]
    inputs = weight[0] // options.get("groups", 1) if "transpose" in op else weight[1]
    return inputs * math.prod(weight[2:])


@every_op
def test_an_order_changes_nothing_without_saturation(op: str) -> None:
    """Sums of whole numbers are exact, so the order-free product, and each order, agree to the bit."""
    x, weight = codes(op)
    plain = run(op, x, weight, BrainScaleS2(0.006, num_sends=3))
    for order in ("natural", "reversed", torch.randperm(device_steps(op)), "positive_first", "descending"):
        device = BrainScaleS2(0.006, num_sends=3, ordered=True, low=-math.inf, high=math.inf, order=order)
        assert torch.equal(run(op, x, weight, device), plain)


@pytest.mark.parametrize("num_sends", (1, 3, 7))
@pytest.mark.parametrize("gain", (0.002, 0.0031, 0.0035, 0.006, 0.007, 0.01, 0.3))
def test_a_saturated_membrane_reads_as_its_limit(gain: float, num_sends: int) -> None:
    x, weight = torch.full((1, 128), 31.0), torch.full((1, 128), 63.0)
    for limit in (127.0, 100.0, 64.0, 33.0, 8.0):
        device = BrainScaleS2(gain, 0.0, num_sends=num_sends, ordered=True, low=-limit, high=limit)
        assert nk.linear(x, weight, hardware=[device]).item() == limit
        assert nk.linear(x, -weight, hardware=[device]).item() == -limit


def test_order_of_a_known_sum() -> None:
    """100 LSB up and 100 down, with a limit of 60."""
    x, weight = torch.full((1, 4), 25.0), torch.tensor([[20.0, 20.0, -20.0, -20.0]])
    how: dict[str, Any] = {"gain": 0.1, "noise_std": 0.0, "ordered": True, "low": -60.0, "high": 60.0}
    results = {
        order: nk.linear(x, weight, hardware=[BrainScaleS2(**how, order=order)]).item()
        for order in ("natural", "reversed", "positive_first", "negative_first")
    }
    assert results == {"natural": -40, "reversed": 40, "positive_first": -40, "negative_first": 40}
    assert nk.linear(x, weight, hardware=[BrainScaleS2(**how, order=[0, 2, 1, 3])]).item() == 0
    assert nk.linear(x, weight, hardware=[BrainScaleS2(**how).unordered()]).item() == 0


def test_leak_and_synapses() -> None:
    x, weight = torch.full((1, 3), 10.0), torch.tensor([[10.0, 10.0, 10.0]])
    how: dict[str, Any] = {"gain": 0.125, "noise_std": 0.0, "ordered": True}
    assert nk.linear(x, weight, hardware=[BrainScaleS2(**how, leak=0.5)]).item() == math.floor(12.5 * 1.75)
    assert nk.linear(x, weight, hardware=[BrainScaleS2(**how, synapse_limit=4.0)]).item() == 12


def test_neurons_that_are_averaged_are_draws() -> None:
    x, weight = codes("linear")
    y = run("linear", x, weight, BrainScaleS2(avg=3), draws=[2])
    parts = np.stack([oracle("linear", x, weight, draw=2 * 3 + r) for r in range(3)])
    np.testing.assert_array_equal(y.numpy(), parts.sum(0) / np.float32(3))
    first = run("linear", x, weight, BrainScaleS2(avg=3), draws=[0])
    assert torch.equal(run("linear", x, weight, BrainScaleS2(avg=3)), first)


def test_noise_belongs_to_rows_and_draws() -> None:
    x, weight = codes("conv2d")
    device = BrainScaleS2()
    whole = run("conv2d", x, weight, device, rows=[7, 8, 2])
    np.testing.assert_array_equal(whole.numpy(), oracle("conv2d", x, weight, rows=[7, 8, 2]))
    assert torch.equal(run("conv2d", x[1:2], weight, device, rows=[8]), whole[1:2])
    both = run("conv2d", x, weight, device, draws=[3, 5], shared=True)
    assert torch.equal(both[3:], run("conv2d", x, weight, device, draws=[5])) and not torch.equal(both[:3], both[3:])


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16, torch.float64))
def test_types(dtype: torch.dtype) -> None:
    """Operands and results are exact in all of them."""
    x, weight = codes("linear")
    y = run("linear", x.to(dtype), weight.to(dtype), BrainScaleS2())
    assert y.dtype == dtype
    if dtype != torch.float64:
        assert torch.equal(y.float(), run("linear", x, weight, BrainScaleS2()))
    else:  # a sum that float32 rounds to a whole number may be beside it
        assert bool(((y - run("linear", x, weight, BrainScaleS2())).abs() <= 1).all())


def test_empty() -> None:
    assert nk.linear(torch.zeros(0, 5), torch.zeros(3, 5), hardware=[BrainScaleS2(ordered=True)]).shape == (0, 3)
    device = BrainScaleS2(noise_std=0.0)
    assert torch.equal(nk.linear(torch.zeros(2, 0), torch.zeros(3, 0), hardware=[device]), torch.zeros(2, 3))


# ---------------------------------------------------------------------------------------------------------- gradients


@every_op
@pytest.mark.parametrize("ordered", (False, True))
def test_gradient_passes_straight_through(op: str, ordered: bool) -> None:
    """That of the plain contraction, of operands that are not rounded, times gain and sends."""
    options = OPS[op][3]
    x, weight = codes(op)
    x, weight = (x * 0.97).requires_grad_(), (weight * 0.97).requires_grad_()
    y = run(op, x, weight, BrainScaleS2(0.05, num_sends=2, ordered=ordered))
    g = torch.randn(y.shape)
    plain = {"linear": F.linear}.get(op.partition(",")[0]) or getattr(F, op)
    expected = torch.autograd.grad(plain(x, weight, **options) * float(np.float32(0.1)), (x, weight), g)
    found = torch.autograd.grad(y, (x, weight), g)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)  # the same products, the factor taken before or after
    with torch.no_grad():
        assert torch.equal(run(op, x, weight, BrainScaleS2(0.05, num_sends=2, ordered=ordered)), y)


def test_masked_gradient() -> None:
    """One membrane: what came before its last saturation has none; one that the converter stops has none at all."""
    x = torch.full((1, 4), 10.0, requires_grad=True)
    weight = torch.tensor([[30.0, 30.0, -20.0, 10.0]], requires_grad=True)
    device = BrainScaleS2(0.1, 0.0, ordered=True, low=-40, high=40, gradient="masked")
    y = nk.linear(x, weight, hardware=[device])
    assert y.item() == 30
    y.sum().backward()
    assert x.grad is not None and weight.grad is not None
    torch.testing.assert_close(x.grad, torch.tensor([[0.0, 0.0, -2.0, 1.0]]))
    torch.testing.assert_close(weight.grad, torch.tensor([[0.0, 0.0, 1.0, 1.0]]))
    for low_gain, share in ((0.1, 1.0), (1.0, 0.0)):
        x.grad = None
        nk.linear(x, weight, hardware=[BrainScaleS2(low_gain, 0.0, gradient="masked")]).sum().backward()
        torch.testing.assert_close(x.grad, share * low_gain * weight.detach())


def test_masked_agrees_with_autograd_of_the_loop() -> None:
    torch.manual_seed(1)
    x, weight = codes("linear")
    x.requires_grad_()
    weight.requires_grad_()
    gain, low, high = 2.0**-7, -20.0, 25.0
    device = BrainScaleS2(gain, 0.0, ordered=True, low=low, high=high, gradient="masked")
    y = run("linear", x, weight, device)
    total = torch.zeros(5, 7)
    for part in x.detach().new_ones(300).cumsum(0).sub(1).long().split(128):
        v = torch.zeros(5, 7)
        for k in part:
            v = (v + gain * x[:, k, None] * weight[:, k]).clamp(low, high)
        total = total + (v + (v.floor() - v).detach()).clamp(-128, 127)
    expected = total.clamp(-128, 127)
    assert torch.equal(y, expected)
    g = torch.randn(y.shape)
    for a, b in zip(torch.autograd.grad(y, (x, weight), g), torch.autograd.grad(expected, (x, weight), g), strict=True):
        torch.testing.assert_close(a, b)


# ------------------------------------------------------------------------------------------------------ scaled to range


@pytest.mark.parametrize("ordered", (False, True))
@pytest.mark.parametrize("limit", (2.0, "row"))
def test_inputs_and_weights_of_a_trained_network(limit: float | str, ordered: bool) -> None:
    """In units of the sum: equal to whole numbers sent by hand, and near the plain product."""
    torch.manual_seed(0)
    x, weight = torch.rand(6, 60), torch.randn(9, 60) / 8
    x[:, 0] = 2.0
    device = BrainScaleS2(0.004, 0.0, input_limit=limit, ordered=ordered)
    y = nk.linear(x, weight, torch.full((9,), 10.0), hardware=[device])
    largest = weight.abs().max()
    sent, held = (x * (31 / 2.0)).round(), (weight * (63 / largest)).round()
    by_hand = nk.linear(sent, held, hardware=[BrainScaleS2(0.004, 0.0, ordered=ordered)])
    torch.testing.assert_close(y, by_hand * (2.0 / 31) * (largest / 63) / 0.004 + 10)
    step = float(2.0 / 31 * largest / 63 / 0.004)
    assert float((y - 10 - x @ weight.T).abs().max()) < 3 * step  # a floor, and roundings of operands
    negative = nk.linear(-x, weight, hardware=[device])
    assert torch.equal(negative, torch.zeros(6, 9))


def test_gradient_in_units_of_the_sum() -> None:
    x, weight = torch.rand(6, 60, requires_grad=True), torch.randn(9, 60, requires_grad=True)
    found = torch.autograd.grad(nk.linear(x, weight, hardware=[BrainScaleS2(input_limit=1.0)]).sum(), (x, weight))
    expected = torch.autograd.grad(F.linear(x, weight).sum(), (x, weight))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_in_any_model() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)).eval()
    x = torch.rand(10, 1, 8, 8)
    clean = model(x).detach()
    device = BrainScaleS2(0.004, 1.0, input_limit="row")
    with nk.inject(model, None, hardware=[device]), nk.noise_state(model, seed=1, draws=range(3)):
        y = model(x).view(3, 10, 5)
    assert not torch.equal(y[0], y[1]) and float((y.detach() - clean).std()) < 0.3 * float(clean.std())
    with nk.inject(model, None, hardware=[device]), nk.noise_state(model, seed=1, level=0.0):
        silent = model(x)
    with nk.inject(model, None, hardware=[BrainScaleS2(0.004, 0.0, input_limit="row")]):
        assert torch.equal(model(x), silent)


# ---------------------------------------------------------------------------------------------------------- errors etc.


def test_errors() -> None:
    x, weight = codes("linear, one chunk")
    for bad, match in ((x - 1, "inputs from 0 to 31, got -1 to"), (x + 1, "got 1 to 32"), (x * math.nan, "nan")):
        with pytest.raises(ValueError, match=match):
            nk.linear(bad, weight, hardware=[BrainScaleS2()])
    with pytest.raises(ValueError, match="weights from -63 to 63"):
        nk.linear(x, weight * 2, hardware=[BrainScaleS2()])
    nk.linear(x + 0.4 * (x == 31), weight, hardware=[BrainScaleS2()])  # rounds to 31
    with pytest.raises(ValueError, match="order must be a permutation of 40 operands, got 3"):
        nk.linear(x, weight, hardware=[BrainScaleS2(ordered=True, order=[0, 1, 2])])
    wrong: tuple[tuple[dict[str, Any], str], ...] = (
        ({"gain": 0.0}, "gain must be finite and positive"),
        ({"noise_std": -1.0}, "noise_std must be finite and not negative"),
        ({"num_sends": 0}, "num_sends must be a whole number from 1 to 64"),
        ({"avg": 0}, "avg must be a whole number from 1 to 65536"),
        ({"input_limit": "layer"}, "input_limit must be"),
        ({"low": 1.0, "ordered": True}, "BrainScaleS2: low must be"),
        ({"high": -1.0}, "BrainScaleS2: high must be"),
        ({"order": "sideways"}, "BrainScaleS2: order must be"),
        ({"order": [0, 0]}, "order must be a permutation"),
        ({"gradient": "none"}, "gradient must be"),
        ({"leak": 2.0}, "BrainScaleS2: leak must be"),
    )
    for arguments, match in wrong:
        with pytest.raises(ValueError, match=match):
            BrainScaleS2(**arguments)
    with pytest.raises(ValueError, match="without input_limit"):
        BSS2Linear(3, 2, device=BrainScaleS2(input_limit=1.0))
    with pytest.raises(ValueError, match="shift"):
        ConvertingReLU(-1)
    with pytest.raises(ValueError, match="limit must be finite and positive"):
        ClampedWeight(0.0)
    with pytest.raises(ValueError, match="at most one device that draws"):
        nk.linear(x, weight, hardware=[BrainScaleS2(), BrainScaleS2()])


def test_out_of_range_becomes_nan_where_values_cannot_be_seen() -> None:
    x, weight = codes("linear, one chunk")
    x[1, 3] = 40.0
    device = BrainScaleS2(noise_std=0.0)
    y = torch.func.vmap(lambda row: nk.linear(row, weight, hardware=[device], seed=1))(x.unsqueeze(1))
    assert y.isnan().all(-1).flatten().tolist() == [False, True, False, False, False]


def test_repr() -> None:
    assert repr(BrainScaleS2()) == "BrainScaleS2()"
    device = BrainScaleS2(0.01, torch.tensor(1.5), ordered=True, low=-64, order=[1, 0], avg=2)
    shown = "BrainScaleS2(gain=0.01, avg=2, ordered=True, low=-64.0, order=<2 operands, 6082339a>, noise_std=1.5)"
    assert repr(device) == shown != repr(BrainScaleS2(0.01, 1.5, ordered=True, low=-64, order=[0, 1], avg=2))
    assert device.scaled(2.0).noise_std == 3.0 and "BrainScaleS2" in repr(BSS2Linear(2, 2))


@pytest.mark.parametrize("order", (None, "natural", "permuted"))
def test_in_a_graph(order: str | None) -> None:
    given = torch.randperm(140) if order == "permuted" else "natural"
    layer = BSS2Linear(140, 6, device=BrainScaleS2(0.004, ordered=order is not None, order=given))
    x = torch.randint(0, 32, (4, 140)).float()

    def forward(x: Tensor, seed: Tensor) -> Tensor:
        return nk.linear(x, layer.weight, layer.bias, hardware=layer.hardware, seed=seed)

    seed = torch.tensor(3)
    compiled = torch.compile(forward, backend="aot_eager", fullgraph=True)
    y = compiled(x, seed)
    assert torch.equal(y, forward(x, seed))
    y.sum().backward()
    assert layer.weight.grad is not None and bool(layer.weight.grad.isfinite().all())
