"""Tokens of transformers' models: the same noise padded, packed, in chunks, with every cache, and while generating."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from token_bits import SEQUENCES, Call, bits_of, compared, ways_of
from torch import Tensor

import noisykernels as nk

transformers = pytest.importorskip("transformers")
from models_of_transformers import CAUSAL, caches, causal, name_of_cache  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

NOISE = nk.Noise(add=0.1, mul=0.1)
IDS = torch.randint(3, 50, (3, 6), generator=torch.Generator().manual_seed(1))
BASE = Call(IDS, torch.tensor(SEQUENCES), torch.arange(6).expand(3, -1), {})
KEEP = dict(max_new_tokens=6, do_sample=False, pad_token_id=0, eos_token_id=None)
LOGITS = dict(output_logits=True, return_dict_in_generate=True)


def logits_of(model: Any, ids: Tensor = IDS, sequence: Any = SEQUENCES, draws: Any = None, **more: Any) -> Tensor:
    with nk.noise_state(model, seed=1, rows=nk.TokenRows(32, sequence), draws=draws):
        return torch.stack(model.generate(ids, **KEEP | LOGITS | more).logits, 1)


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", CAUSAL)
def test_bits_at_all_sites(name: str, attention: str) -> None:
    model = causal(name, attention)
    base = bits_of(model, iter([BASE]))
    number = sum(t.numel() for t in base.values())
    for kind, cache in caches(model).items():
        if kind == "quantised" and name != "Llama":
            continue
        for way, calls in ways_of(IDS, cache, name_of_cache(model)).items():
            if kind != "dynamic" and "one by one" not in way:
                continue
            other = bits_of(model, calls())
            assert len(other) == len(base), (kind, way)
            assert compared(base, other) == (number, 0), (kind, way)


@pytest.mark.parametrize("kind", ["dynamic", "static", "quantised"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_bits_of_what_is_cached(attention: str, kind: str) -> None:
    model = causal("Llama", attention)
    base = bits_of(model, iter([BASE]), where="cache:*")
    assert {site for site, _, _ in base} == {f"cache:{what}#{n}" for what in ("key", "value") for n in range(2)}
    assert all(t.numel() == 2 * 4 for t in base.values())
    for way, calls in ways_of(IDS, caches(model)[kind], name_of_cache(model)).items():
        other = bits_of(model, calls(), where="cache:*")
        assert compared(base, other) == (sum(t.numel() for t in base.values()), 0), way


@pytest.mark.parametrize("where", [None, "cache:*"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_generation(attention: str, where: Any) -> None:
    model: Any = causal("Llama", attention)
    padded = torch.cat([torch.zeros(3, 2, dtype=torch.int64), IDS], 1)
    mask = (padded > 0).long()
    clean = torch.stack(model.generate(IDS, **KEEP | LOGITS).logits, 1)
    with nk.inject(model, NOISE, where=where):
        cached = logits_of(model)
        assert (cached - clean).abs().max() > 1e-3
        close(logits_of(model, use_cache=False), cached)
        close(logits_of(model, padded, attention_mask=mask), cached)
        close(logits_of(model, padded, attention_mask=mask, use_cache=False), cached)
        static: dict[str, Any] = dict(cache_implementation="static", disable_compile=True)
        close(logits_of(model, **static), cached)
        close(logits_of(model, padded, attention_mask=mask, **static), cached)
        close(logits_of(model, prefill_chunk_size=4), cached)
        close(logits_of(model, IDS[1:2], SEQUENCES[1:2])[0], cached[1])
        both, third = logits_of(model, IDS.repeat(2, 1), draws=[0, 3]), logits_of(model, draws=[3])
        close(both, torch.cat([cached, third]))
        beams = []
        for use in (True, False):
            with nk.noise_state(model, seed=1, rows=nk.TokenRows(32, SEQUENCES)):
                beams.append(model.generate(IDS, **KEEP, num_beams=3, use_cache=use))
        assert torch.equal(*beams)
        with nk.noise_state(model, seed=1, rows=nk.TokenRows(32, SEQUENCES), draws=[0, 3]):
            of_draws = model.generate(IDS.repeat(2, 1), **KEEP, num_beams=3)
        assert torch.equal(of_draws[:3], beams[0])


def encoders() -> Iterator[Any]:
    bart = dict(d_model=16, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4)
    bart |= dict(encoder_ffn_dim=24, decoder_ffn_dim=24, vocab_size=50, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    yield pytest.param("T5", dict(vocab_size=50, d_model=16, d_kv=4, d_ff=24, num_layers=2, num_heads=4), id="T5")
    yield pytest.param("Bart", bart | dict(max_position_embeddings=64), id="Bart")
    sound = dict(max_source_positions=8, max_target_positions=64, num_mel_bins=4)
    sound |= dict(suppress_tokens=None, begin_suppress_tokens=None)
    yield pytest.param("Whisper", bart | sound, id="Whisper")


@pytest.mark.parametrize("where", [None, "cache:*"])
@pytest.mark.parametrize(("name", "sizes"), encoders())
def test_encoders_are_noisy_while_generating(name: str, sizes: dict[str, Any], where: Any) -> None:
    made = getattr(transformers, f"{name}ForConditionalGeneration")
    torch.manual_seed(0)
    model: Any = made(made.config_class(**sizes, decoder_start_token_id=1)).eval()
    given = torch.randn(3, 4, 16, generator=torch.Generator().manual_seed(2)) if name == "Whisper" else IDS
    with nk.inject(model, NOISE, where=where):
        cached = logits_of(model, given)
        close(logits_of(model, given, use_cache=False), cached)
        close(logits_of(model, given[1:2], SEQUENCES[1:2])[0], cached[1])
        close(logits_of(model, torch.cat([given, given]), draws=[0, 3])[:3], cached)
        if name == "T5":
            padded = torch.nn.functional.pad(IDS, (0, 2))
            close(logits_of(model, padded, attention_mask=(padded > 0).long()), cached)
    if where is None:
        block = "model.encoder" if name != "T5" else "encoder"
        clean = torch.stack(model.generate(given, **KEEP | LOGITS).logits, 1)
        with nk.inject(model, NOISE, where=block):
            assert (logits_of(model, given) - clean).abs().max() > 1e-4


def test_caches_of_other_draws_are_refused() -> None:
    model: Any = causal("Llama")
    with nk.inject(model, NOISE):
        cache = transformers.DynamicCache(config=model.config)
        given = {name_of_cache(model): cache}
        with nk.noise_state(model, seed=1, rows=nk.TokenRows(32, SEQUENCES)):
            model(IDS, **given)
        with nk.noise_state(model, seed=1, rows=nk.TokenRows(32, SEQUENCES), draws=[2]):
            with pytest.raises(RuntimeError, match=r"filled by draws \[0\], and this call has draws \[2\]"):
                model(IDS[:, :1], **given)
        with nk.noise_state(model, seed=1, rows=nk.TokenRows(32, SEQUENCES[:1])):
            with pytest.raises(RuntimeError, match="holds keys of 3 rows, and this call has 1"):
                model(IDS[:1, :1], **given)
