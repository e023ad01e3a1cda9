"""The first tensor of a module's result is its place, in whatever it lies; where none is found, that is said."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, fields
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from injecting import NOISE, SEED, oracle, run
from torch import Tensor, nn

import noisykernels as nk


class Held(OrderedDict[str, Any]):
    """As the outputs of Hugging Face's models: entries are attributes, too, and missing ones left out."""

    def __post_init__(self) -> None:
        for f in fields(self):  # type: ignore[arg-type]
            if (value := getattr(self, f.name)) is not None:
                self[f.name] = value

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__(key) if isinstance(key, str) else tuple(self.values())[key]


@dataclass
class Output(Held):
    loss: Any = None
    logits: Any = None
    states: Any = None


@dataclass(frozen=True)
class Frozen:
    ids: Any
    value: Any


class Named(NamedTuple):
    ids: Any
    value: Any


def ids(h: Tensor) -> Tensor:
    return torch.arange(len(h))


# What a module makes of its value, and where the value is found in it again.
MADE: dict[str, tuple[Callable[[Tensor], Any], Callable[[Any], Tensor]]] = {
    "tuple": (lambda h: (ids(h), h, h), lambda o: o[1]),
    "named tuple": (lambda h: Named(ids(h), h), lambda o: o.value),
    "torch's own": (lambda h: h.unsqueeze(-1).max(-1), lambda o: o.values),
    "list": (lambda h: [None, h], lambda o: o[1]),
    "dict": (lambda h: {"ids": ids(h), "value": h}, lambda o: o["value"]),
    "ordered dict": (lambda h: OrderedDict(value=h), lambda o: o["value"]),
    "frozen dataclass": (lambda h: Frozen(ids(h), h), lambda o: o.value),
    "output by attribute": (lambda h: Output(loss=h.mean(), logits=h, states=(h,)), lambda o: o.logits),
    "output by key": (lambda h: Output(logits=h), lambda o: o["logits"]),
    "output by place": (lambda h: Output(logits=h), lambda o: o[0]),
    "nested": (lambda h: (None, {"a": [Frozen(ids(h), (h,))]}), lambda o: o[1]["a"][0].value[0]),
}


class Inner(nn.Module):
    def __init__(self, make: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.make, self.fc = make, nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Any:
        self.made = self.make(self.fc(x) * 2)
        return self.made


class Model(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        make, self.take = MADE[how]
        self.inner, self.last = Inner(make), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Any:
        return self.last(self.take(self.inner(x)))


X = torch.randn(5, 6, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("how", MADE)
@pytest.mark.parametrize("traced", [True, False])
def test_the_first_tensor_is_the_place(how: str, traced: bool) -> None:
    model = Model(how)
    got = run(model, X, "inner:module", **({"example_input": X} if traced else {}))
    value = model.inner.fc(X) * 2
    assert torch.allclose(got, model.last(oracle(value, "inner:module#0")), atol=1e-6)
    assert torch.allclose(MADE[how][1](model.inner.made), value)  # which the module may keep


@pytest.mark.parametrize("how", ["tuple", "list", "dict", "frozen dataclass", "output by key"])
def test_results_in_compiled_code(how: str) -> None:
    torch._dynamo.reset()
    model = Model(how)
    model.inner.forward = lambda x: MADE[how][0](model.inner.fc(x) * 2)  # type: ignore[method-assign]
    with nk.inject(model, NOISE, "inner:module#0", example_input=X), nk.noise_state(model, seed=1), torch.no_grad():
        want = model(X)
        assert torch.allclose(torch.compile(model, backend="eager", fullgraph=True)(X), want, atol=1e-6)


def test_a_result_in_which_nothing_is_found_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MADE, "space", (lambda h: SimpleNamespace(value=h), lambda o: o.value))
    for options in ({"example_input": X}, {}):
        with pytest.warns(UserWarning, match="noise does not enter at the result of 'inner', a SimpleNamespace"):
            run(Model("space"), X, "inner", **options)
        with pytest.raises(ValueError, match="'inner:module#0' matches no site"):
            run(Model("space"), X, "inner:module#0", **options)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"states": x + self.fc(x)}


@pytest.mark.parametrize("where", [":module#0", ":module"])
@pytest.mark.parametrize("traced", [True, False])
def test_the_result_of_the_model_itself(where: str, traced: bool) -> None:
    model = Residual().eval()
    got = run(model, X, where, **({"example_input": X} if traced else {}))["states"]
    assert torch.allclose(got, oracle(model(X)["states"], ":module#0"), atol=1e-6)
    with nk.inject(model, NOISE, Residual, example_input=X):
        assert [s.name for s in nk.sites(model)] == ["input", "fc:linear#0", ":module#0"]
        row = next(row for row in nk.coverage(model, X) if row.name == ":module#0")
        assert row.noise and row.shape == (5, 6)
    table = nn.Embedding(9, 6)
    tokens = torch.randint(9, (5,))
    assert torch.equal(run(table, tokens, nn.Embedding), oracle(table(tokens), ":module#0"))
    wrapper = nn.ModuleDict({"net": model})
    wrapper.forward = lambda x: wrapper["net"](x)  # type: ignore[method-assign]
    assert torch.equal(run(wrapper, X, where, example_input=X, root="net")["states"], run(model, X, where)["states"])


def test_the_result_of_a_part_that_is_called_by_itself() -> None:
    model = nn.ModuleDict({"part": Residual()}).eval()
    with nk.inject(model, NOISE, "part:module"), nk.noise_state(model, seed=SEED):
        with pytest.warns(UserWarning, match="'part' is called outside of the model's forward"):
            got = model["part"](X)
    assert torch.allclose(got["states"], oracle(model["part"](X)["states"], "part:module#0"), atol=1e-6)
