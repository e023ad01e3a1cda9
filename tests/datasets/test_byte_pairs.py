"""Byte pairs: every text comes back, merges are those that a plain loop finds."""

from __future__ import annotations

import re
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from noisykernels.datasets import BytePairs
from noisykernels.datasets.byte_pairs import WORDS

TEXT = "the theme of the thesis is that these themes are then the others' themes; and 1,234 of 12,345 more: thee, thou."
PAIRS = BytePairs.trained(TEXT, 290)


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_every_text_comes_back(text: str) -> None:
    assert "".join(re.findall(WORDS, text)) == text
    for pairs in (PAIRS, BytePairs([])):
        assert pairs.decode(pairs.encode(text)) == text


def test_merges_are_those_of_a_plain_loop() -> None:
    words = [list(w.encode()) for w in re.findall(WORDS, TEXT)]
    for k, merge in enumerate(PAIRS.merges):
        count = Counter(pair for word in words for pair in pairwise(word))
        assert merge == min(count, key=lambda pair: (-count[pair], pair))
        for i, word in enumerate(words):
            j = 0
            while j < len(word) - 1:
                if (word[j], word[j + 1]) == merge:
                    word[j : j + 2] = [256 + k]
                j += 1
            words[i] = word
    assert [token for word in words for token in word] == PAIRS.encode(TEXT)


def test_sizes() -> None:
    assert len(BytePairs([])) == 257 and BytePairs([]).end == 256 == BytePairs([]).pad_token_id
    assert len(PAIRS) == 290 and PAIRS.end == 289
    assert len(BytePairs.trained("ab ab", 1000)) == 257 + 2  # "ab", " ab": nothing is left to merge
    assert BytePairs.trained("", 300).merges == []


def test_the_end_is_no_text() -> None:
    assert PAIRS.decode([*PAIRS.encode("the"), PAIRS.end]) == "the"
    assert PAIRS.decode([0xC3]) == "\N{REPLACEMENT CHARACTER}"


@pytest.mark.parametrize("size", [256, 0, -1])
def test_too_few_tokens(size: int) -> None:
    with pytest.raises(ValueError, match="size"):
        BytePairs.trained("text", size)


@pytest.mark.parametrize("merges", [[(256, 97)], [(97, 98), (257, 1)], [(-1, 97)]])
def test_merges_of_later_tokens(merges: list[tuple[int, int]]) -> None:
    with pytest.raises(ValueError, match="merges must be of earlier tokens"):
        BytePairs(merges)
