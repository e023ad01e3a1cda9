"""What an injected model does besides the model's own work: nothing where nothing is placed, and one step from torch's
own layers to the operator, with the names and the noise that hooks and the mode would give."""

from __future__ import annotations

import copy
import io
import pickle
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from injecting import NOISE, SEED, names, run
from operators import assert_same_bits
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.utils import parametrize

import noisykernels as nk
from noisykernels.injection import state as injected_state
from noisykernels.injection.leaves import LEAVES
from noisykernels.injection.mode import SiteMode
from noisykernels.injection.placement import Placement
from noisykernels.training import insert_denoising
from noisykernels.zoo import MLP, LeNet5

MAKES: dict[type, Callable[[], nn.Module]] = {
    nn.Linear: lambda: nn.Linear(8, 8), nn.Conv1d: lambda: nn.Conv1d(4, 4, 3, padding=1),
    nn.Conv2d: lambda: nn.Conv2d(4, 4, (3, 1), stride=2, groups=2, bias=False), nn.Conv3d: lambda: nn.Conv3d(4, 2, 1),
    nn.BatchNorm1d: lambda: nn.BatchNorm1d(4), nn.BatchNorm2d: lambda: nn.BatchNorm2d(4),
    nn.BatchNorm3d: lambda: nn.BatchNorm3d(4), nn.LayerNorm: lambda: nn.LayerNorm(8),
    nn.GroupNorm: lambda: nn.GroupNorm(2, 4), nn.RMSNorm: lambda: nn.RMSNorm(8),
    nn.MaxPool1d: lambda: nn.MaxPool1d(2), nn.MaxPool2d: lambda: nn.MaxPool2d(2), nn.AvgPool1d: lambda: nn.AvgPool1d(2),
    nn.AvgPool2d: lambda: nn.AvgPool2d(2), nn.AdaptiveAvgPool1d: lambda: nn.AdaptiveAvgPool1d(2),
    nn.AdaptiveAvgPool2d: lambda: nn.AdaptiveAvgPool2d(2), nn.Embedding: lambda: nn.Embedding(9, 4),
}  # fmt: skip
RANKS = {"1d": 3, "2d": 4, "3d": 5}
ODD: dict[str, Callable[[], nn.Module]] = {
    "in place": lambda: nn.ReLU(inplace=True), "indices": lambda: nn.MaxPool2d(2, return_indices=True),
    "same": lambda: nn.Conv2d(4, 4, 3, padding="same"),
    "reflected": lambda: nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
    "training": lambda: nn.BatchNorm2d(4).train(),
}  # fmt: skip


def rows_for(layer: nn.Module) -> Tensor:
    if isinstance(layer, nn.Embedding):
        return torch.tensor([[1, 2], [3, 4], [5, 6]])
    name = type(layer).__name__
    rank = next((r for end, r in RANKS.items() if name.endswith(end)), 4)
    torch.manual_seed(3)
    return torch.randn(3, 4, *[8] * (rank - 2))


class Told(nn.Module):
    """A layer, and its name in a model."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Any:
        if isinstance(self.layer, nn.ReLU):  # twice, and seen by whoever holds what it may have written to
            x = x + 0.0
            return self.layer(self.layer(x)) + 100 * x
        return self.layer(x)


def with_hooks(model: nn.Module) -> nn.Module:
    """The same, each layer with a hook of its own, which is therefore not called straight."""
    for module in model.modules():
        module.register_forward_hook(lambda *_: None)
    return model


def same(a: Any, b: Any) -> None:
    for x, y in zip(*([t] if isinstance(t, Tensor) else list(t) for t in (a, b)), strict=True):
        assert_same_bits(x, y)


@pytest.mark.parametrize("options", [{}, {"repeats": 4}, {"normalize_to_input_size": True}], ids=str)
@pytest.mark.parametrize("make", [*LEAVES, *ODD], ids=lambda m: m if isinstance(m, str) else m.__name__)
def test_a_layer_of_torch_has_the_site_and_noise_that_hooks_see(make: Any, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = Told(ODD[make]() if isinstance(make, str) else MAKES.get(make, make)())
    if make != "training":
        model.eval()
    x, seen = rows_for(model.layer), with_hooks(copy.deepcopy(model))
    assert names(model, x) == names(seen, x)
    for noise in (NOISE, nk.Noise(mul=0.3), nk.Noise(add=0.1, mul=0.2, kind="laplace")):
        for where in (None, "layer", "input"):
            if isinstance(make, str) or make in (nn.Identity, nn.Flatten, nn.Dropout, nn.Embedding):
                where = None
            same(run(model, x, where, noise, **options), run(seen, x, where, noise, **options))
    if not isinstance(model.layer, nn.Embedding) and make != "training":
        state: Any = dict(draws=[3, 1], rows=[7, 0, 9])
        same(run(model, x, None, **state), run(seen, x, None, **state))
        same(run(model, x.double(), noise=None), model(x.double())) if not list(model.parameters()) else None


@pytest.mark.parametrize("context", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_contexts_of_gradients(context: Callable[[], Any]) -> None:
    model, x = LeNet5().eval(), torch.randn(2, 1, 28, 28)
    expected = run(with_hooks(copy.deepcopy(model)), x)
    with context():
        assert torch.equal(run(model, x), expected)
    if context is torch.no_grad:  # transforms see every operator
        with nk.inject(model, NOISE), nk.noise_state(model, seed=SEED):
            value, tangent = torch.func.jvp(model, (x,), (x,))
            assert torch.equal(value, expected)
            with forward_ad.dual_level(), torch.no_grad():
                dual = forward_ad.unpack_dual(model(forward_ad.make_dual(x, x)))
            assert torch.equal(dual.primal, expected) and torch.allclose(dual.tangent, tangent)
            near = (model(1.001 * x) - model(0.999 * x)) / 0.002
            assert torch.allclose(tangent, near, rtol=0.1, atol=0.05 * float(near.abs().max()))


def test_draws_are_not_mixed_by_a_norm_in_training_mode() -> None:
    model = nn.Sequential(nn.BatchNorm1d(4))
    with nk.inject(model, NOISE), nk.noise_state(model, seed=1, draws=[0, 1]):
        with pytest.raises(RuntimeError, match="would mix the draws"):
            model(torch.randn(3, 4))


def test_a_silent_model_is_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """No mode, no hooks, no class but the model's own, and no more than a few calls of Python."""

    def calls(model: nn.Module, x: Tensor) -> int:
        count = 0

        def profile(frame: Any, event: str, arg: Any) -> None:
            nonlocal count
            count += event == "call"

        model(x)
        sys.setprofile(profile)
        try:
            model(x)
        finally:
            sys.setprofile(None)
        return count

    monkeypatch.setattr(SiteMode, "__init__", lambda *a: pytest.fail("a mode was made"))
    x = torch.randn(1, 1, 28, 28)
    model = LeNet5().eval()
    clean, expected = calls(model, x), model(x)
    with nk.inject(model, None):
        assert [type(m) for m in model.children()] == [type(m) for m in LeNet5().children()]
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
        assert torch.equal(model(x), expected) and calls(model, x) <= clean + 12
        with nk.noise_state(model, seed=1, rows=[4]):
            assert torch.equal(model(x), expected)


def test_noise_that_comes_and_goes() -> None:
    """A placement changed on a silent model, tracing, and back: whatever was announced is silent again."""
    model, x = MLP(6, 3, width=4).eval(), torch.randn(2, 6)
    clean, noisy = model(x), run(model, x)
    with nk.inject(model, None, example_input=x), nk.noise_state(model, seed=SEED):
        state = injected_state.state_of(model)
        for _ in range(2):
            silent = state.placement
            assert torch.equal(model(x), clean) and not state.announced
            nk.sites(model, x)
            assert state.announced and torch.equal(model(x), clean) and not state.announced
            state.placement = Placement(noise=NOISE)
            assert torch.equal(model(x), noisy) and state.announced
            state.placement = silent
        with nk.noise_state(model, draws=[0, 1]):
            assert torch.equal(model(x), torch.cat([clean, clean]))


def test_what_draws_is_never_run_without_its_key() -> None:
    model, x = nn.Sequential(nn.Linear(4, 4), nk.NoiseSite(NOISE), nn.Linear(4, 2)), torch.randn(3, 4)
    with nk.inject(model, None), nk.noise_state(model, seed=1):
        assert torch.equal(model(x), model(x))
    plain = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    with nk.inject(plain, None), nk.noise_state(plain, seed=1):
        plain(x)
        with insert_denoising(plain, "0", example_input=x) as inserted:
            for block in inserted.blocks.values():
                torch.nn.init.ones_(block.bias_out)
            assert torch.equal(plain(x), plain(x))  # blocks draw while training
        assert not injected_state.state_of(plain).needs_mode
        plain[0] = nk.NoisyLinear(4, 4, noise=NOISE)
        with pytest.raises(RuntimeError, match="put into an injected model: inject\\(\\) it again"):
            plain(x)


def test_a_silent_model_within_another_is_refused_all_the_same() -> None:
    inner = nn.Linear(3, 3)

    class Outer(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return inner(x)

    x = torch.ones(2, 3)
    for outer_noise, inner_noise in ((None, NOISE), (NOISE, None), (None, None)):
        outer = Outer()
        with nk.inject(outer, outer_noise), nk.inject(inner, inner_noise):
            with pytest.raises(RuntimeError, match="within the forward of another"):
                outer(x)
        assert torch.equal(outer(x), inner(x))
    model = nn.Sequential(nn.Linear(3, 3))
    with nk.inject(model, None), pytest.raises(ValueError, match="injected already"):
        nk.inject(model[0], NOISE)


def test_copies_and_pickles_of_layers() -> None:
    """Both name torch's classes; while injected they are of the layer's stand-in."""
    model, x = LeNet5().eval(), torch.randn(2, 1, 28, 28)
    expected = run(model, x)
    with nk.inject(model, NOISE):
        assert all(
            isinstance(m, kind) for m, kind in zip(model.children(), map(type, LeNet5().children()), strict=True)
        )
        assert repr(model) == repr(LeNet5().eval())
        twin, text = copy.deepcopy(model), pickle.dumps(model)
        torch.save(model, stream := io.BytesIO())
    stream.seek(0)
    for again in (twin, pickle.loads(text), torch.load(stream, weights_only=False)):
        with nk.noise_state(again, seed=SEED):
            assert torch.equal(again(x), expected)
        assert [type(m) for m in nk.remove(again).children()] == [type(m) for m in model.children()]
        assert not any(k.startswith("_noise") for m in again.modules() for k in vars(m))


def test_layers_that_are_changed_meanwhile() -> None:
    """Hooks, parametrizations and forwards of a user's own, given before and after."""
    x = torch.randn(3, 4)

    class Twice(nn.Module):
        def forward(self, w: Tensor) -> Tensor:
            return 2 * w

    for before in (True, False):
        model = nn.Sequential(nn.Linear(4, 4), nn.ReLU()).eval()
        double = copy.deepcopy(model)
        double[0].weight.data.mul_(2)
        expected = run(double, x)
        if before:
            parametrize.register_parametrization(model[0], "weight", Twice())
        with nk.inject(model, NOISE), nk.noise_state(model, seed=SEED):
            if not before:
                parametrize.register_parametrization(model[0], "weight", Twice())
            seen: list[Tensor] = []
            handle = model[0].register_forward_hook(lambda m, a, y, seen=seen: seen.append(y))
            assert torch.equal(model(x), expected) and len(seen) == 1
            handle.remove()
            if not before:
                parametrize.remove_parametrizations(model[0], "weight", leave_parametrized=False)
        assert torch.equal(model(x), (double if before else model)(x))
        assert type(model[0]).__name__.endswith("Linear") and not hasattr(model[0], "_noise_leaf")
