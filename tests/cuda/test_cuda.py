"""The operators on CUDA against the same on the CPU: the same noise to the bit.

Operands are small integers, which any contraction sums exactly (tf32 and half types too), so whole results must agree.
The kernels themselves are tested without a GPU in tests/cuda/simt.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cuda_cases import NOISE, exact, on_gpu, operators_seen
from factors import DIFFERENTIABLE, FACTORS, FORMATS, SMOOTH, make, name_of
from operators import CASES, DRAWS, MODES, assert_same_bits, covering
from torch import Tensor, nn

import noisykernels as nk

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
    pytest.mark.skipif(not nk._C.build_info()["cuda_archs"], reason="built without the CUDA kernels: no nvcc"),
]


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
