"""Rows that are tokens: the noise of a token is that of its sequence and position, however it comes to the model."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from look_alikes import CausalLM
from token_bits import LENGTH, SEQUENCES, WAYS, Call, bits_of, compared, look_alike, table, ways_of
from torch import Tensor, nn

import noisykernels as nk

pytestmark = pytest.mark.usefixtures("one_thread")

NOISE = nk.Noise(add=0.05, mul=0.1)
IDS = torch.randint(0, 40, (3, 6), generator=torch.Generator().manual_seed(1))
ROOT = Path(__file__).parents[2]


def rows(*sequence: int, position: Any = None) -> nk.TokenRows:
    return nk.TokenRows(LENGTH, sequence or SEQUENCES, position)


# ------------------------------------------------------------------------------------------------------- equal bits


def test_golden_bits() -> None:
    model = nn.Sequential(nn.Embedding(4, 3), nn.Linear(3, 2))
    nn.init.zeros_(model[1].weight), nn.init.zeros_(model[1].bias)  # noise alone comes out
    with nk.inject(model, nk.Noise(add=1.0), where="1:linear#0"), nk.noise_state(model, seed=3, rows=rows()):
        out = model(torch.zeros(3, 6, dtype=torch.int64))
    [site] = [
        s for s in nk.sites(nk.inject(model, None).model, torch.zeros(3, 6, dtype=torch.int64)) if s.name != "input"
    ]
    assert torch.equal(out, nk.eps((3, 6, 2), seed=3, site=site.id, rows=nk.TokenRows(LENGTH, SEQUENCES, range(6))))
    assert out[1, 4].tolist() == [1.3215950727462769, -2.4028737545013428]


@pytest.mark.parametrize("way", WAYS)
def test_bits_do_not_depend_on_how_tokens_come(way: str) -> None:
    model, tokens, cache = look_alike()
    base = bits_of(model, iter([Call(tokens, torch.tensor(SEQUENCES), torch.arange(6).expand(3, -1), {})]))
    other = bits_of(model, ways_of(tokens, cache, "past_key_values")[way]())
    assert other.keys() <= base.keys() and len(other) == len(base)
    assert compared(base, other) == (sum(t.numel() for t in base.values()), 0)
    for site in {site for site, _, _ in base}:  # and no two tokens have the same
        bits = torch.stack([t[:4] if t.numel() >= 4 else t for (s, _, _), t in base.items() if s == site])
        assert len(bits.unique(dim=0)) == len(bits)


def test_given_positions_are_those_of_the_arguments() -> None:
    model, tokens, cache = look_alike()
    for way in ("padded on the left", "prefill, then one by one"):
        calls = ways_of(tokens, cache, "past_key_values")[way]
        told, found = bits_of(model, calls(), given=True), bits_of(model, calls())
        assert told.keys() == found.keys() and compared(told, found)[1] == 0


def test_the_table_of_the_guide_is_what_comes_out() -> None:
    assert "\n".join(table()) in (ROOT / "docs/guides/tokens.md").read_text()


@pytest.mark.parametrize("detail", [None, "attention"])
def test_values_are_those_of_the_tokens_alone(detail: Any) -> None:
    model = CausalLM().eval()
    mask = torch.ones(3, 9, dtype=torch.int64)
    mask[:, :3] = 0
    padded = torch.cat([torch.zeros(3, 3, dtype=torch.int64), IDS], 1)
    example = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
    clean = model(IDS)["logits"]
    with nk.inject(model, NOISE, detail=detail, example_input=example), torch.no_grad():
        with nk.noise_state(model, seed=1, rows=rows()):
            whole = model(IDS)["logits"]
            places = (mask.cumsum(1) - 1).clamp(min=0)
            of_padded = model(input_ids=padded, attention_mask=mask, position_ids=places)["logits"][:, 3:]
            first = model(IDS[:, :4], use_cache=True)
            then = model(
                IDS[:, 4:], torch.ones_like(IDS), torch.tensor([[4, 5]]), first["past_key_values"], use_cache=True
            )
        with nk.noise_state(model, seed=1, rows=rows(2)):
            alone = model(IDS[1:2, :5])["logits"]
        with nk.noise_state(model, seed=1, rows=rows(), draws=[0, 6]):
            draws = model(input_ids=IDS)["logits"]
        with nk.noise_state(model, seed=1, rows=rows(), draws=[6]):
            sixth = model(input_ids=IDS)["logits"]
    assert (whole - clean).abs().max() > 0.1
    for found, wanted in (
        (of_padded, whole), (torch.cat([first["logits"], then["logits"]], 1), whole), (alone[0], whole[1, :5]),
        (draws, torch.cat([whole, sixth])),
    ):  # fmt: skip
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_generation_with_and_without_a_cache() -> None:
    model = CausalLM().eval()
    with nk.inject(model, NOISE):
        with nk.noise_state(model, seed=1, rows=rows()):
            cached, uncached = model.generate(IDS, 8), model.generate(IDS, 8, use_cache=False)
        with nk.noise_state(model, seed=2, rows=rows()):
            other = model.generate(IDS, 8)
        with nk.noise_state(model, seed=1, rows=rows(), draws=[0, 3]):  # of one draw each, folded by the caller
            both = model.generate(torch.cat([IDS, IDS]), 8)
        with nk.noise_state(model, seed=1, rows=rows(), draws=[3]):
            third = model.generate(IDS, 8)
        with nk.noise_state(model, seed=1, rows=rows()):
            beams = model.generate(IDS.repeat_interleave(2, 0), 8)
    assert torch.equal(cached, uncached) and not torch.equal(cached, other)
    assert torch.equal(both, torch.cat([cached, third]))
    assert torch.equal(beams, cached.repeat_interleave(2, 0))


# ------------------------------------------------------------------------------------------------- layouts of values


class Layouts(nn.Module):
    """Tokens laid out in every way that people write."""

    def __init__(self, how: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.how, self.a, self.b = how, nn.Linear(4, 6), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        rows, count, _ = x.shape
        y = self.a(x)
        if self.how == "folded":
            return self.a(x.reshape(-1, 4)).view(rows, count, 6)
        if self.how == "length first":
            return self.a(x.transpose(0, 1)).transpose(0, 1)
        heads = y.view(rows, count, 2, 3).transpose(1, 2)
        if self.how == "heads":
            return self.b(heads).transpose(1, 2).reshape(rows, count, 6)
        if self.how == "heads in the batch":
            return self.b(heads.reshape(-1, count, 3)).view(rows, 2, count, 3).transpose(1, 2).reshape(rows, count, 6)
        if self.how == "heads outside":
            folded = heads.transpose(0, 1).reshape(-1, count, 3)
            return self.b(folded).view(2, rows, count, 3).permute(1, 2, 0, 3).reshape(rows, count, 6)
        if self.how == "channels":
            return torch.relu(y.transpose(1, 2)).transpose(1, 2)
        raise AssertionError(self.how)


SITE = {"folded": "a:linear#1", "length first": "a:linear#1", "channels": ":relu#0"}


@pytest.mark.parametrize("how", ["folded", "length first", "heads", "heads in the batch", "heads outside", "channels"])
@pytest.mark.parametrize("noise", [nk.Noise(add=1.0, mul=0.5), lambda x, draw: x + draw.fresh(x, "mine")])
def test_layouts(how: str, noise: Any) -> None:
    """Elements are counted head by head, whatever the layout; what is alone has the noise that it has among others."""
    model = Layouts(how).double()
    x = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(2)).double()
    site = SITE.get(how, "b:linear#0")
    with nk.inject(model, noise, where=site):
        with nk.noise_state(model, seed=1, rows=rows(), draws=[0, 2]):
            every = model(x)
        with nk.noise_state(model, seed=1, rows=rows(2, position=[3]), draws=[2]):
            alone = model(x[1:2, 3:4])
    torch.testing.assert_close(alone[0, 0], every[4, 3])
    if isinstance(noise, nk.Noise) and how.startswith("heads"):
        clean = model(x)
        with nk.inject(model, None):
            [number] = [s.id for s in nk.sites(model, x) if s.name == site]
        ids = rows(position=range(5)).ids
        eps, times = (nk.eps((3, 5, 6), seed=1, site=number, operand=o, rows=ids).double() for o in ("add", "mul"))
        torch.testing.assert_close(every[:3], clean * (1 + 0.5 * times) + eps, rtol=1e-5, atol=1e-6)


def test_hardware_draws_by_token() -> None:
    model = CausalLM().eval()
    hardware = [nk.WeightNoise(add=0.05), nk.InputNoise(add=0.1), nk.MacNoise(read=0.05)]
    with nk.inject(model, None, hardware={nn.Linear: hardware, nn.Embedding: [nk.WeightNoise(add=0.05)]}):
        with nk.noise_state(model, seed=1, rows=rows()):
            whole = model(IDS)["logits"]
            first = model(IDS[:, :5], use_cache=True)["past_key_values"]
            last = model(IDS[:, 5:], None, torch.tensor([[5]]), first, use_cache=True)["logits"]
        with nk.noise_state(model, seed=1, rows=rows(9)):
            alone = model(IDS[2:, :4])["logits"]
    with nk.inject(model, None, hardware={"head": hardware, "tokens": [nk.WeightNoise(add=0.05)]}):
        with nk.noise_state(model, seed=1, rows=rows(), draws=[0, 1]):
            draws = model(input_ids=IDS)["logits"]
        with nk.noise_state(model, seed=1, rows=rows(), draws=[1]):
            second = model(input_ids=IDS)["logits"]
    torch.testing.assert_close(last, whole[:, 5:], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(alone[0], whole[2, :4], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(draws[3:], second, rtol=1e-4, atol=1e-4)


def test_options_of_an_injection() -> None:
    """Repeats, levels, a level for each sequence, the input's size, levels that differ along the value."""
    model, x = Layouts("folded").double(), torch.randn(3, 5, 4).double()
    for options, level in (
        (dict(repeats=3), None), (dict(normalize_to_input_size=True), 2.0), ({}, [0.5, 1.0, 2.0]),
    ):  # fmt: skip
        with nk.inject(model, nk.Noise(add=1.0, kind="laplace"), **options):
            with nk.noise_state(model, seed=1, rows=rows(), level=level, draws=[0, 2]):
                every = model(x)
            own = level if level is None or isinstance(level, float) else level[1:2]
            with nk.noise_state(model, seed=1, rows=rows(2, position=[3, 4]), level=own, draws=[2]):
                alone = model(x[1:2, 3:])
        torch.testing.assert_close(alone[0], every[4, 3:])
    per_token = nk.Noise(add=torch.rand(1, 1, 5, 6, dtype=torch.float64))
    with nk.inject(model, per_token, where="a:linear#0"), nk.noise_state(model, seed=1, rows=rows()):
        assert model(x).shape == (3, 5, 6)


# ------------------------------------------------------------------------------------------- whole sequences, errors


class Pooling(nn.Module):
    """A value of the whole sequence, and others in which tokens are lost."""

    def __init__(self, how: str = "mean") -> None:
        super().__init__()
        self.how, self.tokens, self.head = how, nn.Embedding(40, 4), nn.Linear(4, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        x = self.tokens(input_ids)
        if self.how == "mean":
            mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
            return self.head((x * mask.unsqueeze(-1)).sum(1))
        if self.how == "mixed":
            return self.head((x + x.roll(1, 1)).unsqueeze(2).expand(-1, -1, 2, -1).reshape(-1, 4))
        if self.how == "table":
            return x + self.head(torch.ones(input_ids.shape[1], 4)).sum(-1, keepdim=True)
        if self.how == "halves":
            return self.head(x[:, : input_ids.shape[1] // 2].cumsum(1))
        if self.how == "fixed":
            return self.head(x + torch.ones(6, 4))
        raise AssertionError(self.how)


def test_the_value_of_a_whole_sequence_is_that_of_its_last_token() -> None:
    model = Pooling().double()
    mask = torch.ones(3, 8, dtype=torch.int64)
    mask[:, 6:] = 0
    with nk.inject(model, nk.Noise(add=1.0)):
        with nk.noise_state(model, seed=1, rows=rows()):
            whole, padded = model(IDS), model(torch.cat([IDS, IDS[:, :2]], 1), mask)
        with nk.noise_state(model, seed=1, rows=rows(2)):
            alone, shorter = model(IDS[1:2]), model(IDS[1:2, :5])
    torch.testing.assert_close(padded, whole)
    torch.testing.assert_close(alone[0], whole[1])
    clean = model(IDS[1:2]) - model(IDS[1:2, :5])
    assert (alone - shorter - clean).abs().max() > 0.1
    packed = nk.TokenRows(LENGTH, [[1, 1, 1, 2, 2, 2]], [[0, 1, 2, 0, 1, 2]])
    with nk.inject(model, nk.Noise(add=1.0)), nk.noise_state(model, seed=1, rows=packed):
        with pytest.raises(RuntimeError, match="of which sequence in a row it is is not known"):
            model(IDS[:1])


LOST: dict[str, str] = {
    "mixed": r"'head:linear#0': the tokens in its value of shape \[36, 3\] cannot be told: .* add in the model itself",
    "table": "'head:linear#0': .* no dimension of it counts sequences: nothing that goes into it belongs to a token",
    "halves": "'head:linear#0': .* cannot be told: .*: cumsum over dim 1 in the model itself lost them",
    "fixed": r"it does not run on 2 sequences of 3 tokens.*in the model itself: return self.head\(x \+ torch.ones",
}


@pytest.mark.parametrize("how", LOST)
def test_what_lost_the_tokens_is_said(how: str) -> None:
    model = Pooling(how)
    with nk.inject(model, nk.Noise(add=1.0)), nk.noise_state(model, seed=1, rows=rows()):
        with pytest.raises(RuntimeError, match=LOST[how]):
            model(IDS)


def forward(tokens: nk.TokenRows, ids: Tensor = IDS, draws: Any = None, **more: Any) -> Tensor:
    model = CausalLM()
    with nk.inject(model, NOISE), nk.noise_state(model, seed=1, rows=tokens, draws=draws):
        logits: Tensor = model(ids, **more)["logits"]
        return logits


BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "too long": (lambda: forward(nk.TokenRows(4)), "positions must lie below the length of 4 .* got 5"),
    "repeated": (
        lambda: forward(rows(), position_ids=torch.tensor([[0, 1, 2, 2, 3, 4]])),
        "positions must not repeat within a sequence, got 2 twice in sequence 7",
    ),
    "packed without ids": (
        lambda: forward(rows(), position_ids=torch.tensor([[0, 1, 2, 0, 1, 2]])), "several sequences in one row",
    ),
    "sequences": (lambda: forward(rows(1, 2)), "TokenRows has 2 sequences, and a draw of this call 3 rows"),
    "positions": (lambda: forward(rows(position=[0, 1])), "positions of 2 tokens, and 'input_ids' holds 6"),
    "a cache that is too long": (
        lambda: forward(
            nk.TokenRows(8), IDS, past_key_values=[(torch.zeros(3, 2, 5, 8),) * 2] * 2, use_cache=True
        ),
        "positions must lie below the length of 8 .* got 10",
    ),
    "ids": (lambda: forward(nk.TokenRows(2**31, [0, 1, 2])), "sequence must lie in"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_tokens(name: str) -> None:
    call, message = BAD[name]
    with pytest.raises((ValueError, RuntimeError), match=message):
        call()


def test_vmap_is_refused() -> None:
    model = CausalLM()
    with nk.inject(model, NOISE), nk.noise_state(model, seed=1, rows=nk.TokenRows(LENGTH)):
        model(IDS)
        with pytest.raises(RuntimeError, match="TokenRows under vmap"):
            torch.func.vmap(lambda ids: model(ids.unsqueeze(0))["logits"])(IDS)


def test_the_model_is_left_as_it_was() -> None:
    model = CausalLM()
    clean, state = model(IDS)["logits"], torch.get_rng_state()
    with nk.inject(model, NOISE), nk.noise_state(model, seed=1, rows=rows()):
        noisy = model(IDS)["logits"]
        assert model.training and torch.equal(torch.get_rng_state(), state)
        again = copy.deepcopy(model)
        with nk.noise_state(again, seed=1, rows=rows()):
            assert torch.equal(again(IDS)["logits"], noisy)
        pickle.loads(pickle.dumps(model))
        with nk.noise_state(model, seed=1):  # rows again
            row = model(IDS)["logits"]
        assert not torch.equal(row, noisy)
    assert torch.equal(model(IDS)["logits"], clean)


def test_compiled_models_have_the_noise_of_tokens() -> None:
    model = CausalLM().eval()
    with nk.inject(model, NOISE), nk.noise_state(model, seed=1, rows=rows()), torch.no_grad():
        wanted = model(IDS)["logits"]
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(IDS)["logits"], wanted)
