"""Hard models under injection: skips, sharing, several inputs, lazy and compiled ones."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from injecting import NOISE, SEED, names, oracle, run
from operators import assert_same_bits
from torch import Tensor, nn

import noisykernels as nk

# -------------------------------------------------------------------------------- skips and sharing


class Block(nn.Module):
    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(width, out, 3, padding=1), nn.BatchNorm2d(out)
        self.conv2, self.norm2 = nn.Conv2d(out, out, 3, padding=1), nn.BatchNorm2d(out)
        self.skip = nn.Conv2d(width, out, 1) if width != out else nn.Identity()
        self.relu = nn.ReLU(inplace=True)  # called twice

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(self.relu(self.norm1(self.conv1(x)))))
        y += self.skip(x)
        return self.relu(y)


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(2, 4), Block(4, 4)])
        self.fc = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor | tuple[Tensor, ...]]:
        features = []
        for block in self.blocks:
            x = block(x)
            features.append(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return {"scores": self.fc(torch.cat(features, 1)), "features": tuple(features)}


def block_names(i: int, skip: bool) -> list[str]:
    inner = "conv1:conv2d#0 norm1:batch_norm#0 relu:relu#0 conv2:conv2d#0 norm2:batch_norm#0".split()
    more = ["skip:conv2d#0"] if skip else []
    return [f"blocks.{i}.{n}" for n in (*inner, *more, "relu:relu#1")]


def test_residual_network_with_shared_and_functional_sites() -> None:
    model, x = ResNet().eval(), torch.randn(3, 2, 6, 6)
    first, second = block_names(0, True), block_names(1, False)
    pools = [":adaptive_avg_pool2d#0", ":adaptive_avg_pool2d#1"]
    assert names(model, x) == ["input", *first, pools[0], *second, pools[1], "fc:linear#0"]
    out = run(model, x, draws=[1, 4], rows=[5, 6, 7])
    one = run(model, x, draws=[4], rows=[5, 6, 7])
    assert torch.allclose(out["scores"][3:], one["scores"], atol=1e-5)
    assert out["features"][1].shape == (6, 4)
    # The second call of the shared ReLU alone, by hand.
    block = model.blocks[0]
    y = run(block, x, "relu:relu#1")
    assert_same_bits(y, oracle(block(x), "relu:relu#1"))


@pytest.mark.parametrize(
    "function",
    [
        F.relu_, torch.relu_, lambda v: v.relu_(), lambda v: F.relu(v, inplace=True),
        lambda v: F.leaky_relu(v, 0.1, True), lambda v: F.elu(v, inplace=True), lambda v: v.tanh_(),
        lambda v: v.sigmoid_(), F.selu_, lambda v: F.hardtanh(v, -1, 1, True), nn.ReLU6(True),
        nn.SiLU(True), nn.Mish(True), nn.Hardswish(True), nn.Threshold(0.1, 3, True), F.celu_,
    ],
)  # fmt: skip
def test_in_place_operations(function) -> None:
    """Values, aliases and gradients are those of noise put on by hand, in training too."""

    class Model(nn.Module):
        def __init__(self, noise) -> None:
            super().__init__()
            self.fc, self.noise = nn.Linear(4, 4), noise
            nn.init.eye_(self.fc.weight)
            nn.init.zeros_(self.fc.bias)
            if isinstance(function, nn.Module):
                self.act = function

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            alias = self.fc(x)
            y = (self.act if hasattr(self, "act") else function)(alias)
            if self.noise is not None:
                y = y + self.noise
                alias = y
            return y, alias * 2

    x = torch.linspace(-2, 2, 12).view(3, 4).requires_grad_()
    model = Model(None).train()
    name = names(model, x)[-1]
    clean = function(x.detach().clone())
    with nk.inject(model, NOISE, name), nk.noise_state(model, seed=SEED):
        y, alias = model(x)
        (y.square() + alias).sum().backward()
    expected = oracle(clean, name)
    assert_same_bits(y, expected)
    assert_same_bits(alias, expected * 2)
    grad, x.grad = x.grad, None
    y, alias = Model(expected - clean)(x)
    (y.square() + alias).sum().backward()
    assert torch.allclose(grad, x.grad, atol=1e-5)


def test_out_arguments_hold_the_noisy_value() -> None:
    class Model(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            buffer = torch.empty_like(x)
            torch.tanh(x, out=buffer)
            return buffer

    x = torch.randn(3, 4)
    assert_same_bits(run(Model(), x, ":tanh"), oracle(x.tanh(), ":tanh#0"))


def test_tied_weights_and_one_module_under_two_names() -> None:
    model = nn.ModuleDict({"a": nn.Linear(4, 4, bias=False), "b": nn.Linear(4, 4, bias=False)})
    model["b"].weight = model["a"].weight
    net = nn.Sequential(model["a"], model["b"], model["a"])
    x = torch.randn(2, 4)
    assert names(net, x) == ["input", "0:linear#0", "1:linear#0", "0:linear#1"]
    with nk.inject(net, NOISE):
        assert net[0].weight is net[1].weight and len(list(net.parameters())) == 1
        with nk.noise_state(net, seed=1):
            net(x).sum().backward()


# ----------------------------------------------------------------------------------- several inputs


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 3)

    def forward(self, a: Tensor, scale: Tensor, b: Tensor, *, c: Tensor | None = None, times: int = 1):
        y = F.relu(a * scale) + self.fc(b)
        return y * times, [y if c is None else y + c]


def test_several_inputs_some_without_rows_and_keywords() -> None:
    model, a, b, c = TwoInputs(), *torch.randn(3, 4, 3)
    scale = torch.ones(3)
    example = dict(a=a, scale=scale, b=b, c=c)
    # `scale` has no rows, so it is no site.
    expected = ["input", "input#2", "input#3", ":relu#0", "fc:linear#0"]
    assert names(model, example) == expected
    y, (z,) = run(model, dict(a=a, scale=scale, b=b, c=c), draws=[2, 0], example_input=example)
    assert y.shape == z.shape == (8, 3)
    with nk.inject(model, NOISE, example_input=example):
        with nk.noise_state(model, seed=SEED, draws=[0]):
            same, _ = model(a, scale, c=c, b=b)
        assert torch.allclose(y[4:], same)
    with nk.inject(model, NOISE, "fc"), nk.noise_state(model, seed=1, draws=[0, 1]):
        with pytest.raises(RuntimeError, match="takes 3 tensors, and which of them carry the rows"):
            model(a, scale, b)


def test_integer_input_is_no_site() -> None:
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 3))
    tokens = torch.tensor([[0, 1], [2, 3], [4, 4]])
    assert names(model, tokens) == ["1:linear#0"]
    assert run(model, tokens, draws=[0, 1]).shape == (6, 2, 3)


def test_models_without_parameters_and_roots_of_one_layer() -> None:
    for model, x in ((nn.ReLU(), torch.randn(2, 3)), (nn.Linear(3, 2), torch.randn(2, 3))):
        site = names(model, x)[-1]
        y = run(model, x, site)
        assert y.shape[0] == 2 and not torch.equal(y, model(x))


# ----------------------------------------------------------------------------- rows that are hidden


def test_reshapes_and_mixing_of_rows() -> None:
    class Model(nn.Module):
        def forward(self, x: Tensor) -> Tensor:  # (B, L, F)
            folded = torch.tanh(x.flatten(0, 1)).view(x.shape)
            swapped = F.relu(folded.permute(2, 1, 0)).permute(2, 1, 0)
            similar = torch.sigmoid(x.flatten(1) @ x.flatten(1).T)  # (B, B)
            return swapped + similar.mean()

    model, x = Model(), torch.randn(3, 2, 3)
    found = nk.sites(model, x)
    assert [(s.name, s.row_dim) for s in found] == [
        ("input", 0), (":tanh#0", 0), (":relu#0", 2), (":matmul#0", None), (":sigmoid#0", None)
    ]  # fmt: skip
    run(model, x, ":relu", example_input=x, draws=[0, 1])
    with pytest.raises(RuntimeError, match=r"expected 3 rows .* along the row dimension"):
        run(model, x, ":sigmoid", example_input=x)
    with pytest.warns(UserWarning, match="':matmul#0', ':sigmoid#0'") as told:
        everywhere = run(model, x, example_input=x)
    assert len(told) == 1
    assert_same_bits(everywhere, run(model, x, ["input", ":tanh", ":relu"], example_input=x))
    noisy = oracle(torch.tanh(x), ":tanh#0")  # row by row, two values of each
    similar = torch.sigmoid(x.flatten(1) @ x.flatten(1).T)
    assert torch.allclose(run(model, x, ":tanh", example_input=x), noisy.relu() + similar.mean(), atol=1e-6)
    x = torch.randn(3, 2, 5)
    y = run(model, x, ":relu", row_dims={":relu": 2})
    assert_same_bits(y, run(model, x, ":relu", example_input=x))


# ----------------------------------------------------------------- wrappers, lazy, traced, compiled


def test_lazy_layers() -> None:
    model, x = (
        nn.Sequential(nn.LazyLinear(4), nn.LazyBatchNorm1d(), nn.LazyConv1d(2, 1)),
        torch.randn(3, 5),
    )
    model = nn.Sequential(model[0], model[1]).eval()
    with nk.inject(model, NOISE), nk.noise_state(model, seed=1):
        y = model(x)
        assert type(model[0]) is nn.Linear
        assert_same_bits(model(x), y)
    assert type(model) is nn.Sequential and next(iter(model.state_dict())) == "0.weight"
    lazy = nn.LazyLinear(4)
    with nk.inject(lazy, NOISE), nk.noise_state(lazy, seed=SEED):
        y = lazy(x)
        assert type(lazy) is nn.Linear
    assert_same_bits(run(lazy, x), y)


def test_wrappers_do_not_change_names_or_noise() -> None:
    model, x = nn.Sequential(nn.Linear(4, 3), nn.Tanh()), torch.randn(2, 4)
    wrapped = nn.DataParallel(model)
    expected = run(model, x)
    assert names(wrapped, x) == names(model, x)
    assert_same_bits(run(wrapped, x), expected)
    keys = list(wrapped.state_dict())
    with nk.inject(wrapped, NOISE):
        assert list(wrapped.state_dict()) == keys
        with nk.noise_state(wrapped, seed=SEED):
            assert_same_bits(wrapped(x), expected)


def test_functional_call_and_parametrizations() -> None:
    model, x = nn.Sequential(nn.Linear(4, 3), nn.Tanh()), torch.randn(2, 4)
    nn.utils.parametrizations.weight_norm(model[0])
    params = {k: v * 2 for k, v in model.named_parameters()}
    with nk.inject(model, NOISE, "1"), nk.noise_state(model, seed=SEED):
        y = torch.func.functional_call(model, params, x)
    expected = torch.func.functional_call(model, params, x)
    assert_same_bits(y, oracle(expected, "1:tanh#0"))


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.act = nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.GELU()
        self.fc = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = F.max_pool2d(self.act(self.norm(self.conv(x))), 2)
        return torch.relu_(self.fc(y.flatten(1)))


def test_traced_by_fx_has_the_names_of_eager() -> None:
    """All of them here. A functional call of a submodule that fx takes apart moves to the root."""
    model, x = Small().eval(), torch.randn(2, 2, 6, 6)
    traced = torch.fx.symbolic_trace(model)
    assert names(traced, x) == names(model, x)
    assert_same_bits(run(traced, x), run(model, x))
    block = torch.fx.symbolic_trace(nn.Sequential(Small()).eval())
    assert ":max_pool2d#0" in names(block, x)


def test_exported_and_unflattened_has_the_names_of_eager() -> None:
    """The flat form has no modules: kinds and their order are eager's there, paths are not."""
    model, x = nn.Sequential(Small(), nn.Softplus()).eval(), torch.randn(2, 2, 6, 6)
    batch = torch.export.Dim("batch", min=2)
    exported = torch.export.export(model, (x,), dynamic_shapes=({0: batch},))
    unflattened = torch.export.unflatten(exported)
    assert names(unflattened, x) == names(model, x)
    y = run(unflattened, x)
    assert torch.allclose(y, run(model, x), atol=1e-5)
    flat = exported.module()
    kinds = [s.kind for s in nk.sites(model, x)]
    assert [s.kind for s in nk.sites(flat, x)] == kinds


def test_exporting_an_injected_model() -> None:
    """The exported program draws the noise of the seed that was set meanwhile."""
    model, x = Small().eval(), torch.randn(2, 2, 6, 6)
    with nk.inject(model, NOISE), nk.noise_state(model, seed=SEED):
        exported = torch.export.export(model, (x,))
        expected = model(x)
    assert torch.allclose(exported.module()(x), expected, atol=1e-5)


class Counting:
    """A compiler that runs the graph as it is and counts how often it is asked."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph, inputs):
        self.graphs += 1
        return graph.forward


@pytest.fixture
def fresh_compiler():
    torch._dynamo.reset()
    yield Counting()
    torch._dynamo.reset()


@pytest.mark.parametrize("order", ["inject first", "compile first", "in place"])
def test_compiled_models(order: str, fresh_compiler: Counting) -> None:
    """One graph for all seeds, draws, rows and levels; the noise is that of eager."""
    model, x = Small().eval(), torch.randn(2, 2, 6, 6)
    levels = [torch.tensor(v) for v in (0.5, 1.5)]
    eager = [run(model, x, noise=nk.Noise(add=v), seed=s, rows=[s, 9]) for v in levels for s in (0, 1, 2)]
    level = levels[0].clone()
    compiled = model
    if order == "compile first":
        compiled = torch.compile(model, backend=fresh_compiler, fullgraph=True)
    elif order == "in place":
        model.compile(backend=fresh_compiler, fullgraph=True)
    with nk.inject(compiled, nk.Noise(add=level)):
        if order == "inject first":
            compiled = torch.compile(model, backend=fresh_compiler, fullgraph=True)
        outs = []
        for v, s in itertools.product(levels, (0, 1, 2)):
            level.copy_(v)
            with nk.noise_state(compiled, seed=s, rows=[s, 9]):
                outs.append(compiled(x))
    for y, expected in zip(outs, eager, strict=True):
        assert torch.allclose(y, expected, atol=1e-6)
    assert fresh_compiler.graphs == 1
    clean = compiled(x)
    assert torch.allclose(clean, Small.forward(model, x)) and fresh_compiler.graphs == 2


def test_compiled_draws_and_attention(fresh_compiler: Counting) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    model, x = nn.Sequential(layer), torch.randn(3, 5, 8)
    compiled = torch.compile(model, backend=fresh_compiler, fullgraph=True)
    with nk.inject(model, NOISE, example_input=x), torch.no_grad():
        for draws in ([0, 1], [5, 3]):
            with nk.noise_state(model, seed=1, draws=draws):
                assert torch.allclose(compiled(x), model(x), atol=1e-5)
    assert fresh_compiler.graphs == 1


@pytest.mark.full
def test_compiled_by_inductor_with_gradients() -> None:
    torch._dynamo.reset()
    model, x = Small().eval(), torch.randn(2, 2, 6, 6, requires_grad=True)
    with nk.inject(model, nk.Noise(add=0.3, mul=0.2)), nk.noise_state(model, seed=1):
        compiled = torch.compile(model, fullgraph=True)
        for f in (model, compiled):
            f(x).square().sum().backward()
    grad, x.grad = x.grad, None
    with nk.inject(model, nk.Noise(add=0.3, mul=0.2)), nk.noise_state(model, seed=1):
        model(x).square().sum().backward()
    assert torch.allclose(grad, 2 * x.grad, rtol=1e-4, atol=1e-4)


def test_compiled_part_of_a_model(fresh_compiler: Counting) -> None:
    part = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
    model, x = nn.Sequential(nn.ReLU(), part), torch.randn(2, 4)
    expected = run(model, x)
    model[1].compile(backend=fresh_compiler)
    assert torch.allclose(run(model, x), expected, atol=1e-6)


def test_what_cannot_be_looked_into_is_refused() -> None:
    scripted = torch.jit.trace(nn.ReLU(), torch.ones(2))
    with pytest.raises(ValueError, match="its part '1' is TorchScript"):
        nk.inject(nn.Sequential(nn.ReLU(), scripted), NOISE)
