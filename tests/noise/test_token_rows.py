"""Ids of tokens: what they are, what operators do with them, and what is no id of a token."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import noisykernels as nk

pytestmark = pytest.mark.usefixtures("one_thread")

NOISE = nk.Noise(add=1.0, mul=0.5)
TOKENS = nk.TokenRows(8, [0, 5, 2], [0, 1, 2, 3])
GENERATOR = torch.Generator().manual_seed(0)
X, W = torch.randn(3, 4, 6, generator=GENERATOR), torch.randn(5, 6, generator=GENERATOR)
IMAGES, KERNEL = torch.randn(3, 4, 2, 6, 6, generator=GENERATOR), torch.randn(2, 2, 3, 3, generator=GENERATOR)
OPERATORS: dict[str, tuple[Tensor, Callable[..., Tensor]]] = {
    "perturb": (X, lambda x, **k: nk.perturb(x, NOISE, **k)),
    "keywords": (X, lambda x, **k: nk.perturb(x=x, noise=NOISE, **k)),
    "linear": (X, lambda x, **k: nk.linear(x, W, noise=NOISE, relu=True, **k)),
    "hardware": (
        X,
        lambda x, **k: nk.linear(x, W, hardware=[nk.InputNoise(add=0.5), nk.MacNoise(per_product=0.5)], **k),
    ),
    "matmul": (X, lambda x, **k: nk.matmul(x, W.T, noise=NOISE, **k)),
    "conv2d": (IMAGES, lambda x, **k: nk.conv2d(x, KERNEL, noise=NOISE, **k)),
    "pool": (IMAGES, lambda x, **k: nk.perturb_relu_max_pool2d(x, NOISE, 2, **k)),
}


def test_golden_bits() -> None:
    eps = nk.eps((3, 4, 6), seed=7, site=3, rows=TOKENS)
    assert torch.equal(eps.flatten(0, 1), nk.eps((12, 6), seed=7, site=3, rows=TOKENS.ids.flatten()))
    assert TOKENS.ids.tolist() == [[0, 1, 2, 3], [40, 41, 42, 43], [16, 17, 18, 19]]
    golden = [[0.1467965692281723, -0.46609413623809814], [0.9127355217933655, -0.4708244800567627]]
    assert eps[[0, 1], [0, 2], :2].tolist() == golden


@pytest.mark.parametrize("name", OPERATORS)
def test_a_token_alone_gives_its_row(name: str) -> None:
    x, op = OPERATORS[name]
    every = op(x, seed=1, rows=TOKENS)
    assert torch.equal(every, op(x, seed=1, rows=TOKENS.ids))
    assert torch.equal(every, op(x, seed=1, rows=TOKENS.ids.tolist()))
    flat = op(x.flatten(0, 1), seed=1, rows=TOKENS.ids.flatten())
    assert torch.equal(every.flatten(0, 1), flat)
    alone = op(x[1:2, 2:3], seed=1, rows=nk.TokenRows(8, [5], [2]))
    torch.testing.assert_close(alone[0, 0], every[1, 2])
    if name in ("perturb", "pool"):  # no contraction, which rounds otherwise for other sizes
        assert torch.equal(alone[0, 0], every[1, 2])


def test_draws_and_levels_go_with_tokens() -> None:
    shared = nk.perturb(X, NOISE, seed=1, draws=[0, 4], shared=True, rows=TOKENS)
    assert shared.shape == (6, 4, 6)
    folded = nk.perturb(torch.cat([X, X]), NOISE, seed=1, draws=[0, 4], rows=TOKENS)
    assert torch.equal(shared, folded)
    assert torch.equal(shared[3:], nk.perturb(X, NOISE, seed=1, draws=[4], rows=TOKENS))
    eps = nk.eps(X.shape, seed=1, rows=TOKENS).double()
    x = X.double()
    for shape in ((1, 3, 4, 1), (1, 3, 1, 1), (1, 1, 4, 1), (1, 1, 1, 6), (1, 3, 4, 6)):
        level = torch.rand(shape, dtype=torch.float64)
        made = nk.perturb(x, nk.Noise(add=level), seed=1, rows=TOKENS)
        torch.testing.assert_close(made, x + level[0] * eps)
    per_draw = nk.perturb(
        x, nk.Noise(add=nk.per_draw([0.5, 2.0], ndim=3)), seed=1, draws=[0, 0], shared=True, rows=TOKENS
    )
    torch.testing.assert_close(per_draw[3:] - x, 4 * (per_draw[:3] - x))


def test_gradients_have_the_noise_of_tokens() -> None:
    x = X.double().requires_grad_()
    nk.perturb(x, nk.Noise(mul=0.5), seed=1, rows=TOKENS).sum().backward()
    torch.testing.assert_close(x.grad, 1 + 0.5 * nk.eps(X.shape, seed=1, operand="mul", rows=TOKENS).double())


def test_compiled_code_has_the_same_bits() -> None:
    run = torch.compile(lambda x, ids: nk.perturb(x, NOISE, seed=1, rows=ids), fullgraph=True, backend="aot_eager")
    assert torch.equal(run(X, TOKENS.ids), nk.perturb(X, NOISE, seed=1, rows=TOKENS))


def test_sequences_in_one_row() -> None:
    packed = nk.TokenRows(8, [[5, 5, 5, 2, 2]], [[0, 1, 2, 0, 1]])
    eps, apart = nk.eps((1, 5, 4), seed=1, rows=packed), nk.eps((3, 4, 4), seed=1, rows=TOKENS)
    assert torch.equal(eps[0, :3], apart[1, :3]) and torch.equal(eps[0, 3:], apart[2, :2])


def test_padding_is_no_token() -> None:
    padded = nk.TokenRows(8, [5], [[-1, -1, 0, 1, 2]])
    assert torch.equal(nk.eps((1, 5, 4), seed=1, rows=padded)[0, 2:], nk.eps((3, 4, 4), seed=1, rows=TOKENS)[1, :3])


def test_the_last_row_that_there_is() -> None:
    last = nk.TokenRows(2**16, [2**16 - 1], [2**16 - 1])
    assert last.ids.tolist() == [[2**32 - 1]]
    assert torch.equal(nk.eps((1, 1, 3), seed=1, rows=last)[0], nk.eps((1, 3), seed=1, rows=[2**32 - 1]))
    assert nk.eps((0, 3, 2), seed=1, rows=torch.zeros(0, 3, dtype=torch.int64)).shape == (0, 3, 2)


BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "beyond 32 bits": (lambda: nk.TokenRows(2**31, [2]), r"sequence must lie in \[0, 2\)"),
    "negative": (lambda: nk.TokenRows(8, [-1]), "got values from -1 to -1"),
    "too long": (lambda: nk.TokenRows(4, [0], [3, 4]), "positions must lie below the length of 4 .* got 4"),
    "repeated": (lambda: nk.TokenRows(8, [3], [0, 1, 1]), "got 1 twice in sequence 3"),
    "repeated in a row": (lambda: nk.TokenRows(8, [[3, 4, 3]], [[1, 1, 1]]), "got 1 twice in sequence 3"),
    "shapes": (lambda: nk.TokenRows(8, [1, 2, 3], [[0, 1], [0, 1]]), r"must fit, got \[3\] and \[2, 2\]"),
    "no position": (lambda: nk.TokenRows(8, [1]).ids, "ids need position"),
    "no length": (lambda: nk.TokenRows(0), "length must be a whole number from 1"),
    "no whole numbers": (lambda: nk.TokenRows(8, [0.5]), "must be int64 of rank 1 or 2, got torch.float32"),
    "no numbers": (lambda: nk.TokenRows(8, "abc"), "must be int64 of rank 1 or 2, got 'abc'"),
    "rank": (lambda: nk.TokenRows(8, torch.zeros(1, 1, 1, dtype=torch.int64)), "got torch.int64 of shape"),
    "other tokens": (lambda: nk.perturb(X[:, :3], NOISE, seed=1, rows=TOKENS), r"\(draws x 3, 4, ...\), got shape"),
    "no tokens": (lambda: nk.linear(X[:, 0], W, noise=NOISE, seed=1, rows=TOKENS), "are those of tokens"),
    "shape": (lambda: nk.eps((3, 5), seed=1, rows=TOKENS), "shape must begin so"),
    "level": (
        lambda: nk.perturb(X, nk.Noise(add=torch.ones(1, 2, 4, 1)), seed=1, rows=TOKENS),
        r"broadcast to \(draws, 3, 4",
    ),
    "vector of ids beyond": (
        lambda: nk.perturb(X, NOISE, seed=1, rows=torch.full((3, 4), 2**32)),
        r"rows must lie in \[0, 2\^32\)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_id_of_a_token(name: str) -> None:
    call, message = BAD[name]
    with pytest.raises((ValueError, TypeError, RuntimeError), match=message):
        call()


def test_layers_without_a_model_are_as_they_were() -> None:
    layer = nk.NoisyLinear(6, 5, noise=NOISE)
    assert isinstance(layer, nn.Module) and layer(X).shape == (3, 4, 5)
