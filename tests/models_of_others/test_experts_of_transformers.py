"""Mixtures of experts of transformers: the noise of a token inside its experts is that of the token alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from token_bits import SEQUENCES, Call, Values, bits_of, compared, furthest, ways_of

import noisykernels as nk
from noisykernels.injection.site import kind_of

transformers = pytest.importorskip("transformers")
from models_of_transformers import EXPERTS, caches, causal, name_of_cache  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

IDS = torch.randperm(47, generator=torch.Generator().manual_seed(1))[:12].view(3, 4) + 3  # no two are alike
BASE = Call(IDS, torch.tensor(SEQUENCES), torch.arange(4).expand(3, -1), {})
KINDS = {"eager": ("linear", "matmul"), "grouped_mm": ("grouped_mm",), "batched_mm": ("bmm",)}
OF_EXPERTS = "*.experts*"


@pytest.mark.parametrize("experts", KINDS)
@pytest.mark.parametrize("name", EXPERTS)
def test_bits_at_all_sites(name: str, experts: str) -> None:
    if (name, experts) == ("gpt-oss", "eager"):
        pytest.skip("its experts' tokens are not told there: a site whose shape looks like another place is refused")
    model = causal(name, "eager", experts_implementation=experts)
    values: Values = {}
    base = bits_of(model, iter([BASE]), picked=OF_EXPERTS, values=values)
    number = sum(t.numel() for t in base.values())
    inside = {key: t for key, t in values.items() if ".experts" in key[0]}
    blocks = 1 if name == "DeepSeek V3" else 2
    products = [site for site, *_ in base if ".experts" in site and kind_of(site) in KINDS[experts]]
    # of each token, in each block with experts: two projections of two experts, one after the other or at once
    assert len(products) == IDS.numel() * blocks * (4 if experts == "eager" else 2)
    for site in {site for site, *_ in inside}:  # whose values tell them apart
        of_site = torch.stack([t[0] for (other, *_), t in inside.items() if other == site])
        assert torch.pdist(of_site).min() > 1e-3 * of_site.abs().max()
    for way, calls in ways_of(IDS, caches(model)["dynamic"], name_of_cache(model)).items():
        others: Values = {}
        other = bits_of(model, calls(), picked=OF_EXPERTS, values=others)
        assert compared(base, other) == (number, 0), way
        if "packed" not in way:  # there the model, which makes itself a cache, looks at other sequences, too
            assert furthest(inside, others) < 1e-4, way


def logits_of(model: Any, ids: torch.Tensor = IDS, sequence: Any = SEQUENCES, draws: Any = None, **more: Any) -> Any:
    with nk.noise_state(model, seed=1, rows=nk.TokenRows(32, sequence), draws=draws), torch.no_grad():
        asked = dict(max_new_tokens=4, do_sample=False, pad_token_id=0, eos_token_id=None, output_logits=True)
        return torch.stack(model.generate(ids, return_dict_in_generate=True, **asked | more).logits, 1)


@pytest.mark.parametrize("experts", KINDS)
@pytest.mark.parametrize("name", ["Mixtral", "DeepSeek V3", "gpt-oss"])
def test_generation_with_noise_in_experts(name: str, experts: str) -> None:
    if (name, experts) == ("gpt-oss", "eager"):
        pytest.skip("its experts' tokens are not told there: a site whose shape looks like another place is refused")
    model: Any = causal(name, "eager" if name == "gpt-oss" else "sdpa", experts_implementation=experts)
    padded = torch.cat([torch.zeros(3, 2, dtype=torch.int64), IDS], 1)
    asked = dict(max_new_tokens=4, do_sample=False, pad_token_id=0, eos_token_id=None)
    clean = torch.stack(model.generate(IDS, output_logits=True, return_dict_in_generate=True, **asked).logits, 1)
    with nk.inject(model, nk.Noise(add=0.02, mul=0.1), where=OF_EXPERTS):
        cached = logits_of(model)
        assert (cached - clean).abs().max() > 1e-3
        for found, wanted in (
            (logits_of(model, use_cache=False), cached),
            (logits_of(model, padded, attention_mask=(padded > 0).long()), cached),
            (logits_of(model, cache_implementation="static", disable_compile=True), cached),
            (logits_of(model, IDS[1:2], SEQUENCES[1:2])[0], cached[1]),
            (logits_of(model, IDS.repeat(2, 1), draws=[0, 3])[:3], cached),
            (logits_of(model, IDS.repeat(2, 1), draws=[0, 3])[3:], logits_of(model, draws=[3])),
        ):
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
