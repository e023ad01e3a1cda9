"""The zoo's Llama in transformers: the same logits to the bit, the same tokens, the same walk."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch

import noisykernels as nk
from noisykernels.datasets import BytePairs, tokens
from noisykernels.zoo import Llama, LlamaSizes, save_for_transformers

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.usefixtures("one_thread")

TEXT = (
    "And God said, Let there be light: and there was light.\n\nAnd the evening and the morning were the first day. " * 3
)
SIZES = [
    LlamaSizes(vocabulary=300, width=48, blocks=2, heads=6, shared=2, hidden=80),
    LlamaSizes(vocabulary=300, width=32, blocks=3, heads=4, shared=4, hidden=64, tied=False, theta=500.0, eps=1e-6),
    LlamaSizes(vocabulary=300, width=24, blocks=1, heads=2, shared=1, hidden=40, length=40),
]


@pytest.mark.parametrize("sizes", SIZES, ids=["tied", "apart", "one-head"])
def test_logits_are_equal_to_the_bit(sizes: LlamaSizes, tmp_path: Path) -> None:
    model = Llama(sizes).eval()
    with torch.no_grad():  # as after training: norms are no ones, logits no crumbs
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    save_for_transformers(tmp_path, model)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert isinstance(theirs, transformers.LlamaForCausalLM)
    assert {k: v.shape for k, v in theirs.state_dict().items()} == {k: v.shape for k, v in model.state_dict().items()}
    ids = torch.randint(sizes.vocabulary, (5, 33))
    with torch.inference_mode():
        for length in (1, 2, 17, 33):
            assert torch.equal(theirs(ids[:, :length]).logits, model(ids[:, :length])), length
    Llama(sizes).load_state_dict(theirs.state_dict())  # and back


def test_the_tokenizer_is_the_same(tmp_path: Path) -> None:
    pairs = BytePairs.trained(TEXT, 300)
    save_for_transformers(tmp_path, Llama(SIZES[0]), pairs)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert len(theirs) == len(pairs) and theirs.pad_token_id == pairs.pad_token_id == theirs.eos_token_id
    for text in (TEXT, "  two  spaces\n\n\tand 123 numbers, sign's; é ß 漢字", "", " ", "light"):
        ours = pairs.encode(text)
        assert theirs(text, add_special_tokens=False)["input_ids"] == ours
        assert theirs.decode(ours, clean_up_tokenization_spaces=False) == pairs.decode(ours) == text
    for padded in (False, True):
        ours, other = (tokens([TEXT, "short one"], t, length=16, padded=padded) for t in (pairs, theirs))
        assert all(torch.equal(ours[k], other[k]) for k in (*ours, *other))


def test_the_walk_is_the_same(tmp_path: Path) -> None:
    pairs = BytePairs.trained(TEXT, 300)
    model = Llama(SIZES[0]).eval()
    save_for_transformers(tmp_path, model, pairs)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    data = tokens(TEXT, pairs, length=16)
    asked = dict(noise=nk.Noise(add=1.0), sites="*_proj", metric="perplexity", levels=[0.1, 1.0], draws=2, seed=1)
    ours, other = nk.walk(model, data, **asked), nk.walk(theirs, data, **asked)
    assert [r.site for r in ours.records] == [r.site for r in other.records]
    assert ours.records == other.records


def test_a_folder_is_walked_by_the_command_of_the_zoo_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib").use("agg")
    pairs = BytePairs.trained(TEXT, 300)
    model = Llama(SIZES[0]).eval()
    save_for_transformers(tmp_path / "folder", model, pairs)
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "examples")
    script = importlib.import_module("language_walk")
    monkeypatch.setattr(script, "kjv", lambda split: [TEXT])
    out = tmp_path / "results"
    asked = [f"--model=hf:{tmp_path / 'folder'}", "--windows=3", "--length=16", "--rel-ci=0.5", "--sites=*.1.*_proj"]
    study = script.run(out, *asked)
    assert {"lm.json", "lm.html", "lm.png"} < {path.name for path in out.iterdir()}
    ours = nk.walk(
        model, tokens(TEXT, pairs, length=16).first(3), noise=nk.Noise(add=1.0), metric="perplexity",
        at=nk.Ratio(1.05), seed=0, sites="*.1.*_proj", search=nk.Search(rel_ci=0.5),
    )  # fmt: skip
    assert len({record.site for record in ours.records}) == 7 and study.records == ours.records
    assert script.run(out, *asked).records == ours.records  # once more, from its store
