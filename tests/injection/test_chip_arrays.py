"""What belongs to the chip belongs to an array: whatever calls a weight finds the same one, once or many times, in all
ways to run a model; what is fresh is each call's own."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

import noisykernels as nk
from noisykernels._engine.store import StoreError
from noisykernels.hardware import PCM, ColumnGain, ColumnOffset, DifferentialPair, Draw, MacNoise
from noisykernels.noise.contract import hashed_id

SEED = 5
WIDTH = 6


class Faulty(nk.hardware.Device):
    """A fifth of the cells are stuck at zero."""

    operands = ("programming",)

    def weight(self, weight: Tensor, draw: Draw) -> Tensor:
        return torch.where(draw.fixed(weight.shape, "programming", kind="uniform") < -1.0, 0.0, weight)


CHIPS: dict[str, list[nk.hardware.Device]] = {
    "weight": [nk.WeightNoise(add=1.0)], "relative": [nk.WeightNoise(mul=0.5, kind="uniform")],
    "pcm": [PCM(time=1e5)], "pair": [DifferentialPair(0.2)], "gain": [ColumnGain(0.5)], "offset": [ColumnOffset(0.5)],
    "own": [Faulty()],
}  # fmt: skip


class Calls(nn.Module):
    """The difference of what two calls give, which are the same on one chip."""

    def __init__(self, first: Callable[..., Tensor], second: Callable[..., Tensor] | None = None, **parts: Any) -> None:
        super().__init__()
        for name, part in parts.items():
            if isinstance(part, nn.Parameter):
                self.register_parameter(name, part)
            elif isinstance(part, Tensor):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)
        self.first, self.second = first, second or first

    def forward(self, x: Tensor) -> Tensor:
        return self.first(self, x) - self.second(self, x)


class Inner(nn.Module):
    """Two weights, of which each is used in a loop."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.v = (nn.Parameter(torch.randn(WIDTH, WIDTH)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = F.linear(x, self.w).tanh() + F.linear(input=x, weight=self.v[:, :].t()).tanh()
        return x


def _weight(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*(shape or (WIDTH, WIDTH))))


def _attention(m: Any, x: Tensor) -> Tensor:
    out, _ = m.a(x.unsqueeze(1), x.unsqueeze(1), x.unsqueeze(1), need_weights=False)
    return out.squeeze(1)


def _given_anew(m: Any, x: Tensor) -> Tensor:
    state = {name: p.detach().clone() for name, p in m.a.named_parameters()}
    return torch.func.functional_call(m.a, state, (x,))  # type: ignore[no-any-return]


def _of_one_vector(m: Any, x: Tensor) -> Tensor:
    state = {"weight": m.v[:-WIDTH].view(WIDTH, WIDTH), "bias": m.v[-WIDTH:]}
    return torch.func.functional_call(m.a, state, (x,))  # type: ignore[no-any-return]


SAME: dict[str, Callable[[], Calls]] = {
    "a layer": lambda: Calls(lambda m, x: m.a(x), a=nn.Linear(WIDTH, WIDTH)),
    "a layer in two ways": lambda: Calls(lambda m, x: m.a(x), lambda m, x: F.linear(x, m.a.weight, m.a.bias),
                                         a=nk.NoisyLinear(WIDTH, WIDTH)),
    "siamese": lambda: Calls(lambda m, x: m.a(x), a=nn.Sequential(nn.Linear(WIDTH, 4), nn.Tanh(), nn.Linear(4, 2))),
    "a parameter": lambda: Calls(lambda m, x: F.linear(x, m.w), w=_weight()),
    "a buffer": lambda: Calls(lambda m, x: F.linear(x, m.w), w=torch.randn(WIDTH, WIDTH)),
    "a view": lambda: Calls(lambda m, x: F.linear(x, m.w[1:].t()[:WIDTH]), w=_weight(WIDTH + 1, WIDTH)),
    "both ways round": lambda: Calls(lambda m, x: x @ m.w.T, lambda m, x: F.linear(x, m.w[:]), w=_weight()),
    "in a list": lambda: Calls(lambda m, x: F.linear(x, m.ws[1]), ws=nn.ParameterList([torch.zeros(9), _weight()])),
    "of a part": lambda: Calls(lambda m, x: F.linear(x, m.a.weight), a=nn.Linear(WIDTH, WIDTH)),
    "of functions": lambda: Calls(lambda m, x: x @ m.w, lambda m, x: torch.einsum("bi,io->bo", x, m.w), w=_weight()),
    "given anew": lambda: Calls(_given_anew, a=nn.Linear(WIDTH, WIDTH)),
    "of one vector": lambda: Calls(_of_one_vector, a=nn.Linear(WIDTH, WIDTH), v=_weight(WIDTH * (WIDTH + 1))),
    "a module of several": lambda: Calls(lambda m, x: m.a(x), a=Inner()),
    "made anew": lambda: Calls(lambda m, x: m.a(x), a=parametrizations.weight_norm(nn.Linear(WIDTH, WIDTH))),
    "attention": lambda: Calls(_attention, a=nn.MultiheadAttention(WIDTH, 2, batch_first=True)),
    "convolution": lambda: Calls(lambda m, x: m.a(x.unsqueeze(1)), a=nn.Conv1d(1, 2, 3)),
    "transposed": lambda: Calls(lambda m, x: m.a(x.unsqueeze(1)), a=nn.ConvTranspose1d(1, 2, 3)),
}  # fmt: skip
OWN_PATH = ("a layer in two ways",)  # the model itself calls the second time: another owner


@pytest.fixture(autouse=True)
def _reproducible() -> None:
    torch.manual_seed(3)


def data() -> Tensor:
    return torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(1))


def on_chip(model: nn.Module, hardware: Any, x: Tensor | None = None, **options: Any) -> Tensor:
    with nk.inject(model, None, hardware=hardware, **options), nk.noise_state(model, seed=SEED, draws=[0, 4]):
        out: Tensor = model(data() if x is None else x)
    return out.detach()


@pytest.mark.parametrize("device", CHIPS)
def test_two_calls_of_a_layer_are_one_chip(device: str) -> None:
    model = SAME["a layer"]()
    assert on_chip(model, CHIPS[device]).abs().max() == 0
    assert on_chip(model, CHIPS[device], arrays="call").abs().max() > 0
    own = Calls(lambda m, x: m.a(x), a=nk.NoisyLinear(WIDTH, WIDTH, hardware=CHIPS[device]))
    with nk.noise_state(own, seed=SEED):
        assert own(data()).abs().max() == 0


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize("name", [name for name in SAME if name not in OWN_PATH])
def test_calls_with_one_weight_are_one_chip(name: str, traced: bool) -> None:
    options = {"example_input": data()} if traced else {}
    for hardware in (CHIPS["weight"], CHIPS["gain"]):
        assert on_chip(SAME[name](), hardware, **options).abs().max() == 0


def test_another_owner_has_another_array_but_for_parameters() -> None:
    model = SAME["a layer in two ways"]()
    assert on_chip(model, CHIPS["weight"]).abs().max() > 0
    assert on_chip(model, CHIPS["weight"], arrays="parameter").abs().max() == 0
    tied = Calls(lambda m, x: m.a(x), lambda m, x: m.b(x), a=nn.Linear(WIDTH, WIDTH), b=nn.Linear(WIDTH, WIDTH))
    tied.b.weight, tied.b.bias = tied.a.weight, tied.a.bias
    assert on_chip(tied, CHIPS["weight"]).abs().max() > 0
    assert on_chip(tied, CHIPS["weight"], arrays="parameter").abs().max() == 0


def test_what_is_fresh_is_each_calls_own() -> None:
    model = SAME["a layer"]()
    for hardware in ([nk.InputNoise(add=0.3)], [MacNoise(per_product=0.3)], [MacNoise(read=0.3, explicit=True)]):
        assert on_chip(model, hardware).abs().max() > 0
        assert torch.equal(on_chip(model, hardware), on_chip(model, hardware, arrays="call"))


def test_a_module_called_once_keeps_its_bits() -> None:
    """And with several weights it has an array for each."""
    x, both = data(), [nk.WeightNoise(add=0.5), MacNoise(per_product=0.1)]
    layer = nn.Sequential(nn.Linear(WIDTH, 4))
    by_hand = nk.linear(torch.cat([x, x]), layer[0].weight, layer[0].bias, hardware=both, seed=SEED, draws=[0, 4],
                        site=hashed_id("0:linear#0"))  # fmt: skip
    assert torch.equal(on_chip(layer, both), by_hand)
    for make in (Inner, lambda: nn.TransformerEncoderLayer(WIDTH, 2, 8, batch_first=True)):
        model = make().eval()
        x = data() if isinstance(model, Inner) else data().unsqueeze(1)
        sites = {s.name: s.calls for s in nk.sites(model, x) if s.kind == "linear"}
        arrays = [calls for calls in sites.values() if calls]
        assert sorted(call for calls in arrays for call in calls) == sorted(sites)  # each in one
        if isinstance(model, Inner):
            assert arrays == [(":linear#0", ":linear#2", ":linear#4"), (":linear#1", ":linear#3", ":linear#5")]
        else:
            assert len(arrays) == len(sites) == 6
            assert torch.equal(on_chip(model, CHIPS["weight"], x), on_chip(model, CHIPS["weight"], x, arrays="call"))


def test_a_later_call_alone_has_the_array_of_the_first() -> None:
    """Whether hardware is at every call or at one."""
    model, x = Calls(lambda m, x: m.a(x), lambda m, x: 0 * m.a(x), a=nn.Linear(WIDTH, WIDTH)), data()
    late = Calls(lambda m, x: 0 * m.a(x), lambda m, x: -m.a(x), a=model.a)
    assert torch.equal(
        on_chip(model, {"a:linear#0": CHIPS["weight"]}, x), on_chip(late, {"a:linear#1": CHIPS["weight"]}, x)
    )


def test_kernels_weight_and_products_of_a_later_call() -> None:
    """The kernel takes one id for both, so that the devices run one by one where they differ."""
    x, w = data(), _weight().detach()
    noise, macs = nk.WeightNoise(add=0.5), MacNoise(per_product=0.1)
    of: Any = dict(seed=SEED, draws=[1, 2], shared=True)
    found = nk.linear(x, w, hardware=[noise, macs], site=8, array=3, **of)
    held = [w + 0.5 * nk.eps(w.shape, seed=SEED, site=3, operand="weight", draw=d) for d in (1, 2)]
    right = torch.cat([
        nk.linear(x, h, hardware=[macs], seed=SEED, site=8, draws=[d]) for d, h in zip((1, 2), held, strict=True)
    ])  # fmt: skip
    torch.testing.assert_close(found, right, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match=r"linear: array must be a whole number from 0 to 2\^24 - 1, got -1"):
        nk.linear(x, w, hardware=[noise], seed=SEED, array=-1)
    with pytest.raises(TypeError, match=r"linear: array must be a whole number from 0 to 2\^24 - 1, got 1\.5"):
        nk.linear(x, w, hardware=[noise], seed=SEED, array=1.5)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "name",
    ["a layer in two ways", "a buffer", "a view", "both ways round", "a module of several", "made anew", "attention"],
)
def test_compiled_copied_and_recomputed(name: str) -> None:
    model, x = SAME[name](), data()
    hardware = [nk.WeightNoise(add=1.0), nk.InputNoise(add=0.5)]  # of which the second differs from call to call
    want = on_chip(model, hardware, x)
    with nk.inject(model, None, hardware=hardware), nk.noise_state(model, seed=SEED, draws=[0, 4]):
        copied = copy.deepcopy(model)
        torch._dynamo.reset()
        torch.testing.assert_close(torch.compile(model, backend="eager", fullgraph=True)(x), want)
        with nk.noise_state(copied, seed=SEED, draws=[0, 4]):
            assert torch.equal(copied(x), want)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", ["a layer", "a module of several", "made anew", "a view"])
def test_checkpoints_find_the_arrays_again(name: str, reentrant: bool) -> None:
    model, x = SAME[name](), data().requires_grad_()
    first = model.first

    def kept(m: Any, x: Tensor) -> Tensor:
        out: Tensor = checkpoint(first, m, x, use_reentrant=reentrant)
        return out

    grads = []
    for second in (first, kept):
        model.second = second
        with nk.inject(model, None, hardware=CHIPS["weight"]), nk.noise_state(model, seed=SEED):
            y = model(x)
            assert y.abs().max() == 0
            (y * torch.arange(y.shape[-1])).sum().backward()
        assert x.grad is not None
        grads.append(x.grad)
        x.grad = None
    assert torch.equal(*grads)
    assert grads[0].abs().max() < 1e-4  # of a difference that is zero


# ------------------------------------------------------------------------------------------- studies


class Twice(nn.Module):
    """A classifier that goes through one layer twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.a(self.a(x).tanh()).tanh())


def problem() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    model, x = Twice(), torch.randn(40, WIDTH)
    return model, (x, model(x).argmax(1))


def test_a_walk_of_weights_walks_arrays(tmp_path: Path) -> None:
    model, (x, y) = problem()
    levels, draws, noise = [0.3, 1.0], [0, 1, 2], nk.WeightNoise(add=1.0)
    given: Any = dict(noise=noise, levels=levels, draws=draws, seed=SEED, target="weight")
    study = nk.walk(model, (x, y), **given, store=tmp_path / "store")
    plain = nk.walk(model, (x, y), **given, compute=nk.Compute(engine="plain"))
    assert study.records == plain.records
    assert [*dict.fromkeys(r.site for r in study.records)] == ["a:linear#0", "head:linear#0"]
    weight = model.a.weight.detach().clone()
    for record in (r for r in study.records if r.site == "a:linear#0"):
        eps = nk.eps(weight.shape, seed=SEED, site=hashed_id("a:linear#0"), operand="weight", draw=record.draw)
        with torch.no_grad():
            model.a.weight.copy_(weight + record.level * eps)
            assert int((model(x).argmax(1) == y).sum()) == record.correct
            model.a.weight.copy_(weight)
    assert study.meta.plan["arrays"] == "module"
    each = nk.walk(model, (x, y), **given, arrays="call")
    assert [*dict.fromkeys(r.site for r in each.records)] == ["a:linear#0", "a:linear#1", "head:linear#0"]
    assert each.meta.plan["arrays"] == "call"
    with pytest.raises(StoreError, match="plan"):
        nk.walk(model, (x, y), **given, arrays="call", store=tmp_path / "store")
    by_adc: Any = dict(values=[2, 6], name="bits", seed=SEED)
    bits = nk.walk_parameter(model, (x, y), _adc, **by_adc)
    assert {r.site for r in bits.records} == {"a:linear#0", "head:linear#0"}


def _adc(bits: float) -> list[nk.hardware.Device]:
    return [nk.hardware.ADC(int(bits), "row")]


def test_studies_of_chips_say_what_an_array_is() -> None:
    model, pair = problem()
    found = {by: nk.chips(model, pair, hardware=CHIPS["weight"], draws=6, seed=SEED, arrays=by)
             for by in ("module", "call", "parameter")}  # fmt: skip
    assert {by: chips.arrays for by, chips in found.items()} == {by: by for by in found}
    assert list(found["module"].values) == list(found["parameter"].values) != list(found["call"].values)
    votes = {by: nk.vote(model, pair, noise=None, hardware=CHIPS["weight"], draws=5, seed=SEED, arrays=by)
             for by in ("module", "call")}  # fmt: skip
    assert votes["module"] != votes["call"]
    assert votes["call"].arrays == "call"
    with pytest.raises(ValueError, match="chips: arrays must be 'module' or 'call' or 'parameter', got 'layer'"):
        nk.chips(model, pair, hardware=CHIPS["weight"], seed=1, arrays="layer")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="inject: arrays must be"):
        nk.inject(model, None, arrays="site")  # type: ignore[arg-type]
