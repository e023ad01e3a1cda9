"""The operators, layers and studies on CUDA against the same on the CPU: the same noise to the bit.

Operands are small integers, which any contraction sums exactly (tf32 and half types too), so whole results must agree.
The kernels themselves are tested without a GPU in tests/simt.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from operators import CASES, DRAWS, MODES, assert_same_bits, covering
from test_ops import DIFFERENTIABLE, FACTORS, FORMATS, SMOOTH, make, name_of
from torch import Tensor, nn

import noisykernels as nk
from noisykernels.arithmetic import Serial, random_order
from noisykernels.formats import FORMATS as NUMBER_FORMATS
from noisykernels.formats import FixedFormat, FloatFormat, quantize

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
    pytest.mark.skipif(not nk._C.build_info()["cuda_archs"], reason="built without the CUDA kernels: no nvcc"),
]
NOISE = nk.Noise(add=0.5, mul=0.25)


@pytest.fixture
def exact_library() -> Iterator[None]:
    """No algorithms that multiply by fractions (Winograd, FFT): small integers stay exact."""
    with torch.backends.cudnn.flags(enabled=False):
        yield


@pytest.fixture
def no_tf32() -> Iterator[None]:
    with torch.backends.cudnn.flags(allow_tf32=False):
        yield


exact = pytest.mark.usefixtures("exact_library")


def on_gpu(value: Any) -> Any:
    """A tensor, or a noise, of the GPU."""
    if isinstance(value, nk.Noise):
        moved = value.scaled(1.0)
        moved.add, moved.mul = (None if t is None else t.cuda() for t in (value.add, value.mul))
        return moved
    return value.cuda() if isinstance(value, Tensor) else value


FACTORS_HERE = {**FACTORS, "numbers": ["integer"], "held": ["on the CPU", "on the GPU"]}


def check_values(
    op: str, mode: str, draws: str, rows: str, levels: str, kind: str, dtype: torch.dtype,
    format: str, numbers: str, held: str,
) -> None:  # fmt: skip
    case = CASES[op]
    noise, ids, rows_in = make(case, mode, draws, rows, levels, kind)
    operands = case.operands(rows_in, dtype, normal=numbers == "normal")
    expected = case.call([FORMATS[format](operands[0]), *operands[1:]], noise, **ids)
    there = [o.cuda() for o in operands]
    there[0] = FORMATS[format](there[0])
    if held == "on the GPU":
        noise, ids = on_gpu(noise), {k: on_gpu(v) for k, v in ids.items()}
    actual = case.call(there, noise, **ids)
    assert actual.is_cuda
    assert_same_bits(actual.cpu(), expected, noise)


@exact
@pytest.mark.parametrize("combination", covering(2, **FACTORS_HERE), ids=name_of)
def test_values(combination: dict[str, Any]) -> None:
    check_values(**combination)


@exact
@pytest.mark.full
def test_values_of_any_three_factors() -> None:
    for combination in covering(3, **FACTORS_HERE):
        check_values(**combination)


@pytest.mark.parametrize("way", ["library", "fused", "fused_tf32"])
@pytest.mark.parametrize("dtype", FACTORS["dtype"])
@pytest.mark.parametrize("draws", ["one", "expanded"])
@pytest.mark.parametrize("shape", [(6, 64), (6, 5, 24), (600, 136), (2200, 8), (64,), (6, 0), (0, 8), (6, 7)])
def test_linear_in_one_kernel(way: str, dtype: torch.dtype, draws: str, shape: tuple[int, ...]) -> None:
    if len(shape) == 1 and draws != "one":
        pytest.skip("one row takes one draw")
    g = torch.Generator().manual_seed(1)
    # Exact in half types too, in any order: the positive products of an output sum to 167 at most, as do the negative.
    x, w, b = (torch.randint(-2, 3, s, generator=g).to(dtype) for s in (shape, (132, shape[-1]), (132,)))
    ids: dict[str, Any] = {**DRAWS[draws], "seed": 5, "site": 9, "relu": True}
    expected = nk.linear(x, w, b, noise=NOISE, **ids)
    nk._C.set_cuda_multiplier(way)
    try:
        actual = nk.linear(x.cuda(), w.cuda(), b.cuda(), noise=NOISE, **ids)
    finally:
        nk._C.set_cuda_multiplier("library")
    assert_same_bits(actual.cpu(), expected)


@pytest.mark.parametrize("mode", MODES)
def test_noise_on_values_of_every_size(mode: str) -> None:
    g = torch.Generator().manual_seed(3)
    noise = nk.Noise(**MODES[mode])
    for dtype in FACTORS["dtype"]:
        for shape in ((1, 1), (3, 5), (1000, 1), (7, 1023), (2, 100_001), (300, 4, 9, 9)):
            x = (torch.randn(shape, generator=g) * 10 ** torch.empty(shape).uniform_(-30, 30, generator=g)).to(dtype)
            assert_same_bits(nk.perturb(x.cuda(), noise, seed=9).cpu(), nk.perturb(x, noise, seed=9))


@pytest.mark.parametrize("kind", FACTORS["kind"])
def test_eps(kind: str) -> None:
    for shape in ((), (0,), (3, 0), (5, 7), (1000, 333)):
        ids = dict(seed=2**64 - 1, site=7, operand="mul", draw=2**32 - 1, first_row=2**32 - 1000)
        assert_same_bits(nk.eps(shape, kind=kind, device="cuda", **ids).cpu(), nk.eps(shape, kind=kind, **ids))


@pytest.mark.parametrize(
    "combination", covering(2, op=DIFFERENTIABLE, mode=SMOOTH, levels=FACTORS["levels"]), ids=name_of
)
def test_gradients(combination: dict[str, Any]) -> None:
    case = CASES[combination.pop("op")]
    noise, ids, rows_in = make(case, draws="shared", rows="listed", **combination)

    def gradients(device: str) -> tuple[Tensor, ...]:
        operands = [o.to(device).requires_grad_() for o in case.operands(rows_in, torch.float64)]
        y = case.call(operands, noise, **ids)
        along = torch.randn(y.shape, generator=torch.Generator().manual_seed(2)).double()
        return torch.autograd.grad(y, operands, along.to(device))

    for a, e in zip(gradients("cuda"), gradients("cpu"), strict=True):
        # Sums of fewer than 2^12 terms of 53 bits, each with a few roundings of its own.
        assert (a.cpu() - e).abs().max() <= 2**-40 * e.abs().max()


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("last", [torch.contiguous_format, torch.channels_last])
def test_convolution_of_the_library_as_it_is_set(last: torch.memory_format, dtype: torch.dtype, relu: bool) -> None:
    """cuDNN with its own choice of algorithm and tf32: the noise is on what it gives, in its memory format."""
    x = torch.randn(4, 16, 30, 30, device="cuda", dtype=dtype).to(memory_format=last)
    w = torch.randn(24, 16, 3, 3, device="cuda", dtype=dtype).to(memory_format=last)
    clean = F.conv2d(x, w)
    noisy = nk.conv2d(x, w, noise=NOISE, relu=relu, seed=4)
    assert noisy.stride() == clean.stride()
    expected = nk.perturb(clean.cpu(), NOISE, seed=4)
    assert_same_bits(noisy.cpu(), F.relu(expected) if relu else expected)


@pytest.mark.parametrize("op", CASES)
def test_opcheck(op: str) -> None:
    case = CASES[op]
    operands = [o.cuda().requires_grad_(case.gradient) for o in case.operands(4, torch.float32)]
    calls = []
    with operators_seen(calls):
        case.call(operands, NOISE, seed=3)
    for function, args in calls:
        torch.library.opcheck(function, args)


class operators_seen(torch.utils._python_dispatch.TorchDispatchMode):
    """Notes the calls of our operators."""

    def __init__(self, calls: list[Any]) -> None:
        super().__init__()
        self.calls = calls

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.namespace == "noisykernels":
            self.calls.append((function, args))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("op", ["linear", "conv2d", "matmul"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(op: str, dtype: torch.dtype) -> None:
    case = CASES[op]
    operands = [o.cuda() for o in case.operands(4, torch.float32)]
    expected = case.call([o.to(dtype) for o in operands], NOISE, seed=3)
    with torch.autocast("cuda", dtype):
        assert_same_bits(case.call(operands, NOISE, seed=3), expected)


# ------------------------------------------------------------------------------------------- streams and graphs


def test_runs_on_the_current_stream() -> None:
    """A value that is still being made on another stream is waited for: the stream is torch's current one."""
    x, side = torch.zeros(1 << 20, device="cuda").view(1024, 1024), torch.cuda.Stream()
    expected = nk.perturb(torch.ones(1024, 1024), NOISE, seed=1)
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        torch.cuda._sleep(200_000_000)
        x.fill_(1)
        y = nk.perturb(x, NOISE, seed=1)
    side.synchronize()
    assert_same_bits(y.cpu(), expected)


def test_nothing_waits_for_the_device() -> None:
    x, w, b = (torch.ones(s, device="cuda") for s in ((64, 32), (16, 32), (16,)))
    image = torch.ones(2, 1, 8, 8, device="cuda")
    draws, rows, level = torch.arange(2).cuda(), torch.arange(64).cuda(), torch.tensor(0.5).double().cuda()
    seed = torch.tensor(5).cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for noise in (NOISE, nk.Noise(add=level, mul=level)):
            for ids in (dict(seed=3), dict(seed=seed, draws=draws, shared=True)):
                nk.linear(x, w, b, noise=noise, rows=rows, **ids)
                nk.perturb_relu_max_pool2d(image, noise, 2, **ids)
                nk.conv2d(image, image[:1, :, :3, :3], noise=noise, **ids)
                nk.eps((4, 4), device="cuda", seed=ids["seed"])
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_graph_reads_seed_and_levels_when_replayed() -> None:
    model = nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 4)).cuda()
    for p in model.parameters():
        p.data.copy_(torch.randint(-2, 3, p.shape))
    level, x = torch.tensor(0.5, dtype=torch.float64, device="cuda"), torch.ones(8, 32, device="cuda")
    with nk.inject(model, nk.Noise(add=level)), nk.noise_state(model, seed=1) as state, torch.no_grad():
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            model(x)
        side.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = model(x)
        for seed, amplitude in ((1, 0.5), (7, 0.5), (7, 2.0)):
            state.seed.fill_(seed), level.fill_(amplitude)
            graph.replay()
            torch.cuda.synchronize()
            assert_same_bits(y, model(x))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_compiled(device: str) -> None:
    """With seed and level on either device."""

    def f(x: Tensor, w: Tensor, seed: Tensor, level: Tensor) -> Tensor:
        return torch.relu(nk.linear(x, w, noise=nk.Noise(add=level), seed=seed)).sum(1)

    compiled = torch.compile(f, fullgraph=True)
    x, w = torch.ones(8, 32, device="cuda"), torch.ones(16, 32, device="cuda", requires_grad=True)
    for seed in (1, 2):
        args = x, w, torch.tensor(seed).to(device), torch.tensor(0.5 * seed).double().to(device)
        torch.testing.assert_close(compiled(*args), f(*args), rtol=1e-6, atol=1e-4)  # sums of 16 in another order
        compiled(*args).sum().backward()


def test_device_of_the_value_not_the_current_one() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one device only")
    x = torch.ones(8, 32)
    expected = nk.perturb(x, NOISE, seed=1)
    assert_same_bits(nk.perturb(x.to("cuda:1"), NOISE, seed=1).cpu(), expected)
    assert torch.cuda.current_device() == 0


def test_arguments_on_other_devices_are_refused() -> None:
    op, x = torch.ops.noisykernels.perturb.default, torch.ones(4, 3, device="cuda")
    level, seed = torch.tensor(0.5, dtype=torch.float64), torch.tensor(1)
    with pytest.raises(RuntimeError, match=r"perturb: draws must be on the device"):
        op(x, level, None, seed, torch.zeros(1, dtype=torch.int64), None, 0, 0, 0, 0, False)
    with pytest.raises(RuntimeError, match=r"perturb: level `add` must be on the device"):
        op(x, level.view(1, 1, 1), None, seed, None, None, 0, 0, 0, 0, False)
    with pytest.raises(RuntimeError, match=r"perturb: seed must be on the CPU or on the device"):
        op(x.cpu(), level, None, seed.cuda(), None, None, 0, 0, 0, 0, False)
    w, b = torch.ones(2, 3), torch.ones(2)
    for way in ("library", "fused"):
        nk._C.set_cuda_multiplier(way)
        for operands in ((x.cpu(), w.cuda(), b.cuda()), (x, w, b.cuda()), (x, w.cuda(), b), (x.cpu(), w, b.cuda())):
            with pytest.raises(RuntimeError, match="linear: input, weight and bias must be on the same device"):
                nk.linear(*operands, noise=NOISE, seed=1)
    nk._C.set_cuda_multiplier("library")


def test_bad_levels_and_ids_on_the_device_make_nan() -> None:
    x = torch.ones(4, 3, device="cuda")
    assert nk.perturb(x, nk.Noise(add=torch.tensor(-1.0).cuda()), seed=1).isnan().all()
    y = nk.perturb(x, nk.Noise(add=1.0), seed=1, rows=torch.tensor([0, -1, 2**32, 3]).cuda())
    assert y.isnan().all(1).tolist() == [False, True, True, False]


# -------------------------------------------------------------------------------------------------------- studies


def integers(model: nn.Module) -> nn.Module:
    """Small integers for weights, so that results without noise are the same everywhere."""
    g = torch.Generator().manual_seed(4)
    for p in model.parameters():
        p.data.copy_(torch.randint(-1, 2, p.shape, generator=g))
    return model


def network() -> nn.Module:
    return integers(nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36, 5)
    )).eval()  # fmt: skip


def data() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(5)
    return torch.randint(-2, 3, (300, 1, 12, 12), generator=g).float(), torch.randint(5, (300,), generator=g)


@pytest.mark.parametrize("draws", [None, [3, 1]])
def test_injected_model(draws: list[int] | None) -> None:
    x, _ = data()
    scores = []
    for device in ("cpu", "cuda"):
        model = network().to(device)
        with nk.inject(model, nk.Noise(add=2.0), where=lambda name, _: nk.Noise(add=2.0) if name == "0" else None):
            with nk.noise_state(model, seed=3, draws=draws), torch.no_grad():
                scores.append(model(x.to(device)).cpu())
    # One noisy site, then two contractions of fewer than 64 terms each: 2^-24 x 2 x 64, with room for their growth.
    assert (scores[0] - scores[1]).abs().max() <= 2**-15 * scores[0].abs().max()


@pytest.mark.parametrize("mode", ["add", "mul", "mul_add", "add_mul"])
@pytest.mark.usefixtures("no_tf32")
@pytest.mark.parametrize("shaped", [False, True])
def test_walk_agrees_with_the_cpu(mode: str, shaped: bool) -> None:
    """Each record up to predictions at a decision boundary."""
    levels = dict(MODES[mode])
    if shaped:  # on the CPU, where people make them
        levels |= {k: nk.per_channel([v, 2 * v, v, 0.0], 4) for k, v in levels.items() if isinstance(v, float)}
    studies = []
    for device, engine in (("cpu", "auto"), ("cuda", "auto"), ("cuda", "plain")):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            studies.append(nk.walk(
                network().to(device), data(), noise=nk.Noise(**levels), levels=[0.1, 1.0, 10.0], draws=3, seed=1,
                engine=engine, sites=[1, 2] if shaped else None,
            ))  # fmt: skip
    for one in studies[1:]:
        for a, b in zip(one.records, studies[0].records, strict=True):
            assert (a.site, a.level, a.draw) == (b.site, b.level, b.draw)
            assert abs(a.correct - b.correct) <= 1, (a, b)  # one of 300 rows, if any, so near to a boundary


def classifier() -> nn.Module:
    """A network that tells its inputs apart, each by some margin."""
    model, g = network(), torch.Generator().manual_seed(6)
    for p in model.parameters():
        p.data.copy_(torch.randn(p.shape, generator=g) / max(1, p[0].numel()) ** 0.5)
    return model


def labelled() -> tuple[Tensor, Tensor]:
    """Rows that the classifier gets right."""
    x, _ = data()
    with torch.no_grad():
        return x, classifier()(x).argmax(1)


def test_adaptive_walk() -> None:
    here = nk.walk(classifier(), labelled(), noise=nk.Noise(add=1.0), seed=1, sites=[1, 2])
    there = nk.walk(classifier().cuda(), labelled(), noise=nk.Noise(add=1.0), seed=1, sites=[1, 2])
    for a, b in zip(here.midpoints(), there.midpoints(), strict=True):
        assert a.status == b.status, (a, b)
        assert max(a.low, b.low) <= min(a.high, b.high)  # both intervals hold the same midpoint


def test_vote() -> None:
    here, there = (
        nk.vote(classifier().to(device), labelled(), noise=nk.Noise(add=5.0), draws=5, seed=1)
        for device in ("cpu", "cuda")
    )
    for kind, curve in here.curves.items():
        assert abs(curve.accuracy - there.curves[kind].accuracy).max() <= 2 / 300, kind


def test_studies_that_are_kept_settled_or_mixed(tmp_path: Path) -> None:
    model, how = classifier().cuda(), dict(levels=[1e-5, 1.0, 100.0], draws=3, seed=1)
    whole = nk.walk(model, labelled(), noise=nk.Noise(add=1.0), **how)
    part = nk.walk(model, labelled(), noise=nk.Noise(add=1.0), **{**how, "draws": 2}, store=tmp_path / "s.db")
    kept = nk.walk(model, labelled(), noise=nk.Noise(add=1.0), **how, store=tmp_path / "s.db")
    assert len(part.records) < len(kept.records) and kept.records == whole.records
    settled = nk.walk(model, labelled(), noise=nk.Noise(add=1.0), **how, plateaus=0.03)
    statuses = {r.status for r in settled.records}  # which of the two it is depends on the last bits of a contraction
    assert "evaluated" in statuses and statuses & {"proved", "settled"}
    clean = whole.meta.clean_correct
    assert all(r.correct == clean for r in settled.records if r.status == "proved")
    mixed = nk.walk_mixed(model, labelled(), ratios=[0.0, 1.0], **how)
    assert mixed.studies[1].records == whole.records


# ------------------------------------------------------------------------------------------- defined arithmetic

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
    assert studies[0].accuracy.tolist() == studies[1].accuracy.tolist()


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


def test_memory_of_the_operators_is_torchs() -> None:
    """Nothing is allocated beside the result, which torch's allocator gives."""
    x, draws = torch.ones(1 << 20, device="cuda").view(1024, 1024), torch.arange(2).cuda()

    def call() -> Tensor:
        return nk.perturb(x, NOISE, seed=1, draws=draws, shared=True)

    call()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before, free = torch.cuda.memory_allocated(), torch.cuda.mem_get_info()[0]
    for _ in range(50):
        y = call()
    torch.cuda.synchronize()
    assert torch.cuda.max_memory_allocated() - before <= 2 * y.nbytes + 4096  # the last result and the next
    assert torch.cuda.mem_get_info()[0] == free
