"""The Llama of the zoo against formulas written out, its training and its checkpoint."""

from __future__ import annotations

import json
import math
import struct
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from noisykernels.datasets import BytePairs
from noisykernels.zoo import CheckpointError, Llama, LlamaSizes, language, save_for_transformers

SIZES = LlamaSizes(vocabulary=262, width=16, blocks=2, heads=4, shared=2, hidden=24)
TEXT = ["In the beginning was the word", "and the word was with those who read it", "and the word was read"]
TINY = dict(steps=3, length=8)

pytestmark = pytest.mark.usefixtures("one_thread")


def written_out(model: Llama, ids: Tensor) -> Tensor:
    """Logits of one sequence in double precision, token by token and head by head."""
    weights = {k: v.double() for k, v in model.state_dict().items()}
    sizes, each = model.sizes, model.sizes.width // model.sizes.heads

    def norm(x: Tensor, name: str) -> Tensor:
        return weights[f"{name}.weight"] * x / (x.pow(2).mean() + sizes.eps).sqrt()

    def turned(x: Tensor, position: int) -> Tensor:
        found = x.clone()
        for i in range(each // 2):
            angle = position * sizes.theta ** (-2 * i / each)
            a, b = x[i], x[i + each // 2]
            found[i] = a * math.cos(angle) - b * math.sin(angle)
            found[i + each // 2] = b * math.cos(angle) + a * math.sin(angle)
        return found

    stream = [weights["model.embed_tokens.weight"][t] for t in ids]
    for k in range(sizes.blocks):
        at = f"model.layers.{k}"
        seen = [norm(x, f"{at}.input_layernorm") for x in stream]
        q, key, v = ([weights[f"{at}.self_attn.{n}_proj.weight"] @ x for x in seen] for n in "qkv")
        for t in range(len(stream)):
            heads = []
            for h in range(sizes.heads):
                mine = slice(h * each, (h + 1) * each)
                g = h // (sizes.heads // sizes.shared)
                theirs = slice(g * each, (g + 1) * each)
                scores = torch.stack(
                    [turned(q[t][mine], t) @ turned(key[s][theirs], s) / each**0.5 for s in range(t + 1)]
                )
                heads.append(sum(p * v[s][theirs] for s, p in enumerate(scores.softmax(0))))
            stream[t] = stream[t] + weights[f"{at}.self_attn.o_proj.weight"] @ torch.cat(heads)
        for t, x in enumerate(stream):
            h = norm(x, f"{at}.post_attention_layernorm")
            gate, up = (weights[f"{at}.mlp.{n}_proj.weight"] @ h for n in ("gate", "up"))
            stream[t] = x + weights[f"{at}.mlp.down_proj.weight"] @ (gate * gate.sigmoid() * up)
    return torch.stack([weights["lm_head.weight"] @ norm(x, "model.norm") for x in stream])


@pytest.mark.parametrize("sizes", [SIZES, replace(SIZES, shared=4, tied=False), replace(SIZES, shared=1, theta=50.0)])
def test_logits_are_those_of_the_formulas(sizes: LlamaSizes) -> None:
    model = Llama(sizes)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
        ids = torch.randint(262, (2, 7))
        for row, logits in zip(ids, model(ids), strict=True):
            torch.testing.assert_close(logits.double(), written_out(model, row), rtol=1e-4, atol=1e-4)


def test_the_head_is_the_embedding() -> None:
    model = Llama(SIZES)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert Llama(replace(SIZES, tied=False)).lm_head.weight is not model.model.embed_tokens.weight
    assert 3e6 < sum(p.numel() for p in Llama().parameters()) < 4e6  # some million


def test_a_trained_model_is_kept(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    losses: list[float] = []
    model, pairs = language(SIZES, TEXT, cache=tmp_path, on_step=lambda step, loss: losses.append(loss), **TINY)
    assert torch.equal(before, torch.get_rng_state()) and not model.training and len(losses) == 3
    again, kept = language(SIZES, TEXT, cache=tmp_path, on_step=lambda *_: pytest.fail("trained again"), **TINY)
    assert kept.merges == pairs.merges == BytePairs.trained("\n".join(TEXT), 262).merges
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    other, _ = language(SIZES, TEXT, cache=tmp_path / "other", **TINY)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    for more in (dict(seed=1), dict(lr=1e-3), dict(steps=2), dict(length=4), dict(text=TEXT[:2])):
        language(SIZES, **(dict(text=TEXT, cache=tmp_path) | TINY | more))
    assert len(list(tmp_path.glob("*.pt"))) == 6


def test_a_training_that_was_stopped_goes_on(tmp_path: Path) -> None:
    sizes, asked = LlamaSizes(vocabulary=260, width=8, blocks=1, heads=2, shared=1, hidden=8), dict(steps=130, length=8)
    whole, _ = language(sizes, TEXT, cache=tmp_path / "whole", **asked)

    def stop(step: int, loss: float) -> None:
        if step == 110:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        language(sizes, TEXT, cache=tmp_path / "parts", on_step=stop, **asked)
    seen: list[int] = []
    model, _ = language(sizes, TEXT, cache=tmp_path / "parts", on_step=lambda step, _: seen.append(step), **asked)
    assert seen == [*range(101, 131)]
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), whole.parameters(), strict=True))
    files = [list((tmp_path / name).glob("*.pt")) for name in ("whole", "parts")]
    assert [len(some) for some in files] == [1, 1] and files[0][0].read_bytes() == files[1][0].read_bytes()


def test_training_learns(tmp_path: Path) -> None:
    losses: list[float] = []
    language(SIZES, TEXT, cache=tmp_path, steps=60, length=8, lr=2e-2, on_step=lambda _, v: losses.append(v))
    assert losses[0] > 5.4 and sum(losses[-5:]) / 5 < 3.5


def test_fewer_byte_pairs_than_asked_for_are_kept(tmp_path: Path) -> None:
    sizes = replace(SIZES, vocabulary=400)
    made = [language(sizes, TEXT, cache=tmp_path, **TINY) for _ in range(2)]
    assert len(made[0].tokenizer) < 400 and made[0].tokenizer.merges == made[1].tokenizer.merges


def test_a_damaged_checkpoint_is_left_alone(tmp_path: Path) -> None:
    language(SIZES, TEXT, cache=tmp_path, **TINY)
    (path,) = tmp_path.glob("*.pt")
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(CheckpointError, match="not a readable checkpoint"):
        language(SIZES, TEXT, cache=tmp_path, **TINY)
    assert path.exists()


@pytest.mark.parametrize("tied", [True, False])
def test_the_folder_for_transformers(tmp_path: Path, tied: bool) -> None:
    model = Llama(replace(SIZES, tied=tied))
    pairs = BytePairs.trained("\n".join(TEXT), 262)
    save_for_transformers(tmp_path / "a" / "b", model, pairs)
    save_for_transformers(tmp_path / "a" / "b", model, pairs)  # over what is there
    raw = (tmp_path / "a" / "b" / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header, values = json.loads(raw[8 : 8 + length]), raw[8 + length :]
    assert length % 8 == 0 and header.pop("__metadata__") == {"format": "pt"}
    assert ("lm_head.weight" in header) != tied
    end = 0
    for name, told in header.items():
        low, end_here = told["data_offsets"]
        assert low == end
        weight = torch.frombuffer(bytearray(values[low:end_here]), dtype=torch.float32).view(told["shape"])
        assert torch.equal(weight, model.state_dict()[name])
        end = end_here
    assert end == len(values)
    config = json.loads((tmp_path / "a" / "b" / "config.json").read_text())
    assert config["num_key_value_heads"] == 2 and config["tie_word_embeddings"] == tied
    assert config["pad_token_id"] == pairs.pad_token_id


def test_a_vocabulary_holds_all_bytes_and_an_end(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="language: sizes must have a vocabulary of 257 or more, got 256"):
        language(replace(SIZES, vocabulary=256), TEXT, cache=tmp_path, **TINY)
    assert len(language(replace(SIZES, vocabulary=257), TEXT, cache=tmp_path, **TINY).tokenizer) == 257


BAD = [
    (dict(width=18), "width must be an even multiple of heads"),
    (dict(width=12), "width must be an even multiple of heads"),
    (dict(shared=3), "heads must be a multiple of shared"),
    (dict(blocks=0), "blocks must be"),
    (dict(eps=0.0), "eps must be"),
]


@pytest.mark.parametrize(("wrong", "message"), BAD)
def test_sizes_that_cannot_be(wrong: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=f"LlamaSizes: {message}"):
        replace(SIZES, **wrong)
