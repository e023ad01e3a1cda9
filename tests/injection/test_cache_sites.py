"""What is cached is noisy when it is written and stays so: a model with a cache of its own that tells of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from token_bits import Call, bits_of, compared, ways_of
from torch import Tensor, nn

import noisykernels as nk

pytestmark = pytest.mark.usefixtures("one_thread")

NOISE = nk.Noise(add=0.3)
IDS = torch.randint(0, 20, (2, 6), generator=torch.Generator().manual_seed(1))
ROWS = nk.TokenRows(16, [4, 7])


class Kept:
    """Keys and values of each layer."""

    def __init__(self) -> None:
        self.layers: list[Any] = []

    def get_seq_length(self) -> int:
        return self.layers[0][0].shape[2] if self.layers else 0

    def update(self, key: Tensor, value: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        key, value = nk.nn.cached(key, value, layer)
        if layer == len(self.layers):
            self.layers.append((key, value))
        else:
            key, value = (torch.cat([old, new], 2) for old, new in zip(self.layers[layer], (key, value), strict=True))
            self.layers[layer] = key, value
        return key, value


class Attending(nn.Module):
    """Two layers of attention that share keys between two heads."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tokens, self.head = nn.Embedding(20, 8), nn.Linear(8, 20)
        self.kv, self.q = (nn.ModuleList(nn.Linear(8, 8) for _ in range(2)) for _ in range(2))

    def forward(self, input_ids: Tensor, past_key_values: Kept | None = None) -> Tensor:
        x, cache = self.tokens(input_ids), Kept() if past_key_values is None else past_key_values
        rows, count = input_ids.shape
        for layer, (kv, q) in enumerate(zip(self.kv, self.q, strict=True)):
            key, value = (t.view(rows, count, 1, 4).transpose(1, 2) for t in kv(x).chunk(2, -1))
            key, value = cache.update(key, value, layer)
            query, held = q(x).view(rows, count, 2, 4).transpose(1, 2), key.shape[2]
            mask = torch.arange(held) <= torch.arange(held - count, held)[:, None]
            y = nn.functional.scaled_dot_product_attention(query, key, value, mask, enable_gqa=True)
            x = x + y.transpose(1, 2).reshape(rows, count, 8)
        logits: Tensor = self.head(x)
        return logits


class Laid(Attending):
    """The same with single tokens in layouts of their own, as models have them while they generate."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.of_heads = how, nn.Linear(4, 4)

    def forward(
        self, input_ids: Tensor, past_key_values: Kept | None = None, position_ids: Any = None, use_cache: bool = False
    ) -> Tensor:
        x, cache = self.tokens(input_ids), Kept() if past_key_values is None else past_key_values
        rows, count = input_ids.shape
        for layer, (kv, q) in enumerate(zip(self.kv, self.q, strict=True)):
            if self.how == "all of the cache":
                key, value = kv(cache.update(x.unsqueeze(1), x.unsqueeze(1), layer)[0]).chunk(2, -1)
            else:
                key, value = cache.update(*kv(x).unsqueeze(1).chunk(2, -1), layer)
            query, held = q(x).view(rows, count, 2, 4).transpose(1, 2), key.shape[2]
            key, value = (t.expand(rows, 2, held, 4) for t in (key, value))
            mask = torch.arange(held) <= torch.arange(held - count, held)[:, None]
            if count == 1 and self.how == "heads for tokens":  # two that share keys
                query, key, value = query.transpose(1, 2), key[:, :1], value[:, :1]
            elif count == 1 and self.how == "no dimension of tokens":
                query, key, value = query.squeeze(2), key[:, 0], value[:, 0]
            y = nn.functional.scaled_dot_product_attention(query, key, value, mask)
            y = y.view(rows, 2, count, 4).transpose(1, 2)
            if self.how == "a layer of heads":
                y = self.of_heads(y.squeeze(1) if count == 1 else y)
            x = x + y.reshape(rows, count, 8)
        logits: Tensor = self.head(x)
        return logits


def noisy(model: nn.Module, ids: Tensor, cache: Any = None, draws: Any = None, rows: Any = ROWS) -> Tensor:
    with nk.noise_state(model, seed=1, rows=rows, draws=draws), torch.no_grad():
        logits: Tensor = model(ids, cache) if cache is not None else model(ids)
        return logits


def test_what_is_cached_is_noisy_once_and_stays() -> None:
    model = Attending().eval()
    clean = model(IDS)
    with nk.inject(model, NOISE, where="cache:*"):
        whole, cache = noisy(model, IDS), Kept()
        parts = [noisy(model, part, cache) for part in (IDS[:, :3], IDS[:, 3:5], IDS[:, 5:])]
        held, kept = [t.clone() for t in cache.layers[0]], Kept()
        noisy(model, IDS, kept)
        alone = noisy(model, IDS[1:, :4], rows=nk.TokenRows(16, [7]))
        draws = noisy(model, IDS, draws=[0, 5])
        fifth = noisy(model, IDS, draws=[5])
    assert (whole - clean).abs().max() > 0.01
    torch.testing.assert_close(torch.cat(parts, 1), whole)
    torch.testing.assert_close(alone[0], whole[1, :4])
    torch.testing.assert_close(draws, torch.cat([whole, fifth]))
    for a, b in zip(held, kept.layers[0], strict=True):
        torch.testing.assert_close(a, b)


def test_values_and_names() -> None:
    model = Attending().eval()
    found = [site.name for site in nk.sites(model, IDS)]
    assert not any(name.startswith("cache") for name in found)  # only where they are asked for
    cache = Kept()
    model(IDS, cache)
    with nk.inject(model, NOISE, where="cache:value#1", example_input=IDS):
        held = Kept()
        noisy(model, IDS, held)
        [site] = [s for s in nk.sites(model, IDS) if s.name == "cache:value#1"]
    for layer, kind in ((0, 0), (0, 1), (1, 0)):
        assert torch.equal(held.layers[layer][kind], cache.layers[layer][kind])
    eps = nk.eps((2, 6, 4), seed=1, site=site.id, rows=nk.TokenRows(16, [4, 7], range(6)))
    torch.testing.assert_close(held.layers[1][1], cache.layers[1][1] + 0.3 * eps.unsqueeze(1))
    for where in (["cache:key", "cache:value"], "cache", ["cache:key#0", "cache:*#1", "cache:value#0"]):
        with nk.inject(model, NOISE, where=where):
            everywhere = noisy(model, IDS)
        with nk.inject(model, {"cache:*": NOISE}):
            assert torch.equal(noisy(model, IDS), everywhere)


def test_rows_of_the_data_set_have_it_too() -> None:
    model = Attending().eval()
    with nk.inject(model, NOISE, where="cache:*"), nk.noise_state(model, seed=1, rows=[4, 7]):
        both = model(IDS)
        with nk.noise_state(model, seed=1, rows=[7]):
            torch.testing.assert_close(model(IDS[1:])[0], both[1])


def test_a_walk_of_what_is_cached() -> None:
    model = Attending().eval()
    head = nn.Sequential(model, nn.Flatten())
    sites = ["cache:key#0", "cache:value#1"]
    study = nk.walk(head, (IDS, torch.tensor([0, 1])), noise=nk.Noise(add=1.0), levels=[0.0, 1.0, 100.0], draws=2,
                    sites=sites, seed=1)  # fmt: skip
    assert {r.site for r in study.records} == set(sites)


@pytest.mark.parametrize(
    "how", ["heads for tokens", "no dimension of tokens", "a layer of heads", "all of the cache", "as ever"]
)
def test_single_tokens_in_layouts_of_their_own(how: str) -> None:
    model, ids = Laid(how), torch.randint(0, 20, (3, 6), generator=torch.Generator().manual_seed(2))
    rows = nk.TokenRows(32, [7, 2, 9])
    base = bits_of(model, iter([Call(ids, torch.tensor([7, 2, 9]), torch.arange(6).expand(3, -1), {})]))
    for way, calls in ways_of(ids, Kept, "past_key_values").items():
        if way in ("chunks of 2 and the rest", "prefill, then one by one"):
            other = bits_of(model, calls())
            assert other.keys() == base.keys()
            assert compared(base, other) == (sum(t.numel() for t in base.values()), 0), way
    cache = Kept()
    with nk.inject(model, NOISE):
        pieces = [noisy(model, part, cache, rows=rows) for part in ids.split([3, 1, 1, 1], 1)]
        torch.testing.assert_close(torch.cat(pieces, 1), noisy(model, ids, rows=rows), rtol=1e-4, atol=1e-5)


BAD = {
    "nothing is cached": (lambda: nk.inject(nn.Linear(2, 2), NOISE, where="cache:*", example_input=torch.ones(1, 2)),
                          "cache"),
    "another number of draws": (lambda: _after(draws=[0, 1]), "holds keys of 2 rows, and this call has 4"),
    "other draws": (lambda: _after(draws=[3]), r"filled by draws \[0\], and this call has draws \[3\]"),
    "other rows": (lambda: _after(ids=IDS[:1], rows=nk.TokenRows(16, [4])), "of 2 rows, and this call has 1"),
}  # fmt: skip


def _after(ids: Tensor = IDS, draws: Any = None, rows: Any = ROWS) -> None:
    model, cache = Attending(), Kept()
    with nk.inject(model, NOISE):
        noisy(model, IDS, cache)
        noisy(model, ids[:, :1], cache, draws, rows)


@pytest.mark.parametrize("name", BAD)
def test_caches_of_others(name: str) -> None:
    call, message = BAD[name]
    with pytest.raises((ValueError, RuntimeError), match=message):
        call()
