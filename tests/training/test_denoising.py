"""Denoising blocks: the formula, what is frozen and what is not, noise that stays as it was, and all undone."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import noisykernels as nk
from noisykernels.noise.contract import hashed_id
from noisykernels.training import accuracy, train
from noisykernels.training.denoising import ATTRIBUTE
from noisykernels.zoo import fresh

pytestmark = pytest.mark.usefixtures("one_thread")

NOISE = nk.Noise(add=0.5, mul=0.3)


def randomised(block: nn.Module, seed: int = 0) -> Any:
    """The block with parameters of no special value."""
    with torch.no_grad():
        for i, p in enumerate(block.parameters()):
            p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(100 * seed + i)) * 0.3)
    return block


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Flatten(), nn.Linear(27, 4)
    )


def images(rows: int = 6) -> Tensor:
    return torch.randn(rows, 2, 5, 5, generator=torch.Generator().manual_seed(2))


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# ------------------------------------------------------------------------------------------------------- the block


@pytest.mark.parametrize("dims", [0, 1, 2, 3])
def test_the_formula(dims: int) -> None:
    """In double precision, by sums over the window; sampling under a seed uses the eps of the block's name."""
    shape = (5, 4, *[3, 2, 3][:dims]) if dims else (5, 3, 4)
    block, y = randomised(nk.training.DenoisingBlock(4, 2, dims=dims)).double().eval(), torch.randn(shape).double()
    channels_last = y.movedim(1, -1) if dims else y
    windows = F.pad(channels_last, (0, 0, *[1, 1] * dims))
    for d in range(1, dims + 1):
        windows = windows.unfold(d, 3, 1)  # (B, *space, C, *window)
    axes = "xyz"[:dims]
    hidden = F.relu(torch.einsum(f"...c{axes},hc{axes}->...h", windows, block.weight_in) + block.bias_in)
    rest, s = (hidden @ block.weight_out.flatten(1).T + block.bias_out).split(4, -1)
    mean = channels_last * block.shrinkage.flatten() + rest
    mean, deviation = (v.movedim(-1, 1) if dims else v for v in (mean, torch.log1p(s.exp())))
    torch.testing.assert_close(block(y), y - mean, rtol=1e-12, atol=1e-12)
    block.train()
    with nk.inject(block, None), nk.noise_state(block, seed=3, draws=[7], rows=[9, 1, 2, 4, 3], level=100.0):
        out = block(y)
    eps = nk.eps(shape, seed=3, site=hashed_id("denoising#0"), draw=7, rows=[9, 1, 2, 4, 3])
    torch.testing.assert_close(out, y - (mean + deviation * eps), rtol=1e-12, atol=1e-12)


def test_a_new_block_hardly_does_anything() -> None:
    y = torch.randn(50, 6) * 10
    block = nk.training.DenoisingBlock(6)
    assert torch.equal(block.eval()(y), y)
    difference = (block.train()(y) - y).detach()
    assert 0.015 < float(difference.std()) < 0.022 and not torch.equal(block(y), block(y))  # softplus(-4) = 0.0181
    assert block.weight_in.shape == (1, 6) and nk.training.DenoisingBlock(64).weight_in.shape == (8, 64)


# ---------------------------------------------------------------------------------------------------- in a model


def inserted(model: nn.Module, where: Any = ("0", "5"), x: Tensor | None = None) -> nk.training.insert_denoising:
    found = nk.training.insert_denoising(model, where, example_input=images(2) if x is None else x, bottleneck=2)
    for i, block in enumerate(found.blocks.values()):
        randomised(block, i)
    return found


def test_a_block_acts_on_the_noisy_value() -> None:
    model, x = network().eval(), images()
    names = [s.name for s in nk.sites(model, x)]
    ids = {s.name: s.id for s in nk.sites(model, x)}
    blocks = inserted(model).blocks
    assert [s.name for s in nk.sites(model, x)] == names and list(blocks) == ["0:conv2d#0", "5:linear#0"]
    with nk.inject(model, NOISE), nk.noise_state(model, seed=1, draws=[3]):
        mine = model(x)

    def noisy(v: Tensor, name: str) -> Tensor:
        return nk.perturb(v, NOISE, seed=1, site=ids[name], draws=[3])

    conv = F.conv2d(noisy(x, "input"), model[0].weight, model[0].bias)
    v = blocks["0:conv2d#0"](noisy(conv, "0:conv2d#0"))
    v = noisy(F.batch_norm(v, model[1].running_mean, model[1].running_var), "1:batch_norm#0")
    v = F.linear(noisy(F.relu(v), "2:relu#0").flatten(1), model[5].weight, model[5].bias)
    expected = blocks["5:linear#0"](noisy(v, "5:linear#0"))
    torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-4)  # contractions in another order; norms of 1e-5


@pytest.mark.parametrize("training", [False, True])
def test_it_is_the_same_whichever_comes_first(training: bool) -> None:
    outs, x = [], images()
    for order in ("insert", "inject", "traced"):
        model = network()
        if order != "insert":
            nk.inject(model, NOISE, example_input=x if order == "traced" else None)
        blocks = inserted(model)
        if order == "insert":
            nk.inject(model, NOISE)
        model.train(training)
        with nk.noise_state(model, seed=1, draws=[2, 5], rows=range(6)):
            outs.append(model(x))
            outs.append(model(x))
        nk.remove(model)
        blocks.remove()
    assert all(torch.equal(out, outs[0]) for out in outs)


def test_samples_are_a_rows_own() -> None:
    model, x = network(), images()
    inserted(model)
    model.train()
    with nk.inject(model, nk.Noise(add=0.0)):
        with nk.noise_state(model, seed=1, draws=[2], rows=range(6)):
            whole = model(x)
        with nk.noise_state(model, seed=1, draws=[2], rows=[4, 1]):
            torch.testing.assert_close(model(x[[4, 1]]), whole[[4, 1]], rtol=1e-4, atol=1e-5)
        with nk.noise_state(model, seed=1, draws=[3], rows=range(6)):
            assert not torch.allclose(model(x), whole, rtol=1e-3)
    torch.manual_seed(5)
    fresh_one = model(x)  # without injection, from torch's generator
    torch.manual_seed(5)
    assert torch.equal(model(x), fresh_one) and not torch.equal(model(x), fresh_one)


def test_samples_are_a_sites_own_and_each_calls() -> None:
    """Whatever blocks there are besides; a block that is part of a model and called twice draws twice."""
    x, outs = images(), []
    for where in ("5", ["0", "5"]):
        model = network()
        nk.training.insert_denoising(model, where, example_input=x[:2]).blocks["5:linear#0"].train()
        model.train()
        with nk.inject(model, None), nk.noise_state(model, seed=1):
            model[5].register_forward_hook(
                lambda layer, args, out: outs.append((out - F.linear(args[0], layer.weight, layer.bias)).detach())
            )
            model(torch.zeros_like(x))
    # not the same inputs, and the noise comes back from a difference: to 1e-6
    torch.testing.assert_close(outs[0], outs[1], rtol=0, atol=1e-6)
    assert float(outs[0].std()) > 0.01

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = nk.training.DenoisingBlock(4)

        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([self.block(x), self.block(x)], 1)

    model = Twice()
    with nk.inject(model, None), nk.noise_state(model, seed=1):
        first, second = (model(torch.zeros(3, 4)) - model.eval()(torch.zeros(3, 4))).unbind(1)
        assert not torch.equal(first, second)


def test_only_the_blocks_learn() -> None:
    """A batch norm, dropout and all weights stay; without noise the outputs are those of the frozen network."""
    model, data = network(), (images(40), torch.randint(4, (40,)))
    model.train()
    modes = [m.training for m in model.modules()]
    before, clean = state(model), copy.deepcopy(model).eval()(data[0])
    found = nk.training.insert_denoising(model, ["0", "5"], example_input=data[0][:2], bottleneck=2)
    assert torch.equal(model.eval()(data[0]), clean)
    blocks = {name: state(block) for name, block in found.blocks.items()}
    with nk.inject(model, NOISE, where="0"):
        train(model, data, epochs=3, batch_size=10, on_step=nk.training.noisy_steps(model, seed=1))
    assert found.share == sum(p.numel() for p in model.parameters() if p.requires_grad) / sum(
        p.numel() for p in model.parameters() if not p.requires_grad
    )
    after = state(model)
    assert {n for n in after if n not in before} == {f"{i}.denoising.{n}" for i in (0, 5) for n in blocks["0:conv2d#0"]}
    assert same(before, {n: v for n, v in after.items() if n in before})
    for name, block in found.blocks.items():
        assert not any(torch.equal(v, blocks[name][n]) for n, v in block.state_dict().items())
    trained_blocks = after
    assert found.remove() is model and found.remove() is model
    assert same(before, state(model)) and [m.training for m in model.modules()] == modes
    assert all(p.requires_grad for p in model.parameters()) and torch.equal(model.eval()(data[0]), clean)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    again = network()
    nk.training.insert_denoising(again, ["0", "5"], example_input=data[0][:2], bottleneck=2)
    again.load_state_dict(trained_blocks)
    assert not torch.equal(again.eval()(data[0]), clean)


def test_flags_come_back_as_they_were_and_copies_are_their_own() -> None:
    model = network().eval()
    model[0].weight.requires_grad_(False)
    with pytest.raises(KeyError):
        with nk.training.insert_denoising(model, "0", example_input=images(2)):
            twin = copy.deepcopy(model)
            raise KeyError
    assert [p.requires_grad for p in model.parameters()] == [False, True, True, True, True, True]
    twin.train()
    twin(images())
    assert twin[0].denoising.training and not twin[1].training and not any(m.training for m in model.modules())


def test_autocast_half_types_and_moved_models() -> None:
    model = network().to(torch.bfloat16)
    inserted(model, x=images(2).bfloat16())
    assert model[0].denoising.weight_in.dtype == torch.bfloat16
    assert model(images().bfloat16()).dtype == torch.bfloat16
    model.float()
    with torch.autocast("cpu"):
        assert torch.isfinite(model(images())).all()


def test_compiled_models() -> None:
    for noise in (None, NOISE):
        torch._dynamo.reset()
        model, x = network(), images()
        inserted(model)
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        with nk.inject(model, noise), nk.noise_state(model, seed=1, draws=[0, 4]):
            model.train()
            assert torch.equal(compiled(x), model(x))
            model.eval()
            assert torch.equal(compiled(x), model(x))
    torch._dynamo.reset()


class Parts(nn.Module):
    """A recurrent layer, attention and an activation behind them; perhaps checkpointed."""

    def __init__(self, how: str | None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.gru, self.act, self.how = nn.GRU(3, 4, batch_first=True), nn.GELU(), how
        self.attention, self.last = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 2)

    def middle(self, x: Tensor) -> Tensor:
        return self.last(self.act(x))

    def forward(self, x: Tensor) -> Tensor:
        x, _ = self.gru(x)
        x, _ = self.attention(x, x, x)
        return self.middle(x) if self.how is None else checkpoint(self.middle, x, use_reentrant=False)


def test_sequences_blocks_of_ones_own_and_checkpoints() -> None:
    x, found = torch.randn(5, 6, 3), []
    for how in (None, "checkpointed"):
        model = Parts(how)
        own = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
        randomised(own)
        names = [s.name for s in nk.sites(model, x)]
        with nk.training.insert_denoising(model, {"gru": None, "act": None, "last": own}, example_input=x) as blocks:
            for block in blocks.blocks.values():
                randomised(block)
            assert [s.name for s in nk.sites(model, x)] == names and blocks.blocks["act:gelu#0"].dims == 0
            model.train()
            with nk.inject(model, NOISE, example_input=x), nk.noise_state(model, seed=1, draws=[0, 1]):
                y = model(x)
                y.square().sum().backward()
            found.append([y, *(p.grad for p in model.parameters() if p.requires_grad)])
    assert len(found[0]) == 1 + 5 + 5 + 2
    assert all(g is not None and torch.equal(g, h) and g.abs().sum() > 0 for g, h in zip(*found, strict=True))


def test_a_walk_of_a_model_with_blocks() -> None:
    model, data = network().eval(), (images(60), torch.randint(4, (60,)))
    inserted(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        study = nk.walk(model, data, noise=nk.Noise(add=1.0), levels=[0.0, 3.0], draws=2, seed=1)
    assert {r.site for r in study.records} == {s.name for s in nk.sites(model, data[0][:2])}
    for record in study.records:
        with nk.inject(model, nk.Noise(add=record.level or 0.0), where=record.site):
            with nk.noise_state(model, seed=1, draws=[record.draw]):
                assert record.correct == int((model(data[0]).argmax(1) == data[1]).sum())


# ------------------------------------------------------------------------------------------------------ which sites


def test_sites_within_a_budget() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 16), nn.Tanh(), nn.Linear(16, 3))
    data = torch.randn(30, 1, 8, 8), torch.randint(3, (30,))
    norms = nk.training.gradient_norms(model, data)
    total = sum(p.numel() for p in model.parameters())
    costs = {}
    for g in norms[1:]:
        with nk.training.insert_denoising(model, g.site, example_input=data[0][:2]) as one:
            costs[g.site] = one.share * total
    order = sorted(norms[1:], key=lambda g: -g.norm)
    for budget in (0.0, 0.01, 0.03, 0.05, 0.1, 1.0):
        expected, left = [], budget * total
        for g in order:
            if costs[g.site] <= left:
                expected.append(g.site)
                left -= costs[g.site]
        found = nk.training.denoising_sites(model, norms, budget=budget)
        assert found == [g.site for g in norms if g.site in expected]
    assert len(found) == 5  # not the input, which no module gives
    assert nk.training.denoising_sites(model, norms, budget=0.0) == []


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.out = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.fc(F.relu(self.fc(x)))))


@pytest.mark.parametrize(
    ("where", "error", "text"),
    [
        ("input", ValueError, "'input': it is no call of a submodule"),
        (":tanh", ValueError, "':tanh#0': it is no call of a submodule"),
        ("fc", ValueError, "module 'fc' has other sites too: fc:linear#1"),
        ("nothing", ValueError, "'nothing' matches no site; the model has input, fc:linear#0"),
        ([], ValueError, "at least one site, got none"),
        ([3], TypeError, "each item of where must be a text, got 3"),
        ({"*": nn.Identity()}, ValueError, "one module for several sites"),
    ],
)
def test_what_is_refused(where: Any, error: type[Exception], text: str) -> None:
    model = Shared()
    before = state(model)
    with pytest.raises(error, match=f"insert_denoising: .*{text}"):
        nk.training.insert_denoising(model, where, example_input=torch.ones(2, 4))
    assert same(before, state(model)) and all(p.requires_grad for p in model.parameters())
    assert not any(m._forward_pre_hooks for m in model.modules())


class Transposed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.gru(x.transpose(0, 1))[0]


def test_what_else_is_refused() -> None:
    model = Shared()
    with nk.training.insert_denoising(model, "out", example_input=torch.ones(2, 4)):
        with pytest.raises(ValueError, match="module 'out' has a block already"):
            nk.training.insert_denoising(model, "out", example_input=torch.ones(2, 4))
    assert not hasattr(model.out, ATTRIBUTE)
    with pytest.raises(ValueError, match="'gru:gru#0': its rows are not along dimension 0"):
        nk.training.insert_denoising(Transposed(), "gru", example_input=torch.ones(2, 5, 3))
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        parallel = nn.parallel.DistributedDataParallel(model)
        with pytest.raises(ValueError, match="insert the blocks first, then wrap it"):
            nk.training.insert_denoising(parallel, "out", example_input=torch.ones(2, 4))
    finally:
        torch.distributed.destroy_process_group()
    for name, bad in (("features", 0), ("bottleneck", 0), ("dims", 4), ("kernel_size", 2)):
        with pytest.raises(ValueError, match=f"DenoisingBlock: {name} must be .*, got {bad}"):
            nk.training.DenoisingBlock(**{"features": 4, name: bad})
    with pytest.raises(ValueError, match="budget must be a finite number of at least 0, got -1"):
        nk.training.denoising_sites(model, [], budget=-1)


# -------------------------------------------------------------------------------------------------- what it is good for


def test_blocks_recover_accuracy() -> None:
    """An MLP on the digits under multiplicative noise at its linear layers: the blocks recover half of the drop."""
    pytest.importorskip("sklearn")
    from noisykernels.datasets import load

    data, test = load("digits", "train"), load("digits", "test")
    model = fresh("mlp", "digits")
    train(model, data, epochs=12, lr=5e-3, seed=1)
    clean, before = accuracy(model, test), state(model)

    def noisy() -> float:
        with nk.noise_state(model.eval(), seed=5, draws=range(10)), torch.no_grad():
            return float((model(test[0]).argmax(1) == test[1].repeat(10)).float().mean())

    with nk.inject(model, nk.Noise(mul=0.5), where="fc[123]"):
        low = noisy()
        with nk.training.insert_denoising(model, "fc[123]", example_input=test[0][:2], bottleneck=16):
            train(model, data, epochs=15, lr=1e-2, seed=2, on_step=nk.training.noisy_steps(model, seed=3))
            high = noisy()
    assert clean > 0.93 and clean - low > 0.1
    assert high - low > 0.5 * (clean - low)
    assert same(before, state(model)) and accuracy(model, test) == clean
