"""Noise inside a contraction: the weights' bits, the folded noise of products, gradients, and what torch makes of it.

A contraction with one-hot inputs gives the weights back, to the bit: so the noisy weights are seen.
"""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from arrays import DEVICES, DRAWS, KEY, LAYERS, Neutral, layer
from hypothesis import given, settings
from hypothesis import strategies as st
from operators import assert_same_bits, covering
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import noisykernels as nk
from noisykernels import _C
from noisykernels.reference import noise as reference

NOISES: dict[str, dict[str, Any]] = {
    "add": dict(add=0.25),
    "mul": dict(mul=0.5),
    "fold": dict(add=0.25, mul=0.5, fold=True),
    "uniform": dict(add=0.25, kind="uniform"),
}


def scale_of(weight: Tensor, relative: str | None, over: tuple[int, ...]) -> Tensor:
    """max|W| as the levels' unit, in float64; `over`: the dimensions that are not output features."""
    if relative is None:
        return torch.ones((), dtype=torch.float64)
    return (weight.abs().amax() if relative == "layer" else weight.abs().amax(over, keepdim=True)).double()


def expected_weights(weight: Tensor, how: dict[str, Any], relative: str | None, draws: Any) -> Tensor:
    """The oracle's noisy weights, draw by draw."""
    noise = nk.Noise(**how)
    unit = scale_of(weight, relative, tuple(range(1, weight.dim())))
    if noise.add is not None:
        noise.add = noise.add * (unit.unsqueeze(0) if unit.dim() else unit)
    return reference.perturb(weight, noise, **KEY, draws=draws, shared=True, operand="weight")


# ------------------------------------------------------------------------------------------- noisy weights


@pytest.mark.parametrize(
    "case",
    covering(
        2,
        noise=list(NOISES),
        relative=[None, "layer", "channel"],
        draws=list(DRAWS),
        dtype=[torch.float32, torch.float64, torch.bfloat16, torch.float16],
        shape=[(5, 3), (16, 16), (200, 700), (1, 9), (37, 1)],  # 200 x 700: in several panels
        layout=["plain", "transposed", "strided"],
        threads=[1, 2],
    ),
    ids=str,
)
def test_noisy_weights_are_the_oracles(case: dict[str, Any]) -> None:
    n, k = case["shape"]
    g = torch.Generator().manual_seed(n)
    weight = torch.randn(n, k, generator=g).to(case["dtype"])
    if case["layout"] == "transposed":
        weight = weight.t().contiguous().t()
    elif case["layout"] == "strided":
        weight = torch.stack([weight, weight], -1)[..., 0]
    how = DRAWS[case["draws"]]
    count = len(how.get("draws", [0]))
    eye = torch.eye(k, dtype=case["dtype"])
    x = eye if how.get("shared") or count == 1 else eye.repeat(count, 1)
    relative = None if case["noise"] == "mul" else case["relative"]
    device = nk.WeightNoise(**NOISES[case["noise"]], relative=relative)
    before = torch.get_num_threads()
    torch.set_num_threads(case["threads"])
    try:
        y = nk.linear(x, weight, hardware=[device], **KEY, **how)
    finally:
        torch.set_num_threads(before)
    seen = y.view(count, k, n).transpose(1, 2).reshape(count * n, k)
    assert_same_bits(seen + 0.0, expected_weights(weight, NOISES[case["noise"]], relative, how.get("draws")) + 0.0)


@pytest.mark.parametrize("draws", list(DRAWS))
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("shape", [(6, 3, 3, 2), (400, 64, 3, 3)], ids=["small", "panels"])
def test_noisy_weights_of_a_convolution(draws: str, last: bool, shape: tuple[int, ...]) -> None:
    """One-hot images, one for each weight: position (0, 0) of the output is that weight."""
    n, *item = shape
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    count, how = math.prod(item), DRAWS[draws]
    x = torch.eye(count).view(count, *item)[: min(count, 60)]
    if last:
        weight, x = weight.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    copies = len(how.get("draws", [0]))
    rows = x if how.get("shared") or copies == 1 else torch.cat([x] * copies)
    y = nk.conv2d(rows, weight, hardware=[nk.WeightNoise(add=0.25, relative="channel")], **KEY, **how)
    seen = y.flatten(1).view(copies, len(x), n).transpose(1, 2).flatten(0, 1)
    expected = expected_weights(weight, dict(add=0.25), "channel", how.get("draws")).flatten(1)[:, : len(x)]
    assert_same_bits(seen.contiguous(), expected.contiguous())


def test_noisy_weights_of_a_transposed_convolution() -> None:
    """Its output features lie along dimension 1, in groups; rows are dimension 0 all the same."""
    weight = torch.randn(4, 3, 2, 2)
    x = torch.eye(4).view(4, 4, 1, 1)
    y = nk.conv_transpose2d(x, weight, groups=2, hardware=[nk.WeightNoise(add=0.5, relative="channel")], **KEY)
    largest = weight.view(2, 2, 3, 4).abs().amax((1, 3)).double()  # (groups, features of a group)
    level = largest.repeat_interleave(2, 0).view(1, 4, 3, 1, 1) * 0.5
    noisy = reference.perturb(weight, nk.Noise(add=level), **KEY, operand="weight")
    for i in range(4):
        group = slice(0, 3) if i < 2 else slice(3, 6)
        assert_same_bits(y[i, group], noisy[i])


def test_the_noisy_weight_is_never_whole() -> None:
    """A weight of 256 MiB: the contraction may take what its result takes and some panels, not another weight."""
    program = """
import resource, torch, noisykernels as nk
weight, x = torch.ones(8192, 8192), torch.ones(2, 8192)
torch.nn.functional.linear(x, weight)
nk.linear(x, weight[:64], hardware=[nk.WeightNoise(add=0.1)], seed=1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
nk.linear(x, weight, hardware=[nk.WeightNoise(add=0.1)], seed=1)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    grown = int(subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout)
    assert grown < 64 * 1024  # KiB


# ------------------------------------------------------------------------- the kernels against plain torch


def value_and_gradients(
    name: str, hardware: list[nk.hardware.Device], dtype: torch.dtype = torch.float32, **ids: Any
) -> Any:
    op, operands, how = layer(name, dtype)
    y = op(*operands, **how, hardware=hardware, **KEY, **ids)
    along = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)
    return [y, *torch.autograd.grad(y, operands, along)]


@pytest.mark.parametrize("draws", list(DRAWS))
@pytest.mark.parametrize("devices", list(DEVICES))
@pytest.mark.parametrize("name", list(LAYERS))
def test_kernels_and_plain_torch_agree(name: str, devices: str, draws: str) -> None:
    """Values and gradients; both draw the same noise. Sums of at most 210 products and of 3 draws x 50 gradients, in
    another order: a relative error of 1000 eps of the largest value is beyond what rounding can do.
    """
    fast = value_and_gradients(name, DEVICES[devices], **DRAWS[draws])
    plain = value_and_gradients(name, [*DEVICES[devices], Neutral()], **DRAWS[draws])
    for a, b in zip(fast, plain, strict=True):
        assert a.shape == b.shape
        torch.testing.assert_close(a, b, rtol=0, atol=1000 * 2**-24 * float(b.detach().abs().max()))


@pytest.mark.parametrize("name", ["linear", "conv1d", "small conv_transpose2d"])
@pytest.mark.parametrize("devices", ["weights", "relative weights", "products", "all"])
def test_gradients_are_those_of_the_function(name: str, devices: str) -> None:
    """Finite differences in float64, of first and (weights alone: a custom rule) second order. Levels relative to
    max|W| are left out: the maximum takes part in no gradient."""
    op, operands, how = layer(name, torch.float64)
    hardware = [d for d in DEVICES[devices] if not (isinstance(d, nk.WeightNoise) and d.relative)]
    if devices == "all":
        hardware = [nk.InputNoise(add=0.2), nk.MacNoise(0.3, 0.2, 0.1)]

    def f(*args: Tensor) -> Tensor:
        return op(*args, **how, hardware=hardware, **KEY, draws=[4, 1], shared=True)

    assert torch.autograd.gradcheck(f, operands)
    if "weights" in devices:
        assert torch.autograd.gradgradcheck(f, operands)


def test_derivative_of_a_deviation_of_zero_is_zero() -> None:
    for dtype in (torch.float32, torch.float64):
        x = torch.zeros(2, 3, dtype=dtype, requires_grad=True)
        w = torch.ones(4, 3, dtype=dtype, requires_grad=True)
        nk.linear(x, w, hardware=[nk.MacNoise(per_product=0.5, read=0.2)], seed=1).sum().backward()
        assert (x.grad == 4).all() and (w.grad == 0).all()


def test_input_noise_is_perturb_with_its_own_stream() -> None:
    x, w = torch.randn(6, 5), torch.eye(5)
    y = nk.linear(x, w, hardware=[nk.InputNoise(mul=0.5)], **KEY, draws=[2, 4], rows=[7, 0, 3])
    expected = reference.perturb(x, nk.Noise(mul=0.5), **KEY, draws=[2, 4], rows=[7, 0, 3], operand="input")
    assert_same_bits(y, expected)


# ----------------------------------------------------------------------------------------------- invariances


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 9), st.integers(0, 9), st.sampled_from(["linear 3-d", "conv2d"]), st.integers(0, 2**32 - 20))
def test_a_row_keeps_its_noise_in_any_batch(rows: int, at: int, name: str, first: int) -> None:
    """Folded noise and input noise of rows do not depend on the other rows, up to the contraction's rounding."""
    op, (x, w, b), how = layer(name)
    at = at % rows
    x = torch.randn(rows, *x.shape[1:])
    hardware = DEVICES["all"]
    whole = op(x, w, b, **how, hardware=hardware, **KEY, draws=[2], first_row=first)
    one = op(x[at : at + 1], w, b, **how, hardware=hardware, **KEY, draws=[2], rows=[first + at])
    torch.testing.assert_close(one, whole[at : at + 1], rtol=0, atol=1000 * 2**-24 * float(whole.detach().abs().max()))


@pytest.mark.parametrize("name", list(LAYERS))
def test_draws_together_are_draws_alone(name: str) -> None:
    op, (x, w, b), how = layer(name)
    together = op(x, w, b, **how, hardware=DEVICES["all"], **KEY, draws=[3, 5, 8], shared=True)
    for i, draw in enumerate((3, 5, 8)):
        alone = op(x, w, b, **how, hardware=DEVICES["all"], **KEY, draws=[draw])
        part = together[i * len(alone) : (i + 1) * len(alone)]
        torch.testing.assert_close(part, alone, rtol=0, atol=1000 * 2**-24 * float(alone.detach().abs().max()))


def test_streams_of_a_site_are_apart() -> None:
    """Input, weight, products and output of one site share no noise."""
    zero, key = torch.zeros(64, 64), dict(seed=1, site=3)
    seen = {
        "input": nk.linear(zero, torch.eye(64), hardware=[nk.InputNoise(add=1.0)], **key),
        "weight": nk.linear(torch.eye(64), zero, hardware=[nk.WeightNoise(add=1.0)], **key).T,
        "step": nk.linear(zero, zero, hardware=[nk.MacNoise(per_step=0.125)], **key),
        "output": nk.linear(zero, zero, noise=nk.Noise(add=1.0), hardware=[Neutral()], **key),
    }
    for a, b in ((a, b) for a in seen for b in seen if a < b):
        c = float(torch.corrcoef(torch.stack([seen[a].flatten(), seen[b].flatten()]))[0, 1])
        assert abs(c) < 5.2 / 64, (a, b)  # 5.2 standard errors: 2e-7 a pair


def test_every_cpu_level_gives_the_same_bits() -> None:
    """Inputs, weights and levels are powers of two or 0, so that sums are exact in any order: what is left is noise."""
    before = _C.cpu_level()
    g = torch.Generator().manual_seed(2)
    x = 2.0 ** torch.randint(-1, 2, (7, 37), generator=g) * torch.randint(-1, 2, (7, 37), generator=g)
    w = 2.0 ** torch.randint(-1, 2, (33, 37), generator=g) * torch.randint(-1, 2, (33, 37), generator=g)
    images, kernel = x[:, :36].reshape(7, 1, 6, 6), w[:, :36].reshape(33, 1, 6, 6)
    lists = {
        "weight": [nk.WeightNoise(add=0.25)],
        "weight, channel": [nk.WeightNoise(add=0.3, relative="channel")],
        "weight, mul": [nk.WeightNoise(mul=0.3)],
        "weight, fold": [nk.WeightNoise(add=0.3, mul=0.2, fold=True)],
        "weight, uniform": [nk.WeightNoise(add=0.3, kind="uniform")],
        "products": [nk.MacNoise(per_product=0.3)],
        "all products": [nk.MacNoise(0.5, 0.25, 0.125, relative="layer")],
        "explicit": [nk.MacNoise(0.5, 0.25, 0.125, explicit=True)],
    }
    seen: dict[tuple[str, str], Tensor] = {}
    try:
        for level in _C.cpu_levels():
            _C.set_cpu_level(level)
            for name, hardware in lists.items():
                ids = dict(KEY, draws=[4, 2**32 - 1], shared=True)
                given = torch.eye(37) if name.startswith("weight") else x  # the noisy weights themselves
                outs = [nk.linear(given, w, hardware=hardware, **ids)]
                if name.startswith("weight"):
                    hot = torch.eye(36).view(36, 1, 6, 6)
                    outs.append(nk.conv2d(hot, kernel, hardware=hardware, **ids))
                else:
                    outs.append(nk.conv2d(images, kernel, hardware=hardware, **ids))
                value = torch.cat([y.flatten() for y in outs])
                assert_same_bits(seen.setdefault((name, "bits"), value), value)
    finally:
        _C.set_cpu_level("auto")
    assert _C.cpu_level() == before and len({v.sum().item() for v in seen.values()}) == len(lists)


def test_noise_of_the_output_comes_after_bias_then_relu() -> None:
    x, w, b, noise = torch.randn(4, 5), torch.randn(3, 5), torch.randn(3), nk.Noise(add=0.5, mul=0.25)
    hardware = [nk.WeightNoise(add=0.1)]
    y = nk.linear(x, w, b, noise=noise, hardware=hardware, relu=True, **KEY, draws=[4, 2], shared=True)
    inner = nk.linear(x, w, b, hardware=hardware, **KEY, draws=[4, 2], shared=True)
    assert_same_bits(y, torch.relu(nk.perturb(inner, noise, **KEY, draws=[4, 2])))


def test_unbatched_values_are_one_row() -> None:
    for name in ("linear", "conv2d", "conv_transpose2d"):
        op, (x, w, b), how = layer(name)
        y = op(x[0], w, b, **how, noise=nk.Noise(add=0.5), hardware=DEVICES["all"], **KEY)
        assert_same_bits(y, op(x[:1], w, b, **how, noise=nk.Noise(add=0.5), hardware=DEVICES["all"], **KEY)[0])
        with pytest.raises((ValueError, RuntimeError), match="takes one draw"):
            op(x[0], w, b, **how, hardware=DEVICES["weights"], **KEY, draws=[1, 2])


@pytest.mark.parametrize("devices", list(DEVICES))
def test_empty_batches_and_draws(devices: str) -> None:
    for name in ("linear", "conv2d"):
        op, (x, w, b), how = layer(name)
        clean = getattr(F, name)(x, w, b, **how)
        for rows, ids in ((0, {}), (0, dict(draws=[1, 2])), (2, dict(draws=[], shared=True)), (0, dict(draws=[]))):
            y = op(x[:rows], w, b, **how, hardware=DEVICES[devices], **KEY, **ids)
            assert y.shape == (0, *clean.shape[1:])


# ------------------------------------------------------------------------------------------ torch's transforms

SHARED: dict[str, Any] = dict(draws=torch.tensor([4, 1]), shared=True)


@pytest.mark.parametrize("devices", ["weights", "relative weights", "products", "all"])
@pytest.mark.parametrize("name", ["linear", "conv2d", "conv_transpose2d"])
def test_compiled_is_eager(name: str, devices: str) -> None:
    op, operands, how = layer(name)
    seed = torch.tensor(77)

    def f(*args: Tensor) -> Tensor:
        return op(*args, **how, hardware=DEVICES[devices], seed=seed, site=2, **SHARED)

    eager = f(*operands)
    torch._dynamo.reset()
    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")(*operands)
    torch.testing.assert_close(compiled, eager, rtol=1e-5, atol=1e-5)
    expected = torch.autograd.grad(eager.square().sum(), operands)
    for a, b in zip(torch.autograd.grad(compiled.square().sum(), operands), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["analog_linear", "analog_convolution"])
def test_opcheck(name: str) -> None:
    op = getattr(torch.ops.noisykernels, name).default
    seed, draws, level = torch.tensor(5), torch.tensor([3, 1]), torch.tensor(0.1, dtype=torch.float64)
    if name == "analog_linear":
        x, w, b = (torch.randn(s, requires_grad=True) for s in ((4, 6), (3, 6), (3,)))
        for macs in ((None, None, None), (level, level, level)):
            torch.library.opcheck(op, (x, w, b, level, None, 0, 0, *macs, seed, draws, None, 0, 2, True))
    else:
        x, w, b = (torch.randn(s, requires_grad=True) for s in ((4, 2, 5, 5), (3, 2, 3, 3), (3,)))
        geometry = ([1, 1], [1, 1], [1, 1], False, [0, 0], 1)
        torch.library.opcheck(op, (x, w, b, *geometry, None, level, 1, 0, seed, draws, 2, False))


def test_vmap_autocast_checkpoint_and_functional_gradients() -> None:
    x, w, b = torch.randn(3, 4, 6), torch.randn(5, 6), torch.randn(5)
    hardware = DEVICES["all"]

    def f(x: Tensor, w: Tensor) -> Tensor:
        return nk.linear(x, w, b, hardware=hardware, seed=torch.tensor(3), site=2)

    mapped = torch.func.vmap(f, (0, None))(x, w)
    assert_same_bits(mapped, torch.stack([f(part, w) for part in x]))
    with torch.autocast("cpu", torch.bfloat16):
        low = nk.linear(x[0], w, b, hardware=[nk.WeightNoise(add=0.1)], **KEY)
    exact = nk.linear(x[0].bfloat16(), w.bfloat16(), b.bfloat16(), hardware=[nk.WeightNoise(add=0.1)], **KEY)
    assert_same_bits(low, exact)
    with torch.autocast("cpu", torch.bfloat16):  # folded products need no kernel of their own there
        assert nk.linear(x[0], w, b, hardware=hardware, **KEY).isfinite().all()
    leaf = w.clone().requires_grad_()
    (kept,) = torch.autograd.grad(f(x[0], leaf).square().sum(), leaf)
    (again,) = torch.autograd.grad(checkpoint(f, x[0], leaf, use_reentrant=False).square().sum(), leaf)
    assert_same_bits(again, kept)
    functional = torch.func.grad(lambda w: f(x[0], w).square().sum())(w)
    torch.testing.assert_close(functional, kept, rtol=1e-5, atol=1e-5)


def test_fake_tensors_of_a_device_that_is_not_there() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    for name in LAYERS:
        op, (x, w, b), how = layer(name)
        for devices in DEVICES.values():
            real = op(x, w, b, **how, hardware=devices, seed=1, draws=[1, 2], shared=True)
            with FakeTensorMode(allow_non_fake_inputs=True):  # levels are real
                fake = op(*(torch.empty(t.shape, device="cuda") for t in (x, w, b)), **how, hardware=devices, seed=1,
                          draws=torch.tensor([1, 2]), shared=True)  # fmt: skip
            assert fake.device.type == "cuda" and fake.shape == real.shape


# ----------------------------------------------------------------------------------------------------- errors


class Draws(nk.hardware.Device):
    """A device of a user that draws from given streams."""

    def __init__(self, *operands: str) -> None:
        self.operands = operands


@pytest.mark.parametrize(
    ("noise", "stream"),
    [
        (nk.InputNoise(add=0.1), "input"), (nk.WeightNoise(add=0.1), "weight"), (nk.MacNoise(0.1), "per_product"),
        (nk.MacNoise(0.1, explicit=True), "per_product"), (nk.MacNoise(per_step=0.1, explicit=True), "per_step"),
        (nk.hardware.ColumnGain(0.1), "column_gain"),
    ],
    ids=str,
)  # fmt: skip
def test_devices_of_one_stream_are_refused(noise: nk.hardware.Device, stream: str) -> None:
    """Two of a kind, and a user's own beside ours; others go together."""
    x, w = torch.ones(4, 3), torch.ones(2, 3)
    said = "linear: hardware must have at most one device that draws "
    with pytest.raises(ValueError, match=said):
        nk.linear(x, w, hardware=[noise, noise])
    for pair in ([noise, Draws("drift", stream)], [Draws(stream), noise.scaled(2.0)]):
        with pytest.raises(ValueError, match=f"{said}'{stream}'"):
            nk.linear(x, w, hardware=pair)
    assert nk.linear(x, w, hardware=[noise, Draws("drift")], seed=1).shape == (4, 2)


def test_errors_name_what_is_wrong() -> None:
    x, w = torch.ones(4, 3), torch.ones(2, 3)
    for wrong, kind, said in (
        (lambda: nk.linear(x, w), TypeError, "noise must be a Noise"),
        (lambda: nk.linear(x, w, hardware=[nk.Noise(add=1.0)]), TypeError, "hardware must be a list of devices"),
        (lambda: nk.linear(x, w, hardware=[nk.WeightNoise(add=0.1)] * 2), ValueError, "draws 'weight'"),
        (lambda: nk.WeightNoise(add=0.1, mul=0.1), ValueError, "give add or mul"),
        (lambda: nk.WeightNoise(add=-1.0), ValueError, "finite and not negative"),
        (lambda: nk.WeightNoise(add=0.1, relative="column"), ValueError, "relative must be None, 'layer', 'channel'"),
        (lambda: nk.MacNoise(per_product=math.nan), ValueError, "MacNoise: per_product"),
        (lambda: nk.MacNoise(read=torch.ones(3)), ValueError, "read must be a number or a 0-d tensor"),
        (lambda: nk.linear(x, w, hardware=[nk.WeightNoise(add=0.1)], draws=[1, 2, 3]), ValueError, "multiple of 3"),
        (lambda: nk.linear(x, w, hardware=[nk.MacNoise(0.1), Neutral()], draws=[1, 2, 3]), ValueError, "multiple of 3"),
        (
            lambda: nk.linear(x, w, hardware=[nk.MacNoise(0.1, explicit=True), nk.MacNoise(0, 0.1, explicit=True)]),
            ValueError,
            "at most once how products are added up",
        ),
        (lambda: nk.linear(x, w[:, :2], hardware=[nk.WeightNoise(add=0.1)]), RuntimeError, "last dimension must be 2"),
        (lambda: nk.perturb(x, nk.Noise(add=1.0, mul=1.0), operand="weight"), ValueError, "has one term"),
        (lambda: nk.perturb(x, nk.Noise(add=1.0), operand="wait"), ValueError, "operand must be one of"),
    ):
        with pytest.raises(kind, match=said):
            wrong()
    leaf = w.clone().requires_grad_()
    with pytest.raises(RuntimeError, match="fold=True"):
        nk.linear(x, leaf, hardware=[nk.WeightNoise(add=0.1, mul=0.1, fold=True)], seed=1)
