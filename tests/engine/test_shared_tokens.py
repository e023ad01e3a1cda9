"""The engine that shares work where rows are tokens: noise to the bit, and scores but for rounding, of whole passes."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from look_alikes import CausalLM
from models.decoders import DECODERS
from models.encoders import ENCODERS
from token_bits import Handed
from torch import Tensor, nn

import noisykernels as nk
from noisykernels._engine.plan import Plan
from noisykernels._engine.session import Problem, Session
from noisykernels._engine.shared import SharedEngine
from noisykernels._engine.targets import Activation
from noisykernels._graph.recorder import record_tape
from noisykernels._graph.suffix import noisy
from noisykernels._graph.tape import repeated
from noisykernels._util.inputs import Call
from noisykernels.injection.running import begin

pytestmark = pytest.mark.usefixtures("one_thread")

SEQUENCES, DRAWS = [7, 2, 30, 9], (1, 4)
MODELS = ["GPT-2", "OPT", "GPT-NeoX", "Llama, eager", "Gemma 3", "Llama 4 (experts)", "DeBERTa", "T5"]
NOISES = {
    "add": nk.Noise(add=1.0),
    "mul": nk.Noise(mul=1.0),
    "add_mul": nk.Noise(add=0.5, mul=0.5, order="add_mul"),
    "rms": nk.Noise(add=1.0, relative="rms"),
    "channels": nk.Noise(add=torch.rand(16, generator=torch.Generator().manual_seed(0)).view(1, 1, 1, 16)),
}
UNITS = [("max", dict(sites="*.out")), ("std", dict(sites="*.norm")), ("rms", dict(groups="block", sites="*.mlp.*"))]


def padded(left: int = 0) -> dict[str, Tensor]:
    """Four sequences of five, three, one and five tokens."""
    ids = torch.randint(1, 40, (4, 5), generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(5) < torch.tensor([5, 3, 1, 5]).unsqueeze(1)).long()
    labels = torch.roll(ids, -1, 1).masked_fill(torch.roll(mask, -1, 1) == 0, -100)
    labels[:, -1] = -100
    parts = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    found = {n: nn.functional.pad(t, (left, 0), value=-100 if n == "labels" else 0) for n, t in parts.items()}
    return found | {"position_ids": (found["attention_mask"].cumsum(1) - 1).clamp(min=0)}


def model_of(name: str) -> tuple[nn.Module, Any, str | None]:
    """A look-alike, four rows, which of its tensors is the output."""
    if name == "padded":
        torch.manual_seed(0)
        given = padded(2)
        del given["labels"]
        return Handed(CausalLM()).eval(), given, None
    made = (DECODERS | ENCODERS)[name]
    torch.manual_seed(0)
    return made.build().eval(), made.inputs(4), made.output


@pytest.mark.filterwarnings("ignore:inject. detail")
@pytest.mark.parametrize("name", [*MODELS, "padded"])
def test_noise_at_every_site_is_that_of_whole_passes_to_the_bit(name: str) -> None:
    model, given, output = model_of(name)
    asked = dict(seed=3, rows=nk.TokenRows(64, SEQUENCES), detail="attention", alone=True, metric="kl")
    problem = Problem.of(Call("walk", None, output), model, given, **asked)
    target, count = Activation(nk.Noise(add=1.0)), 0
    with Session("walk", problem) as session, torch.inference_mode():
        inputs, _, ids = session.problem.data
        tape = record_tape(session.model, inputs, session.problem.call)
        engine = SharedEngine(session, tape, Plan(4, 1 << 20, 1 << 20))
        clean = engine.clean(inputs)
        for site in session.sites:
            if site.name not in tape.sites or tape.sites[site.name] in tape.fixed:
                continue
            placement = target.placement(site, 1.0)
            value = repeated(tape, tape.sites[site.name], clean[tape.sites[site.name]], len(DRAWS), 4)
            work = engine._work(site, clean, ids, DRAWS, [(1.0,)], [target])
            with session.placing(placement), session.drawing(ids, DRAWS):
                mode, _, _ = begin(session.model, session.state, *inputs.arguments)
                if isinstance(mode.token_places[site.name], str):
                    with pytest.raises(RuntimeError, match="cannot be told"):
                        target.directions(work, DRAWS)
                    continue
                expected = mode.at(site.name, mode.noise_at(site.name), value)
            table, (mixture,) = target.directions(work, DRAWS)
            assert torch.equal(noisy(value, mixture.of(table), mixture.factor), expected), site.name
            assert not torch.equal(value, expected)
            count += 1
    assert count > 15


def values(study: nk.Study) -> Tensor:
    return torch.tensor([r.value for r in study.records], dtype=torch.float64)


def walked(engine: str, data: Any, **more: Any) -> nk.Study:
    """A walk without a warning, of a model whose rows are padded."""
    asked = dict(noise=nk.Noise(add=1.0), levels=[0.1, 1.0], draws=3, seed=5, metric="nll") | more
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = Handed(CausalLM()).eval()
        return nk.walk(model, data, rows=nk.TokenRows(64, SEQUENCES), compute=nk.Compute(engine=engine), **asked)


@pytest.mark.parametrize("more", [
    {}, dict(groups="block"), dict(groups="all"), dict(detail="attention"),
    dict(noise=nk.WeightNoise(add=1.0, relative="layer"), target="weight", sites="*.mlp.*"),
    *(dict(noise=noise, sites="*.out") for noise in NOISES.values()),
    *(dict(noise=nk.Noise(add=1.0, relative=unit), **where) for unit, where in UNITS),
    *(dict(noise=nk.WeightNoise(add=0.3, relative=u), target="weight", sites="*.out") for u in ("channel", "group:8")),
], ids=[
    "all", "blocks", "together", "attention", "weights", *NOISES, *(f"{u}, {w}" for u, w in UNITS), "channel", "group",
])  # fmt: skip
def test_records_are_those_of_whole_passes(more: dict[str, Any]) -> None:
    study, plain = walked("shared", padded(), **more), walked("plain", padded(), **more)
    torch.testing.assert_close(values(study), values(plain), rtol=2e-6, atol=0)
    assert study.meta.plan["verification"]["differing"] == {} and "why" not in study.meta.plan
    assert len(values(study).unique()) > 2
    torch.testing.assert_close(values(walked("shared", padded(3), **more)), values(plain), rtol=2e-6, atol=0)


@pytest.mark.parametrize("more", [
    dict(at=nk.Ratio(1.2)),
    dict(noise=nk.Noise(add=1.0, relative="rms"), groups="block", metric="perplexity", at=nk.Ratio(1.2)),
], ids=["one", "block, relative"])  # fmt: skip
def test_searches_find_what_whole_passes_find(more: dict[str, Any]) -> None:
    asked = dict(levels=None, draws=None, sites="*.mlp.*", search=nk.Search(rel_ci=0.5)) | more
    study, plain = (walked(engine, padded(), **asked) for engine in ("shared", "plain"))
    found, expected = ({(r.site, r.level, r.draw, r.rows): r.value for r in one.records} for one in (study, plain))
    same = (
        found.keys() & expected.keys()
    )  # a search of whole passes may begin elsewhere, and then looks at other levels
    assert len(same) > 20
    for key in same:
        assert found[key] == pytest.approx(expected[key], rel=2e-6)
    for a, b in zip(study.midpoints(), plain.midpoints(), strict=True):
        assert a.low <= b.level <= a.high
    assert "why" not in study.meta.plan and all(p.status == "ok" for p in study.midpoints())


def test_noise_of_other_tokens_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the engines' comparison is for: ids that are one off at one site."""
    right = SharedEngine._work

    def wrong(self: SharedEngine, site: Any, clean: Any, rows: Tensor, *more: Any) -> Any:
        return right(self, site, clean, rows + ("mlp.0" in site.name), *more)

    monkeypatch.setattr(SharedEngine, "_work", wrong)
    with pytest.raises(UserWarning, match=r"mlp.0:linear#0 .*times what rounding explains"):
        walked("shared", padded())


def test_a_site_whose_tokens_cannot_be_told_is_named() -> None:
    model, ids, _ = model_of("Llama, eager")
    data = ids, torch.roll(ids, -1, 1)
    asked: dict[str, Any] = dict(noise=nk.Noise(add=1.0), levels=[1.0], draws=1, seed=5, metric="nll")
    where = dict(sites=["rotary_emb:matmul#0", "*.gate_proj"], rows=nk.TokenRows(64))
    with pytest.warns(UserWarning, match="rotary_emb:matmul#0"):
        with pytest.raises(RuntimeError, match=r"site 'rotary_emb:matmul#0': the tokens .* cannot be told"):
            nk.walk(model, data, compute=nk.Compute(engine="shared"), **where, **asked)
