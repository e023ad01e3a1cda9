"""Results of modules, and of embeddings, in every study: asked for by name, path or type, and equal to a loop."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import noisykernels as nk


class Norm(nn.Module):
    """As written out in language models."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.fc = Norm(), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"states": x + self.fc(self.norm(x))}


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.a, self.b, self.head = nn.Embedding(9, 6), Block(), Block(), nn.Linear(6, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens).mean(1)
        return self.head(self.b(self.a(x)["states"])["states"])


class Branching(Network):
    """One that cannot be recorded."""

    def forward(self, tokens: Tensor) -> Tensor:
        scores: Tensor = super().forward(tokens)
        return scores + float(scores.sum() > 1e9)


TOKENS = torch.randint(9, (90, 5), generator=torch.Generator().manual_seed(1))
LABELS = Network()(TOKENS).argmax(1)
DATA, USUAL = (TOKENS, LABELS), ["a.fc:linear#0", "b.fc:linear#0", "head:linear#0"]
ASKED: dict[str, tuple[Any, list[str]]] = {
    "name": ("a:module#0", ["a:module#0"]),
    "no number": (["b.norm:module", "head"], ["head:linear#0", "b.norm:module#0"]),
    "path": ("a", ["a.fc:linear#0", "a:module#0"]),
    "type": (nn.Embedding, ["embed:module#0"]),
    "types and indices": ([Norm, 2], ["head:linear#0", "a.norm:module#0", "b.norm:module#0"]),
    "pattern": ("*norm:module*", ["a.norm:module#0", "b.norm:module#0"]),
}
GRID: dict[str, Any] = {"noise": nk.Noise(add=1.0), "levels": [0.5, 2.0], "draws": 2, "seed": 3}


def by_hand(model: nn.Module, site: str, level: float, draw: int, metric: Any = None) -> int:
    with nk.inject(model, nk.Noise(add=level), site, example_input=TOKENS[:2]):
        with nk.noise_state(model, seed=3, draws=[draw], rows=torch.arange(len(TOKENS))):
            return int((model(TOKENS).argmax(1) == LABELS).sum())


@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("engine", ["plain", "shared"])
def test_a_walk_is_a_loop_over_injected_models(asked: str, engine: Any) -> None:
    model, (words, names) = Network().eval(), ASKED[asked]
    study = nk.walk(model, DATA, **GRID, sites=words, compute=nk.Compute(engine=engine))
    assert list(dict.fromkeys(r.site for r in study.records)) == names
    assert all(r.correct == by_hand(model, r.site, r.level, r.draw) for r in study.records)
    assert study.meta.sites[: len(USUAL)] == tuple(USUAL)  # whose indices stay what they are
    assert len({r.correct for r in study.records}) > 1 and ("verification" in study.meta.plan) is (engine == "shared")


def test_what_cannot_be_recorded_runs_whole() -> None:
    with pytest.warns(UserWarning, match="every pass runs the whole model: .* turns values into numbers"):
        study = nk.walk(Branching().eval(), DATA, **GRID, sites="a:module#0", compute=nk.Compute(engine="shared"))
    assert study.records == nk.walk(Network().eval(), DATA, **GRID, sites="a:module#0").records


def test_workers_stores_and_searches(tmp_path: Path) -> None:
    model, words = Network().eval(), ["a:module#0", nn.Embedding]
    whole = nk.walk(model, DATA, **GRID, sites=words)
    with ThreadPoolExecutor(1) as executor:
        compute = nk.Compute(executor=executor, engine="shared")
        assert nk.walk(model, DATA, **GRID, sites=words, compute=compute).records == whole.records
    store = tmp_path / "s.db"
    some = nk.walk(model, DATA, **GRID | {"levels": [0.5]}, sites=words[:1], store=store)
    more = nk.walk(model, DATA, **GRID, sites=words, store=store)
    assert more.records == whole.records
    assert {r._replace(site_index=0) for r in some.records} < {r._replace(site_index=0) for r in more.records}
    found = nk.walk(model, DATA, noise=GRID["noise"], seed=3, sites="a:module#0", search=nk.Search(0.3, 40_000))
    assert [m.site for m in found.midpoints()] == ["a:module#0"] and found.midpoints()[0].level > 0


def test_the_other_studies() -> None:
    model, words = Network().eval(), [Norm, "a:module#0"]
    mixed = nk.walk_mixed(model, DATA, ratios=[1.0], **{k: v for k, v in GRID.items() if k != "noise"}, sites=words)
    assert mixed.studies[0].records == nk.walk(model, DATA, **GRID, sites=words).records
    found = nk.chips(model, DATA, noise=nk.Noise(add=2.0), draws=2, seed=3, sites="b:module#0")
    assert (found.values * 90).round().tolist() == [by_hand(model, "b:module#0", 2.0, draw) for draw in range(2)]
    votes = nk.vote(model, DATA, noise=nk.Noise(add=2.0), draws=1, seed=3, sites="b:module#0", kinds="majority")
    assert votes.curves["majority"].values[0] * 90 == pytest.approx(by_hand(model, "b:module#0", 2.0, 0))
    assert "of the multiply-adds" in votes.table()
    devices = nk.walking.PARAMETERS["input-bits"]._asdict()
    study = nk.walking.walk_parameter(model, DATA, values=[2, 4], seed=3, sites=Block, **devices)
    assert {r.site for r in study.records} == {"a.fc:linear#0", "b.fc:linear#0"}
    with pytest.raises(ValueError, match="no site 'a:module#0'"):
        nk.walking.walk_parameter(model, DATA, values=[2, 4], seed=3, sites="a:module#0", **devices)
    with pytest.raises(ValueError, match=r"no site 'LSTM'; the model has 0 a.fc:linear#0"):
        nk.walk(model, DATA, **GRID, sites=nn.LSTM)
