"""The operators give the same bits in every mode, thread and process that torch has to offer."""

from __future__ import annotations

import contextlib
import copy
import os
import pickle
import select
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from operators import CASES, MODES, assert_same_bits
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.data import DataLoader, Dataset

import noisykernels as nk

IDS: dict[str, Any] = dict(seed=2**63 + 5, site=2)
NOISE = nk.Noise(add=0.5, mul=0.25)


def result(op: str, rows: int = 4, noise: nk.Noise = NOISE) -> Tensor:
    case = CASES[op]
    return case.call(case.operands(rows, torch.float32), noise, **IDS)


# ------------------------------------------------------------------------------------------ modes


@contextlib.contextmanager
def _deterministic():
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextlib.contextmanager
def _default_dtype():
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


CONTEXTS: dict[str, Callable[[], contextlib.AbstractContextManager[Any]]] = {
    "no_grad": torch.no_grad,
    "inference": torch.inference_mode,
    "deterministic": _deterministic,
    "default dtype": _default_dtype,
    "anomaly": torch.autograd.detect_anomaly,
}


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("op", CASES)
def test_modes_of_torch_change_nothing(op: str, context: str) -> None:
    expected = result(op)
    with CONTEXTS[context]():
        first, second = result(op, noise=nk.Noise(add=0.5, mul=0.25)), result(op)
    assert first.is_inference() == (context == "inference")
    assert_same_bits(first, expected)
    assert_same_bits(second, expected)


def test_noise_made_for_another_default_device() -> None:
    with torch.device("meta"):
        noise = nk.Noise(add=0.5, mul=0.25)
        ids = dict(draws=[1], rows=[5, 6, 7, 8])
        y = nk.perturb(torch.zeros(4, 3, device="cpu"), noise, seed=1, **ids)
    assert_same_bits(y, nk.perturb(torch.zeros(4, 3), NOISE, seed=1, **ids))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("op", CASES)
def test_autocast_lowers_operands_not_levels(op: str, dtype: torch.dtype) -> None:
    case = CASES[op]
    operands = [o.requires_grad_(case.gradient) for o in case.operands(4, torch.float32, True)]
    contraction = case.noisy not in (nk.perturb, nk.perturb_relu_max_pool2d)
    lowered = [o.to(dtype) for o in operands] if contraction else operands
    noise = nk.Noise(add=torch.tensor(1 + 2**-20), mul=0.1)  # a level that a lower type would lose
    expected = case.call(lowered, noise, **IDS)
    with torch.autocast("cpu", dtype):
        actual = case.call(operands, noise, **IDS)
        wide = case.call([o.double() for o in operands], noise, **IDS)
    assert actual.dtype == (dtype if contraction else torch.float32) and wide.dtype == torch.float64
    assert_same_bits(actual, expected)
    if case.gradient:
        for a, e in zip(
            torch.autograd.grad(actual.float().sum(), operands),
            torch.autograd.grad(expected.float().sum(), operands),
            strict=True,
        ):
            assert_same_bits(a, e)


@pytest.mark.parametrize("op", CASES)
def test_fake_tensors_of_a_device_that_is_not_there(op: str) -> None:
    case = CASES[op]
    real = case.operands(4, torch.float32)
    with FakeTensorMode():
        operands = [torch.empty(o.shape, device="cuda") for o in real]
        y = case.call(operands, nk.Noise(add=0.5), seed=1)
    assert y.device.type == "cuda" and y.shape == result(op).shape


def test_autocast_of_another_device_is_not_ours() -> None:
    """Seed and level are on the CPU, but the value is not."""
    with FakeTensorMode(), torch.autocast("cpu", torch.bfloat16):
        x, w = torch.empty(4, 8, device="cuda"), torch.empty(3, 8, device="cuda")
        assert nk.linear(x, w, noise=nk.Noise(add=0.5), seed=1).dtype == torch.float32


def test_traced_by_make_fx() -> None:
    def f(x: Tensor, level: Tensor, seed: Tensor, draws: Tensor) -> Tensor:
        return nk.perturb(x, nk.Noise(add=level), seed=seed, draws=draws, shared=True)

    x = torch.randn(3, 4)
    traced = make_fx(f)(x, torch.tensor(0.1), torch.tensor(1), torch.arange(2))
    args = x, torch.tensor(0.7), torch.tensor(8), torch.tensor([5, 1])
    assert_same_bits(traced(*args), f(*args))


# ------------------------------------------------------------------------------------------ seeds


def test_manual_seed_governs_a_missing_seed() -> None:
    def draw(op: str) -> Tensor:
        case = CASES[op]
        return case.call(case.operands(4, torch.float32), NOISE)

    for op in CASES:
        torch.manual_seed(3)
        first, second = draw(op), draw(op)
        torch.manual_seed(3)
        assert_same_bits(draw(op), first)
        assert not torch.equal(first, second), op


def test_a_given_seed_leaves_the_generator_alone() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    for op in CASES:
        result(op, noise=nk.Noise(add=0.1, mul=0.2).scaled(2.0))
    nk.eps((3, 4), seed=1)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda n: pickle.loads(pickle.dumps(n))])
def test_a_copied_noise_is_the_same_noise(mode: str, duplicate: Callable[[Any], Any]) -> None:
    noise = nk.Noise(**MODES[mode])
    other = duplicate(noise)
    expected = result("linear", noise=noise)
    assert_same_bits(result("linear", noise=other), expected)
    for name in ("add", "mul"):
        if getattr(noise, name) is not None:
            getattr(other, name).mul_(2)
    assert_same_bits(result("linear", noise=noise), expected)


# --------------------------------------------------------------------------- threads and processes

MANY = ("perturb", "linear", "conv2d", "matmul", "pool")


def test_many_python_threads_at_once() -> None:
    expected = {op: result(op, 200) for op in MANY}
    with ThreadPoolExecutor(8) as pool:
        futures = [(op, pool.submit(result, op, 200)) for _ in range(20) for op in MANY]
        for op, future in futures:
            assert_same_bits(future.result(timeout=60), expected[op])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork")
def test_a_forked_child_of_a_process_with_threads(threads: Callable[[int], None]) -> None:
    """It must neither hang for the parent's pool of threads nor draw other noise."""
    threads(2)
    expected = [result(op, 600) for op in MANY]  # starts the pool
    read, write = os.pipe()
    child = os.fork()
    if child == 0:  # no test machinery in here: report by one byte and go
        try:
            same = all(torch.equal(result(op, 600), e) for op, e in zip(MANY, expected, strict=True))
            os.write(write, b"y" if same else b"n")
        finally:
            os._exit(0)
    os.close(write)
    ready, _, _ = select.select([read], [], [], 60)
    if not ready:
        os.kill(child, 9)
    answer = os.read(read, 1) if ready else b"hangs"
    os.waitpid(child, 0)
    os.close(read)
    assert answer == b"y"


class NoisyRows(Dataset[Tensor]):
    def __len__(self) -> int:
        return 6

    def __getitem__(self, row: int) -> Tensor:
        return nk.perturb(torch.zeros(1, 5), NOISE, seed=7, first_row=row)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork")
@pytest.mark.parametrize("workers", [0, 2])
def test_workers_of_a_data_loader(workers: int) -> None:
    loader = DataLoader(NoisyRows(), batch_size=4, num_workers=workers, timeout=60 * (workers > 0))
    actual = torch.cat([batch.flatten(0, 1) for batch in loader])
    assert_same_bits(actual, nk.perturb(torch.zeros(6, 5), NOISE, seed=7))
