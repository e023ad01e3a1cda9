"""Byte pair encoding: text as numbers, from bytes that are merged into longer ones where they often meet.

Words, with the space before them, are encoded each for itself. What a text cannot hold is the last token alone, which
ends a text.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from heapq import heapify, heappop, heappush
from itertools import pairwise

from noisykernels._util.arguments import check_arguments
from noisykernels._util.checks import whole

__all__ = ["BytePairs"]

#: A word and the space before it, a number, signs, or white space.
WORDS = r" ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]+|\s+"
BYTES = 256

Pair = tuple[int, int]


class BytePairs:
    """Tokens 0..255 are bytes, token 256 + k the k-th pair that is merged; the last one ends a text.

    Args:
        merges: pairs of earlier tokens, in order.

    Raises:
        ValueError: a pair of tokens that are not earlier ones.

    Example:
        >>> pairs = BytePairs.trained("the theme of the thesis", 260)
        >>> pairs.encode("the theme"), pairs.decode(pairs.encode("the theme"))
        ([257, 258, 109, 101], 'the theme')
    """

    def __init__(self, merges: Sequence[Pair]) -> None:
        check_arguments(BytePairs.__init__, locals())
        self.merges = [(int(a), int(b)) for a, b in merges]
        for k, pair in enumerate(self.merges):
            if not all(0 <= token < BYTES + k for token in pair):
                raise ValueError(f"BytePairs: merges must be of earlier tokens, below {BYTES + k}, got {pair} at {k}")
        self.rank = {pair: BYTES + k for k, pair in enumerate(self.merges)}
        self.spelled = [bytes([b]) for b in range(BYTES)]
        for a, b in self.merges:
            self.spelled.append(self.spelled[a] + self.spelled[b])
        self.word = lru_cache(maxsize=1 << 16)(self._word)

    @property
    def end(self) -> int:
        """The token that ends a text, and fills up shorter ones."""
        return len(self.spelled)

    @property
    def pad_token_id(self) -> int:
        """The same, by the name that tokenizers have for it."""
        return self.end

    def __len__(self) -> int:
        return len(self.spelled) + 1

    @classmethod
    def trained(cls, text: str, size: int) -> BytePairs:
        """Merges the pair that is most frequent, the smallest of several, until there are so many tokens.

        Args:
            text: to learn from.
            size: number of tokens, at least 257; there may be fewer where words are whole.
        """
        check_arguments(cls.trained, locals(), size=whole(BYTES + 1, 1 << 20))
        count = Counter(re.findall(WORDS, text))
        words = [list(word.encode()) for word in count]
        often = list(count.values())
        pairs: Counter[Pair] = Counter()
        holds: dict[Pair, set[int]] = {}  # words in which a pair was met
        for k, word in enumerate(words):
            for pair in pairwise(word):
                pairs[pair] += often[k]
                holds.setdefault(pair, set()).add(k)
        merges: list[Pair] = []
        queue = [(-n, *pair) for pair, n in pairs.items()]
        heapify(queue)
        while len(merges) < size - BYTES - 1 and queue:
            number, *found = heappop(queue)
            best = (found[0], found[1])
            if number != -pairs[best]:  # there is a later entry
                continue
            merges.append(best)
            changed = {best}
            for k in sorted(holds.pop(best)):
                before, after = words[k], _merged(words[k], best, BYTES + len(merges) - 1)
                for pair in pairwise(before):
                    pairs[pair] -= often[k]
                    changed.add(pair)
                for pair in pairwise(after):
                    pairs[pair] += often[k]
                    changed.add(pair)
                    holds.setdefault(pair, set()).add(k)
                words[k] = after
            for pair in changed:
                if pairs[pair] > 0:
                    heappush(queue, (-pairs[pair], *pair))
        return cls(merges)

    def encode(self, text: str) -> list[int]:
        """The tokens of a text."""
        check_arguments(self.encode, locals())
        return [token for word in re.findall(WORDS, text) for token in self.word(word)]

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens; ends are left out, bytes that are no text are marked."""
        check_arguments(self.decode, locals(), tokens=whole(0, self.end))
        return b"".join(self.spelled[t] for t in tokens if t != self.end).decode(errors="replace")

    def _word(self, word: str) -> tuple[int, ...]:
        tokens = list(word.encode())
        while len(tokens) > 1:
            first = min((self.rank.get(pair, len(self)), pair) for pair in pairwise(tokens))
            if first[0] == len(self):
                break
            tokens = _merged(tokens, first[1], first[0])
        return tuple(tokens)


def _merged(tokens: list[int], pair: Pair, token: int) -> list[int]:
    """With each pair as one token, from the left."""
    found: list[int] = []
    k = 0
    while k < len(tokens):
        if k + 1 < len(tokens) and (tokens[k], tokens[k + 1]) == pair:
            found.append(token)
            k += 2
        else:
            found.append(tokens[k])
            k += 1
    return found
