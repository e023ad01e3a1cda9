"""The noise of each token at each site of a language model, however the tokens come: whole, padded, packed, in pieces
with a cache; and the records of a walk by workers. Printed as a table: ``python tests/helpers/token_bits.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from typing import Any, NamedTuple

import torch
from look_alikes import CausalLM
from torch import Tensor, nn

import noisykernels as nk

__all__ = ["LENGTH", "SEQUENCES", "WAYS", "Bits", "bits_of", "compared", "furthest", "ways_of"]

LENGTH, SEQUENCES = 32, (7, 2, 9)  # of TokenRows; ids of the sequences that all ways hold
Bits = dict[tuple[str, int, int], Tensor]  # (site, sequence, position) -> standardised noise of the token
Values = dict[tuple[str, int, int], list[Tensor]]  # ... -> the clean values that have met this noise


class Call(NamedTuple):
    """One call of a model."""

    ids: Tensor  # (B, T)
    sequence: Tensor  # (B) or (B, T)
    position: Tensor  # (B, T); -1: padding
    more: dict[str, Any]  # arguments


def bits_of(
    model: nn.Module, calls: Iterator[Call], given: bool = False, picked: str = "", values: Values | None = None,
    **asked: Any,
) -> Bits:  # fmt: skip
    """The noise of all tokens of some calls.

    Args:
        given: the positions are told, not found in the arguments.
        picked: pattern of the sites at which the model picks tokens out: which ones these are only the noise tells.
        values: is given the clean values that meet the noise of each token, which tell whether they are that token's
            (padding has the noise of a first token, beside it).
    """
    found: Bits = {}
    now: list[Call] = []

    def collect(x: Tensor, draw: nk.injection.SiteDraw) -> Tensor:
        bits, call = draw.fresh(x, "bits"), now[0]
        if fnmatch(draw.site, picked) or len(bits) > call.ids.numel():  # ... or are those of a cache, too
            ids = draw._key.rows.tolist()
        else:
            sequence = call.sequence.unsqueeze(1) if call.sequence.dim() == 1 else call.sequence
            told = torch.where(call.position < 0, -1, sequence * LENGTH + call.position).expand(call.ids.shape)
            ids = told[:, -(len(bits) // len(call.ids)) :].flatten().tolist()
        for number, of_bits, of_x in zip(ids, bits, x, strict=True):
            key = draw.site, *divmod(number, LENGTH)
            if number >= 0:
                assert key not in found or torch.equal(found[key], of_bits.flatten())
                found[key] = of_bits.flatten()
                if values is not None:
                    values.setdefault(key, []).append(of_x.flatten())
        return x

    with nk.inject(model, collect, **asked), torch.no_grad():
        for call in calls:
            now[:] = [call]
            rows = nk.TokenRows(LENGTH, call.sequence, call.position if given else None)
            with nk.noise_state(model, seed=5, rows=rows):
                model(input_ids=call.ids, **call.more)
    return found


def furthest(a: Values, b: Values) -> float:
    """How far the values of two ways that meet the same noise lie apart, relative to the largest of the site."""
    size: dict[str, float] = {}
    for (site, *_), (t, *_) in a.items():
        size[site] = max(size.get(site, 0.0), float(t.abs().max()))
    apart = [min(float((a[key][0] - t).abs().max()) for t in b[key]) / size[key[0]] for key in a]
    return max(apart)


def compared(a: Bits, b: Bits) -> tuple[int, int]:
    """How many values two ways both have, and how many of them differ."""
    both = a.keys() & b.keys()
    return sum(a[k].numel() for k in both), sum(int((a[k] != b[k]).sum()) for k in both)


def ways_of(tokens: Tensor, cache: Callable[[], Any] | None, name: str) -> dict[str, Callable[[], Iterator[Call]]]:
    """Ways in which the tokens (3, T) of the three sequences may come.

    Args:
        cache: makes an empty one; None: the model hands in and out what it returns.
        name: what the model calls its cache.
    """
    count, every = tokens.shape[1], torch.tensor(SEQUENCES)
    places = torch.arange(count).expand(len(tokens), -1)

    def padded(left: int, right: int) -> Iterator[Call]:
        def around(t: Tensor, value: int) -> Tensor:
            return nn.functional.pad(t, (left, right), value=value)

        mask = around(torch.ones_like(tokens), 0)
        yield Call(around(tokens, 0), every, around(places, -1), {"attention_mask": mask})

    def split() -> Iterator[Call]:
        for rows in ([2], [1, 0]):
            yield Call(tokens[rows], every[rows], places[rows], {})

    def packed() -> Iterator[Call]:
        sequence = every.repeat_interleave(count).unsqueeze(0)
        position = places.reshape(1, -1)
        yield Call(tokens.reshape(1, -1), sequence, position, {"position_ids": position})

    def pieces(*sizes: int) -> Iterator[Call]:
        held, start = (None if cache is None else cache()), 0
        for size in sizes:
            part = slice(start, start + size)
            more: dict[str, Any] = {name: held, "use_cache": True, "position_ids": places[:, part]}
            call = Call(tokens[:, part], every, places[:, part], more)
            yield call
            start += size

    return {
        "padded on the left": lambda: padded(3, 0),
        "padded on the right": lambda: padded(0, 2),
        "another batch": split,
        "packed into one row": packed,
        "chunks of 2 and the rest": lambda: pieces(2, count - 2),
        "prefill, then one by one": lambda: pieces(count - 3, 1, 1, 1),
    }


class Handed(nn.Module):
    """A model that hands its cache out, as one that keeps it in a list that it is given."""

    def __init__(self, model: CausalLM) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: list[Any] | None = None,
        use_cache: bool = False,
    ) -> Tensor:
        past = past_key_values or None
        if position_ids is None and attention_mask is not None:
            position_ids = (attention_mask.cumsum(1) - 1).clamp(min=0)
        out = self.model(input_ids, attention_mask, position_ids, past, use_cache=use_cache)
        if past_key_values is not None:
            past_key_values[:] = out["past_key_values"]
        logits: Tensor = out["logits"]
        return logits


def look_alike() -> tuple[nn.Module, Tensor, Any]:
    """A model, tokens and what makes a cache."""
    return Handed(CausalLM()), torch.randint(0, 40, (3, 6), generator=torch.Generator().manual_seed(1)), list


WAYS = tuple(ways_of(torch.zeros(3, 6, dtype=torch.int64), list, ""))


def by_workers(workers: int) -> tuple[int, int]:
    """How many records a walk by workers has, and how many of them are not those of one without."""
    model, ids, _ = look_alike()
    found = []
    for executor in (None, workers):
        study = nk.walk(
            model, {"input_ids": ids, "labels": ids.roll(-1, 1)}, noise=nk.Noise(add=1.0), levels=[0.1, 1.0], draws=2,
            seed=5, metric="nll", rows=nk.TokenRows(LENGTH, SEQUENCES),
            compute=nk.Compute(executor=executor, batch_rows=1, engine="shared"),
        )  # fmt: skip
        found.append(study.records)
    return len(found[0]), sum(a != b for a, b in zip(*found, strict=True))


def table() -> list[str]:
    """The table of the look-alike, as lines of Markdown."""
    model, tokens, cache = look_alike()
    whole = Call(tokens, torch.tensor(SEQUENCES), torch.arange(6).expand(3, -1), {})
    base = bits_of(model, iter([whole]))
    lines = ["| the same tokens | values compared | differences |", "|---|---:|---:|"]
    for way, calls in ways_of(tokens, cache, "past_key_values").items():
        number, other = compared(base, bits_of(model, calls()))
        lines.append(f"| {way} | {number:,} | {other} |")
    for word, workers in (("two", 2), ("three", 3)):
        number, other = by_workers(workers)
        lines.append(f"| a walk by {word} workers: its records | {number:,} | {other} |")
    return lines


if __name__ == "__main__":
    print("\n".join(table()))
