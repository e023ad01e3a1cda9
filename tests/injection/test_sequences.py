"""Attention and recurrence under injection."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from injecting import NOISE, names, oracle, run
from operators import assert_same_bits, covering
from torch import Tensor, nn

import noisykernels as nk

# ---------------------------------------------------------------------------------------- attention


def attention(**options) -> nn.MultiheadAttention:
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(8, 2, **options)
    for p in layer.parameters():
        nn.init.normal_(p, std=0.4)
    return layer.eval()


ATTENTION = covering(
    2,
    batch_first=[False, True],
    bias=[True, False],
    add_bias_kv=[False, True],
    add_zero_attn=[False, True],
    kdim=[None, 5],
    mask=[None, "bool", "float", "per head"],
    causal=[False, True],
    padding=[None, "bool", "float"],
    need_weights=[False, True],
    average=[False, True],
    grad=[False, True],
)


@pytest.mark.parametrize("case", ATTENTION, ids=str)
def test_attention_taken_apart_equals_torchs(case: dict) -> None:
    """Within 64 float32 roundings of the largest value: sums of at most 9 terms, five in a row."""
    c = {**case}
    B, L, S = 3, 4, 4 if c["causal"] else 6
    layer = attention(
        batch_first=c["batch_first"], bias=c["bias"], add_bias_kv=c["add_bias_kv"],
        add_zero_attn=c["add_zero_attn"], kdim=c["kdim"], vdim=c["kdim"],
    )  # fmt: skip
    q, k, v = (
        torch.randn(B, L, 8),
        torch.randn(B, S, c["kdim"] or 8),
        torch.randn(B, S, c["kdim"] or 8),
    )
    if not c["batch_first"]:
        q, k, v = (t.transpose(0, 1) for t in (q, k, v))
    keep = torch.ones(L, S, dtype=torch.bool).tril()
    mask = {None: None, "bool": ~keep, "float": torch.zeros(L, S).masked_fill(~keep, -1e4),
            "per head": (~keep).repeat(2 * B, 1, 1)}[c["mask"]]  # fmt: skip
    if c["causal"]:
        mask = nn.Transformer.generate_square_subsequent_mask(L)
    padding = torch.zeros(B, S, dtype=torch.bool)
    padding[1, -1] = True
    if c["padding"] == "float":
        padding = torch.zeros(B, S).masked_fill(padding, -1e4)
    options = dict(
        key_padding_mask=None if c["padding"] is None else padding, attn_mask=mask,
        need_weights=c["need_weights"], average_attn_weights=c["average"], is_causal=c["causal"],
    )  # fmt: skip
    with torch.set_grad_enabled(c["grad"]):
        expected, expected_weights = layer(q, k, v, **options)
        with nk.inject(layer, None):
            y, weights = layer(q, k, v, **options)
    bound = 64 * torch.finfo().eps
    assert ((y - expected).abs() <= bound * expected.abs().max()).all()
    assert (weights is None) == (expected_weights is None)
    if weights is not None:
        assert weights.shape == expected_weights.shape
        assert ((weights - expected_weights).abs() <= bound).all()


def test_unbatched_attention() -> None:
    layer, x = attention(), torch.randn(4, 8)
    with nk.inject(layer, None):
        assert torch.allclose(layer(x, x, x)[0], attention()(x, x, x)[0], atol=1e-5)
        assert layer(x, x, x)[1].shape == (4, 4)


def test_attention_in_training_mode_with_dropout() -> None:
    layer, x = attention(dropout=0.4).train(), torch.randn(4, 3, 8)
    torch.manual_seed(5)
    expected, weights = layer(x, x, x)
    torch.manual_seed(5)
    with nk.inject(layer, None):
        y, w = layer(x, x, x)
    assert torch.allclose(y, expected, atol=1e-5) and torch.allclose(w, weights, atol=1e-5)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("grad", [False, True])
def test_noise_arrives_in_an_encoder_layer(batch_first: bool, grad: bool) -> None:
    """At each of its sites, although torch would run it as one fused kernel in evaluation mode."""
    torch.manual_seed(1)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=batch_first).eval()
    model, x = (
        nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval(),
        torch.randn(3, 5, 8),
    )
    dims = {} if batch_first else {"input": 1}
    with torch.set_grad_enabled(grad), nk.inject(model, NOISE, example_input=x, row_dims=dims):
        found = nk.sites(model)
    inner = [f"self_attn:linear#{i}" for i in range(3)] + [
        "self_attn:attention#0",
        "self_attn:linear#3",
    ]
    inner += [
        "norm1:layer_norm#0",
        "linear1:linear#0",
        ":relu#0",
        "linear2:linear#0",
        "norm2:layer_norm#0",
    ]
    expected = [f"layers.{i}{'' if n[0] == ':' else '.'}{n}" for i in (0, 1) for n in inner]
    assert [s.name for s in found] == ["input", *expected]
    dim = 0 if batch_first else 1
    # Inside the attention, values are (length, rows, features) either way.
    assert all(s.row_dim == (1 if "self_attn" in s.name else dim) for s in found)
    with torch.set_grad_enabled(grad):
        clean = model(x)
        rows = [3, 4, 5] if batch_first else [3, 4, 5, 6, 7]
        for site in found:
            options = dict(example_input=x, row_dims=dims)
            y = run(model, x, site.name, rows=rows, **options)
            assert (y != clean).float().mean() > 0.9, site.name
            two = run(model, x, site.name, draws=[0, 8], rows=rows, **options)
            assert torch.allclose(two.chunk(2, dim)[0], y, atol=1e-5)
        y = run(model, x, found[-1].name, rows=rows, **options)
        taken_apart = run(model, x, noise=None)
        assert_same_bits(y, oracle(taken_apart, found[-1].name, dim, rows=rows))


def test_a_padding_mask_is_repeated_for_the_draws() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
            self.encoder = nn.TransformerEncoder(layer, 1)

        def forward(self, x: Tensor, padding: Tensor) -> Tensor:
            return self.encoder(x, src_key_padding_mask=padding)

    model, x = Model().eval(), torch.randn(3, 5, 8)
    padding = torch.arange(5) >= torch.tensor([[5], [3], [2]])
    with torch.no_grad():
        y = run(model, (x, padding), draws=[0, 1], example_input=(x, padding))
        one = run(model, (x, padding), draws=[1], example_input=(x, padding))
    assert torch.allclose(y[3:], one, atol=1e-5)


def test_functional_attention_is_a_site() -> None:
    class Model(nn.Module):
        def forward(self, q: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(q, q, q)

    q = torch.randn(2, 3, 4, 5)
    assert names(Model(), q) == ["input", ":attention#0"]
    assert_same_bits(run(Model(), q, ":attention"), oracle(Model()(q), ":attention#0"))


# --------------------------------------------------------------------------------------- recurrence

RECURRENT = covering(
    2,
    layer=[nn.LSTM, nn.GRU, nn.RNN],
    batch_first=[True, False],
    bidirectional=[False, True],
    num_layers=[1, 2],
    proj=[False, True],
)


@pytest.mark.parametrize("case", RECURRENT, ids=str)
def test_recurrent_layers(case: dict) -> None:
    """Noise on the output; the state of the last layer is part of it, that of others is not."""
    options = {k: case[k] for k in ("batch_first", "bidirectional", "num_layers")}
    if case["proj"] and case["layer"] is nn.LSTM:
        options["proj_size"] = 2
    layer, x = case["layer"](4, 3, **options).eval(), torch.randn(5, 6, 4)
    dim, time = (0, 1) if case["batch_first"] else (1, 0)
    dims = {"input": dim}
    name = [s.name for s in _traced(layer, x, dims)][-1]
    rows = list(range(9, 9 + x.shape[dim]))
    clean, state = layer(x)
    y, new = run(layer, x, name, rows=rows, row_dims=dims)
    assert_same_bits(y, oracle(clean, name, dim, rows=rows))
    hidden, before = (new[0], state[0]) if isinstance(new, tuple) else (new, state)
    directions = 2 if case["bidirectional"] else 1
    assert_same_bits(hidden[:-directions], before[:-directions])
    halves = y.chunk(directions, -1)
    assert torch.equal(hidden[-directions], halves[0].select(time, -1))
    if directions == 2:
        assert torch.equal(hidden[-1], halves[1].select(time, 0))
    if isinstance(new, tuple):
        assert_same_bits(new[1], state[1])
    two, _ = run(layer, x, name, draws=[7, 0], rows=rows, row_dims=dims)
    assert torch.allclose(two.chunk(2, dim)[1], y, atol=1e-5)


def _traced(model: nn.Module, x, dims) -> list:
    with nk.inject(model, None, example_input=x, row_dims=dims):
        return nk.sites(model)


def test_batch_first_false_needs_to_know_rows() -> None:
    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.fc = nn.LSTM(4, 3), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.lstm(x.transpose(0, 1))[0]).transpose(0, 1)

    model, x = Tagger().eval(), torch.randn(5, 5, 4)  # as many steps as rows
    with pytest.raises(ValueError, match=r"'lstm' has batch_first=False.*example_input"):
        nk.inject(model, NOISE)
    assert [s.row_dim for s in nk.sites(model, x)] == [0, 1, 1]
    y = run(model, x, "fc", example_input=x)
    assert_same_bits(y, oracle(model(x).transpose(0, 1), "fc:linear#0", 1).transpose(0, 1))


@pytest.mark.parametrize("cell", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_cells_have_a_site_for_each_step(cell) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = cell(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            state = None
            for step in x.unbind(1):
                state = self.cell(step, state)
            return state[0] if isinstance(state, tuple) else state

    model, x = Model(), torch.randn(2, 3, 4)
    found = names(model, x)
    assert [n[:5] for n in found] == ["input"] + ["cell:"] * 3 and found[-1][-2:] == "#2"
    assert_same_bits(run(model, x, found[-1]), oracle(model(x), found[-1]))
    first = run(model, x, found[1])
    assert not torch.equal(first, model(x)) and not torch.equal(first, run(model, x, found[2]))


def test_packed_sequences() -> None:
    class Model(nn.Module):
        def __init__(self, kind) -> None:
            super().__init__()
            self.rnn, self.fc = kind(4, 3, batch_first=True, bidirectional=True), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            lengths = [3] * len(x)
            packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True)
            out, _ = nn.utils.rnn.pad_packed_sequence(self.rnn(packed)[0], batch_first=True)
            return self.fc(out)

    for kind in (nn.LSTM, nn.GRU):
        model, x = Model(kind), torch.randn(2, 3, 4)
        with pytest.raises(RuntimeError, match="packed sequences have no row dimension; pad them"):
            run(model, x)
        assert names(model, x) == ["input", "fc:linear#0"]
        assert_same_bits(run(model, x, "fc"), oracle(model(x), "fc:linear#0"))
