"""Noise enters by any door: methods that call parts of a model, slices, lists, wrappers, copies, loops of others."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from injecting import NOISE, SEED, names, oracle, run
from look_alikes import CausalLM, Trainer
from operators import assert_same_bits
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import noisykernels as nk
from noisykernels.noise.arguments import seed_of

X = torch.linspace(-1, 1, 18).reshape(3, 6)
OUTSIDE = "is called outside of the model's forward"
pytestmark = pytest.mark.filterwarnings(f"ignore:.*{OUTSIDE}")


class Auto(nn.Module):
    """An autoencoder with methods of its owner's, one of which calls an operation outside of any module."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 2))
        self.decoder, self.gates = nn.Linear(2, 6), nn.ModuleList([nn.Linear(6, 6), nn.Identity()])

    def encode(self, x: Tensor) -> Tensor:
        return torch.relu(self.encoder(x))

    def decode(self, z: Tensor) -> Tensor:
        return self.gates[0](self.decoder(z))

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x))


def by_hand(layers: list[tuple[nn.Module, str]], x: Tensor, **key: Any) -> Tensor:
    """The layers one after the other, each with the noise that the contract says."""
    for layer, name in layers:
        x = oracle(layer(x), name, **key)
    return x


ENCODER = ["encoder.0:linear#0", "encoder.1:tanh#0", "encoder.2:linear#0"]


# ------------------------------------------------------------------------------------------------ parts by themselves


def test_methods_lists_and_slices_have_the_noise_of_the_model() -> None:
    model = Auto()
    encoded = by_hand(list(zip(model.encoder, ENCODER, strict=True)), X)
    sliced = by_hand(list(zip(model.encoder[:2], ENCODER[:2], strict=True)), X)
    z = torch.randn(3, 2)
    decoded = by_hand([(model.decoder, "decoder:linear#0"), (model.gates[0], "gates.0:linear#0")], z)
    alone = oracle(model.gates[0](X), "gates.0:linear#0")
    with nk.inject(model, NOISE), nk.noise_state(model, seed=SEED):
        assert_same_bits(model.encode(X), torch.relu(encoded))
        assert_same_bits(model.encoder(X), encoded)
        assert_same_bits(model.encoder.forward(X), encoded)
        assert_same_bits(model.encoder[0:2](X), sliced)
        assert_same_bits(model.decode(z), decoded)
        for layer in (model.gates[0], next(iter(model.gates))):
            assert_same_bits(layer(X), alone)
        assert torch.equal(model.gates[1](X), X)
    assert torch.equal(model.gates[0](X), nk.remove(model).gates[0](X))


def test_a_part_by_itself_is_told_of_once() -> None:
    model = Auto()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with nk.inject(model, NOISE), nk.noise_state(model, seed=SEED):
            model(X)
            assert not told
            model.encode(X)
            model.decode(torch.ones(3, 2))
            assert [OUTSIDE in str(w.message) for w in told] == [True] and "'encoder'" in str(told[0].message)
        with nk.inject(model, None):
            model.encode(X)
    assert len(told) == 1


def test_rows_draws_and_levels_of_parts() -> None:
    model = Auto()
    with nk.inject(model, NOISE):
        with nk.noise_state(model, seed=SEED, rows=[5, 0, 9]):
            layers = list(zip(Auto().encoder, ENCODER, strict=True))
            assert_same_bits(model.encoder(X), by_hand(layers, X, rows=torch.tensor([5, 0, 9])))
        with nk.noise_state(model, seed=SEED, draws=[3, 1]):
            several = model.encoder(X)
        for i, draw in enumerate([3, 1]):
            with nk.noise_state(model, seed=SEED, draws=[draw]):
                torch.testing.assert_close(several[3 * i : 3 * i + 3], model.encoder(X))
        with nk.noise_state(model, seed=SEED, draws=[3, 1], rows=[5, 0, 9]):  # one part after another
            both = model.decode(model.encode(X))
        for i, draw in enumerate([3, 1]):
            with nk.noise_state(model, seed=SEED, draws=[draw], rows=[5, 0, 9]):
                torch.testing.assert_close(both[3 * i : 3 * i + 3], model.decode(model.encode(X)))
        with nk.noise_state(model, seed=SEED, draws=[3, 1]):
            z = model.encode(X)
            with pytest.raises(RuntimeError, match=r"give rows=\.\.\., one id for each row of a draw"):
                model.decode(z)
        with nk.noise_state(model, seed=SEED, level=0.0):
            assert torch.equal(model.encode(X), Auto().encode(X))
        with nk.noise_state(model, seed=SEED, rows="advance"):
            parts = [model.decode(model.encode(x)) for x in X.split(1)]
        with nk.noise_state(model, seed=SEED):
            torch.testing.assert_close(torch.cat(parts), model.decode(model.encode(X)))


def test_parts_that_have_no_rows_and_what_makes_weights() -> None:
    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(6, 6)

        def forward(self) -> Tensor:
            return self.inner(X)

    model = nn.ModuleDict({"table": Table(), "fc": nn.utils.parametrizations.weight_norm(nn.Linear(6, 6))})
    weight, expected = model["fc"].weight, oracle(model["table"](), "table.inner:linear#0")
    with nk.inject(model, NOISE), nk.noise_state(model, seed=SEED):
        assert torch.equal(model["fc"].weight, weight)
        assert_same_bits(model["table"](), expected)


def test_hardware_and_chips_by_any_door() -> None:
    model, chip = Auto(), [nk.WeightNoise(add=0.3)]
    with nk.inject(model, None, hardware=chip), nk.noise_state(model, seed=SEED):
        layer = model.encoder[0]
        held = (layer(torch.eye(6)) - layer.bias).T
        torch.testing.assert_close(layer(X), nn.functional.linear(X, held, layer.bias))
        assert not torch.allclose(held, layer.weight)


def test_a_part_of_one_model_within_the_forward_of_another_is_refused() -> None:
    inner = Auto()

    class Outer(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return inner.encoder(x)

    outer = Outer()
    for noise in (NOISE, None):
        with nk.inject(inner, NOISE), nk.inject(outer, noise):
            with pytest.raises(RuntimeError, match="within the forward of another"):
                outer(X)
            inner.encoder(X)
    with nk.inject(inner, None), nk.inject(outer, NOISE), nk.noise_state(outer, seed=SEED):
        outer(X)


def test_what_was_taken_out_of_a_model_is_clean_once_it_is_removed() -> None:
    model = Auto()
    with nk.inject(model, NOISE):
        old, model.decoder = model.decoder, nn.Linear(2, 6)
    assert torch.equal(old(torch.ones(1, 2)), nn.functional.linear(torch.ones(1, 2), old.weight, old.bias))


# ----------------------------------------------------------------------------------------------------- wrappers, copies


class HandMade(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "average": AveragedModel, "parallel": nn.DataParallel, "sequential": nn.Sequential, "by hand": HandMade,
    "copy": copy.deepcopy, "compiled": lambda m: torch.compile(m, backend="eager"),
    "dict": lambda m: nn.ModuleDict({"m": m}),
    "pickle": lambda m: pickle.loads(pickle.dumps(m)), "twice": lambda m: AveragedModel(nn.DataParallel(m)),
}  # fmt: skip


@pytest.mark.parametrize("how", list(WRAPPERS))
def test_a_wrapper_of_an_injected_model_has_its_state(how: str) -> None:
    model, expected = Auto(), run(Auto(), X)
    nk.inject(model, NOISE)
    wrapper = WRAPPERS[how](model)
    call = wrapper["m"] if how == "dict" else wrapper
    with nk.noise_state(wrapper, seed=SEED):
        torch.testing.assert_close(call(X), expected, rtol=0, atol=1e-6)
    inner = next(m for m in wrapper.modules() if isinstance(m, Auto))
    assert nk.remove(wrapper) is wrapper
    assert torch.equal(inner(X), Auto()(X))
    assert not any(k.startswith("_noise") for m in wrapper.modules() for k in vars(m))


@pytest.mark.parametrize("how", ["average", "parallel", "compiled", "twice"])
def test_names_do_not_depend_on_wrappers_at_any_depth(how: str) -> None:
    model, expected = Auto(), run(Auto(), X)
    known = names(model, X)
    for path in ("", "encoder", "encoder.0", "decoder", "gates.0"):
        model = Auto()
        parent, _, last = path.rpartition(".")
        wrapped = WRAPPERS[how](model.get_submodule(path))
        if path:
            model.get_submodule(parent).add_module(last, wrapped)
        else:
            model = wrapped
        assert names(model, X) == known
        torch.testing.assert_close(run(model, X), expected, rtol=0, atol=1e-6)
        torch.testing.assert_close(run(model, X, "encoder.0"), run(Auto(), X, "encoder.0"), rtol=0, atol=1e-6)


@pytest.mark.parametrize("how", ["wrapped", "in place", "whole graph", "a function"])
def test_compiled_parts_have_the_names_and_noise_of_eager_ones(how: str) -> None:
    torch._dynamo.reset()
    act = torch.compile(torch.relu, backend="eager") if how == "a function" else torch.relu

    class Model(Auto):
        def encode(self, x: Tensor) -> Tensor:
            return act(self.encoder(x))

    model = Model().eval()
    if how == "wrapped":
        model.encoder = torch.compile(model.encoder, backend="eager")
    elif how != "a function":
        model.encoder.compile(backend="eager", fullgraph=how == "whole graph")
    assert names(model, X) == names(Auto(), X)
    torch.testing.assert_close(run(model, X), run(Auto(), X), rtol=0, atol=1e-6)


def test_traces_and_measures_go_through_what_is_around_a_forward() -> None:
    """Hooks, and a forward that was put on the object since, as libraries have them that move weights about."""
    model, x, calls = nn.Sequential(nn.Linear(6, 3)), torch.randn(4, 2, 3), []
    model.register_forward_pre_hook(lambda m, args: (args[0].flatten(1),))
    nk.inject(model, NOISE)
    ours = model.forward

    def put_on(*args: Tensor) -> Tensor:
        calls.append(args[0].shape)
        return ours(*args)

    model.forward = put_on
    assert names(model, x) == ["input", "0:linear#0"]
    assert nk.coverage(model, x).share("noise") == 1
    found = nk.training.gradient_norms(model, (x, torch.zeros(4).long()), seed=1)
    assert [g.shape for g in found] == [(6,), (3,)]
    nk.injection.programmed(model, x, seed=1)
    assert set(calls) <= {(4, 6), (5, 6)} and len(calls) > 4
    model.forward = lambda x: x  # which calls nothing
    with pytest.raises(RuntimeError, match="a forward that was put on the model since does not call the model's own"):
        names(model, x)


def test_a_users_own_module_keeps_its_name() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            return self.module(x)

    assert names(nn.Sequential(Own()), X) == ["input", "0.module:linear#0"]
    assert names(Own(), X) == ["input", "module:linear#0"]


def test_parts_injected_each_by_itself() -> None:
    """One block for all of them, each with a seed of its own."""
    model = nn.Sequential(nn.Sequential(nn.Linear(6, 6)), nn.Sequential(nn.Linear(6, 6)))
    for part in model:
        nk.inject(part, NOISE, "0")
    with nk.noise_state(model, seed=SEED, rows=range(3)):
        first = model[0](X) - model[0][0].forward.__wrapped__(model[0][0], X)
        y = model(X)
        assert_same_bits(y, model(X))
    with nk.noise_state(model[0], seed=SEED), nk.noise_state(model[1], seed=SEED + 1):
        assert not torch.equal(model(X), y)
    with nk.noise_state(model[0], seed=SEED):
        assert not torch.equal(model[0](X), first)
    with nk.noise_state(model, seed=SEED, rows=range(3), draws=[0, 1]):
        assert torch.equal(model(X)[:3], y)
    model.append(nk.NoisyLinear(6, 6, noise=NOISE))
    with pytest.raises(ValueError, match="noisy layers are outside of what was injected: 2"), nk.noise_state(model):
        pass
    nk.remove(model)
    assert not any(k.startswith("_noise") for m in model.modules() for k in vars(m))


def test_a_part_is_not_removed_by_itself_but_a_copy_of_it_is() -> None:
    model = Auto()
    nk.inject(model, NOISE)
    with pytest.raises(ValueError, match="is a part of an injected model"):
        nk.remove(model.encoder)
    twin = copy.deepcopy(model.encoder)
    with nk.noise_state(twin, seed=SEED):
        expected = twin(X)
    with nk.noise_state(model.encoder, seed=SEED):
        assert_same_bits(model.encoder(X), expected)
    assert torch.equal(nk.remove(twin)(X), Auto().encoder(X))


# ---------------------------------------------------------------------------------------------- loops that others hold


PROMPTS = torch.tensor([[0, 0, 7, 3], [0, 5, 1, 9], [4, 8, 2, 6]])
PADDING = torch.tensor([[0, 0, 1, 1], [0, 1, 1, 1], [1, 1, 1, 1]])


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("padding", [PADDING, None], ids=["padded", "whole"])
def test_generate_without_noise_gives_the_clean_tokens(cache: bool, padding: Tensor | None) -> None:
    model = CausalLM().eval()
    clean = model.generate(PROMPTS, 6, padding, cache)
    if padding is not None:  # the mask matters
        assert not torch.equal(clean, model.generate(PROMPTS, 6, None, cache))
    for noise in (nk.Noise(add=0.0), None):
        with nk.inject(model, noise), nk.noise_state(model, seed=1, advance=True):
            assert torch.equal(model.generate(PROMPTS, 6, padding, cache), clean)
    with nk.inject(model, NOISE, example_input={"input_ids": PROMPTS, "attention_mask": PADDING}):
        with nk.noise_state(model, seed=1, level=0.0):
            assert torch.equal(model.generate(PROMPTS, 6, padding, cache), clean)


def test_a_trainer_trains_and_evaluates() -> None:
    torch.manual_seed(0)
    rows = [{"input_ids": t, "labels": t, "text": "dropped"} for t in torch.randint(40, (4, 5))]
    clean = CausalLM()
    losses = Trainer(clean, rows).train()
    model = CausalLM()
    with nk.inject(model, nk.Noise(add=0.01)), nk.noise_state(model, seed=1, advance=True):
        noisy = Trainer(model, rows).train()
        assert noisy != losses and torch.allclose(torch.tensor(noisy), torch.tensor(losses), rtol=0.1)
        Trainer(model, rows).evaluate()
    with nk.inject(clean, nk.Noise(add=0.0)):
        with nk.noise_state(clean, seed=1):
            assert Trainer(clean, rows).evaluate() == Trainer(nk.remove(copy.deepcopy(clean)), rows).evaluate()


def test_each_call_has_fresh_noise_and_one_chip() -> None:
    layer = nn.Linear(6, 4)
    x = torch.zeros(3, 6)
    with nk.inject(layer, NOISE, ":linear"):
        with nk.noise_state(layer, seed=5):
            first = layer(x)
        with nk.noise_state(layer, seed=5, advance=True):
            calls = [layer(x) for _ in range(4)]
        with nk.noise_state(layer, seed=5, advance=True):
            assert all(torch.equal(a, layer(x)) for a in calls)  # each block begins with call 0
        assert torch.equal(calls[0], first)
        for n, y in enumerate(calls):
            with nk.noise_state(layer, seed=seed_of(torch.tensor(5), torch.tensor(n))):
                assert torch.equal(layer(x), y)
        assert torch.stack(calls).unique().numel() == 4 * 12
        torch.manual_seed(3)
        with nk.noise_state(layer, advance=True):  # one seed for the block, from torch's generator
            free = [layer(x) for _ in range(2)]
        torch.manual_seed(3)
        with nk.noise_state(layer, advance=True):
            assert all(torch.equal(a, layer(x)) for a in free)


@pytest.mark.parametrize("fresh", [None, nk.InputNoise(add=0.1), nk.MacNoise(0.1)], ids=str)
@pytest.mark.parametrize(
    "chip", [nk.WeightNoise(add=0.5), nk.hardware.ColumnOffset(0.5), nk.hardware.DifferentialPair(0.3)], ids=str
)
def test_what_belongs_to_the_chip_stays(chip: Any, fresh: Any) -> None:
    """What differs between calls is what is fresh, around the value of the one chip."""
    layer = nn.Linear(6, 4)
    with nk.inject(layer, None, hardware=[chip]), nk.noise_state(layer, seed=SEED):
        alone = layer(X)
    in_order = (fresh, chip) if isinstance(chip, nk.hardware.ColumnOffset) else (chip, fresh)
    with nk.inject(layer, None, hardware=[device for device in in_order if device is not None]):
        with nk.noise_state(layer, seed=SEED):
            once = layer(X)
        with nk.noise_state(layer, seed=SEED, advance=True):
            calls = torch.stack([layer(X) for _ in range(100)])
    torch.testing.assert_close(calls[0], once)  # the kernel of weights and products has one key for both
    assert torch.equal(calls[0], once) or isinstance(fresh, nk.MacNoise)
    if fresh is None:
        assert all(torch.equal(y, alone) for y in calls)
    else:
        assert calls.unique(dim=0).shape[0] == 100
        assert (calls.mean(0) - alone).abs().max() < 0.1


def test_several_draws_through_generate() -> None:
    """Prompts repeated draw by draw; each draw's tokens are those of that draw alone."""
    model = CausalLM().eval()
    noise, draws, rows = nk.Noise(add=0.4), [2, 0, 5], [11, 3, 7]
    with nk.inject(model, noise):
        with nk.noise_state(model, seed=1, draws=draws, rows=rows, advance=True):
            together = model.generate(PROMPTS.repeat(3, 1), 5, PADDING.repeat(3, 1))
        apart = []
        for draw in draws:
            with nk.noise_state(model, seed=1, draws=[draw], rows=rows, advance=True):
                apart.append(model.generate(PROMPTS, 5, PADDING))
    assert torch.equal(together, torch.cat(apart))
    assert not torch.equal(apart[0], apart[1])


def test_calls_are_counted_in_compiled_models_without_compiling_again() -> None:
    torch._dynamo.reset()
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU()).eval()
    with nk.inject(model, NOISE):
        with nk.noise_state(model, seed=SEED, advance=True):
            eager = [model(X) for _ in range(3)]
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        with nk.noise_state(model, seed=SEED, advance=True):
            found = [compiled(X)]
            with torch._dynamo.config.patch(error_on_recompile=True):
                found += [compiled(X) for _ in range(2)]
    for a, b in zip(found, eager, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def test_seeds_of_calls_are_those_of_the_definition() -> None:
    def mix(z: int) -> int:
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
            z = (z ^ (z >> shift)) * factor % 2**64
        return z

    numbers = [0, 1, 2, 77, 2**31, 2**32 + 5, 2**63 - 1]
    for seed in (0, 1, 2**63 - 1):
        found = seed_of(torch.tensor(seed), torch.tensor(numbers)).tolist()
        assert [n % 2**64 for n in found] == [seed ^ mix(n) for n in numbers]
    assert seed_of(torch.tensor(5), torch.arange(10000)).unique().numel() == 10000


def test_what_advance_refuses() -> None:
    model = nn.Linear(6, 4)
    with nk.inject(model, NOISE):
        with pytest.raises(TypeError, match="advance must be True or False, got 1"), nk.noise_state(model, advance=1):  # type: ignore[arg-type]
            pass
        with nk.noise_state(model, seed=1, advance=True):
            y = torch.utils.checkpoint.checkpoint(model, X.clone().requires_grad_(), use_reentrant=False)
            with pytest.raises(RuntimeError, match="advance=True would count a forward twice"):
                y.sum().backward()
