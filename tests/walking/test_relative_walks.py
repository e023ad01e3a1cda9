"""Walks, votes and statistics in units of a value's rows, or of calibrated ranges."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from models import made
from torch import Tensor, nn

import noisykernels as nk
from noisykernels._engine.store import StoreError
from noisykernels._util.inputs import Call
from noisykernels.injection.observer import watch
from noisykernels.injection.site import kind_of
from noisykernels.plotting.style import level_label
from noisykernels.study.html_report import _snippet

NOISES: dict[str, Any] = {
    "rms": nk.Noise(add=1.0, relative="rms"),
    "max, mixed": nk.Noise(add=0.5, mul=0.5, relative="max"),
    "std, add_mul": nk.Noise(add=0.5, mul=0.2, order="add_mul", relative="std"),
    "rms, fold": nk.Noise(add=0.5, mul=0.5, fold=True, relative="rms"),
    "channels": nk.Noise(add=torch.linspace(0.5, 1.5, 6).view(1, 1, 6), relative="rms"),
}


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3)).eval()


def data(rows: int = 80) -> tuple[Tensor, Tensor]:
    """Rows of very different sizes, one of zeros, with the model's own answers."""
    x = torch.randn(rows, 5, generator=torch.Generator().manual_seed(1)) * torch.logspace(-2, 2, rows).unsqueeze(1)
    x[3] = 0
    with torch.no_grad():
        return x, net()(x).argmax(1)


def walked(noise: Any, engine: str = "auto", **more: Any) -> nk.Study:
    how: dict[str, Any] = dict(levels=[0.0, 0.2, 1.0, 4.0], draws=3, seed=5, progress=False) | more
    return nk.walk(net(), data(), noise=noise, compute=nk.Compute(engine=engine, batch_rows=32), **how)


@pytest.mark.parametrize("name", NOISES)
def test_the_engines_agree(name: str, one_thread: None) -> None:
    """The direction is the size of the clean row times the eps: all levels from one draw of it."""
    sites = ["0:linear#0", "1:relu#0", "2:linear#0", "3:tanh#0"] if name == "channels" else None
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # what is found wrong beside the plain engine would be run by it
        shared, plain = (walked(NOISES[name], engine, sites=sites) for engine in ("shared", "plain"))
    assert shared.records == plain.records
    assert min(r.accuracy for r in shared.records) < 0.9 and {r.accuracy for r in shared.records if r.level == 0} == {
        1.0
    }


def test_searches_and_processes_agree() -> None:
    """The levels that a search asks for, and noises that other processes are sent."""
    found = [walked(NOISES["rms"], e, levels=None, draws=None, search=nk.Search(rel_ci=0.5)) for e in ("auto", "plain")]
    assert found[0].records == found[1].records and all(m.level > 0 for m in found[0].midpoints())
    noise = nk.Noise(add=1.0, relative=nk.calibrate(net(), data()))
    alone, sent = walked(noise), nk.walk(
        net(), data(), noise=noise, levels=[0.0, 0.2, 1.0, 4.0], draws=3, seed=5, progress=False,
        compute=nk.Compute(batch_rows=32, executor=1),
    )  # fmt: skip
    assert alone.records == sent.records


@pytest.mark.parametrize("unit", ["rms", "ranges"])
def test_compiled_models_draw_what_eager_ones_draw(unit: str) -> None:
    model, (x, _) = net(), data()
    noise = nk.Noise(add=0.3, relative=nk.calibrate(model, x) if unit == "ranges" else unit)
    torch._dynamo.reset()
    with nk.inject(model, noise, example_input=x), torch.no_grad():
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        for level in (None, torch.tensor(0.5)):
            with nk.noise_state(model, seed=torch.tensor(3), level=level):
                assert torch.equal(compiled(x), model(x))
    torch._dynamo.reset()


def test_gradients_of_an_injected_model_are_those_of_fixed_levels() -> None:
    model, x = net(), data()[0][40:44]
    with torch.no_grad():
        size = nk.noise.row_scale(model[:3](x), "rms")
    found = []
    for noise in (nk.Noise(add=0.5, relative="rms"), nk.Noise(add=0.5 * size.view(1, 4, 1))):
        with nk.inject(model, noise, where="2"), nk.noise_state(model, seed=1):
            loss = model(x).square().sum()
        found.append(torch.autograd.grad(loss, list(model.parameters())))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_noises_that_share_what_they_draw() -> None:
    """Several units and mixes in one walk: each as alone."""
    noises = [*(nk.Noise(add=1.0, relative=unit) for unit in (None, "rms")), nk.Noise(add=2.0, relative="rms")]
    noises += [nk.Noise(mul=1.0), nk.Noise(add=1.0, mul=0.5, relative="max")]
    for together, noise in zip(walked(noises), noises, strict=True):
        assert together.records == walked(noise).records


@pytest.mark.parametrize("relative", ["rms", "max", "std"])
def test_scaling_the_value_changes_nothing(relative: str) -> None:
    """What a unit is for: one level means the same at every site, whatever the sizes there."""
    x = torch.randn(7, 4, 6)
    noise = nk.Noise(add=0.3, relative=relative)
    small, large = (nk.perturb(x * 2.0**k, noise, seed=1) * 2.0**-k for k in (-20, 20))
    assert torch.equal(small, nk.perturb(x, noise, seed=1)) and torch.equal(large, small)


def test_votes_and_statistics() -> None:
    noise = nk.Noise(add=0.5, relative="rms")
    votes = nk.vote(net(), data(), noise=noise, draws=5, seed=1, progress=False)
    assert votes.clean == 1.0
    model = net()
    x = data()[0][40:]
    with nk.inject(model, noise, where="2"):
        found = {s.site: s for s in nk.training.site_statistics(model, x, seed=1)}["2:linear#0"]
    with torch.no_grad():
        value = net()[:3](x)
    assert math.isclose(found.noise_power, 0.25 * float(value.double().square().mean()), rel_tol=1e-5)


def test_repeats_and_levels_of_rows_are_shares() -> None:
    model, x = net(), data()[0][40:50]
    for noise, repeats in (
        (nk.Noise(add=0.5, relative="rms"), 4),
        (nk.Noise(add=0.5, kind="laplace", relative="rms"), 2),
    ):
        with nk.inject(model, noise, where="2", repeats=repeats), nk.noise_state(model, seed=1), torch.no_grad():
            whole = model(x)
        with nk.inject(model, noise, where="2", repeats=repeats), torch.no_grad():
            for i in range(10):
                with nk.noise_state(model, seed=1, rows=torch.tensor([i]), level=torch.ones(1)):
                    assert torch.allclose(model(x[i : i + 1])[0], whole[i], rtol=1e-5)


# ---------------------------------------------------------------------------------------------- every site of a Llama


@pytest.mark.parametrize("name", ["Llama", "Llama, eager"])
def test_every_site_of_a_llama_in_every_unit(name: str) -> None:
    """Each site alone: the noise at it is that of `perturb` on the value that it has."""
    model, tokens = made(name, 3)
    with torch.no_grad(), nk.inject(model, None, example_input=tokens):
        places = [s for s in nk.sites(model) if s.row_dim is not None and s.kind != "input"]
    ranges = nk.calibrate(model, tokens)
    seen: dict[str, tuple[Tensor, Tensor, Any]] = {}

    def look(one: Any) -> None:
        seen[one.site] = one.clean, one.noisy, one.noise

    kinds = set()
    for relative in ("rms", "max", "std", ranges):
        noise = nk.Noise(add=0.1, relative=relative)
        for site in places:
            if site.name not in ranges:
                continue
            with nk.inject(model, noise, where=site.name, example_input=tokens):
                watch(Call("test"), model, tokens, look, seed=3, level=None, batch_size=3)
            clean, noisy, _ = seen[site.name]
            expected = nk.perturb(clean, noise.at(site.name), seed=3, site=site.id)
            assert torch.equal(noisy, expected), (site.name, relative)
            kinds.add(kind_of(site.name))
    assert {"linear", "silu"} <= kinds and len(ranges) > 16


@pytest.mark.parametrize("relative", ["rms", "max", "std"])
def test_a_token_has_its_own_unit(relative: str) -> None:
    """Padded to the left or right, among others or alone: the same bits at every site."""
    model, tokens = made("Llama", 3)
    noise, length = nk.Noise(add=0.1, relative=relative), tokens.shape[1]
    x = torch.randn(2, 5, 8) * torch.logspace(-2, 2, 10).view(2, 5, 1)
    rows = nk.TokenRows(16, [0, 5], range(5))
    y = nk.perturb(x, noise, seed=1, rows=rows)
    for b, sequence in enumerate((0, 5)):
        for t in range(5):
            alone = nk.perturb(x[b : b + 1, t : t + 1], noise, seed=1, rows=nk.TokenRows(16, [sequence], [t]))
            assert torch.equal(alone[0, 0], y[b, t])
    padded = torch.cat([100 * torch.ones(2, 3, 8), x], 1)
    places = [[-1, -1, -1, 0, 1, 2, 3, 4]] * 2
    assert torch.equal(nk.perturb(padded, noise, seed=1, rows=nk.TokenRows(16, [0, 5], places))[:, 3:], y)
    linear = nk.linear(x, torch.eye(8), noise=noise, seed=1, rows=rows)
    assert torch.equal(linear, nk.perturb(torch.nn.functional.linear(x, torch.eye(8)), noise, seed=1, rows=rows))
    with nk.inject(model, noise, where="layers.0"), torch.no_grad():
        with nk.noise_state(model, seed=1, rows=nk.TokenRows(length, [0, 1, 2])):
            together = model(tokens)
        with nk.noise_state(model, seed=1, rows=nk.TokenRows(length, [2])):
            assert torch.allclose(model(tokens[2:]), together[2:], rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------------------------------------- ranges


def test_ranges_are_of_the_site_by_name() -> None:
    model, x = net(), data()[0]
    ranges = nk.calibrate(model, x)
    noise = nk.Noise(add=0.1, relative=ranges)
    with nk.inject(model, noise), nk.noise_state(model, seed=1), torch.no_grad():
        got = model(x)
    for site, size in ranges.items():
        assert noise.at(site) == nk.Noise(add=0.1 * size)
    with nk.inject(model, {s: noise.at(s) for s in ranges}), nk.noise_state(model, seed=1), torch.no_grad():
        assert torch.equal(model(x), got)
    for engine in ("shared", "plain"):
        study = walked(noise, engine, sites=["2:linear#0"])
        assert study.records == walked(noise.at("2:linear#0"), engine, sites=["2:linear#0"]).records


def test_a_site_without_a_range_is_an_error_that_names_it() -> None:
    ranges = nk.noise.Ranges({"2:linear#0": 1.0})
    model = net()
    with (
        nk.inject(model, nk.Noise(add=0.1, relative=ranges)),
        pytest.raises(ValueError, match="no size of site 'input'"),
    ):
        model(torch.ones(1, 5))
    with warnings.catch_warnings(), pytest.raises(ValueError, match="no size of site 'input'"):
        warnings.simplefilter("error")  # before any work
        walked(nk.Noise(add=0.1, relative=ranges))
    assert walked(nk.Noise(add=0.1, relative=ranges), sites=["2:linear#0"]).records


def test_layers_of_ones_own_find_their_range() -> None:
    noise = nk.Noise(add=0.5, relative=nk.noise.Ranges({"0:linear#0": 2.0}))
    model = nn.Sequential(nk.NoisyLinear(4, 3, noise=noise))
    with pytest.raises(ValueError, match="name of a site"):
        model(torch.ones(2, 4))
    with nk.noise_state(model, seed=1):
        y = model(torch.ones(2, 4))
    model[0].noise = nk.Noise(add=1.0)
    with nk.noise_state(model, seed=1):
        assert torch.equal(model(torch.ones(2, 4)), y)


# ---------------------------------------------------------------------------------------------- results, stores


def test_results_say_their_unit(tmp_path: Path) -> None:
    ranges = nk.calibrate(net(), data(), method="rms")
    for noise, label, code in (
        (NOISES["rms"], "x rms of the row", "nk.Noise(add=1.0, relative='rms')"),
        (nk.Noise(add=1.0, relative=ranges), "x rms of the site", "nk.Noise(add=1.0, relative=ranges)"),
    ):
        study = walked(noise)
        assert label in level_label(study) and code in _snippet(study)
        study.save(tmp_path / "study.json")
        again = nk.Study.load(tmp_path / "study.json")
        assert again.meta.noise == study.meta.noise and level_label(again) == level_label(study)
    assert nk.noise.Ranges.of(again.meta.noise["relative"]) == ranges
    plain = walked(nk.Noise(add=1.0))
    assert "units of the value" in level_label(plain) and "relative" not in plain.meta.noise


def test_a_store_belongs_to_its_unit(tmp_path: Path) -> None:
    ranges, path = nk.calibrate(net(), data()), tmp_path / "store.db"
    units: list[Any] = [None, "rms", "max", ranges, nk.noise.Ranges(dict(ranges) | {"input": 1.0})]
    for k, unit in enumerate(units):
        here = tmp_path / f"{k}.db"
        first = walked(nk.Noise(add=1.0, relative=unit), store=here, sites=["2:linear#0"])
        assert walked(nk.Noise(add=1.0, relative=unit), store=here, sites=["2:linear#0"]).records == first.records
        for other in units[:k]:
            with pytest.raises(StoreError):
                walked(nk.Noise(add=1.0, relative=other), store=here, sites=["2:linear#0"])
    assert not path.exists()


@pytest.mark.parametrize("method", ["max", "rms", "quantile", "moving"])
def test_calibration_does_not_depend_on_batches(method: str) -> None:
    x = torch.randn(50, 5, generator=torch.Generator().manual_seed(2))
    model = nn.Sequential(nn.Identity(), nn.ReLU())  # what rounds the same in any batch
    one = nk.calibrate(model, x, method=method)
    for batch in (1, 7, 50):
        assert nk.calibrate(model, x, method=method, batch_size=batch) == one
    assert nk.calibrate(model, [(part, None) for part in x.split(9)], method=method) == one


def test_calibration_is_what_it_says() -> None:
    x = torch.randn(64, 300, generator=torch.Generator().manual_seed(2)) + 1
    model = nn.ReLU()
    sizes = {m: nk.calibrate(model, x, method=m)["input"] for m in ("max", "rms", "quantile", "moving")}
    assert sizes["max"] == float(x.abs().max())
    assert math.isclose(sizes["rms"], float(x.double().square().mean().sqrt()), rel_tol=1e-7)
    exact = float(x.abs().flatten().double().sort().values[math.ceil(0.999 * x.numel()) - 1])
    assert exact <= sizes["quantile"] <= exact * (1 + 1 / 128)
    average = 0.0
    for row in x:
        size = float(row.double().std(correction=0))
        average = size if average == 0 else average + 0.01 * (size - average)
    assert math.isclose(sizes["moving"], average, rel_tol=1e-6)
    assert nk.calibrate(model, x, method="quantile", share=1.0)["input"] == sizes["max"]
    assert nk.calibrate(model, x, method="moving", share=1.0)["input"] == float(nk.noise.row_scale(x[-1:], "std"))
    holes = torch.tensor([[math.inf, 2.0], [math.nan, -math.inf]])
    assert {nk.calibrate(model, holes, method=m)["input"] for m in ("max", "rms", "quantile")} == {2.0}


@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        (dict(method="mean"), ValueError, "method must be one of max, rms, quantile, moving, got 'mean'"),
        (dict(method="max", share=0.5), ValueError, "share goes with method 'quantile' or 'moving', got 'max'"),
        (dict(method="quantile", share=1.5), ValueError, "share must be"),
        (dict(method="moving", share="a"), TypeError, "share must be"),
        (dict(data=torch.zeros(0, 5)), ValueError, "at least one row"),
        (dict(model=nn.Sequential(nk.NoisyLinear(5, 3, noise=nk.Noise(add=1.0)))), ValueError, "must draw no noise"),
        (dict(model=nk.inject(net(), nk.Noise(add=1.0)).model), ValueError, "must draw no noise"),
    ],
)  # fmt: skip
def test_what_cannot_be_calibrated_is_refused(how: dict[str, Any], error: type[Exception], message: str) -> None:
    given = dict(model=net(), data=data()) | how
    with pytest.raises(error, match=message):
        nk.calibrate(given.pop("model"), given.pop("data"), **given)


def test_ranges_in_files(tmp_path: Path) -> None:
    ranges = nk.noise.Ranges({"input": 0.1, "fc:linear#0": 2.0**-1000}, method="max")
    ranges.save(tmp_path / "ranges.json")
    again = nk.noise.Ranges.load(tmp_path / "ranges.json")
    assert again == ranges and again.digest == ranges.digest and hash(again) == hash(ranges) and again.method == "max"
    assert ranges != nk.noise.Ranges({"input": 0.1}) and ranges != dict(ranges)
    told = json.loads((tmp_path / "ranges.json").read_text())
    told["sizes"]["input"] = 0.2
    for text in (json.dumps(told), "[]", "{", "\udcff"):
        (tmp_path / "bad.json").write_text(text, errors="surrogateescape")
        with pytest.raises(ValueError, match=r"Ranges.load: .*bad.json: expected"):
            nk.noise.Ranges.load(tmp_path / "bad.json")


@pytest.mark.parametrize(
    ("sizes", "error"),
    [({"a": -1.0}, ValueError), ({"a": math.nan}, ValueError), ({"a": math.inf}, ValueError), ({"a": "1"}, TypeError),
     ({1: 1.0}, TypeError), ([1.0], TypeError), ({"a": True}, TypeError)],
)  # fmt: skip
def test_what_is_no_size_is_refused(sizes: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="Ranges: "):
        nk.noise.Ranges(sizes)
