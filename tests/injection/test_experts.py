"""Mixtures of experts: the noise of a token inside its experts is that of the token alone."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from expert_models import WAYS_OF_EXPERTS, causal_experts
from token_bits import LENGTH, SEQUENCES, WAYS, Call, Handed, Values, bits_of, compared, furthest, ways_of
from torch import Tensor

import noisykernels as nk

pytestmark = pytest.mark.usefixtures("one_thread")

NOISE = nk.Noise(add=0.05, mul=0.1)
IDS = torch.randperm(40, generator=torch.Generator().manual_seed(1))[:12].view(3, 4)  # no two are alike
BASE = Call(IDS, torch.tensor(SEQUENCES), torch.arange(4).expand(3, -1), {})
INSIDE = "*.mlp*"
FOLLOWED = [how for how in WAYS_OF_EXPERTS if how != "capacity"]


def rows(*sequence: int) -> nk.TokenRows:
    return nk.TokenRows(LENGTH, sequence or SEQUENCES)


def model_of(how: str) -> Handed:
    return Handed(causal_experts(how)).eval()


@pytest.mark.parametrize("how", FOLLOWED)
def test_bits_do_not_depend_on_how_tokens_come(how: str) -> None:
    model, values = model_of(how), Values()
    base = bits_of(model, iter([BASE]), picked=INSIDE, where=INSIDE, values=values)
    assert sum(t.numel() for (site, *_), t in base.items() if "gate" not in site) >= IDS.numel() * 2 * (16 + 8 + 8)
    for site in {site for site, *_ in values}:  # values tell tokens apart
        of_site = torch.stack([t[0] for (other, *_), t in values.items() if other == site])
        assert len(of_site) < 2 or "relu" in site or torch.pdist(of_site).min() > 1e-4 * of_site.abs().max()
    for way in WAYS:
        others = Values()
        calls = ways_of(IDS, list, "past_key_values")[way]
        other = bits_of(model, calls(), picked=INSIDE, where=INSIDE, values=others)
        same, differing = compared(base, other)
        assert differing == 0, way
        if "packed" not in way:  # there the model looks at other sequences, too, and may choose other experts
            assert base.keys() <= other.keys() and same == sum(t.numel() for t in base.values()), way
            assert furthest(values, others) < 1e-5, way


def test_no_two_tokens_have_the_same() -> None:
    base = bits_of(model_of("loop"), iter([BASE]), where=INSIDE, picked=INSIDE)
    bits = torch.stack([t[:4] for t in base.values()])
    assert len(bits.unique(dim=0)) == len(bits)


@pytest.mark.parametrize("how", FOLLOWED)
def test_values_are_those_of_the_tokens_alone(how: str) -> None:
    model = model_of(how).double()
    clean = model(IDS)
    padded = torch.cat([torch.zeros(3, 3, dtype=torch.int64), IDS], 1)
    mask = torch.cat([torch.zeros_like(IDS[:, :3]), torch.ones_like(IDS)], 1)
    with nk.inject(model, NOISE, where=INSIDE), torch.no_grad():
        with nk.noise_state(model, seed=1, rows=rows()):
            whole = model(IDS)
            of_padded = model(padded, mask)[:, 3:]
            held: list[Any] = []
            model(IDS[:, :2], past_key_values=held, use_cache=True)
            then = model(IDS[:, 2:], torch.ones_like(IDS), torch.tensor([[2, 3]]), held, use_cache=True)
        with nk.noise_state(model, seed=1, rows=rows(2)):
            alone = model(IDS[1:2, :3])
        with nk.noise_state(model, seed=1, rows=rows(), draws=[0, 6]):
            draws = model(IDS)
        with nk.noise_state(model, seed=1, rows=rows(), draws=[6]):
            sixth = model(IDS)
    assert (whole - clean).abs().max() > 0.01 and not torch.allclose(whole, sixth)
    for found, wanted in (
        (of_padded, whole), (then, whole[:, 2:]), (alone[0], whole[1, :3]), (draws, torch.cat([whole, sixth])),
    ):  # fmt: skip
        torch.testing.assert_close(found, wanted)


def test_gradients_pass() -> None:
    model = model_of("loop").double()
    with nk.inject(model, NOISE, where=INSIDE), nk.noise_state(model, seed=1, rows=rows()):
        loss = lambda: model(IDS).square().mean()  # noqa: E731
        loss().backward()
        up = model.model.blocks[0].mlp.up
        where = up.grad.abs().flatten().argmax()
        step = torch.zeros_like(up).flatten()
        step[where] = 1e-6
        with torch.no_grad():
            up += step.view_as(up)
            after = loss()
            up -= 2 * step.view_as(up)
            before = loss()
    torch.testing.assert_close((after - before) / 2e-6, up.grad.flatten()[where], rtol=1e-5, atol=0.0)


def test_what_lost_the_tokens_is_named() -> None:
    model = model_of("capacity")
    with nk.inject(model, NOISE, where=INSIDE), nk.noise_state(model, seed=1, rows=rows()):
        said = r"'model.blocks.0.mlp:einsum#0'.* \[4, 12, 16\] .* einsum in module 'model.blocks.0.mlp' lost them"
        with pytest.raises(RuntimeError, match=said):
            model(IDS)


def test_levels_that_are_tensors_are_refused() -> None:
    model = model_of("loop")
    with nk.inject(model, nk.Noise(add=torch.full((3, 1, 1), 0.1)), where="*.mlp:linear#*"):
        with nk.noise_state(model, seed=1, rows=rows()), pytest.raises(RuntimeError, match="levels that are tensors"):
            model(IDS)


def test_compiled_models_have_the_noise_of_tokens() -> None:
    model = model_of("gathered")
    with nk.inject(model, NOISE, where=INSIDE), nk.noise_state(model, seed=1, rows=rows()), torch.no_grad():
        wanted = model(IDS)
        torch.testing.assert_close(torch.compile(model, backend="eager")(IDS), wanted)


def values_of(study: nk.Study) -> Tensor:
    return torch.tensor([r.value for r in study.records], dtype=torch.float64)


def test_walks_run_the_whole_model_and_say_so() -> None:
    labels = IDS.roll(-1, 1)
    data = {"input_ids": IDS, "labels": labels}
    sites = ["model.blocks.0.mlp:linear#1", "model.blocks.0.mlp.gate:linear#0"]
    asked: dict[str, Any] = dict(noise=nk.Noise(add=1.0), levels=[0.3, 3.0], draws=2, seed=4, sites=sites, metric="nll")
    study = nk.walk(model_of("loop"), data, rows=rows(), **asked)
    assert "picks out" in study.meta.plan["why"]
    few = nk.walk(model_of("loop"), data, rows=rows(), compute=nk.Compute(batch_rows=2, draws_per_pass=1), **asked)
    torch.testing.assert_close(values_of(few), values_of(study), rtol=1e-5, atol=1e-5)
    net, found = model_of("loop"), []
    for record in study.records:
        with nk.inject(net, nk.Noise(add=record.level), where=record.site):
            with nk.noise_state(net, seed=4, rows=rows(), draws=[record.draw]), torch.no_grad():
                logits = net(IDS)
        found.append(torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels).item())
    torch.testing.assert_close(values_of(study), torch.tensor(found, dtype=torch.float64), rtol=1e-5, atol=1e-5)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        nk.walk(model_of("loop"), data, rows=rows(), compute=nk.Compute(engine="shared"), **asked)
    assert any("picks out" in str(w.message) for w in told)
