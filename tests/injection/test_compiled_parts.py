"""Parts that are compiled within an injected model run with the same names and noise, whole graphs included."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

import noisykernels as nk
from noisykernels.injection.eagerly import eagerly
from noisykernels.injection.running import begin
from noisykernels.injection.state import state_of


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.fc(x))


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 6), Block(), nn.Linear(6, 3)).eval()


X, NOISE = torch.randn(3, 6), nk.Noise(add=0.5)


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    with torch.no_grad():
        yield
    assert torch._dynamo.eval_frame._stance.stance == "default"
    torch._dynamo.reset()


def compiled(model: nn.Sequential, how: str) -> None:
    if how == "in place":
        model[1].compile(backend="eager", fullgraph=True)
    else:
        model[1] = torch.compile(model[1], backend="eager", fullgraph=True)


def noisy(model: nn.Module) -> Tensor:
    with nk.noise_state(model, seed=1):
        return model(X)


@pytest.mark.parametrize("traced", [True, False])
@pytest.mark.parametrize("how", ["in place", "wrapper"])
@pytest.mark.parametrize("order", ["compile first", "inject first"])
def test_a_compiled_block_has_the_names_and_the_noise(order: str, how: str, traced: bool) -> None:
    model, plain = net(), net()
    with nk.inject(plain, NOISE):
        want, names = noisy(plain), [site.name for site in nk.sites(plain, X)]
    if order == "compile first":
        compiled(model, how)
    nk.inject(model, NOISE, example_input=X if traced else None)
    if order == "inject first":
        compiled(model, how)
    assert torch.equal(noisy(model), want)
    assert [site.name for site in nk.sites(model, X)] == names
    assert nk.coverage(model, X).share("noise") == 1
    nk.remove(model)
    assert torch.allclose(model(X), plain(X))  # compiled again
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0


def test_functions_that_are_compiled_are_seen() -> None:
    double = torch.compile(lambda y: 2 * torch.relu(y), backend="eager", fullgraph=True)

    class Calling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            return double(self.fc(x))

    model = Calling()
    clean = double(model.fc(X))
    assert [site.name for site in nk.sites(model, X)] == ["input", "fc:linear#0", ":relu#0"]
    with nk.inject(model, NOISE, where=":relu"):
        assert not torch.equal(noisy(model), clean)


@pytest.mark.parametrize("where", ["model", "block"])
def test_a_compiled_model_that_breaks_its_graph(where: str) -> None:
    """What the compiler then looks at piece by piece runs as it is, since pieces know no names."""

    class Breaking(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            x = self.inner(x)
            torch._dynamo.graph_break()
            return torch.tanh(x)

    torch.manual_seed(0)
    model = Breaking(net()) if where == "model" else nn.Sequential(Breaking(net()), nn.Linear(3, 3))
    with nk.inject(model, NOISE):
        want = noisy(model)
        compiled = torch.compile(model, backend="eager")
        with nk.noise_state(model, seed=1):
            assert torch.allclose(compiled(X), want, atol=1e-6)


def test_a_mode_of_compiled_code_sees_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest of a graph that breaks all the same would have noise twice."""
    with nk.inject(net(), NOISE) as model:
        with monkeypatch.context() as patched:
            patched.setattr(torch.compiler, "is_compiling", lambda: True)
            mode, _, _ = begin(model, state_of(model), (X,), {})
        with pytest.raises(RuntimeError, match="graph of a compiled injected model breaks within its forward"), mode:
            torch.relu(X)


def test_studies_of_models_with_compiled_blocks() -> None:
    model, plain = net(), net()
    compiled(model, "wrapper")
    data = X, plain(X).argmax(1)
    told = dict(noise=NOISE, levels=[0.5, 3.0], draws=2, seed=1)
    assert nk.walk(model, data, **told).records == nk.walk(plain, data, **told).records


def test_the_compiler_is_held_back_until_the_last_thread_leaves() -> None:
    stance = lambda: torch._dynamo.eval_frame._stance.stance  # noqa: E731
    entered, leave, seen = threading.Event(), threading.Event(), []

    def other() -> None:
        with eagerly():
            entered.set()
            leave.wait(60)
        seen.append(stance())

    thread = threading.Thread(target=other)
    with pytest.raises(ValueError, match="a model's own"), eagerly():
        thread.start()
        entered.wait(60)
        raise ValueError("a model's own")
    assert stance() == "force_eager"  # for the one that is still within
    leave.set()
    thread.join()
    assert seen == ["default"]
