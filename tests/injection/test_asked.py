"""Whatever `inject` is asked for meets a site, or is refused with the names near it; a block means everything in it."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from injecting import NOISE, SEED
from operators import assert_same_bits
from torch import Tensor, nn

import noisykernels as nk
from noisykernels.cli.main import main

X = torch.randn(5, 6, generator=torch.Generator().manual_seed(1))
LOUD, QUIET = nk.Noise(add=2.0), nk.Noise(add=0.25)


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)

    def forward(self, x):
        return F.relu(self.fc(x))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList([Inner(), Inner()])
        self.norm = nn.LayerNorm(6)

    def forward(self, x):
        for part in self.parts:
            x = x + part(x)
        return self.norm(x)


class Net(nn.Module):
    """Blocks in blocks; `b` holds what `a` holds too; `spare` never runs."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = Block(), Block()
        self.b.norm = self.a.norm
        self.head, self.spare = nn.Linear(6, 3), nn.Linear(6, 6)

    def forward(self, x):
        return self.head(self.b(self.a(x)))


SITES = [s.name for s in nk.sites(Net(), X)]
IN_A = [s for s in SITES if s.startswith("a.")]
IN_B = [s for s in SITES if s.startswith(("b.", "a.norm:"))]  # the shared norm is in both
NORMS = ["a.norm:layer_norm#0", "a.norm:layer_norm#1"]
PART = [s for s in SITES if s.startswith("a.parts.1")]


def outputs(model: nn.Module, *args: Any, **options: Any) -> torch.Tensor:
    with nk.inject(model, *args, **options), nk.noise_state(model, seed=SEED, draws=[0, 3]), torch.no_grad():
        return model(X)


BLOCKS: list[tuple[Any, list[str]]] = [
    ("a", IN_A), ("b", IN_B), ("a.parts", [s for s in IN_A if "parts" in s]), ("a.parts.1", PART),
    (Block, sorted({*IN_A, *IN_B}, key=SITES.index)), (Inner, [s for s in SITES if "parts" in s]),
    (["a.parts.1", nn.Linear], [*PART, *(s for s in SITES if "linear" in s and s not in PART)]),
    (nn.LayerNorm, NORMS), ("b.norm", NORMS),
    (nn.Module, SITES[1:]), (Net, SITES[1:]), (nn.ModuleList, [s for s in SITES if "parts" in s]),
]  # fmt: skip


@pytest.mark.parametrize("traced", [True, False])
@pytest.mark.parametrize(("word", "meant"), BLOCKS, ids=str)
def test_a_block_means_everything_in_it(word: Any, meant: list[str], traced: bool) -> None:
    """To the bit what its sites mean one by one: in `where`, and as a key of noise, hardware and repeats."""
    options = {"example_input": X} if traced else {}
    expected = outputs(Net(), NOISE, meant)
    assert not torch.equal(expected, outputs(Net(), None).repeat(2, 1))
    assert_same_bits(outputs(Net(), NOISE, word, **options), expected)
    words = word if isinstance(word, list) else [word]
    assert_same_bits(outputs(Net(), dict.fromkeys(words, NOISE), **options), expected)
    assert_same_bits(
        outputs(Net(), NOISE, repeats=dict.fromkeys(words, 4), **options),
        outputs(Net(), NOISE, repeats=dict.fromkeys(meant, 4)),
    )
    arrays = [s for s in meant if ":linear" in s]
    if arrays:
        chip = [nk.WeightNoise(add=1.0)]
        assert_same_bits(
            outputs(Net(), None, hardware=dict.fromkeys(words, chip), **options),
            outputs(Net(), None, hardware=dict.fromkeys(arrays, chip)),
        )


@pytest.mark.parametrize("turned", [False, True])
def test_of_blocks_in_each_other_the_inner_one_counts(turned: bool) -> None:
    """Whatever the order; a name counts before both, a pattern after them."""
    given: dict[Any, nk.Noise] = {"*": QUIET, "a": LOUD, "a.parts.1": NOISE, "a.parts.1.fc:linear#0": QUIET}
    expected = {s: LOUD if s in IN_A else QUIET for s in SITES} | dict.fromkeys(PART, NOISE) | {PART[0]: QUIET}
    items = list(given.items())
    assert_same_bits(outputs(Net(), dict(items[::-1] if turned else items)), outputs(Net(), expected))
    kinds: dict[Any, nk.Noise] = {Block: LOUD, Inner: NOISE, nn.Linear: QUIET}
    expected = {s: LOUD for s in SITES if s[:2] in ("a.", "b.")} | {s: NOISE for s in SITES if "relu" in s}
    expected |= {s: QUIET for s in SITES if "linear" in s}
    items = list(kinds.items())
    assert_same_bits(outputs(Net(), dict(items[::-1] if turned else items)), outputs(Net(), expected))


@pytest.mark.parametrize("engine", ["auto", "plain"])
def test_a_study_walks_a_block(engine: str, tmp_path: Path) -> None:
    data = X.repeat(8, 1), torch.arange(40) % 3
    grid: Any = dict(levels=[0.5, 2.0], draws=2, seed=3, compute=nk.Compute(engine=engine, threads=1))
    for target, of_a in (("activation", IN_A), ("weight", [s for s in IN_A if "linear" in s])):
        options = grid | {"noise": NOISE, "target": target}
        found = nk.walk(Net(), data, sites="a", store=tmp_path / f"{target}.db", **options)
        assert list(dict.fromkeys(r.site for r in found.records)) == of_a
        assert found.records == nk.walk(Net(), data, sites=of_a, store=tmp_path / f"{target}.db", **options).records
    assert nk.chips(Net(), data, noise=NOISE, sites=["b.norm"], draws=2, seed=1) == nk.chips(
        Net(), data, noise=NOISE, sites=["a.norm"], draws=2, seed=1
    )


def test_the_command_walks_a_block(tmp_path: Path, capsys) -> None:
    fixed = ["walk", "--model", "mlp", "--epochs", "1", "--cache", str(tmp_path), "--rows", "20", "--draws", "1"]
    assert main([*fixed, "--levels", "0.1", "--quiet", "--json", "--sites", "fc1"]) == 0
    assert "fc1:linear#0" in json.dumps(json.loads(capsys.readouterr().out))
    assert main([*fixed, "--levels", "0.1", "--quiet", "--sites", "fc9"]) != 0
    assert "near it are fc1:linear#0, fc2:linear#0, fc3:linear#0; the model has 0 input" in capsys.readouterr().err


CHIP = [nk.WeightNoise(add=0.1)]
MISTAKES: list[tuple[dict[str, Any], str]] = [
    (dict(noise=NOISE, where="a.part.1"), "'a.part.1' matches no site; near it are .*a.parts.1"),
    (dict(noise=NOISE, where=["head", "haed"]), "'haed' matches no site; near it are head"),
    (dict(noise=NOISE, where="conv*"), r"'conv\*' matches no site"),
    (dict(noise=NOISE, where=nn.Conv2d), "'Conv2d' matches no site"),
    (dict(noise=NOISE, where=[nn.Linear, nn.Conv2d]), "'Conv2d' matches no site"),
    (dict(noise={nn.Linear: NOISE, nn.Conv2d: NOISE}), "'Conv2d' matches no site"),
    (dict(noise=NOISE, where="spare"), "'spare' matches no site"),
    (dict(noise=NOISE, where="head:relu"), "'head:relu' matches no site"),
    (dict(noise=NOISE, where="head:linear#1"), "'head:linear#1' matches no site"),
    (dict(noise=NOISE, where=lambda name, module: None), "the function where= gave None for every site: input, a.p"),
    (dict(noise={"head": NOISE, "heed": NOISE}), "'heed' matches no site; near it are head"),
    (dict(noise=NOISE, repeats={"head": 2, "a.norn": 3}), "'a.norn' matches no site; near it are a.norm"),
    (dict(noise=NOISE, row_dims={"heads": 0}), "'heads' matches no site; near it are head"),
    (dict(noise=None, hardware={"head": CHIP, "spare": CHIP}), "'spare' matches no site"),
    (dict(noise=None, hardware={"head": CHIP, "a.norm": CHIP}), "hardware needs .* that 'a.norm' matches"),
    (dict(noise=None, hardware={nn.Linear: CHIP, nn.LayerNorm: CHIP}), "hardware needs .* that 'LayerNorm' matches"),
    (dict(noise=None, hardware=lambda name, module: None), "the function hardware= gave None .*: a.parts.0.fc:l"),
]  # fmt: skip


@pytest.mark.parametrize("traced", [True, False])
@pytest.mark.parametrize(("asked", "message"), MISTAKES, ids=lambda x: x if isinstance(x, str) else "")
def test_what_met_nothing_is_a_mistake(asked: dict[str, Any], message: str, traced: bool) -> None:
    """At once where the model is traced, else at the end of the first forward, and of each that follows."""
    model = Net()
    with pytest.raises(ValueError, match=message):
        with nk.inject(model, **asked, **({"example_input": X} if traced else {})):
            for _ in range(2):
                with pytest.raises(ValueError, match=message):
                    model(X)
            raise ValueError(message.replace("\\", ""))
    assert type(model) is Net


@pytest.mark.parametrize("hardware", [CHIP, lambda name, module: CHIP], ids=["list", "function"])
def test_hardware_in_a_model_without_arrays_is_a_mistake(hardware: Any) -> None:
    with nk.inject(nn.Sequential(nn.ReLU()), None, hardware=hardware) as model:
        with pytest.raises(ValueError, match="hardware needs a linear layer, convolution or other contraction"):
            model(X)


def test_a_forward_without_noise_says_nothing_yet() -> None:
    """Where the switches leave the noise out, the first forward that could have it tells."""
    model = Net()
    with nk.inject(model, NOISE, lambda name, module: None, in_eval=False):
        model.eval()(X)
        with pytest.raises(ValueError, match="gave None"):
            model.train()(X)
    with nk.inject(model, NOISE, "spare", in_training=False):
        model.train()(X)
        with pytest.raises(ValueError, match="'spare' matches no site"):
            model.eval()(X)


class Train(Net):
    def forward(self, x):
        return super().forward(self.spare(x) if self.training else x)


def test_a_part_that_runs_in_training_only() -> None:
    """Is met where noise is in training only."""
    with nk.inject(Train().train(), NOISE, "spare", in_eval=False) as model:
        model.eval()(X)
        model.train()(X)


def test_noise_that_noisy_layers_would_not_take_is_a_mistake() -> None:
    layers = nn.Sequential(nk.NoisyLinear(6, 6, noise=QUIET), nn.Linear(6, 3))
    for options in (dict(noise=NOISE, where="0"), dict(noise=None, hardware={"0": CHIP, "1": CHIP})):
        for traced in ({"example_input": X}, {}):
            with pytest.raises(ValueError, match=r"'0' of .* matches noisy layers only, which keep their own"):
                with nk.inject(layers, **options, **traced):
                    layers(X)


def test_a_function_is_asked_once_and_gives_noises() -> None:
    asked: list[str] = []

    def where(name: str, module: nn.Module) -> nk.Noise:
        asked.append(name)
        return NOISE

    for traced in ({"example_input": X}, {}):
        asked.clear()
        with nk.inject(Net(), NOISE, where, **traced) as model:
            model(X), model(X)
        assert sorted(asked) == sorted(SITES)
    answers: list[tuple[Callable[[str, nn.Module], Any], str]] = [
        (
            lambda name, module: True,
            r"where must give a Noise, a function \(x, draw\) -> x or None, got True for 'input'",
        ),
        (lambda name, module: 0.1, r"where must give a Noise, a function \(x, draw\) -> x or None, got 0.1"),
        (lambda name, module: nk.Noise, "where must give a Noise, .*or None, got <class"),
    ]
    for function, message in answers:
        with pytest.raises(TypeError, match=message), nk.inject(Net(), NOISE, function) as model:
            model(X)


def test_noise_at_values_that_take_none_is_told_of() -> None:
    class Complex(nn.Module):
        def forward(self, x):
            return F.relu(x).real + F.tanh(torch.complex(x, x)).real

    for traced in ({"example_input": X}, {}):
        with nk.inject(Complex(), NOISE, **traced) as model:
            with pytest.warns(UserWarning, match="noise does not enter at :tanh#0: .* complex"):
                model(X)


def test_the_arguments_dimension_needs_no_site() -> None:
    """Of a model whose only argument holds numbers of tokens."""
    embedding = nn.Sequential(nn.Embedding(7, 6), nn.Linear(6, 2))
    with nk.inject(embedding, NOISE, "1", row_dims={"input": 0}, example_input=torch.arange(4)) as model:
        model(torch.arange(4))


def test_keys_that_others_cover_are_told_of() -> None:
    for traced in ({"example_input": X}, {}):
        with pytest.warns(UserWarning, match=r"of noise 'a\.\*', 'b\*' counts nowhere"):
            with nk.inject(Net(), {"*": NOISE, "a.*": LOUD, "b*": QUIET}, **traced) as model:
                model(X)


def test_what_asks_for_nothing_is_a_mistake() -> None:
    """A place without a noise, a noise without a place."""
    data = X, torch.arange(5) % 3
    mistakes: list[tuple[Callable[[], Any], str]] = [
        (lambda: nk.inject(Net(), None, "head"), "where says where the noise enters, and noise is None"),
        (lambda: nk.inject(Net(), None, lambda name, module: NOISE), "where says where the noise enters"),
        (lambda: nk.inject(Net(), NOISE, []), "where must choose at least one site, got an empty list"),
        (lambda: nk.inject(Net(), {}), "noise must hold at least one entry, got an empty dict"),
        (lambda: nk.inject(Net(), None, hardware={}), "hardware must hold at least one entry"),
        (lambda: nk.chips(Net(), data, hardware=CHIP, sites="head", draws=2, seed=1), "and noise is None"),
        (
            lambda: nk.chips(Net(), data, noise=NOISE, sites=[], draws=2, seed=1),
            "chips: sites must choose at least one",
        ),
        (lambda: nk.walk(Net(), data, noise=NOISE, sites=[], levels=[1.0], draws=1, seed=1), "walk: sites must choose"),
    ]
    for mistake, message in mistakes:
        with pytest.raises(ValueError, match=message):
            mistake()


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) if self.training else self.b(x)


@pytest.mark.parametrize(
    "placed", [{"noise": NOISE, "where": "b"}, {"noise": None, "hardware": {"b:linear": [nk.WeightNoise(add=0.1)]}}]
)
def test_a_forward_that_runs_otherwise_than_the_trace_is_told(placed: dict[str, Any]) -> None:
    x, model = torch.randn(2, 3), Branches()
    with nk.inject(model, **placed, example_input=x), nk.noise_state(model, seed=1):
        with pytest.warns(UserWarning, match="'b.*' met a site with example_input, but none in the first forward"):
            model.train()(x)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model.eval()(x)
    with nk.inject(model, **placed, example_input=x), nk.noise_state(model, seed=1):
        model.b = nn.Linear(3, 3)
        with pytest.warns(UserWarning, match="model runs otherwise there, or was changed since"):
            model(x)
