"""A `Llama` as a folder that Hugging Face's transformers loads: configuration, weights, tokenizer. Needs none of it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from noisykernels._util.arguments import check_arguments
from noisykernels._util.files import replacing
from noisykernels.datasets.byte_pairs import BYTES, WORDS, BytePairs
from noisykernels.zoo.llama import Llama

__all__ = ["save_for_transformers"]

END = "<end>"  # how the token that ends a text is written


def save_for_transformers(
    folder: str | os.PathLike[str], model: Llama, tokenizer: BytePairs | None = None
) -> None:  # fmt: skip
    """Writes what ``AutoModelForCausalLM.from_pretrained(folder)`` loads, and ``AutoTokenizer`` where there is one.

    The model that comes out gives the same logits to the bit: its weights have these keys, its arithmetic this order.

    Args:
        folder: made where it is missing; files of these names in it are replaced.
        model: on any device; written in float32.
        tokenizer: written as a ``tokenizer.json``.

    Example:
        >>> import tempfile
        >>> from noisykernels.zoo import LlamaSizes
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_for_transformers(folder, Llama(LlamaSizes(vocabulary=50, width=16, blocks=1, heads=4, hidden=24)))
        ...     print(sorted(os.listdir(folder)))
        ['config.json', 'model.safetensors']
    """
    check_arguments(save_for_transformers, locals())
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = model.sizes.to_transformers()
    weights = model.state_dict()
    if model.sizes.tied:
        del weights["lm_head.weight"]  # it is the embedding
    if tokenizer is not None:
        config |= {"eos_token_id": tokenizer.end, "pad_token_id": tokenizer.end}
        _write(folder / "tokenizer.json", _tokenizer(tokenizer))
        _write(folder / "tokenizer_config.json",
               {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END, "pad_token": END})  # fmt: skip
    _write(folder / "config.json", config)
    with replacing(folder / "model.safetensors") as file:
        file.write(_safetensors(weights))


def _write(path: Path, content: Mapping[str, Any]) -> None:
    with replacing(path) as file:
        file.write(json.dumps(content, indent=1).encode())


def _safetensors(weights: Mapping[str, Tensor]) -> bytes:
    """The format: length of the header in eight bytes, header, values one after the other."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    values = b""
    for name, weight in weights.items():
        raw = weight.detach().float().cpu().contiguous().numpy().astype("<f4").tobytes()
        header[name] = {
            "dtype": "F32", "shape": list(weight.shape), "data_offsets": [len(values), len(values) + len(raw)],
        }  # fmt: skip
        values += raw
    told = json.dumps(header).encode()
    told += b" " * (-len(told) % 8)
    return len(told).to_bytes(8, "little") + told + values


def _tokenizer(pairs: BytePairs) -> dict[str, Any]:
    """As the package tokenizers writes its own: bytes are letters that can be seen."""
    letters = _letters()
    spelled = ["".join(letters[b] for b in word) for word in pairs.spelled]
    added = dict(single_word=False, lstrip=False, rstrip=False, normalized=False, special=True)
    bytes_alone = dict(type="ByteLevel", add_prefix_space=False, trim_offsets=False, use_regex=False)
    return {
        "version": "1.0",
        "added_tokens": [{"id": pairs.end, "content": END, **added}],
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": WORDS}, "behavior": "Isolated", "invert": False},
                bytes_alone,
            ],
        },
        "decoder": bytes_alone,
        "model": {
            "type": "BPE",
            "vocab": {word: token for token, word in enumerate(spelled)},
            "merges": [[spelled[a], spelled[b]] for a, b in pairs.merges],
        },
    }


def _letters() -> list[str]:
    """The letter of each byte, as GPT-2 has them: itself where it can be seen, else the next one from 256 on."""
    seen = {*range(33, 127), *range(161, 173), *range(174, 256)}
    hidden = iter(range(BYTES, 2 * BYTES))
    return [chr(b if b in seen else next(hidden)) for b in range(BYTES)]
