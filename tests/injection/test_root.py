"""A wrapper that was written by hand is named away: names, numbers and noise are those of the model inside."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from injecting import NOISE, SEED
from operators import assert_same_bits
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import noisykernels as nk
from noisykernels._engine.store import StoreError
from noisykernels.arithmetic import Serial
from noisykernels.experiments import layer_formats, order_sensitivity, search_format, sweep_formats
from noisykernels.hardware import WeightNoise

X = torch.linspace(-1, 1, 24).reshape(4, 6)
LABELS = torch.tensor([0, 1, 2, 1])
CHIP = [WeightNoise(add=0.3)]


class Net(nn.Module):
    """Modules, functions of its own forward, and a layer that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.block = nn.Sequential(nn.Linear(6, 6), nn.Tanh())
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block(torch.relu(self.block(x)))
        return self.head(torch.relu(x))


class Wrapper(nn.Module):
    """Around a model, with a list of its layers that comes before it."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(m for m in net.modules() if isinstance(m, nn.Linear))
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class Pipeline(nn.Module):
    """Operations and parts before and after the model, which lies deeper."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.before, self.inner, self.after = nn.Identity(), nn.ModuleDict({"net": net}), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.after(torch.relu(self.inner["net"](torch.relu(self.before(x)) * 0 + x)))


def wrapped(kind: str, net: nn.Module) -> tuple[nn.Module, str]:
    return (Wrapper(net), "net") if kind == "net" else (Wrapper(Wrapper(net)), "net.net")


def names(model: nn.Module, root: str = "") -> list[str]:
    return [site.name for site in nk.sites(model, X, root=root)]


def run(model: nn.Module, *args: Any, draws: Any = None, **kwargs: Any) -> Tensor:
    with nk.inject(model, *args, **kwargs) as noisy, nk.noise_state(noisy, seed=SEED, draws=draws):
        return noisy(X)


@pytest.mark.parametrize("kind", ["net", "net.net"])
@pytest.mark.parametrize(
    "asked",
    [
        {"noise": NOISE},
        {"noise": NOISE, "example_input": X},
        {"noise": NOISE, "where": "block"},
        {"noise": NOISE, "where": Net},
        {"noise": NOISE, "where": ["head:linear#0", "*relu*"]},
        {"noise": {"block.0": NOISE}, "repeats": {"block*": 2}},
        {"noise": None, "hardware": CHIP},
        {"noise": None, "hardware": CHIP, "arrays": "parameter"},
    ],
    ids=str,
)
def test_noise_is_that_of_the_model_inside(kind: str, asked: dict[str, Any]) -> None:
    wrapper, root = wrapped(kind, Net())
    for draws in (None, [3, 1]):
        assert_same_bits(run(wrapper, **asked, root=root, draws=draws), run(Net(), **asked, draws=draws))
    assert not torch.equal(run(wrapper, **asked, root=root), Net()(X))


@pytest.mark.parametrize("kind", ["net", "net.net"])
def test_sites_are_those_of_the_model_inside(kind: str) -> None:
    wrapper, root = wrapped(kind, Net())
    assert nk.sites(wrapper, X, root=root) == nk.sites(Net(), X)
    with nk.inject(wrapper, NOISE, example_input=X, root=root) as noisy:
        assert nk.sites(noisy) == nk.sites(noisy, X, root=root) == nk.sites(Net(), X)
        with pytest.raises(ValueError, match=f"sites: the model is injected with root='{root}', got root='other'"):
            nk.sites(noisy, root="other")
    assert wrapper.net.__dict__.keys() == Wrapper(Net()).net.__dict__.keys()


def test_what_is_beside_the_model_keeps_its_path() -> None:
    assert names(Pipeline(Net()), "inner.net") == [
        "input", "..:relu#0", *names(Net())[1:], "..:relu#1", "after:relu#0",
    ]  # fmt: skip
    model = Pipeline(Net())
    inside = dict.fromkeys(names(Net())[1:], NOISE)
    expected = torch.relu(torch.relu(run(Net(), inside)))
    assert_same_bits(run(model, inside, root="inner.net"), expected)
    assert not torch.equal(run(model, NOISE, "..", root="inner.net"), model(X))
    assert not torch.equal(run(model, NOISE, ["..:relu#1", "after"], root="inner.net"), model(X))


def test_one_layer_and_known_wrappers() -> None:
    layer = nn.Linear(6, 3)
    assert_same_bits(run(nn.Sequential(layer), NOISE, root="0"), run(layer, NOISE))
    compiled = nn.Sequential(torch.compile(Net(), backend="eager"))
    assert names(nn.Sequential(nn.DataParallel(Net())), "0") == names(Net())
    assert_same_bits(run(nn.DataParallel(Wrapper(Net())), NOISE, root="net"), run(Net(), NOISE))
    assert nk.inject(compiled, None, root="0").model is compiled


def test_copies_parts_and_checkpoints() -> None:
    wrapper, net = Wrapper(Net()), Net()
    with nk.inject(wrapper, NOISE, root="net"):
        copied = copy.deepcopy(wrapper)
    with nk.noise_state(copied, seed=SEED):
        assert_same_bits(copied(X), run(net, NOISE))
        with pytest.warns(UserWarning, match="part 'net' is called outside"):
            copied.net(X)

    class Checkpointed(Wrapper):
        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(self.net, x, use_reentrant=False)

    found = []
    for model, options in ((Checkpointed(Net()), {"root": "net"}), (net, {})):
        with nk.inject(model, NOISE, **options), nk.noise_state(model, seed=SEED):
            loss = model(X).square().sum()
        loss.backward()  # which runs the checkpoint again, when the noise is gone
        found.append(next(p.grad for n, p in model.named_parameters() if p.shape == (3, 6)))
    assert_same_bits(*found)


def test_compiled() -> None:
    net, wrapper = Net(), Wrapper(Net())
    with nk.inject(wrapper, NOISE, ["head", "*relu*"], root="net"):
        compiled = torch.compile(wrapper, fullgraph=True, backend="eager")
        with nk.noise_state(wrapper, seed=SEED):
            assert_same_bits(compiled(X), run(net, NOISE, ["head", "*relu*"]))


def test_coverage() -> None:
    wrapper, bare = nk.coverage(Wrapper(Net()), X, root="net"), nk.coverage(Net(), X)
    assert [r.name for r in wrapper.operations] == [r.name for r in bare.operations]
    assert {r.name for r in wrapper.parameters} == dict(Wrapper(Net()).named_parameters()).keys()
    with nk.inject(Wrapper(Net()), NOISE, root="net") as noisy:
        assert nk.coverage(noisy, X).share("noise") == 1
        with pytest.raises(ValueError, match="coverage: the model is injected with root='net', got root='layers'"):
            nk.coverage(noisy, X, root="layers")


STUDIES: dict[str, Any] = {
    "walk": lambda m, **o: nk.walk(m, (X, LABELS), noise=NOISE, levels=[1.0, 4.0], draws=2, seed=1, **o).records,
    "walk, weights": lambda m, **o: nk.walk(
        m, (X, LABELS), noise=CHIP[0], target="weight", levels=[1.0], draws=3, seed=1, **o
    ).records,
    "walk, sites": lambda m, **o: nk.walk(
        m, (X, LABELS), noise=NOISE, levels=[3.0], draws=2, seed=1, sites="block", **o
    ).records,
    "walk_mixed": lambda m, **o: [
        s.records for s in nk.walk_mixed(m, (X, LABELS), ratios=[0, 1], levels=[2.0], draws=2, seed=1, **o).studies
    ],
    "walk_parameter": lambda m, **o: nk.walk_parameter(
        m, (X, LABELS), lambda v: [Serial(low=-v, high=v)], [0.1, 1.0], seed=1, **o
    ).records,
    "vote": lambda m, **o: nk.vote(m, (X, LABELS), noise=NOISE, sites="head", draws=4, seed=1, **o),
    "chips": lambda m, **o: nk.chips(m, (X, LABELS), hardware=CHIP, noise=NOISE, sites="head", draws=4, seed=1, **o),
    "order_sensitivity": lambda m, **o: order_sensitivity(
        m, (X, LABELS), Serial(low=-0.2, high=0.2), permutations=3, seed=1, **o
    ),
    "sweep_formats": lambda m, **o: sweep_formats(m, (X, m(X).argmax(1)), ["M3E4", "M7E6"], seed=1, **o),
    "layer_formats": lambda m, **o: layer_formats(m, (X, m(X).argmax(1)), "M4E6", evaluations=4, seed=1, **o),
    "search_format": lambda m, **o: search_format(
        m, (X, m(X).argmax(1)), nk.experiments.LinearPredictor(1.0, 0.0, 1.0, 0.0, 100), formats=["M3E4"], seed=1, **o
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", STUDIES)
def test_studies_find_what_they_find_without_the_wrapper(name: str) -> None:
    study = STUDIES[name]
    assert study(Wrapper(Net()), root="net") == study(Net())


def test_a_root_that_names_no_part_or_two() -> None:
    for ask in (nk.sites, nk.coverage):
        with pytest.raises(ValueError, match="root must be the path of a part of the model, got 'nett'; near it are "):
            ask(Wrapper(Net()), X, root="nett")
    with pytest.raises(ValueError, match="got 'zzz'; the model has layers, "):
        nk.inject(Wrapper(Net()), NOISE, root="zzz")
    with pytest.raises(ValueError, match="the model has no parts"):
        nk.inject(nn.Linear(6, 3), NOISE, root="zzz")
    twice = Wrapper(Net())
    twice.head = nn.Linear(6, 3)
    with pytest.raises(ValueError, match="a part in it and one beside it are both called 'head'"):
        nk.inject(twice, NOISE, root="net")
    with pytest.raises(TypeError, match="root must be"):
        nk.inject(twice, NOISE, root=twice.net)
    twice(X)
    assert "forward" not in twice.__dict__


def test_a_store_belongs_to_the_root(tmp_path: Any) -> None:
    ask: dict[str, Any] = {"noise": NOISE, "levels": [1.0], "draws": 2, "seed": 1, "store": tmp_path / "store"}
    study = nk.walk(Wrapper(Net()), (X, LABELS), root="net", **ask)
    assert study.meta.plan["root"] == "net"
    with pytest.raises(StoreError, match="root"):
        nk.walk(Wrapper(Net()), (X, LABELS), **ask)
