"""Text as windows of tokens, each with the tokens that follow: the data of language models."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from noisykernels._util.arguments import check_arguments
from noisykernels._util.checks import shown, whole
from noisykernels.datasets.byte_pairs import BytePairs

__all__ = ["Tokens", "tokens"]

NO_LABEL = -100  # of a position that does not count, as torch's cross-entropy leaves it out


class Tokens(dict[str, Tensor]):
    """Windows of tokens: `input_ids` and `labels`, int64 (windows, length), and `attention_mask` where some are padded.

    A label is the token after the one at its place, -100 where none is. It is a dict, and so one of the forms of data
    that all studies take; a row is a window.
    """

    @property
    def sequence(self) -> Tensor:
        """Number of each window (windows,)."""
        return torch.arange(len(self["input_ids"]))

    @property
    def position(self) -> Tensor:
        """Place of each token in its window (windows, length); -1 where there is none."""
        places = torch.arange(self["input_ids"].shape[1]).expand_as(self["input_ids"])
        return places.where(self["attention_mask"] > 0, -1) if "attention_mask" in self else places

    def first(self, windows: int) -> Tokens:
        """The first windows alone, or all there are."""
        check_arguments(self.first, locals(), windows=whole(1, 2**31))
        return Tokens({name: values[:windows] for name, values in self.items()})


def tokens(
    text: Any,
    tokenizer: Any = "bytes",
    *,
    length: int,
    padded: bool = False,
    column: str = "text",
    vocabulary: int | None = None,
) -> Tokens:
    """Cuts text into windows of so many tokens, each beside the tokens that follow.

    Window i begins at token ``i * length``, and its labels at the token after: every token but the first is foretold
    once. Texts follow each other with the tokenizer's end between them, and what does not fill a window at the very end
    is left out; with ``padded`` each begins a window of its own, and its last one is filled up.

    Args:
        text: a text, a path of a file (a `pathlib.Path`), texts, a table with a column of them, such as a data set of
            Hugging Face; or tokens: a vector of whole numbers, or several.
        tokenizer: ``"bytes"``; a `BytePairs`; a tokenizer of Hugging Face's transformers or tokenizers; or anything
            with a method ``encode`` that gives whole numbers. Not read where `text` is tokens.
        length: tokens of a window.
        padded: texts do not share windows.
        column: of a table.
        vocabulary: how many tokens the model knows; None: it is not checked.

    Returns:
        A dict of `input_ids` and `labels`, and `attention_mask` with ``padded``.

    Raises:
        TypeError: what is no text, and a tokenizer that gives no whole numbers.
        ValueError: an empty text; one that is shorter than a window; a token beyond the vocabulary; ``padded`` with a
            tokenizer that has no token for padding.

    Example:
        >>> data = tokens("to be or not", length=4)
        >>> bytes(data["input_ids"][0].tolist()), bytes(data["labels"][0].tolist()), len(data["labels"])
        (b'to b', b'o be', 2)
    """
    check_arguments(tokens, locals(), length=whole(1, 2**31), vocabulary=whole(1, 2**31))
    texts = _texts(text, column)
    chosen = BytePairs([]) if isinstance(tokenizer, str) and tokenizer == "bytes" else tokenizer
    ids = [_ids(one, chosen) for one in texts]
    if not any(map(len, ids)):
        raise ValueError("tokens: text must hold at least one token, got none")
    if vocabulary is not None:
        low, high = min(int(v.min()) for v in ids if len(v)), max(int(v.max()) for v in ids if len(v))
        if low < 0 or high >= vocabulary:
            raise ValueError(f"tokens: tokens must lie in 0..{vocabulary - 1}, the vocabulary, got {low}..{high}")
    return _apart(ids, chosen, length) if padded else _in_a_row(ids, chosen, length)


def _in_a_row(ids: Sequence[Tensor], tokenizer: Any, length: int) -> Tokens:
    """Windows of all texts, one after the other."""
    end = _special(tokenizer, "end", "eos_token_id")
    between = torch.tensor([] if end is None else [end], dtype=torch.int64)
    stream = torch.cat([part for k, one in enumerate(ids) for part in ((between, one) if k else (one,))])
    windows = (len(stream) - 1) // length
    if windows < 1:
        raise ValueError(f"tokens: length must be less than the tokens of the text, {len(stream)}, got {length}")
    count = windows * length
    return Tokens(input_ids=stream[:count].view(-1, length), labels=stream[1 : count + 1].view(-1, length))


def _apart(ids: Sequence[Tensor], tokenizer: Any, length: int) -> Tokens:
    """Windows of each text."""
    fill = _special(tokenizer, "pad_token_id")
    if fill is None:
        raise ValueError(
            f"tokens: padded=True needs a tokenizer with a pad_token_id, got {shown(tokenizer)} without; tokenizer."
            "pad_token = tokenizer.eos_token gives it one"
        )
    rows, labels, masks = [], [], []
    for one in ids:
        for first in range(0, len(one) - 1, length):  # of one token nothing is foretold
            here, after = one[first : first + length], one[first + 1 : first + length + 1]
            rows.append(_filled(here, length, fill))
            labels.append(_filled(after, length, NO_LABEL))
            masks.append(_filled(torch.ones_like(here), length, 0))
    if not rows:
        raise ValueError("tokens: a text must hold at least two tokens, got one in each")
    return Tokens(input_ids=torch.stack(rows), attention_mask=torch.stack(masks), labels=torch.stack(labels))


def _filled(values: Tensor, length: int, fill: int) -> Tensor:
    return torch.cat([values, values.new_full((length - len(values),), fill)])


def _texts(text: Any, column: str) -> list[Any]:
    """Each text, or the tokens of it."""
    if isinstance(text, os.PathLike):
        return [Path(text).read_text(encoding="utf-8")]
    if isinstance(text, str) or _is_tokens(text):
        return [text]
    names = getattr(text, "column_names", None)
    if isinstance(names, Sequence) and not isinstance(names, str):
        if column not in names:
            raise ValueError(f"tokens: column must be one of {', '.join(map(str, names))}, got {column!r}")
        text = text[column]
    if isinstance(text, bytes | Mapping) or not isinstance(text, Iterable):
        raise TypeError(f"tokens: text must be a text, a path, texts, a table or tokens, got {shown(text)}")
    found = list(text)
    if not found:
        raise ValueError("tokens: text must hold at least one token, got none")
    if wrong := [one for one in found if not isinstance(one, str) and not _is_tokens(one)]:
        raise TypeError(f"tokens: texts must be texts, or vectors of tokens, got {shown(wrong[0])}")
    return found


def _is_tokens(text: Any) -> bool:
    """Whether it is a vector of whole numbers."""
    if isinstance(text, list | tuple) and text and all(type(v) is int for v in text):
        return True
    try:
        found = torch.as_tensor(text) if hasattr(text, "__array__") or isinstance(text, Tensor) else None
    except (TypeError, ValueError):
        return False
    return found is not None and found.dim() == 1 and not found.is_floating_point() and found.dtype != torch.bool


def _ids(text: Any, tokenizer: Any) -> Tensor:
    """The tokens of a text."""
    if not isinstance(text, str):
        return torch.as_tensor(text).to("cpu", torch.int64)
    found = _encoder(tokenizer)(text)
    found = getattr(found, "ids", found)  # as those of tokenizers come
    if not isinstance(found, Sequence) or not all(type(v) is int for v in found):
        raise TypeError(f"tokens: tokenizer must give a list of whole numbers for a text, got {shown(found)}")
    return torch.tensor(found, dtype=torch.int64)


def _encoder(tokenizer: Any) -> Callable[[str], Any]:
    """How it encodes a text without tokens that are not in it."""
    if callable(getattr(tokenizer, "convert_ids_to_tokens", None)):  # one of transformers
        return lambda text: tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    if not callable(getattr(tokenizer, "encode", None)) or isinstance(tokenizer, str | type):
        raise TypeError(f"tokens: tokenizer must be 'bytes' or have a method encode, got {shown(tokenizer)}")
    return tokenizer.encode  # type: ignore[no-any-return]


def _special(tokenizer: Any, *names: str) -> int | None:
    """The first of these tokens that a tokenizer has."""
    found = (getattr(tokenizer, name, None) for name in names)
    return next((token for token in found if type(token) is int), None)
