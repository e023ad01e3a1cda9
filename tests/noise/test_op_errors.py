"""Wrong arguments: which error each gets. A message names operator, argument, expected and got."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import noisykernels as nk


def _five(**arguments: Any) -> list[tuple[str, Callable[[], Tensor]]]:
    """A call of each kind of operator on four rows of shape (1, 4, 4)."""
    x = torch.zeros(4, 1, 4, 4)
    arguments = {"noise": nk.Noise(add=1.0), "seed": 1, **arguments}
    return [
        ("perturb", lambda: nk.perturb(x, **arguments)),
        ("linear", lambda: nk.linear(x, torch.zeros(4, 4), **arguments)),
        ("conv", lambda: nk.conv2d(x, torch.zeros(1, 1, 3, 3), padding=1, **arguments)),
        ("matmul", lambda: nk.matmul(x, torch.zeros(4, 4), **arguments)),
        (
            "perturb_relu_max_pool2d",
            lambda: nk.perturb_relu_max_pool2d(x, kernel_size=2, **arguments),
        ),
    ]


def _noise(shape: Sequence[int] = (), value: float = 1.0) -> nk.Noise:
    return nk.Noise(add=torch.full(tuple(shape), value))


def _needs_grad() -> nk.Noise:
    noise = _noise()
    assert noise.add is not None
    noise.add.requires_grad_()
    return noise


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        (dict(noise=0.1), TypeError, "noise must be a Noise, got float"),
        (dict(noise=_noise(value=-1.0)), ValueError, r"level `add` must be .*, got \[-1"),
        (dict(noise=_noise((), torch.nan)), ValueError, r"level `add` must be finite.* got \[nan"),
        (dict(noise=_noise((), torch.inf)), ValueError, r"level `add` must be finite.* got \[inf"),
        (dict(noise=_needs_grad()), ValueError, "level `add` requires grad"),
        (dict(noise=_noise((4,))), RuntimeError, r"`add` must be 0-d or of rank 5 .* per_channel.* shape \[4\]"),
        (dict(noise=_noise((2, 1, 1, 1, 1))), RuntimeError, "`add` has 2 draws, expected 1 or 1"),
        (dict(noise=_noise((1, 3, 1, 1, 1))), RuntimeError, "`add` has 3 rows, expected 1 or 4"),
        (dict(noise=_noise((1, 1, 1, 3, 1))), RuntimeError, r"`add` of shape \[1, 1, 1, 3, 1\]"),
        (dict(seed=1.5), TypeError, "seed must be an int, an int64 tensor or None, got float"),
        (dict(seed=True), TypeError, "seed must be an int, an int64 tensor or None, got bool"),
        (dict(seed=-1), ValueError, r"seed must lie in \[0, 2\^64\), got -1"),
        (dict(seed=2**64), ValueError, r"seed must lie in \[0, 2\^64\), got 18446744073709551616"),
        (dict(seed=torch.zeros(())), ValueError, r"seed must be one int64, got torch.float32"),
        (dict(seed=torch.arange(2)), ValueError, r"seed must be one int64, got .* shape \[2\]"),
        (dict(site=-1), RuntimeError, r"site must lie in \[0, 2\^24\), got -1"),
        (dict(site=2**24), RuntimeError, r"site must lie in \[0, 2\^24\), got 16777216"),
        (dict(draws=3), TypeError, r"draws must be a vector of ids, got the number 3"),
        (dict(draws=[0.5, 1]), ValueError, r"draws must be an int64 vector, got torch.float32"),
        (dict(draws=torch.zeros(1)), ValueError, "draws must be an int64 vector, got torch.float"),
        (dict(draws=torch.arange(4).view(2, 2)), ValueError, r"draws .* vector, .* shape \[2, 2\]"),
        (dict(draws=[-1]), ValueError, r"draws must lie in \[0, 2\^32\), got values from -1 to -1"),
        (dict(draws=[1, 2**32]), ValueError, r"draws must lie in .* from 1 to 4294967296"),
        (dict(draws=[0, 1, 2]), RuntimeError, "must be a multiple of 3 draws, got 4"),
        (dict(draws=[]), RuntimeError, "draws is empty but there are 4 rows"),
        (dict(rows=4), TypeError, "rows must be a vector of ids, got the number 4"),
        (dict(rows=[0, 1]), RuntimeError, "rows must hold one id for each of 4 rows, got 2"),
        (dict(rows=range(4), draws=[0, 1]), RuntimeError, "one id for each of 2 rows, got 4"),
        (dict(rows=[0, 1, 2, -3]), ValueError, r"rows must lie in \[0, 2\^32\), got .* -3 to 2"),
        (dict(rows=[0.0] * 4), ValueError, "rows must be an int64 vector, got torch.float32"),
        (dict(rows=range(4), first_row=1), ValueError, "give rows or first_row, not both"),
        (dict(first_row=-1), ValueError, r"first_row must lie in \[0, 2\^32\), got -1"),
        (dict(first_row=2**32), ValueError, r"first_row must lie in \[0, 2\^32\), got 4294967296"),
        (dict(first_row=2**32 - 3), RuntimeError, r"first_row and the 4 rows .* got 4294967293"),
    ],
)
def test_wrong_noise_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    for op, call in _five(**arguments):
        with pytest.raises(error, match=rf"{op}\w*: (.*){message}"):
            call()


INTEGERS, X, W = torch.zeros(4, 3, dtype=torch.int64), torch.zeros(4, 3), torch.zeros(5, 3)
IMAGE, KERNEL = torch.zeros(4, 2, 6, 6), torch.zeros(3, 2, 3, 3)
POOL = nk.perturb_relu_max_pool2d


def test_the_first_of_several_wrong_arguments() -> None:
    """The noise first, then first_row, seed, draws and rows: and where the noise is refused, no seed is drawn."""
    wrong: dict[str, Any] = {
        "noise": (_noise(value=-1.0), "level `add` must be finite"),
        "first_row": (-1, "first_row must lie in"),
        "seed": (-1, "seed must lie in"),
        "draws": ([-1], "draws must lie in"),
        "rows": ([-1], "rows must lie in"),
    }
    names = ["noise", "first_row", "seed", "draws", "rows"]
    for i, name in enumerate(names):
        given = {n: wrong[n][0] for n in names[i:] if n != "rows" or name not in ("noise", "first_row")}
        for op, call in _five(**given):
            with pytest.raises(ValueError, match=f"{op}.*: {wrong[name][1]}"):
                call()
    before = torch.get_rng_state()
    for _, call in _five(noise=wrong["noise"][0], seed=None):
        with pytest.raises(ValueError, match="level `add`"):
            call()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "op, operands, options, message",
    [
        (nk.perturb, (INTEGERS,), {}, "the value must be float32, .* got Long"),
        (nk.perturb, (torch.zeros(()),), dict(draws=[0, 1]), "takes one draw, got 2"),
        (nk.linear, (INTEGERS, W), {}, "input must be float32, .* got Long"),
        (nk.linear, (torch.zeros(()), W), {}, "input must have at least one dimension"),
        (nk.linear, (X, X[0]), {}, r"weight must be \[out.*\], got shape \[3\]"),
        (nk.linear, (X, W.double()), {}, "the same dtype, got Float, Double and no bias"),
        (nk.linear, (X, W, W[:, 0].half()), {}, "the same dtype, got Float, Float and Half"),
        (nk.linear, (X, W.T), {}, r"last dimension must be 5 \(.*\), got shape \[4, 3\]"),
        (nk.linear, (X, W, X[0]), {}, r"bias must be \[5\], got shape \[3\]"),
        (nk.linear, (X[0], W), dict(draws=[0, 1]), "unbatched value .* one draw, got 2"),
        (nk.conv2d, (IMAGE.long(), KERNEL), {}, "input must be float32, .* got Long"),
        (nk.conv2d, (IMAGE, KERNEL[0]), {}, r"weight must have 4 dim.*, got shape \[2, 3, 3\]"),
        (nk.conv2d, (X, KERNEL), {}, r"input must have 4 dimensions .* got shape \[4, 3\]"),
        (nk.conv2d, (IMAGE, KERNEL.half()), {}, "the same dtype, got Float, Half and no bias"),
        (nk.conv2d, (IMAGE, KERNEL[:, :1]), {}, r"input\[4, 2, 6, 6\] to have 1 channels"),
        (nk.conv2d, (IMAGE[0], KERNEL), dict(draws=[0, 1]), "unbatched .* one draw, got 2"),
        (nk.conv2d, (IMAGE, KERNEL), dict(stride=(1,) * 3), r"stride must be a number or 2 .*"),
        (nk.conv2d, (IMAGE, KERNEL), dict(padding="full"), "padding must be .* got 'full'"),
        (nk.conv2d, (IMAGE, KERNEL), dict(padding="same", stride=2), r"stride 1, got \[2, 2\]"),
        (nk.conv_transpose2d, (IMAGE, KERNEL), dict(padding="same"), "padding .* got 'same'"),
        (nk.matmul, (INTEGERS, X.T), {}, "a must be float32, .* got Long"),
        (nk.matmul, (X, X.T.double()), {}, "the same dtype, got Float and Double"),
        (nk.matmul, (X, W), {}, r"cannot be multiplied \(4x3 and 5x3\)"),
        (POOL, (X,), dict(kernel_size=2), r"input must be \[rows, .* got shape \[4, 3\]"),
        (POOL, (IMAGE,), dict(kernel_size=0), "kernel_size must be .* positive, got 0"),
        (POOL, (IMAGE,), dict(kernel_size=2, stride=0), "stride must be .* positive, got 0"),
        (POOL, (IMAGE,), dict(kernel_size=7), r"kernel of 7 is larger .* shape \[4, 2, 6, 6\]"),
        (POOL, (IMAGE,), dict(kernel_size=2, padding=2), "half the kernel_size 2, got 2"),
        (POOL, (IMAGE,), dict(kernel_size=(2, 2, 2)), "kernel_size must be a number or 2 .*, got"),
    ],
)
def test_wrong_operands(
    op: Callable[..., Tensor], operands: Sequence[Tensor], options: dict[str, Any], message: str
) -> None:
    with pytest.raises((RuntimeError, ValueError), match=message):
        op(*operands, noise=nk.Noise(add=1.0), seed=1, **options)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(kind="cauchy"), "kind must be one of .* got 'cauchy'"),
        (dict(operand="x"), "operand must be one of .* got 'x'"),
        (dict(seed=-1), "seed must lie in .* got -1"),
        (dict(site=2**24), "site must lie in .* got 16777216"),
        (dict(draw=2**32), "draw must lie in .* got 4294967296"),
        (dict(first_row=-1), "first_row must lie in .* got -1"),
        (dict(first_row=2**32 - 1), "first_row and the 2 rows .* got 4294967295"),
        (dict(rows=[1]), "one id for each of 2 rows, got 1"),
        (dict(shape=(2, -1)), "-1"),
    ],
)
def test_wrong_arguments_of_eps(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((RuntimeError, ValueError), match=message):
        nk.eps(**{"shape": (2, 3), "seed": 1, **arguments})


@pytest.mark.parametrize("shape", [(1, 1, 0, 4), (1, 1, 4, 0)])
def test_pool_refuses_planes_without_values(shape: tuple[int, ...]) -> None:
    """Padding makes the kernel fit, but there is nothing to pool: an error, as torch's own, and no crash."""
    with pytest.raises(RuntimeError, match="perturb_relu_max_pool2d: input must have a height and a width"):
        nk.perturb_relu_max_pool2d(torch.zeros(shape), nk.Noise(add=0.1), 2, padding=1, seed=1)
