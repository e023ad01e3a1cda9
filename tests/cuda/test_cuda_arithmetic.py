"""Sums with a defined arithmetic on CUDA: those of the CPU, to the bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cuda_cases import classifier, data, labelled, operators_seen
from factors import FACTORS
from operators import CASES, assert_same_bits
from torch import Tensor, nn

import noisykernels as nk
from noisykernels.arithmetic import FORMATS as NUMBER_FORMATS
from noisykernels.arithmetic import FixedFormat, FloatFormat, Serial, quantize, random_order

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
    pytest.mark.skipif(not nk._C.build_info()["cuda_archs"], reason="built without the CUDA kernels: no nvcc"),
]


STOCHASTIC = FloatFormat(4, 5, subnormals=True, rounding="stochastic")
SUMS = {
    "clamped": Serial(low=-1.5, high=2.0),
    "fp16": Serial("fp16"),
    "bf16 in an order": Serial("bf16", order="reversed"),
    "M7E6": Serial("M7E6", high=2.0),
    "L4R8": Serial("L4R8"),
    "stochastic": Serial(STOCHASTIC),
    "three formats": Serial(operands="fp16", product=FixedFormat(4, 4, rounding="stochastic"), sum="fp8_e4m3"),
    "synapses that leak": Serial(leak=0.75, synapse_limit=2.0, synapse_decay=0.5),
    "noise of every step": Serial("M7E6", step_noise=0.1, gain=0.5),
    "positive first": Serial(order="positive_first", low=-1.5, high=2.0),
    "descending": Serial(STOCHASTIC, order="descending", step_noise=0.1),
}
SUMMED = ("linear", "conv2d grouped relu", "conv_transpose2d")


@pytest.mark.parametrize("name", SUMS)
@pytest.mark.parametrize("op", SUMMED)
@pytest.mark.parametrize("dtype", FACTORS["dtype"])
def test_sums_with_a_defined_arithmetic(name: str, op: str, dtype: torch.dtype) -> None:
    """The bits of the CPU, of any operands."""
    case, ids = CASES[op], dict(seed=5, site=9, draws=[2**32 - 1, 3], shared=True, rows=[7, 0, 2**32 - 1, 5])
    operands = case.operands(4, dtype, normal=True)
    expected = case.noisy(*operands, arithmetic=SUMS[name], **case.options, **case.also, **ids)
    actual = case.noisy(*(o.cuda() for o in operands), arithmetic=SUMS[name], **case.options, **case.also, **ids)
    assert actual.is_cuda and not expected.isnan().any()
    assert_same_bits(actual.cpu(), expected)


def test_sums_in_an_order_on_the_device() -> None:
    x, w = torch.randn(9, 300), torch.randn(70, 300)
    for order in (random_order(300, seed=1), random_order(300, seed=1).cuda()):
        for fmt in (None, "M7E6", STOCHASTIC):
            how: dict[str, Any] = dict(arithmetic=Serial(fmt, order=order, low=-3.0, high=4.0), seed=1)
            there = nk.linear(x.cuda(), w.cuda(), **how).cpu()
            assert_same_bits(there, nk.linear(x, w, **how))


def test_level_of_a_step_on_the_device() -> None:
    x, w = torch.randn(9, 30), torch.randn(7, 30)
    for level in (0.25, -1.0):
        there, here = (
            nk.linear(x.to(device), w.to(device), seed=2, arithmetic=Serial(step_noise=number.to(device)))
            for device, number in (("cuda", torch.tensor(level)), ("cpu", torch.tensor(abs(level))))
        )
        assert there.isnan().all() if level < 0 else torch.equal(there.cpu(), here)


@pytest.mark.parametrize("dtype", FACTORS["dtype"])
def test_quantize(dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(3)
    formats = [*NUMBER_FORMATS, "M2E5", "M7E6", "L8R8", STOCHASTIC, FixedFormat(2, 9, rounding="stochastic")]
    for shape in ((), (0, 3), (1, 1), (1000, 1), (7, 1023), (2, 100_001), (300, 4, 9, 9)):
        x = (torch.randn(shape, generator=g) * 10 ** torch.empty(shape).uniform_(-8, 8, generator=g)).to(dtype)
        for fmt in formats:
            ids: dict[str, Any] = dict(seed=9, site=4, draw=2**32 - 1, first_row=77)
            assert_same_bits(quantize(x.cuda(), fmt, **ids).cpu(), quantize(x, fmt, **ids))


@pytest.mark.parametrize("gradient", ["straight_through", "masked"])
@pytest.mark.parametrize("op", SUMMED)
def test_gradients_of_sums(op: str, gradient: str) -> None:
    case = CASES[op]
    arithmetics = [
        Serial("M7E6", gradient=gradient, low=-1.0, high=1.5, leak=0.75, order="reversed"),
        Serial(STOCHASTIC, gradient=gradient, low=-1.0, high=1.5, order="ascending"),
    ]
    for arithmetic in arithmetics:

        def gradients(device: str, arithmetic: Serial = arithmetic) -> tuple[Tensor, ...]:
            operands = [o.to(device).requires_grad_() for o in case.operands(4, torch.float64, normal=True)]
            y = case.noisy(*operands, arithmetic=arithmetic, **case.options, seed=3)
            along = torch.randn(y.shape, generator=torch.Generator().manual_seed(2)).double()
            return torch.autograd.grad(y, operands, along.to(device))

        for a, e in zip(gradients("cuda"), gradients("cpu"), strict=True):
            # As in test_gradients.
            assert (a.cpu() - e).abs().max() <= 2**-40 * e.abs().max()


@pytest.mark.parametrize("name", ["M7E6", "stochastic", "descending"])
def test_opcheck_of_sums(name: str) -> None:
    x, w = (torch.randn(s, device="cuda", requires_grad=True) for s in ((3, 5), (4, 5)))
    arithmetic, calls = Serial(SUMS[name].format_of_sum, order=SUMS[name].order, high=1.0, gradient="masked"), []
    with operators_seen(calls):
        nk.linear(x, w, arithmetic=arithmetic, seed=1).sum().backward()
        quantize(x.detach(), STOCHASTIC, seed=1)
    names = {function.name() for function, _ in calls}
    assert {"noisykernels::quantize", "noisykernels::serial"} <= names
    assert name == "descending" or "noisykernels::serial_gradient" in names
    for function, args in calls:
        torch.library.opcheck(function, args)


@pytest.mark.parametrize("name", ["fp16", "stochastic", "noise of every step"])
def test_model_with_a_defined_arithmetic(name: str) -> None:
    """Nothing in it is summed by a library: scores to the bit, and so the same accuracies."""
    x, labels = labelled()
    scores, studies = [], []
    for device in ("cpu", "cuda"):
        model = classifier().to(device)
        with nk.inject(model, nk.Noise(add=0.1), arithmetic=SUMS[name]):
            with nk.noise_state(model, seed=3, draws=[3, 1]), torch.no_grad():
                scores.append(model(x.to(device)).cpu())
        studies.append(nk.chips(model, (x, labels), hardware=[SUMS[name]], draws=3, seed=1))
    assert_same_bits(scores[1], scores[0])
    assert studies[0].values.tolist() == studies[1].values.tolist()


class Summed(nn.Module):
    """A layer of a defined arithmetic in a model that is walked."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias

    def forward(self, x: Tensor) -> Tensor:
        return nk.linear(x, self.weight, self.bias, arithmetic=Serial("fp16", low=-8.0, high=8.0))


def test_walk_of_a_model_with_a_defined_arithmetic() -> None:
    studies = []
    for device in ("cpu", "cuda"):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Flatten(), Summed(nn.Linear(144, 20)), nn.ReLU(), Summed(nn.Linear(20, 5)))
        x, labels = data()
        studies.append(nk.walk(
            model.to(device).eval(), (x, labels), noise=nk.Noise(add=1.0), levels=[0.1, 10.0], draws=2, seed=1
        ))  # fmt: skip
    assert studies[0].records == studies[1].records


def test_nothing_of_a_defined_arithmetic_waits_for_the_device() -> None:
    x, w, b = (torch.ones(s, device="cuda") for s in ((64, 32), (16, 32), (16,)))
    level, seed = torch.tensor(0.5).double().cuda(), torch.tensor(5).cuda()
    order = random_order(32, seed=1).cuda()
    arithmetics = [
        Serial("fp16", high=2.0), Serial(STOCHASTIC, step_noise=level, order=order), Serial(order="ascending")
    ]  # fmt: skip
    torch.cuda.set_sync_debug_mode("error")
    try:
        for arithmetic in arithmetics:
            nk.linear(x, w, b, arithmetic=arithmetic, seed=seed)
        quantize(x, STOCHASTIC, seed=seed)
    finally:
        torch.cuda.set_sync_debug_mode("default")
