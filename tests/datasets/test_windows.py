"""Windows of tokens: what each position foretells, every form of text, and what is refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import noisykernels as nk
from noisykernels.datasets import BytePairs, tokens
from noisykernels.zoo import Llama, LlamaSizes

TEXT = "In the beginning God created the heavens and the earth."
PAIRS = BytePairs.trained(TEXT, 270)


class Table:
    """As a data set of Hugging Face looks."""

    column_names = ("title", "text")

    def __getitem__(self, column: str) -> list[str]:
        return {"title": ["a", "b"], "text": [TEXT, "And the earth was without form."]}[column]


def test_each_token_but_the_first_is_foretold_once() -> None:
    data = tokens(TEXT, PAIRS, length=5)
    stream = PAIRS.encode(TEXT)
    count = (len(stream) - 1) // 5 * 5
    assert data["input_ids"].flatten().tolist() == stream[:count]
    assert data["labels"].flatten().tolist() == stream[1 : count + 1]
    assert set(data) == {"input_ids", "labels"} and data["labels"].dtype == torch.int64
    assert data.sequence.tolist() == list(range(count // 5)) and data.position[-1].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("tokens_in_text", [6, 11, 12])
def test_a_window_may_take_all(tokens_in_text: int) -> None:
    data = tokens(torch.arange(tokens_in_text), length=5)
    assert len(data["labels"]) == (tokens_in_text - 1) // 5
    assert int(data["labels"][-1, -1]) == len(data["labels"]) * 5


def test_texts_follow_each_other_with_the_end_between() -> None:
    data = tokens(["abc", "", "de"], length=6)
    assert data["input_ids"].tolist() == [[97, 98, 99, 256, 256, 100]]
    assert data["labels"].tolist() == [[98, 99, 256, 256, 100, 101]]
    alone = SimpleNamespace(encode=lambda text: [*text.encode()])  # a tokenizer without an end
    assert tokens(["abc", "de"], alone, length=4)["labels"].tolist() == [[98, 99, 100, 101]]


def test_padded_texts_have_windows_of_their_own() -> None:
    data = tokens(["abcdef", "g", "hi"], length=3, padded=True)
    assert data["input_ids"].tolist() == [[97, 98, 99], [100, 101, 102], [104, 105, 256]]
    assert data["labels"].tolist() == [[98, 99, 100], [101, 102, -100], [105, -100, -100]]
    assert data["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 1], [1, 1, 0]]
    assert data.position.tolist() == [[0, 1, 2], [0, 1, 2], [0, 1, -1]]
    assert {k: v.tolist() for k, v in data.first(1).items()} == {k: v[:1].tolist() for k, v in data.items()}


FORMS: dict[str, Any] = {
    "vector": torch.tensor(PAIRS.encode(TEXT)),
    "int32": torch.tensor(PAIRS.encode(TEXT), dtype=torch.int32),
    "array": np.array(PAIRS.encode(TEXT)),
    "list": PAIRS.encode(TEXT),
    "texts": [TEXT],
    "vectors": [np.array(PAIRS.encode(TEXT))],
    "iterator": iter([TEXT]),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_mean_the_same(form: str) -> None:
    data, expected = tokens(FORMS[form], PAIRS, length=5), tokens(TEXT, PAIRS, length=5)
    assert all(torch.equal(data[k], expected[k]) for k in expected)


def test_files_and_tables(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    assert torch.equal(tokens(tmp_path / "text.txt", length=5)["labels"], tokens(TEXT, length=5)["labels"])
    both = tokens(Table(), length=5)
    assert torch.equal(both["labels"], tokens(Table()["text"], length=5)["labels"])
    with pytest.raises(ValueError, match="column must be one of title, text, got 'words'"):
        tokens(Table(), length=5, column="words")


def test_tokenizers_of_others() -> None:
    of_tokenizers = SimpleNamespace(encode=lambda text: SimpleNamespace(ids=[*text.encode()]))
    assert torch.equal(tokens(TEXT, of_tokenizers, length=5)["labels"], tokens(TEXT, length=5)["labels"])


NO_PADDING = SimpleNamespace(encode=lambda text: [*text.encode()])
REFUSED: dict[str, tuple[type[Exception], str, dict[str, Any]]] = {
    "empty": (ValueError, "text must hold at least one token, got none", dict(text="")),
    "no texts": (ValueError, "text must hold at least one token, got none", dict(text=[])),
    "empty texts": (ValueError, "text must hold at least one token, got none", dict(text=["", ""])),
    "short": (ValueError, "length must be less than the tokens of the text, 3, got 3", dict(text="abc", length=3)),
    "no length": (ValueError, "length", dict(length=0)),
    "beyond": (ValueError, r"tokens must lie in 0..99, the vocabulary, got 32..118", dict(vocabulary=100)),
    "negative": (ValueError, r"0..99, the vocabulary, got -1..3", dict(text=[1, -1, 3], length=2, vocabulary=100)),
    "no padding": (
        ValueError, "padded=True needs a tokenizer with a pad_token_id", dict(tokenizer=NO_PADDING, padded=True)
    ),
    "one token each": (ValueError, "at least two tokens, got one in each", dict(text=["a", "b"], padded=True)),
    "bytes": (TypeError, "text must be a text, a path, texts, a table or tokens", dict(text=b"abc")),
    "number": (TypeError, "text must be a text", dict(text=5)),
    "dict": (TypeError, "text must be a text", dict(text={"text": [TEXT]})),
    "floats": (TypeError, "texts must be texts, or vectors of tokens", dict(text=[1.5, 2.5])),
    "float tensor": (TypeError, "texts must be texts, or vectors of tokens", dict(text=torch.rand(9))),
    "matrix": (TypeError, "texts must be texts, or vectors of tokens", dict(text=[torch.zeros(3, 3).long()])),
    "name": (TypeError, "tokenizer must be 'bytes' or have a method encode, got 'gpt2'", dict(tokenizer="gpt2")),
    "no tokenizer": (TypeError, "tokenizer must be 'bytes' or have a method encode", dict(tokenizer=None)),
    "words": (TypeError, "must give a list of whole numbers", dict(tokenizer=SimpleNamespace(encode=str.split))),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_refused(what: str) -> None:
    error, message, given = REFUSED[what]
    with pytest.raises(error, match=f"tokens: .*{message}"):
        tokens(**({"text": TEXT, "length": 4} | given))


def test_a_walk_takes_them() -> None:
    torch.manual_seed(0)
    model = Llama(LlamaSizes(vocabulary=270, width=16, blocks=1, heads=2, shared=1, hidden=24))
    asked = dict(noise=nk.Noise(add=1.0), metric="perplexity", levels=[1.0], draws=2, seed=1, sites="*_proj")
    study = nk.walk(model, tokens(TEXT, PAIRS, length=8), **asked)
    assert {r.site.split(":")[0].rpartition(".")[2] for r in study.records} == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"
    }  # fmt: skip
