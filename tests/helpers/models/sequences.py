"""Sequences by other means: TCN, PatchTST, wav2vec 2, Whisper, Mamba, torch's own transformer, TextCNN, Informer-like
N-BEATS and Conformer."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from models.inputs import VOCABULARY, Made, series, table, tokens

__all__ = ["SEQUENCES"]

WIDTH, HEADS = 16, 2


class Chomp1d(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, : -self.size].contiguous()


class TemporalBlock(nn.Module):
    def __init__(self, inner: int, outer: int, dilation: int) -> None:
        super().__init__()
        pad = 2 * dilation
        self.net = nn.Sequential(
            weight_norm(nn.Conv1d(inner, outer, 3, padding=pad, dilation=dilation)), Chomp1d(pad), nn.ReLU(),
            nn.Dropout(0.2), weight_norm(nn.Conv1d(outer, outer, 3, padding=pad, dilation=dilation)), Chomp1d(pad),
            nn.ReLU(),
        )  # fmt: skip
        self.downsample = nn.Conv1d(inner, outer, 1) if inner != outer else None

    def forward(self, x: Tensor) -> Tensor:
        out = self.net(x)
        return F.relu(out + (x if self.downsample is None else self.downsample(x)))


class TCN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tcn, self.linear = nn.Sequential(TemporalBlock(3, 6, 1), TemporalBlock(6, 6, 2)), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.tcn(x.transpose(1, 2))[:, :, -1])


class PatchTST(nn.Module):
    """Channels are folded into the rows, patches are tokens; every series is normalised by itself and put back."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.position = nn.Linear(4, WIDTH), nn.Parameter(torch.randn(1, 3, WIDTH) * 0.3)
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.norm, self.ff = nn.BatchNorm1d(WIDTH), nn.Sequential(nn.Linear(WIDTH, 32), nn.GELU(), nn.Linear(32, WIDTH))
        self.head = nn.Linear(3 * WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        mean, dev = (
            x.mean(1, keepdim=True).detach(),
            torch.sqrt(torch.var(x, dim=1, keepdim=True, unbiased=False) + 1e-5),
        )
        x = ((x - mean) / dev).permute(0, 2, 1)
        x = F.pad(x, (0, 2), mode="replicate").unfold(dimension=-1, size=4, step=4)
        rows, variables, patches, size = x.shape
        x = self.embed(torch.reshape(x, (rows * variables, patches, size))) + self.position
        split = (x.shape[0], patches, HEADS, WIDTH // HEADS)
        q, k, v = (f(x).view(split) for f in (self.q, self.k, self.v))
        scores = torch.einsum("blhe,bshe->bhls", q, k)
        weights = torch.softmax(scores / math.sqrt(WIDTH // HEADS), dim=-1)
        x = x + self.o(torch.einsum("bhls,bshd->blhd", weights, v).contiguous().view(x.shape[0], patches, -1))
        x = self.norm(x.transpose(1, 2)).transpose(1, 2)
        x = (x + self.ff(x)).reshape(-1, variables, patches, WIDTH).permute(0, 1, 3, 2)
        out = self.head(x.flatten(start_dim=-2)).permute(0, 2, 1)
        return out * dev[:, 0, :].unsqueeze(1).repeat(1, 2, 1) + mean


class Wav2Vec2(nn.Module):
    """Convolutions over the waveform (the first with a norm of channels), positions by a convolution, an encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.conv0, self.conv1, self.group = (
            nn.Conv1d(1, 8, 4, 2, bias=False),
            nn.Conv1d(8, 8, 3, 2, bias=False),
            nn.GroupNorm(8, 8),
        )
        self.norm, self.projection = nn.LayerNorm(8), nn.Linear(8, WIDTH)
        self.pos_conv = weight_norm(nn.Conv1d(WIDTH, WIDTH, 4, padding=2, groups=4), dim=2)
        self.layer, self.lm_head = SelfLayer(), nn.Linear(WIDTH, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = (x - x.mean(-1, keepdim=True)) / torch.sqrt(x.var(-1, keepdim=True) + 1e-7)
        h = F.gelu(self.group(self.conv0(x[:, None])))
        h = F.gelu(self.conv1(h)).transpose(1, 2)
        h = self.projection(self.norm(h))
        places = self.pos_conv(h.transpose(1, 2))[:, :, :-1]
        h = h + F.gelu(places).transpose(1, 2)
        return self.lm_head(self.layer(h))


class SelfLayer(nn.Module):
    """An encoder layer with heads folded into rows, or a decoder layer that also looks at an encoder's result."""

    def __init__(self, crosses: bool = False) -> None:
        super().__init__()
        self.names = ("self", "cross") if crosses else ("self",)
        self.proj = nn.ModuleDict(
            {n: nn.ModuleList(nn.Linear(WIDTH, WIDTH, bias=i != 1) for i in range(4)) for n in self.names}
        )
        self.norms = nn.ModuleDict({n: nn.LayerNorm(WIDTH) for n in self.names})
        self.final, self.fc1, self.fc2 = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 32), nn.Linear(32, WIDTH)

    def attention(self, name: str, x: Tensor, seen: Tensor, mask: Tensor | None) -> Tensor:
        q_proj, k_proj, v_proj, out = self.proj[name]
        rows, length, _ = x.size()

        def shape(t: Tensor) -> Tensor:
            return t.view(rows, -1, HEADS, WIDTH // HEADS).transpose(1, 2).contiguous()

        folded = (rows * HEADS, -1, WIDTH // HEADS)
        q = shape(q_proj(x) * (WIDTH // HEADS) ** -0.5).view(*folded)
        k, v = shape(k_proj(seen)).view(*folded), shape(v_proj(seen)).view(*folded)
        scores = torch.bmm(q, k.transpose(1, 2))
        if mask is not None:
            scores = scores.view(rows, HEADS, length, -1) + mask
            scores = scores.view(rows * HEADS, length, -1)
        done = torch.bmm(nn.functional.softmax(scores, dim=-1), v)
        assert done.size() == (rows * HEADS, length, WIDTH // HEADS)
        done = done.view(rows, HEADS, length, WIDTH // HEADS).transpose(1, 2)
        return out(done.reshape(rows, length, WIDTH))

    def forward(self, x: Tensor, encoded: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        for name in self.names:
            y = self.norms[name](x)
            x = x + self.attention(
                name, y, y if name == "self" or encoded is None else encoded, mask if name == "self" else None
            )
        return x + self.fc2(F.gelu(self.fc1(self.final(x))))


class Whisper(nn.Module):
    """Spectrograms through two convolutions and an encoder; a decoder of a fixed prompt for every row."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv1d(5, WIDTH, 3, padding=1), nn.Conv1d(WIDTH, WIDTH, 3, stride=2, padding=1)
        self.embed_positions, self.embed_tokens = nn.Embedding(8, WIDTH), nn.Embedding(VOCABULARY, WIDTH)
        self.decoder_positions = nn.Parameter(torch.randn(8, WIDTH) * 0.3)
        self.encoder, self.decoder = SelfLayer(), SelfLayer(crosses=True)
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, features: Tensor) -> Tensor:
        x = F.gelu(self.conv2(F.gelu(self.conv1(features.transpose(1, 2)))))
        x = x.permute(0, 2, 1) + self.embed_positions.weight[: x.shape[-1]]
        x = self.encoder(x)
        ids = torch.tensor([[1, 5, 7]]).repeat(features.shape[0], 1)
        y = self.embed_tokens(ids) + self.decoder_positions[: ids.shape[1]]
        mask = torch.full((3, 3), torch.finfo(y.dtype).min).triu(1)[None, None].expand(ids.shape[0], 1, -1, -1)
        y = self.norm(self.decoder(y, x, mask))
        return (y @ torch.transpose(self.embed_tokens.weight.to(y.dtype), 0, 1)).float()


class Mamba(nn.Module):
    """The selective scan, step by step, as the slow path of transformers writes it."""

    def __init__(self, inner: int = 8, states: int = 3) -> None:
        super().__init__()
        self.inner, self.states, self.rank = inner, states, 2
        self.embed, self.head = nn.Embedding(VOCABULARY, 6), nn.Linear(6, VOCABULARY, bias=False)
        self.in_proj, self.out_proj = nn.Linear(6, 2 * inner, bias=False), nn.Linear(inner, 6, bias=False)
        self.conv1d, self.x_proj = (
            nn.Conv1d(inner, inner, 3, groups=inner, padding=2),
            nn.Linear(inner, 2 + 2 * states, bias=False),
        )
        self.dt_proj, self.D = nn.Linear(2, inner), nn.Parameter(torch.ones(inner))
        self.A_log = nn.Parameter(
            torch.log(torch.arange(1, states + 1, dtype=torch.float32)[None, :].expand(inner, -1).contiguous())
        )

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        rows, length, _ = x.shape
        hidden, gate = self.in_proj(x).transpose(1, 2).chunk(2, dim=1)
        hidden = F.silu(self.conv1d(hidden)[..., :length])
        parameters = self.x_proj(hidden.transpose(1, 2))
        step, b, c = torch.split(parameters, [self.rank, self.states, self.states], dim=-1)
        step = F.softplus(self.dt_proj(step)).transpose(1, 2)
        a = -torch.exp(self.A_log.float())
        discrete_a = torch.exp(a[None, :, None, :] * step[:, :, :, None])
        discrete_b = step[:, :, :, None] * b[:, None, :, :].float()
        moved = discrete_b * hidden[:, :, :, None].float()
        state = torch.zeros((rows, self.inner, self.states), device=x.device, dtype=x.dtype)
        outputs = []
        for i in range(length):
            state = discrete_a[:, :, i, :] * state + moved[:, :, i, :]
            outputs.append(torch.matmul(state.to(x.dtype), c[:, i, :].unsqueeze(-1))[:, :, 0])
        scan = torch.stack(outputs, dim=-1) + (hidden * self.D[None, :, None])
        return self.head(x + self.out_proj((scan * F.silu(gate)).transpose(1, 2)))


class Mamba2(nn.Module):
    """Mamba-2's chunks: sums of segments, einsums over chunks, states and positions."""

    def __init__(self, heads: int = 2, size: int = 3, states: int = 4, chunk: int = 2) -> None:
        super().__init__()
        self.heads, self.size, self.states, self.chunk = heads, size, states, chunk
        self.embed, self.head = nn.Embedding(VOCABULARY, 6), nn.Linear(6, 5)
        self.in_proj, self.A_log = (
            nn.Linear(6, heads * size + 2 * states + heads),
            nn.Parameter(torch.log(torch.arange(1.0, heads + 1))),
        )
        self.norm, self.out_proj = nn.Parameter(torch.rand(heads * size) + 0.5), nn.Linear(heads * size, 6)

    @staticmethod
    def segsum(x: Tensor) -> Tensor:
        length = x.size(-1)
        x = x[..., None].expand(*x.size(), length)
        x = x.masked_fill(~torch.tril(torch.ones(length, length, dtype=torch.bool), diagonal=-1), 0)
        found = torch.cumsum(x, dim=-2)
        return found.masked_fill(~torch.tril(torch.ones(length, length, dtype=torch.bool), diagonal=0), -torch.inf)

    def forward(self, ids: Tensor) -> Tensor:
        u = self.embed(ids)
        rows, length, _ = u.shape
        x, b, c, dt = torch.split(
            self.in_proj(u), [self.heads * self.size, self.states, self.states, self.heads], dim=-1
        )
        dt = F.softplus(dt)
        a = -torch.exp(self.A_log) * dt
        x = x.view(rows, length, self.heads, self.size) * dt.unsqueeze(-1)
        chunks = length // self.chunk
        x, b, c = (t.reshape(rows, chunks, self.chunk, *t.shape[2:]) for t in (x, b, c))
        a = a.reshape(rows, chunks, self.chunk, self.heads).permute(0, 3, 1, 2)
        total = torch.cumsum(a, dim=-1)
        y = torch.einsum("bcln,bcsn,bhcls,bcshp->bclhp", c, b, torch.exp(self.segsum(a)), x)
        state = torch.einsum("bcln,bhcl,bclhp->bchpn", b, torch.exp(total[:, :, :, -1:] - total), x)
        state = torch.cat([torch.zeros_like(state[:, :1]), state], dim=1)
        decay = torch.exp(self.segsum(F.pad(total[:, :, :, -1], (1, 0))))
        state = torch.einsum("bhzc,bchpn->bzhpn", decay, state)[:, :-1]
        y = y + torch.einsum("bcln,bchpn,bhcl->bclhp", c, state, torch.exp(total))
        y = y.reshape(rows, length, -1)
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6) * self.norm
        return self.head((u + self.out_proj(y)).mean(1))


class TorchTransformer(nn.Module):
    """torch's own encoder and decoder, with sine positions that are a buffer."""

    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.embedding, self.batch_first = nn.Embedding(VOCABULARY, WIDTH), batch_first
        pe, position = torch.zeros(32, 1, WIDTH), torch.arange(32).unsqueeze(1)
        rate = torch.exp(torch.arange(0, WIDTH, 2) * (-math.log(10000.0) / WIDTH))
        pe[:, 0, 0::2], pe[:, 0, 1::2] = torch.sin(position * rate), torch.cos(position * rate)
        self.register_buffer("pe", pe)
        self.transformer = nn.Transformer(WIDTH, HEADS, 1, 1, 32, batch_first=batch_first)
        self.generator = nn.Linear(WIDTH, 6)

    def forward(self, x: Tensor) -> Tensor:
        padding = x == 0
        e = self.embedding(x) * math.sqrt(WIDTH)
        if self.batch_first:
            e = e + self.pe[: x.size(1)].transpose(0, 1)
        else:
            e = e.transpose(0, 1)
            e = e + self.pe[: e.size(0)]
        mask = nn.Transformer.generate_square_subsequent_mask(x.size(1))
        out = self.transformer(e, e, tgt_mask=mask, src_key_padding_mask=padding, tgt_key_padding_mask=padding)
        out = self.generator(out)
        return out if self.batch_first else out.transpose(0, 1)


class TextCNN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 6)
        self.convs, self.fc = nn.ModuleList(nn.Conv2d(1, 4, (k, 6)) for k in (2, 3)), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        e = self.embedding(x).unsqueeze(1)
        maps = [F.relu(conv(e)).squeeze(3) for conv in self.convs]
        return self.fc(torch.cat([F.max_pool1d(m, m.size(2)).squeeze(2) for m in maps], 1))


class NBeats(nn.Module):
    """What a block explains is taken away before the next one."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 9)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        residuals = x.flip(dims=(1,))
        forecast = x[:, -1:]
        for block in self.blocks:
            backcast, part = block(residuals).split([6, 3], dim=1)
            residuals = residuals - backcast
            forecast = forecast + part
        return forecast


class Conformer(nn.Module):
    """Half steps of feed-forward, attention with shifted relative scores (Transformer-XL), a gated convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.ff1 = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 16), nn.SiLU(), nn.Linear(16, 8))
        self.norm, self.q, self.k, self.v, self.pos = (
            nn.LayerNorm(8),
            nn.Linear(8, 8),
            nn.Linear(8, 8),
            nn.Linear(8, 8),
            nn.Linear(8, 8, bias=False),
        )
        self.u, self.w = nn.Parameter(torch.randn(2, 4) * 0.3), nn.Parameter(torch.randn(2, 4) * 0.3)
        self.pointwise, self.depthwise, self.bn = (
            nn.Conv1d(8, 16, 1),
            nn.Conv1d(8, 8, 3, padding=1, groups=8),
            nn.BatchNorm1d(8),
        )
        self.out = nn.Linear(8, 4)

    def shifted(self, x: Tensor) -> Tensor:
        rows, heads, length, size = x.shape
        x = torch.cat([x.new_zeros(rows, heads, length, 1), x], dim=-1)
        x = x.view(rows, heads, size + 1, length)[:, :, 1:].view_as(x[..., 1:])
        return x[:, :, :, :length]

    def forward(self, x: Tensor) -> Tensor:
        x = x + 0.5 * self.ff1(x)
        rows, length, _ = x.shape
        y = self.norm(x)
        q, k, v = (f(y).view(rows, -1, 2, 4) for f in (self.q, self.k, self.v))
        steps = torch.arange(length - 1, -length, -1.0).unsqueeze(1)
        table = torch.cat([torch.sin(steps / 10 ** torch.arange(4.0)), torch.cos(steps / 10 ** torch.arange(4.0))], 1)
        p = self.pos(table.unsqueeze(0)).view(1, -1, 2, 4).transpose(1, 2)
        content = torch.matmul((q + self.u).transpose(1, 2), k.permute(0, 2, 3, 1))
        places = self.shifted(torch.matmul((q + self.w).transpose(1, 2), p.transpose(-2, -1)))
        attention = torch.softmax((content + places) / 2, dim=-1)
        x = x + torch.matmul(attention, v.transpose(1, 2)).transpose(1, 2).reshape(rows, -1, 8)
        z = F.glu(self.pointwise(x.transpose(1, 2)), dim=1)
        return self.out(x + F.silu(self.bn(self.depthwise(z))).transpose(1, 2))


SEQUENCES = {
    "TCN": Made(TCN, series(8, 3)),
    "PatchTST": Made(PatchTST, series(10, 3)),
    "wav2vec 2": Made(Wav2Vec2, table(24)),
    "Whisper": Made(Whisper, series(8, 5)),
    "Mamba": Made(Mamba, tokens(4)),
    "Mamba-2": Made(Mamba2, tokens(4)),
    "nn.Transformer": Made(lambda: TorchTransformer(True), tokens(5)),
    "nn.Transformer, steps first": Made(lambda: TorchTransformer(False), tokens(5)),
    "TextCNN": Made(TextCNN, tokens(6)),
    "N-BEATS": Made(NBeats, table(6)),
    "Conformer": Made(Conformer, series(5, 8)),
}
