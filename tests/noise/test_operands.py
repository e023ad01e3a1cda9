"""What no kernel is for: operands on other devices, of other layouts; too many rows, too little memory."""

from __future__ import annotations

import resource
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import noisykernels as nk
from noisykernels.arithmetic import Serial, quantize

KEY: dict[str, Any] = dict(seed=1)
NOISE: dict[str, Any] = dict(noise=nk.Noise(add=0.1), seed=1)
X, W, B = torch.ones(2, 3), torch.ones(4, 3), torch.ones(4)
IMAGE, KERNEL = torch.ones(2, 3, 4, 4), torch.ones(4, 3, 2, 2)
LEVEL = torch.tensor(1.0, dtype=torch.float64)
ops = torch.ops.noisykernels

CALLS: dict[str, tuple[Callable[..., Tensor], tuple[Tensor, ...]]] = {
    "linear": (lambda x, w, b: nk.linear(x, w, b, **NOISE), (X, W, B)),
    "conv2d": (lambda x, w, b: nk.conv2d(x, w, b, **NOISE), (IMAGE, KERNEL, B)),
    "conv_transpose2d": (lambda x, w, b: nk.conv_transpose2d(x, w, b, **NOISE), (IMAGE, KERNEL[:3], B[:3])),
    "matmul": (lambda a, b: nk.matmul(a, b, **NOISE), (X, W.T)),
    "noisy weight": (lambda x, w, b: nk.linear(x, w, b, hardware=[nk.WeightNoise(add=0.1)], **KEY), (X, W, B)),
    "noisy kernel": (lambda x, w, b: nk.conv2d(x, w, b, hardware=[nk.WeightNoise(add=0.1)], **KEY), (IMAGE, KERNEL, B)),
    "device": (lambda x, w, b: nk.conv2d(x, w, b, hardware=[nk.hardware.Device()], **KEY), (IMAGE, KERNEL, B)),
    "memory": (lambda x, w, b: nk.linear(x, w, b, hardware=[nk.hardware.PCM()], **KEY), (X, W, B)),
    "macs": (lambda x, w, b: nk.linear(x, w, b, hardware=[nk.MacNoise(0.1)], **KEY), (X, W, B)),
    "serial": (lambda x, w, b: nk.linear(x, w, b, arithmetic=Serial("M7E6"), **KEY), (X, W, B)),
    "op perturb": (
        lambda x, add, seed, draws, rows: ops.perturb(x, 0, add, None, seed, draws, rows, 0, 0, 0, 0, False),
        (X, LEVEL, torch.tensor(1), torch.tensor([3]), torch.tensor([0, 1])),
    ),
    "op analog_linear": (
        lambda x, w, add, per: ops.analog_linear(
            x, w, None, add, None, 0, 0, per, None, None, torch.tensor(1), None, None, 0, 0, False
        ),
        (X, W, LEVEL, LEVEL),
    ),
    "op serial": (
        lambda a, b, order: ops.serial(
            a, b, order, [], [], -1.0, 1.0, 1.0, 1.0, 0.0, False, None, 8, torch.tensor(0), None, None, 0, 0, False,
            False,
        ),
        (X[None], W.T[None], torch.arange(3, dtype=torch.int32)),
    ),
    "op eps": (lambda seed, rows: ops.eps([2, 3], 0, seed, 0, 0, 0, rows, 0), (torch.tensor(1), torch.tensor([0, 1]))),
    "perturb": (lambda x: nk.perturb(x, nk.Noise(add=0.1), **KEY), (X,)),
    "pool": (lambda x: nk.perturb_relu_max_pool2d(x, nk.Noise(add=0.1), 2, **KEY), (IMAGE,)),
    "quantize": (lambda x: quantize(x, "M7E6"), (X,)),
}  # fmt: skip
ALONE = ("perturb", "pool", "quantize")  # one operand, which may be on any device
EACH = [(name, i) for name, (_, operands) in CALLS.items() for i in range(len(operands))]


def with_other(name: str, i: int, other: Callable[[Tensor], Tensor]) -> Callable[[], Tensor]:
    function, operands = CALLS[name]
    return lambda: function(*operands[:i], other(operands[i]), *operands[i + 1 :])


@pytest.mark.parametrize(("name", "i"), [(n, i) for n, i in EACH if n not in ALONE])
def test_one_operand_on_the_meta_device(name: str, i: int) -> None:
    """No tensor has uninitialised memory as its content: torch's own error, for every operand."""
    with pytest.raises(RuntimeError, match=r"all tensors must be on the same device, got .* on (cpu|meta) and "):
        with_other(name, i, lambda t: t.to("meta"))()


@pytest.mark.parametrize("name", [n for n in CALLS if n != "op eps"])
def test_all_operands_on_the_meta_device(name: str) -> None:
    """Seeds and 0-d levels may stay on the CPU."""
    function, operands = CALLS[name]
    moved = tuple(t if t.dim() == 0 else t.to("meta") for t in operands)
    assert function(*moved).device.type == "meta" and function(*moved).shape == function(*operands).shape


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "sparse_coo": lambda t: t.to_sparse(),
    "sparse_csr": lambda t: t.to_sparse_csr(),
    "quantized": lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8),
    "nested": lambda t: torch.nested.nested_tensor(list(t)),
    "_mkldnn": lambda t: t.to_mkldnn(),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_not_dense_is_refused_in_one_sentence(layout: str) -> None:
    for name, i in EACH:
        operand = CALLS[name][1][i]
        fits = operand.dim() == 2 if layout == "sparse_csr" else operand.dim() > 0
        if not fits or not operand.is_floating_point():
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, on prototypes
            with pytest.raises(TypeError, match=rf"must be a dense tensor, got a {layout} one$"):
                with_other(name, i, LAYOUTS[layout])()


# ---------------------------------------------------------------------------------------------------- rows, memory


def peak() -> int:
    """Bytes that the process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def test_too_many_rows_are_refused_before_they_are_copied() -> None:
    count, key = 2**32 + 1, dict(noise=nk.Noise(add=1.0), seed=1)

    def many(*item: int) -> Tensor:
        return torch.ones(1, *[1] * len(item)).expand(count, *item)

    before = peak()
    for call in (
        lambda: nk.perturb(many(1), nk.Noise(add=1.0), seed=1),
        lambda: nk.linear(many(1), torch.ones(1, 1), **key),
        lambda: nk.linear(torch.ones(1, 1).double().expand(count, 1), torch.ones(1, 1).double(), **key),
        lambda: nk.linear(many(1), torch.ones(1, 1), hardware=[nk.MacNoise(0.1)], seed=1),
        lambda: nk.linear(many(1), torch.ones(1, 1), arithmetic=Serial(), seed=1),
        lambda: nk.conv1d(many(1, 1), torch.ones(1, 1, 1), **key),
        lambda: nk.conv_transpose1d(many(1, 1), torch.ones(1, 1, 1), **key),
        lambda: nk.matmul(many(1), torch.ones(1, 1), **key),
        lambda: nk.matmul(torch.ones(1, 1), many(1, 1), **key),
        lambda: nk.perturb_relu_max_pool2d(many(1, 1, 1), nk.Noise(add=1.0), 1, seed=1),
        lambda: nk.eps((count, 1), seed=1),
        lambda: quantize(many(1), "M7E6 stochastic", seed=1),
    ):
        with pytest.raises((ValueError, RuntimeError), match=r"first_row and the 4294967297 rows .*\[0, 2\^32\)"):
            call()
    assert peak() - before < 2**30


def test_memory_that_is_not_there_is_said_with_its_size() -> None:
    """Of the operator that asks for it, whether it is ours or what torch makes on its behalf."""
    rows, wide = 2**31, 2**14
    x = torch.ones(1, 1).expand(rows, 1)
    key: dict[str, Any] = dict(noise=nk.Noise(add=1.0), seed=1)
    for op, call in (
        ("eps", lambda: nk.eps((rows, wide), seed=1)),
        ("perturb", lambda: nk.perturb(x.expand(rows, wide), nk.Noise(add=1.0), seed=1)),
        ("matmul", lambda: nk.matmul(x, torch.ones(1, wide), **key)),
        ("conv1d", lambda: nk.conv1d(x[:, None].expand(rows, 1, wide), torch.ones(1, 1, 1), **key)),
    ):
        with pytest.raises(
            RuntimeError, match=rf"^noisykernels::{op}: not enough memory for a tensor of 131072.0 GiB$"
        ):
            call()
