"""Functions of the value at a site: what they get, when they are asked, what they may give."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import noisykernels as nk
from noisykernels.injection import SiteDraw
from noisykernels.noise.contract import hashed_id, stream_number

SEED = 7
X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))


def net() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).eval()


def noisy(x: Tensor, draw: SiteDraw) -> Tensor:
    """Something of all that there is."""
    return x * (1 + 0.5 * draw.fixed(x.shape[1:], "gain")) + 0.1 * draw.fresh(x, "spikes", kind="laplace")


def by_hand(x: Tensor, site: str, draw: int, rows: list[int], fixed_seed: int = SEED) -> Tensor:
    """The same by the raw noise alone: of the streams of this number, of which `eps` takes none by name."""
    key: dict[str, Any] = {"site": hashed_id(site), "draws": torch.tensor([draw])}
    gain, spikes = (
        torch.ops.noisykernels.perturb.default(
            torch.zeros(shape), stream_number(name), torch.ones((), dtype=torch.float64), None, torch.tensor(seed),
            key["draws"], ids, 0, key["site"], 0, kind, False,
        )
        for name, shape, seed, ids, kind in (
            ("gain", x.shape[1:], fixed_seed, None, 0), ("spikes", x.shape, SEED, torch.tensor(rows), 2),
        )
    )  # fmt: skip
    return x * (1 + 0.5 * gain) + 0.1 * spikes


def expected(model: nn.Sequential, draw: int, rows: list[int], where: set[int]) -> Tensor:
    """The forward of the net by hand, the function after some of its layers."""
    y = X
    for i, layer in enumerate(model):
        y = layer(y)
        if i in where:
            y = by_hand(y, f"{i}:{'relu' if i == 1 else 'linear'}#0", draw, rows)
    return y


@pytest.mark.parametrize(("placed", "where"), [
    (dict(noise=noisy, where="0:linear#0"), {0}), (dict(noise=noisy, where=["0", "2"]), {0, 2}),
    (dict(noise=noisy, where=nn.ReLU), {1}), (dict(noise={"1": noisy, "2": noisy}), {1, 2}),
    (dict(noise=nk.Noise(), where=lambda name, module: noisy if name.startswith(("0", "2")) else None), {0, 2}),
])  # fmt: skip
@pytest.mark.parametrize("trace", [False, True])
def test_it_is_applied_to_each_draw_and_row_under_its_key(placed: dict[str, Any], where: set[int], trace: bool) -> None:
    model, rows = net(), [5, 0, 9]
    with torch.no_grad(), nk.inject(model, **placed, **({"example_input": X} if trace else {})):
        with nk.noise_state(model, seed=SEED, draws=[4, 1], rows=rows):
            found = model(X)
            again = copy.deepcopy(model)
        with nk.noise_state(again, seed=SEED, draws=[1], rows=rows):
            alone = again(X)
    wanted = torch.cat([expected(net(), draw, rows, where) for draw in (4, 1)])
    assert torch.equal(found, wanted.detach())
    assert torch.equal(alone, found[3:])


def test_beside_noise_of_other_sites_only_its_own_differs() -> None:
    """A dict may hold noises and functions; other sites keep their bits."""
    model = net()
    with torch.no_grad():
        with nk.inject(model, {"0": nk.Noise(add=1.0), "1": lambda x, draw: x}), nk.noise_state(model, seed=SEED):
            both = model(X)
        with nk.inject(model, nk.Noise(add=1.0), "0"), nk.noise_state(model, seed=SEED):
            assert torch.equal(model(X), both)


def test_a_function_of_where_may_give_noise_at_one_site_and_a_function_at_another() -> None:
    def chosen(name: str, module: nn.Module) -> Any:
        return {"0:linear#0": nk.Noise(add=1.0), "1:relu#0": noisy}.get(name)

    model = net()
    with torch.no_grad():
        with nk.inject(model, nk.Noise(), chosen), nk.noise_state(model, seed=SEED, draws=[1, 2]):
            found = model(X)
            parts = nk.coverage(model, X)
        with nk.inject(model, {"0": nk.Noise(add=1.0), "1": noisy}), nk.noise_state(model, seed=SEED, draws=[1, 2]):
            assert torch.equal(model(X), found)
            assert str(nk.coverage(model, X)) == str(parts)


def test_a_function_may_write_into_its_value_and_call_what_makes_sites() -> None:
    def stuck(x: Tensor, draw: SiteDraw) -> Tensor:
        x[:, 0] = 0.0
        return torch.relu(nn.functional.linear(x, torch.eye(x.shape[1])))

    model, x = net(), X.clone()
    with nk.inject(model, stuck, ["input", "0"]), nk.noise_state(model, seed=SEED):
        found = model(x)
    assert torch.equal(x, X)
    y = stuck(net()[0](stuck(X.clone(), None)), None)  # type: ignore[arg-type]
    assert torch.equal(found, net()[2](net()[1](y)))


def test_gradients_go_through_it() -> None:
    model, x = net(), X.clone().requires_grad_()
    with nk.inject(model, noisy, "1"), nk.noise_state(model, seed=SEED, draws=[4], rows=[5, 0, 9]):
        (found,) = torch.autograd.grad(model(x).sum(), x)
    y = X.clone().requires_grad_()
    hidden = by_hand(net()[1](net()[0](y)), "1:relu#0", 4, [5, 0, 9])
    (wanted,) = torch.autograd.grad(net()[2](hidden).sum(), y)
    assert torch.allclose(found, wanted, atol=1e-6)


def test_what_is_fixed_stays_where_each_call_has_fresh_noise() -> None:
    model, found = net(), []

    def note(x: Tensor, draw: SiteDraw) -> Tensor:
        found.append((draw.fixed((5,), "a"), draw.fresh(x, "b")))
        return x

    with nk.inject(model, note, "0"), nk.noise_state(model, seed=SEED, advance=True):
        model(X), model(X)
    (a, b), (c, d) = found
    assert torch.equal(a, c)
    assert not torch.equal(b, d)


def test_rows_that_do_not_lie_first_come_first() -> None:
    """In a layer of (length, rows, features), found by the trace."""

    class Series(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.inner(x.transpose(0, 1)).transpose(0, 1)
            return out

    shapes = []

    def note(x: Tensor, draw: SiteDraw) -> Tensor:
        shapes.append(tuple(x.shape))
        return x

    model, x = Series(), torch.randn(3, 7, 4)
    clean = model(x)
    with nk.inject(model, note, "inner", example_input=x), nk.noise_state(model, seed=1, draws=[0, 1]):
        out = model(x)
    assert shapes == [(3, 7, 2), (3, 7, 2)]
    assert torch.allclose(out, torch.cat([clean, clean]))


@pytest.mark.parametrize(("function", "error", "words"), [
    (lambda x, draw: x[:, :2], ValueError, "site '0:linear#0': the function of its value must give .*got .*3, 2"),
    (lambda x, draw: x.double(), ValueError, "site '0:linear#0': .*torch.float32.*got torch.float64"),
    (lambda x, draw: None, TypeError, "site '0:linear#0': .*must give a tensor, got NoneType"),
    (lambda x, draw: draw.fresh(x, "weight"), ValueError, "site '0:linear#0': operand must be a name of one's own"),
    (lambda x, draw: draw.fresh(x, "a") + draw.fixed((5,), "a"), ValueError, "either fixed or fresh"),
    (lambda x, draw: draw.fresh(x, "a", kind="odd"), ValueError, "kind must be"),
])  # fmt: skip
def test_what_it_may_not_do_is_told_with_the_site(function: Any, error: type[Exception], words: str) -> None:
    model = net()
    with nk.inject(model, function, "0"), nk.noise_state(model, seed=1, draws=[0, 1]):
        with pytest.raises(error, match=words):
            model(X)


def test_two_names_of_one_number_are_refused() -> None:
    names: dict[int, str] = {}
    for i in range(200):
        other = names.setdefault(stream_number(f"s{i}"), f"s{i}")
        if other != f"s{i}":
            break
    model = net()
    with nk.inject(model, lambda x, draw: draw.fresh(x, other) + draw.fresh(x, f"s{i}"), "0"):
        with nk.noise_state(model, seed=1), pytest.raises(ValueError, match="streams must have different numbers"):
            model(X)


@pytest.mark.parametrize(("placed", "level"), [
    ({}, 0.5), ({"repeats": 3}, None), ({"repeats": {"0": 2}}, None), ({"normalize_to_input_size": True}, None),
])  # fmt: skip
def test_options_of_levels_are_refused(placed: dict[str, Any], level: float | None) -> None:
    model = net()
    with nk.inject(model, {"0": noisy}, **placed), nk.noise_state(model, seed=1, level=level):
        with pytest.raises(RuntimeError, match="site '0:linear#0': a function of the value has no levels"):
            model(X)


def test_what_is_no_function_is_refused_and_walks_take_none() -> None:
    with pytest.raises(TypeError, match=r"inject: noise must be a Noise, a function \(x, draw\) -> x"):
        nk.inject(net(), nk.Noise)  # type: ignore[arg-type]
    data = X, torch.tensor([0, 1, 2])
    with pytest.raises(TypeError, match=r"walk: noise must be a Noise.*got a function.*vote\(\) or chips\(\)"):
        nk.walk(net(), data, noise=noisy, levels=[1.0], draws=1, seed=1)  # type: ignore[call-overload]


def test_studies_of_whole_models_take_functions() -> None:
    """Chips are the draws of the function, one by one; coverage tells of it."""
    torch.manual_seed(3)
    x, model = torch.randn(40, 4), net()
    labels = model(x).argmax(1)

    def dead(x: Tensor, draw: SiteDraw) -> Tensor:
        return torch.where(draw.fixed(x.shape[1:], "dead", kind="uniform") < 0, 0.0, x)

    found = nk.chips(model, (x, labels), noise={"1": dead}, draws=6, seed=SEED)
    votes = nk.vote(model, (x, labels), noise={"1": dead}, draws=6, seed=SEED)
    wanted = []
    for draw in range(6):
        with torch.no_grad(), nk.inject(model, dead, "1"), nk.noise_state(model, seed=SEED, draws=[draw]):
            wanted.append(float((model(x).argmax(1) == labels).double().mean()))
    assert found.values.tolist() == pytest.approx(wanted)
    assert votes.curves["majority"].values[0] == pytest.approx(sum(wanted) / 6)
    assert len(set(wanted)) > 1
    with nk.inject(model, dead, "1"):
        assert [row.name for row in nk.coverage(model, x).operations if row.noise] == ["1:relu#0"]


class Own(nn.Module):
    """A noisy layer, and one that is recurrent."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nk.NoisyLinear(4, 4, noise=nk.Noise(add=0.1)), nn.GRU(4, 3, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.b(self.a(x))[0]
        return out


def test_kinds_of_layers() -> None:
    """Recurrent layers have it on their output; noisy layers keep their own noise."""
    model, x, seen = Own(), torch.randn(3, 6, 4), []

    def note(x: Tensor, draw: SiteDraw) -> Tensor:
        seen.append(draw.site)
        return x * 0

    with nk.inject(model, note, example_input=x), nk.noise_state(model, seed=1):
        assert bool((model(x) == 0).all())
    assert seen == ["input", "b:gru#0"]


def test_compiled_it_is_the_same() -> None:
    model = net()
    with torch.no_grad(), nk.inject(model, noisy, "1"):
        with nk.noise_state(model, seed=SEED, draws=[4, 1]):
            eager = model(X)
            compiled = torch.compile(model, backend="aot_eager", fullgraph=True)(X)
    assert torch.equal(eager, compiled)


def test_its_power_is_not_known() -> None:
    model = net()
    with nk.inject(model, noisy, "1"):
        with pytest.raises(ValueError, match=r"site_statistics: noise must be a Noise.*got a function at '1:relu#0'"):
            nk.training.site_statistics(model, X, seed=1)


class Norm(nn.Module):
    """A block whose result no site makes."""

    def forward(self, x: Tensor) -> Tensor:
        return x / x.square().mean(1, keepdim=True).sqrt()


def test_operations_of_a_function_at_the_result_of_a_block_are_no_sites() -> None:
    seen = []

    def note(x: Tensor, draw: SiteDraw) -> Tensor:
        seen.append(draw.site)
        return torch.relu(x)

    model = nn.Sequential(nn.Linear(4, 5), Norm())
    with nk.inject(model, note, where=Norm), nk.noise_state(model, seed=1):
        found = model(X)
    assert seen == ["1:module#0"]
    assert torch.equal(found, torch.relu(model(X)))
