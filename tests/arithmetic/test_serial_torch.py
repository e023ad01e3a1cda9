"""Ordered sums under torch: transforms, layers, injection, errors."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from operators import assert_same_bits, covering
from summing import KEY, LAYERS, checked, made, small_wholes
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import noisykernels as nk
from noisykernels.arithmetic import FixedFormat, FloatFormat, Serial, random_order
from noisykernels.brainscales import BrainScaleS2
from noisykernels.reference import serial as reference_serial

FULL = pytest.mark.full
ROUGH = dict(low=-0.9, high=1.5, step_noise=0.2)


# --------------------------------------------------------------------------------------------- torch's transforms

HOWS: dict[str, dict[str, Any]] = {
    "clamp": dict(low=-1, high=1),
    "masked": dict(low=-1, high=1, leak=0.9, gradient="masked"),
    "sorted": dict(low=-1, high=1, order="descending", gradient="masked"),
    "rounded": dict(fmt="M7E6", order="reversed"),
    "random": dict(fmt=FixedFormat(4, 6, "stochastic"), **ROUGH),
    "twin": dict(fmt="M7E6", **ROUGH, ordered=False, gradient="masked"),
}


@pytest.mark.parametrize("how", list(HOWS))
@pytest.mark.parametrize(
    "name", ["linear", pytest.param("conv2d", marks=FULL), pytest.param("conv_transpose2d", marks=FULL)]
)
def test_compiled_is_eager(name: str, how: str) -> None:
    """To the bit where the sums are ours; seeds, draws and levels change without compiling again."""
    op, operands, geometry = made(name)
    operands = [small_wholes(*t.shape) for t in operands]

    def f(x: Tensor, w: Tensor, b: Tensor, seed: Tensor, draws: Tensor, level: Tensor) -> Tensor:
        arithmetic = Serial(**{**HOWS[how], "step_noise": level}) if how in ("random", "twin") else fixed
        return op(x, w, b, **(geometry or {}), arithmetic=arithmetic, seed=seed, site=2, draws=draws, shared=True)

    fixed = Serial(**HOWS[how])
    torch._dynamo.reset()
    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    leaves = [t.clone().requires_grad_() for t in operands]
    with torch._dynamo.config.patch(error_on_recompile=True):
        for n in range(3):
            args = torch.tensor(5 + n), torch.tensor([n, 3]), torch.tensor(0.1 * n, dtype=torch.float64)
            one, other = compiled(*leaves, *args), f(*leaves, *args)
            assert_same_bits(one.detach(), other.detach())
            for a, b in zip(
                torch.autograd.grad(one.sum(), leaves), torch.autograd.grad(other.sum(), leaves), strict=True
            ):
                torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("how", ["clamp", "sorted", "rounded", "random", "twin"])
@pytest.mark.parametrize("name", ["linear", pytest.param("conv2d", marks=FULL)])
def test_a_compiled_batch_may_have_any_size(name: str, how: str) -> None:
    op, (x, w, b), geometry = made(name, rows=9)
    arithmetic, seed = Serial(**HOWS[how]), torch.tensor(5)

    def f(x: Tensor) -> Tensor:
        return op(x, w, b, **(geometry or {}), arithmetic=arithmetic, seed=seed, site=2)

    torch._dynamo.reset()
    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for rows in (8, 3, 9):
            part = x[:rows].contiguous()
            torch._dynamo.mark_dynamic(part, 0)
            torch.testing.assert_close(compiled(part), f(part), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "case",
    covering(
        1,
        order=["none", "one", "each"],
        shapes=[((1, 4, 6), (3, 6, 5)), ((4, 3, 6), (2, 6, 5)), ((2, 3, 6), (2, 6, 1))],
        masked=[False, True],
    ),
    ids=str,
)
def test_opcheck(case: dict[str, Any]) -> None:
    order, shapes, masked = case.values()
    a, b = (torch.randn(s, requires_grad=True) for s in shapes)
    count = max(len(a), len(b))
    by = {
        "none": None,
        "one": torch.tensor([3, 1, 0, 5, 4, 2], dtype=torch.int32),
        "each": torch.rand(count, a.shape[1], b.shape[2], 6).argsort(-1).int(),
    }[order]
    seed, draw, rows, level = torch.tensor(5), torch.tensor([3]), None, torch.tensor(0.1, dtype=torch.float64)
    fmt, n = FixedFormat(4, 6, "stochastic").numbers, a.shape[1] * b.shape[2]
    op = torch.ops.noisykernels.serial.default
    for limits in ((-1.0, 1.0, 0.9, 0.5, 0.25, True), (-math.inf, math.inf, 1.0, math.inf, 0.0, False)):
        args = (a, b, by, fmt, fmt, *limits, level, n, seed, draw, rows, 0, 2, masked, False)
        torch.library.opcheck(op, args)
        expected = reference_serial.serial(
            a.detach().numpy(), b.detach().numpy(), order=by, product=FixedFormat(4, 6, "stochastic"),
            sum=FixedFormat(4, 6, "stochastic"), low=limits[0], high=limits[1], leak=limits[2],
            synapse_limit=limits[3] if limits[5] else None, synapse_decay=limits[4], step_noise=0.1, outputs=n, seed=5,
            draw=3, site=2,
        )  # fmt: skip
        assert_same_bits(op(*args).detach(), torch.from_numpy(expected))


def test_vmap_autocast_checkpoint_and_functional_gradients() -> None:
    x, w, b = torch.randn(3, 4, 6), torch.randn(5, 6), torch.randn(5)
    for given in HOWS.values():
        how = Serial(**given)

        def f(x: Tensor, w: Tensor) -> Tensor:
            return nk.linear(x, w, b, arithmetic=how, seed=torch.tensor(3), site=2)  # noqa: B023

        mapped = torch.func.vmap(f, (0, None))(x, w)
        assert_same_bits(mapped, torch.stack([f(part, w) for part in x]))
        with torch.autocast("cpu", torch.bfloat16):
            low = nk.linear(x[0], w, b, arithmetic=how, **KEY)
        exact = nk.linear(x[0].bfloat16(), w.bfloat16(), b.bfloat16(), arithmetic=how, **KEY)
        assert_same_bits(low, exact)
        leaf = w.clone().requires_grad_()
        (kept,) = torch.autograd.grad(f(x[0], leaf).square().sum(), leaf)
        for reentrant in (False, True):
            (again,) = torch.autograd.grad(
                checkpoint(f, x[0].clone().requires_grad_(), leaf, use_reentrant=False).square().sum(), leaf
            )
            assert_same_bits(again, kept, reentrant)
        functional = torch.func.grad(lambda w: f(x[0], w).square().sum())(w)
        torch.testing.assert_close(functional, kept, rtol=1e-5, atol=1e-5)
        each = torch.func.vmap(torch.func.grad(lambda w, x: f(x[None], w).square().sum()), (None, 0))(w, x[0])
        alone = [torch.func.grad(lambda w: f(row[None], w).square().sum())(w) for row in x[0]]  # noqa: B023
        torch.testing.assert_close(each, torch.stack(alone), rtol=1e-5, atol=1e-5)


def test_modes_of_torch_change_nothing() -> None:
    how = Serial(**HOWS["random"])
    for name in ("linear", "conv2d"):
        op, operands, geometry = made(name)
        expected = checked(name, operands, how, geometry)
        for mode in (torch.no_grad, torch.inference_mode):
            with mode():
                assert_same_bits(op(*operands, **(geometry or {}), arithmetic=how, **KEY), expected)
        for duplicate in (copy.deepcopy, lambda how: pickle.loads(pickle.dumps(how))):
            twin = duplicate(how)
            assert repr(twin) == repr(how)
            assert_same_bits(op(*operands, **(geometry or {}), arithmetic=twin, **KEY), expected)


def test_fake_tensors_of_a_device_that_is_not_there() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    for name, given in ((n, h) for n in LAYERS for h in HOWS.values()):
        op, operands, geometry = made(name)
        how = Serial(**given)
        real = op(*operands, **(geometry or {}), arithmetic=how, seed=1, draws=[1, 2], shared=True)
        with FakeTensorMode(allow_non_fake_inputs=True):  # levels are real
            fakes = [torch.empty(t.shape, device="cuda") for t in operands]
            fake = op(*fakes, **(geometry or {}), arithmetic=how, seed=1, draws=torch.tensor([1, 2]), shared=True)
        assert fake.device.type == "cuda" and fake.shape == real.shape


# ------------------------------------------------------------------------------------------------ layers, injection


@pytest.mark.parametrize("how", list(HOWS))
def test_empty_values(how: str) -> None:
    arithmetic = Serial(**HOWS[how])
    for name in ("linear", "linear 3-d", "conv2d", "conv_transpose2d"):
        op, (x, w, b), geometry = made(name)
        clean = getattr(F, name.split()[0])(x, w, b, **(geometry or {}))
        for rows, ids in ((0, {}), (0, dict(draws=[1, 2])), (2, dict(draws=[], shared=True)), (0, dict(draws=[]))):
            y = op(x[:rows], w, b, **(geometry or {}), arithmetic=arithmetic, **KEY, **ids)
            assert y.shape == (0, *clean.shape[1:])
        leaf = x[:0].clone().requires_grad_()
        op(leaf, w, b, **(geometry or {}), arithmetic=arithmetic, **KEY).sum().backward()
        assert leaf.grad is not None and leaf.grad.shape == leaf.shape
    for gradient in ("straight_through", "masked"):  # no outputs
        leaf = torch.ones(3, 5, requires_grad=True)
        nk.linear(leaf, torch.ones(0, 5), arithmetic=Serial(high=1.0, gradient=gradient)).sum().backward()
        assert leaf.grad is not None and not leaf.grad.any()
    x, w, b = torch.zeros(3, 0), torch.zeros(4, 0), torch.arange(4.0)
    assert_same_bits(nk.linear(x, w, b, arithmetic=Serial(low=-1, high=9)), b.expand(3, 4).contiguous())
    assert nk.linear(torch.ones(3, 5), torch.ones(0, 5), arithmetic=arithmetic, seed=1).shape == (3, 0)


def test_the_argument_is_the_last_device() -> None:
    how = Serial(low=-1, high=1)
    for name in ("linear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"):
        op, operands, geometry = made(name)
        given = geometry or {}
        y = op(*operands, **given, arithmetic=how)
        assert_same_bits(y, op(*operands, **given, hardware=[how]))
        noisy = [nk.WeightNoise(add=0.1), nk.hardware.DAC(bits=4, limit=2.0)]
        y = op(*operands, **given, hardware=noisy, arithmetic=how, **KEY)
        assert_same_bits(y, op(*operands, **given, hardware=[*noisy, how], **KEY))
        assert not torch.equal(y, op(*operands, **given, hardware=noisy, **KEY))
        loud = op(*operands, **given, arithmetic=how, noise=nk.Noise(add=1.0), relu=True, **KEY)
        bare = op(*operands, **given, arithmetic=how)
        assert_same_bits(loud, torch.relu(nk.perturb(bare, nk.Noise(add=1.0), **KEY)))


def test_noise_of_weights_comes_before_the_products() -> None:
    """The weights that the array holds are those of the sums."""
    x, w = torch.randn(4, 10), torch.randn(3, 10)
    noise = nk.WeightNoise(add=0.25)
    held = nk.linear(torch.eye(10), w, hardware=[noise], **KEY).T.contiguous()
    y = nk.linear(x, w, hardware=[noise], arithmetic=Serial("M7E6"), **KEY)
    assert_same_bits(y, nk.linear(x, held, arithmetic=Serial("M7E6"), **KEY))


def test_layers() -> None:
    how = Serial("M7E6", low=-4, high=4)
    torch.manual_seed(0)
    layers: list[tuple[nn.Module, Tensor]] = [
        (nk.NoisyLinear(5, 3, arithmetic=how), torch.randn(4, 5)),
        (nk.NoisyConv1d(2, 3, 3, arithmetic=how), torch.randn(4, 2, 7)),
        (
            nk.NoisyConv2d(2, 4, 3, groups=2, padding_mode="circular", padding=1, arithmetic=how),
            torch.randn(4, 2, 7, 5),
        ),
        (nk.NoisyConv3d(2, 3, 2, arithmetic=how), torch.randn(4, 2, 3, 3, 3)),
        (nk.NoisyConvTranspose1d(2, 3, 3, arithmetic=how), torch.randn(4, 2, 5)),
        (nk.NoisyConvTranspose2d(2, 3, 3, stride=2, arithmetic=how), torch.randn(4, 2, 5, 4)),
    ]
    for layer, x in layers:
        y = layer(x)
        assert "hardware=[Serial(" in repr(layer)
        layer.in_eval = False
        assert not torch.equal(layer.eval()(x), y)
        assert float((layer(x) - y).detach().abs().max()) < 0.5  # truncation of a few products, no saturation
        y.sum().backward()
        assert all(p.grad is not None for p in layer.parameters())


def test_an_injected_model() -> None:
    """Every linear layer and convolution of it; the same as the operators one by one."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 5))
    x = torch.randn(4, 1, 6, 6)
    clean = model(x)
    how = Serial(FloatFormat(6, 5, rounding="stochastic"), low=-2, high=2)
    conv, last = model[0], model[3]
    with nk.inject(model, None, arithmetic=how):
        sites = nk.sites(model, x)
        ids = {s.name: s.id for s in sites}
        with nk.noise_state(model, seed=7):
            y = model(x)
        with nk.noise_state(model, seed=7, draws=[0, 1]):
            both = model(torch.cat([x, x]))
    assert torch.equal(model(x), clean)
    h = nk.conv2d(x, conv.weight, conv.bias, arithmetic=how, seed=7, site=ids["0:conv2d#0"]).relu().flatten(1)
    expected = nk.linear(h, last.weight, last.bias, arithmetic=how, seed=7, site=ids["3:linear#0"])
    assert_same_bits(y.detach(), expected.detach())
    assert_same_bits(both[:4].detach(), y.detach())
    assert not torch.equal(both[4:], y)
    with nk.inject(model, None, hardware={"3*": [Serial(high=0.0)]}), nk.noise_state(model, seed=1):
        assert (model(x) <= last.bias).all()
    with pytest.raises(ValueError, match="put the arithmetic into the lists"):
        nk.inject(model, None, hardware={"3*": [Serial()]}, arithmetic=how)


def test_levels_of_step_noise_scale() -> None:
    x, w = torch.randn(4, 9), torch.randn(3, 9)
    one = Serial("M7E6", step_noise=0.5)
    assert_same_bits(
        nk.linear(x, w, arithmetic=one.scaled(0.5), **KEY),
        nk.linear(x, w, arithmetic=Serial("M7E6", step_noise=0.25), **KEY),
    )
    assert Serial("M7E6").scaled(0.5).step_noise is None
    model = nn.Sequential(nn.Linear(9, 3))
    with nk.inject(model, None, arithmetic=Serial(step_noise=1.0)):
        found = []
        for level in (0.0, 0.5, 1.0):
            with nk.noise_state(model, seed=3, level=level):
                found.append(model(x).detach())
    torch.testing.assert_close(found[1] * 2, found[0] + found[2], rtol=0, atol=9 * 2**-24 * 64)
    assert not torch.equal(found[0], found[2])


def test_training_through_clamps_learns() -> None:
    """A linear layer learns to undo a saturation, with either gradient."""
    torch.manual_seed(0)
    x, target = torch.randn(64, 16), torch.randn(64, 2) * 0.5
    for gradient in ("straight_through", "masked"):
        layer = nk.NoisyLinear(16, 2, arithmetic=Serial(low=-1, high=1, gradient=gradient))
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.05)
        losses = []
        for _ in range(30):
            loss = (layer(x) - target).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < 0.8 * losses[0]


# ----------------------------------------------------------------------------------------------------------- errors


def test_errors_name_what_is_wrong() -> None:
    x, w = torch.ones(4, 3), torch.ones(2, 3)
    image, kernel = torch.ones(1, 1, 2, 2), torch.ones(1, 1, 3, 3)
    pair, six = torch.ones(1, 2, 5, 5), torch.ones(6, 4, 3, 3)
    either = (ValueError, RuntimeError)
    for wrong, kind, said in (
        (lambda: Serial(low=0.5), ValueError, "low must be a number from -inf to 0, got 0.5"),
        (lambda: Serial(high=-0.5), ValueError, "high must be a number from 0 to inf"),
        (lambda: Serial(low=math.nan), ValueError, "low must be a number"),
        (lambda: Serial(leak=1.5), ValueError, "leak must be a number from 0 to 1"),
        (lambda: Serial(leak=True), TypeError, "leak must be a number"),
        (lambda: Serial(synapse_limit=-1.0), ValueError, "synapse_limit"),
        (lambda: Serial(synapse_decay=-0.1), ValueError, "synapse_decay"),
        (lambda: Serial(synapse_decay=1.1), ValueError, "synapse_decay"),
        (lambda: Serial(gain=math.inf), ValueError, "gain must be a finite number"),
        (lambda: Serial(gain="2"), TypeError, "gain"),
        (lambda: Serial(step_noise=-1.0), ValueError, "step_noise must be finite and not negative"),
        (lambda: Serial(step_noise=torch.ones(3)), ValueError, "step_noise must be a number or a 0-d tensor"),
        (lambda: Serial(order="sorted"), ValueError, "order must be one of natural, .*got 'sorted'"),
        (lambda: Serial(order=[0, 0, 1]), ValueError, "order must be a permutation"),
        (lambda: Serial(order=[1, 2, 3]), ValueError, "order must be a permutation"),
        (lambda: Serial(order=torch.tensor([[0, 1]])), ValueError, "order must be a permutation"),
        (lambda: Serial(order=torch.tensor([0.0, 1.0])), ValueError, "order must be a permutation"),
        (lambda: Serial(order=None), TypeError, "order must be a name or a permutation, got None"),
        (lambda: Serial(order=torch.tensor([False, True])), ValueError, "order must be a permutation"),
        (lambda: nk.linear(x, w.double(), arithmetic=Serial()), ValueError, "one floating dtype, got .*float64"),
        (lambda: nk.linear(x.half(), w, arithmetic=Serial()), ValueError, "linear: x and weight must have one"),
        (lambda: nk.linear(x.int(), w.int(), arithmetic=Serial()), ValueError, "one floating dtype, got .*int32"),
        (lambda: nk.conv2d(pair, six, arithmetic=Serial()), ValueError, "conv2d: x must have 4 channels"),
        (lambda: nk.conv2d(pair[0, 0], six, arithmetic=Serial()), ValueError, "conv2d: x must have 4 channels"),
        (lambda: nk.conv2d(pair, six[:5, :1], groups=2, arithmetic=Serial()), ValueError, "2 groups"),
        (lambda: nk.conv2d(pair, six, arithmetic=BrainScaleS2()), ValueError, "conv2d: x must have 4 channels"),
        (lambda: nk.conv_transpose2d(pair, six[:4], arithmetic=Serial()), ValueError, "must have 4 channels"),
        (lambda: Serial(gradient="exact"), ValueError, "gradient must be 'straight_through' or 'masked'"),
        (lambda: Serial("M7"), ValueError, "fmt must be one of"),
        (lambda: Serial(sum="L3"), ValueError, "sum must be one of"),
        (lambda: nk.linear(x, w, arithmetic=Serial(order=[1, 0])), ValueError, "linear: order .* of 3 operands, got 2"),
        (lambda: nk.linear(x, w, arithmetic=Serial(FixedFormat(20, 10))), ValueError, "linear: .*more than 24 bits"),
        (lambda: nk.linear(x, w, hardware=[Serial(), Serial()]), ValueError, "at most once|at most one|at most"),
        (lambda: nk.linear(x, w, hardware=[Serial(), nk.MacNoise(0.1)]), ValueError, "at most"),
        (lambda: nk.linear(x, w, hardware=[Serial()], arithmetic=Serial()), ValueError, "at most"),
        (lambda: nk.linear(x, w, arithmetic=nk.WeightNoise(add=0.1)), TypeError, "arithmetic must be an Arithmetic"),
        (
            lambda: nk.linear(
                x, w, hardware=[nk.InputNoise(add=0.1)], arithmetic=Serial(FixedFormat(3, 3, "stochastic"))
            ),
            ValueError,
            "draws 'input'",
        ),
        (lambda: nk.conv2d(image, kernel, arithmetic=Serial()), either, "kernel"),
        (lambda: nk.linear(x, w[:, :2], arithmetic=Serial()), either, "3"),
        (lambda: nk.linear(x, w, arithmetic=Serial(step_noise=0.1), rows=[0, 1]), either, "rows"),
        (lambda: nk.linear(x, w, arithmetic=Serial(), draws=[1, 2, 3]), ValueError, "multiple of 3"),
    ):  # fmt: skip
        with pytest.raises(kind, match=said):
            wrong()
    for half in (torch.float16, torch.bfloat16):
        with pytest.raises(ValueError, match="more than 24 bits"):
            nk.linear(x.to(half), w.to(half), arithmetic=Serial(FixedFormat(20, 10)))
    assert nk.linear(x.double(), w.double(), arithmetic=Serial(FixedFormat(20, 10))).dtype == torch.float64
    level = torch.tensor(1.0, dtype=torch.float64)
    how = Serial(step_noise=level)
    level.fill_(math.nan)
    with pytest.raises(ValueError, match="step_noise"):
        nk.linear(x, w, arithmetic=how, seed=1)


def test_an_order_is_the_callers_no_longer() -> None:
    """And what is shown of it tells permutations apart, as the keys of stored studies do."""
    order = torch.tensor([1, 0, 2])
    how = Serial(order=order)
    order.fill_(1 << 20)
    assert how.order.tolist() == [1, 0, 2]  # type: ignore[union-attr]
    shown = {repr(Serial(order=random_order(20, s))) for s in range(9)}
    assert len(shown) == 9 and all("order=<20 operands, " in s for s in shown)
    assert repr(how) == repr(Serial(order=[1, 0, 2])) == repr(pickle.loads(pickle.dumps(how)))


def test_shapes_of_operands_are_checked() -> None:
    op, seed = torch.ops.noisykernels.serial.default, torch.tensor(1)

    def call(
        a: Tensor, b: Tensor, order: Tensor | None = None, outputs: int = 15, rows: Tensor | None = None
    ) -> Tensor:
        numbers = (-1.0, 1.0, 1.0, math.inf, 0.0, False)
        return op(a, b, order, [], [], *numbers, None, outputs, seed, None, rows, 0, 0, False, False)

    a, b = torch.ones(4, 3, 6), torch.ones(2, 6, 5)
    assert call(a, b).shape == (4, 3, 5)
    for wrong in (
        lambda: call(a, b[:, :5]),
        lambda: call(a, b[0]),
        lambda: call(a[:3], b),
        lambda: call(a, b.double()),
        lambda: call(a.half(), b.half()),
        lambda: call(a, b, outputs=7),
        lambda: call(a, b, order=torch.arange(5, dtype=torch.int32)),
        lambda: call(a, b, order=torch.arange(6)),
        lambda: call(a, b, order=torch.zeros(4, 3, 6, 5, dtype=torch.int32)),
        lambda: call(a, b, rows=torch.tensor([1, 2, 3])),
    ):
        with pytest.raises((RuntimeError, ValueError), match="serial"):
            wrong()


def test_orders_that_reach_beyond_the_operands_are_refused() -> None:
    one, order = torch.ones(1, 1, 3), torch.tensor([0, 1, 100000], dtype=torch.int32)
    rest = ([], [], -1.0, 1.0, 1.0, 1.0, 0.0, False, None, 1, torch.tensor([1]), None, None, 0, 0, False, False)
    with pytest.raises(RuntimeError, match="order must hold numbers from 0 to 2"):
        torch.ops.noisykernels.serial(one, one.transpose(1, 2), order, *rest)
