"""Pieces of random networks: what people write on tokens and images (`random_networks` says how to read them).

The engine that shares work should reach all of these.
"""

__all__ = ["TOKENS_AND_IMAGES"]

TOKENS_AND_IMAGES = """
linear of tokens | s > s | F = G
    + self.a = nn.Linear($F, $G)
    x = $ACT(self.a(x))
batch norm of steps | s > s
    + self.n = nn.BatchNorm1d($T)
    x = self.n(x)
batch norm of channels | s > s
    + self.n = nn.BatchNorm1d($F)
    x = self.n(x.transpose(1, 2)).transpose(1, 2)
layer norm of tokens | s > s
    + self.n = nn.LayerNorm($F)
    x = x + $ACT(self.n(x))
rms norm | s > s
    + self.n = nn.RMSNorm($F)
    x = self.n(x) * 1.5
glu of tokens | s > s
    + self.a = nn.Linear($F, 2 * $F)
    x = F.glu(self.a(x), -1)
tensor_split | s > s
    u, v = torch.tensor_split(x, 2, dim=1)
    x = torch.cat((v, u.neg()), 1)
einsum of tokens | s > s
    x = torch.einsum("bts,bsf->btf", torch.einsum("btf,bsf->bts", x, x).softmax(-1), x)
sum in place of a skip | i > i
    + self.a = nn.Conv2d($C, $C, 3, padding=1)
    y = self.a(x)
    y += x
    x = F.relu(y, inplace=True)
mask multiplied | s > s
    x = x * (x.mean(-1, keepdim=True) > 0).to(x.dtype)
a module called in a loop | s > s
    + self.a = nn.Linear($F, $F)
    for _ in range(3):
        x = x + torch.tanh(self.a(x))
cumsum | s > s
    x = x.cumsum(1) * 0.5
rows along dimension 1 | s > s
    + self.a = nn.Linear($F, $F)
    x = $ACT(self.a(x.transpose(0, 1))).transpose(0, 1)
positions | s > s
    + self.p = nn.Parameter(torch.randn(40, $F))
    x = x + self.p[: x.shape[1]]
position embedding | s > s
    + self.p = nn.Embedding(40, $F)
    x = x + self.p(torch.arange(x.size(1)).expand(len(x), -1))
sine positions | s > s
    t = torch.arange(x.shape[1], dtype=x.dtype)
    x = x + torch.sin(t)[None, :, None]
class token | s > s | T = T + 1
    + self.c = nn.Parameter(torch.randn(1, 1, $F))
    x = torch.cat([self.c.expand(len(x), -1, -1), x], 1)
class token repeated | s > s | T = T + 1
    + self.c = nn.Parameter(torch.randn($F))
    x = torch.cat((self.c.repeat(x.shape[0], 1, 1), x), dim=1)
attention written out | s > s
    + self.q = nn.Linear($F, 3 * $F)
    + self.o = nn.Linear($F, $F)
    b, t, f = x.shape
    q, k, v = self.q(x).view(b, t, 3, $h, f // $h).permute(2, 0, 3, 1, 4)
    w = (q @ k.transpose(-2, -1) * f**-0.5).softmax(-1)
    x = x + self.o((w @ v).transpose(1, 2).reshape(b, t, f))
causal attention | s > s
    + self.q = nn.Linear($F, 3 * $F)
    q, k, v = self.q(x).chunk(3, -1)
    m = torch.triu(torch.full((x.shape[1], x.shape[1]), float("-inf"), dtype=x.dtype), 1)
    x = torch.baddbmm(m.expand(len(x), -1, -1), q, k.transpose(1, 2)).softmax(-1) @ v
sdpa | s > s
    + self.q = nn.Linear($F, 3 * $F)
    q, k, v = self.q(x).unflatten(-1, (3, $h, -1)).permute(2, 0, 3, 1, 4)
    x = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
sdpa with a mask of lengths | s > s
    n = (x[:, :, 0] > 0).sum(1).clamp(min=1)
    m = torch.arange(x.shape[1])[None, :] < n[:, None]
    x = x + F.scaled_dot_product_attention(x, x, x, attn_mask=m[:, None, :])
multi-head attention | s > s
    + self.a = nn.MultiheadAttention($F, $h, batch_first=True)
    x = x + self.a(x, x, x, need_weights=False)[0]
multi-head attention, steps first | s > s
    + self.a = nn.MultiheadAttention($F, $h)
    y = x.transpose(0, 1)
    y, w = self.a(y, y, y)
    x = x + y.transpose(0, 1) + w.sum(-1, keepdim=True)
multi-head attention, padded | s > s
    + self.a = nn.MultiheadAttention($F, $h, batch_first=True)
    m = x[:, :, 0] > 1.5
    m = torch.cat([torch.zeros(len(x), 1, dtype=torch.bool), m[:, 1:]], 1)
    x = self.a(x, x, x, key_padding_mask=m)[0]
encoder layer | s > s
    + self.a = nn.TransformerEncoderLayer($F, $h, 5, batch_first=True)
    x = self.a(x)
lstm | s > s | F = G
    + self.a = nn.LSTM($F, $G, batch_first=True)
    x, _ = self.a(x)
gru cell | s > v | F = G
    + self.a = nn.GRUCell($F, $G)
    h = torch.zeros(x.size(0), $G, dtype=x.dtype)
    for t in range(x.size(1)):
        h = self.a(x[:, t], h)
    x = h
conv1d | s > s | F = G
    + self.a = nn.Conv1d($F, $G, 3, padding=1)
    x = $ACT(self.a(x.transpose(1, 2))).transpose(1, 2)
rolled tokens | s > s
    x = x.roll(1, 1) - x.flip(1)
windows of tokens | s > s
    + self.a = nn.Linear($F, $F)
    b, t, f = x.shape
    y = F.pad(x, (0, 0, 0, t % 2)).view(b, -1, 2, f).reshape(-1, 2, f)
    y = self.a((y @ y.transpose(1, 2)).softmax(-1) @ y)
    x = y.view(b, -1, f)[:, :t]
tokens folded into rows | s > s
    + self.a = nn.Linear($F, $F)
    x = $ACT(self.a(x.flatten(0, 1))).view(len(x), -1, $F)
key and value cache | s > s
    + self.q = nn.Linear($F, 3 * $F)
    self.keys, self.values, out = [], [], []
    for t in range(x.shape[1]):
        q, k, v = self.q(x[:, t : t + 1]).chunk(3, -1)
        self.keys.append(k)
        self.values.append(v)
        w = (q @ torch.cat(self.keys, 1).transpose(1, 2)).softmax(-1)
        out.append(w @ torch.cat(self.values, 1))
    x = x + torch.cat(out, 1)
mask of lengths | s > s
    n = (x[:, :, 0] > 0).sum(1).clamp(min=1)
    x = x.masked_fill((torch.arange(x.shape[1]) >= n[:, None])[..., None], 0.0)
last token | s > v
    x = x[torch.arange(len(x)), -1]
last token of a linear | s > v
    + self.a = nn.Linear($F, $F)
    x = torch.relu(self.a(x))[torch.arange(x.shape[0]), -1]
last token by lengths | s > v
    n = (x[:, :, 0] > 0).sum(1).clamp(min=1)
    x = x[torch.arange(len(x)), n - 1]
token by argmax | s > v
    x = x[torch.arange(x.shape[0]), x.sum(-1).argmax(-1)]
token by gather | s > v
    n = (x[:, :, 0] > 0).sum(1).clamp(min=1) - 1
    x = x.gather(1, n.view(-1, 1, 1).expand(-1, -1, x.size(2))).squeeze(1)
mean by lengths | s > v
    n = (x[:, :, 0] > 0).sum(1).clamp(min=1)
    m = (torch.arange(x.shape[1]) < n[:, None]).unsqueeze(-1)
    x = (x * m).sum(1) / n[:, None]
first token | s > v
    x = x[:, 0]
mean of tokens | s > v
    x = x.mean(1)
largest of tokens | s > v
    x = x.max(dim=1)[0]
tokens flattened | s > v | F = T * F
    x = x.flatten(1)
convolution | i > i | C = D
    + self.a = nn.Conv2d($C, $D, 3, padding=1)
    x = $ACT(self.a(x))
convolution, norm | i > i | C = D
    + self.a = nn.Conv2d($C, $D, 3, padding=1, bias=False)
    + self.n = nn.BatchNorm2d($D)
    x = F.relu(self.n(self.a(x)), inplace=True)
convolution in groups | i > i
    + self.a = nn.Conv2d($C, 2 * $C, 3, padding=1, groups=$C)
    + self.b = nn.Conv2d(2 * $C, $C, 1)
    x = self.b($ACT(self.a(x)))
convolution with a stride | i > i | H = (H + 1) // 2
    + self.a = nn.Conv2d($C, $C, 3, stride=2, padding=1)
    x = $ACT(self.a(x))
transposed convolution | i > i
    + self.a = nn.ConvTranspose2d($C, $C, 3, padding=1)
    x = $ACT(self.a(x))
convolution and pool | i > i | H = H // 2
    + self.a = nn.Conv2d($C, $C, 3, padding=1)
    x = F.max_pool2d(torch.relu(self.a(x)), 2)
average pool | i > i | H = H // 2
    x = F.avg_pool2d(x, 2) + F.max_pool2d(x, 2)
pool with padding | i > i | H = (H + 1) // 2
    x = F.max_pool2d(torch.relu(x), 3, 2, 1)
pool to the edge | i > i | H = (H + 1) // 2
    + self.a = nn.MaxPool2d(2, ceil_mode=True)
    x = self.a(x)
pool with indices | i > i | H = H // 2
    x, _ = F.max_pool2d(x, 2, return_indices=True)
averages of other forms | i > i
    x = F.avg_pool2d(x, 3, 1, 1, count_include_pad=False) - F.avg_pool2d(x, 3, 1, 1, divisor_override=5)
dilated convolution | i > i | C = D
    + self.a = nn.Conv2d($C, $D, 3, dilation=2, padding="same")
    x = $ACT(self.a(x))
circular convolution | i > i
    + self.a = nn.Conv2d($C, $C, 3, padding=1, padding_mode="circular")
    x = self.a(x) + x
upsampled | i > i
    + self.a = nn.ConvTranspose2d($C, $C, 2, stride=2, bias=False)
    x = F.relu(self.a(x))[:, :, ::2, 1::2]
group norm | i > i
    + self.n = nn.GroupNorm(1, $C)
    x = x + torch.relu(self.n(x))
instance norm | i > i
    + self.n = nn.InstanceNorm2d($C, affine=True)
    x = self.n(x)
local response norm | i > i
    x = F.local_response_norm(x, 2)
prelu | i > i
    + self.r = nn.PReLU($C)
    x = self.r(x)
squeeze and excite | i > i
    + self.a = nn.Linear($C, $C)
    x = x * torch.sigmoid(self.a(x.mean((2, 3))))[:, :, None, None]
dense connection | i > i | C = C + 2
    + self.a = nn.Conv2d($C, 2, 3, padding=1)
    x = torch.cat([x, $ACT(self.a(x))], 1)
channel shuffle | i > i
    b, c, h, w = x.shape
    x = x.view(b, $h2, -1, h, w).transpose(1, 2).reshape(b, c, h, w)
pixel unshuffle | i > i
    x = F.pixel_shuffle(F.pad(x, (0, h2 := x.shape[-1] % 2, 0, h2)).repeat(1, 4, 1, 1), 2)[..., :$H, :$H]
interpolated | i > i
    x = F.interpolate(F.adaptive_avg_pool2d(x, 2), size=($H, $H)) + x
padded and cut | i > i
    x = F.pad(x, (1, 1, 1, 1))[:, :, 1:-1, :-2]
unfolded | i > i
    y = F.unfold(x, 3, padding=1).view(len(x), $C, 9, -1).amax(2)
    x = x + y.view_as(x)
image windows | i > i
    + self.a = nn.Linear($C, $C)
    p = x.shape[-1] % 2
    y = F.pad(x, (0, p, 0, p))
    b, c, h, w = y.shape
    y = y.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 3, 5, 1).reshape(-1, 4, c)
    y = self.a((y @ y.transpose(-2, -1)).softmax(-1) @ y)
    y = y.view(b, h // 2, w // 2, 2, 2, c).permute(0, 5, 1, 3, 2, 4).reshape(b, c, h, w)
    x = x + y[:, :, : $H, : $H]
shifted windows | i > i
    m = torch.zeros(1, 1, $H, $H, dtype=torch.bool)
    m[:, :, -1:], m[..., -1:] = True, True
    x = torch.roll(x, shifts=(-1, -1), dims=(2, 3)).masked_fill(m, 0.5)
channels last | i > i
    x = x.to(memory_format=torch.channels_last) * 1.5
patches | i > s | F = C; T = H * H
    x = x.flatten(2).transpose(1, 2)
image flattened | i > v | F = C * H * H
    x = x.reshape(x.size(0), -1)
mean of pixels | i > v | F = C
    x = x.mean((2, 3))
adaptive pool | i > v | F = C
    x = F.adaptive_avg_pool2d(x, 1).flatten(1)
states given | s > s
    + self.a = nn.GRU($F, $F, batch_first=True)
    x = x + self.a(x, torch.zeros(1, len(x), $F, dtype=x.dtype))[0]
both directions | s > s | F = 2 * G
    + self.a = nn.LSTM($F, $G, batch_first=True, bidirectional=True)
    x = self.a(x)[0]
last state | s > v | F = G
    + self.a = nn.LSTM($F, $G, batch_first=True)
    x = self.a(x)[1][0][-1]
decoder layer | s > s
    + self.a = nn.TransformerDecoderLayer($F, $h, 5, batch_first=True)
    x = self.a(x, x.flip(1))
learned queries | s > s | T = 2
    + self.q = nn.Parameter(torch.randn(1, 2, $F))
    x = (self.q.expand(x.shape[0], -1, -1) @ x.transpose(1, 2)).softmax(-1) @ x
relative positions | s > s
    + self.p = nn.Parameter(torch.randn(80))
    t = torch.arange(x.shape[1])
    w = x @ x.transpose(1, 2) + self.p[t[:, None] - t[None] + 40]
    x = w.softmax(-1) @ x
rotated | s > s
    t = torch.arange(x.shape[1], dtype=x.dtype)[:, None]
    x = x * torch.cos(t) + torch.cat((-x[..., 1:], x[..., :1]), -1) * torch.sin(t)
tokens by number | s > s
    + self.e = nn.Embedding(3, $F)
    x = x + self.e((x[..., 0] > 0).long() + (x[..., 1] > 0))
tokens in a loop | s > s
    y = torch.zeros_like(x[:, 0])
    out = []
    for t in x.unbind(1):
        y = 0.5 * y + t
        out.append(y)
    x = torch.stack(out, dim=1)
pooled by argsort | s > v
    i = x[:, :, 0].argsort(1)[:, :2]
    x = x.gather(1, i[..., None].expand(-1, -1, $F)).mean(1)
steps as channels | s > i | C = T; H = F
    + self.a = nn.Linear($F, $F)
    x = (self.a(x)[:, :, None] * x[..., None]).tanh()
layer norm of channels | i > i
    + self.n = nn.LayerNorm($C)
    x = self.n(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
sampled | i > i
    m = torch.tensor([[0.9, 0.1, 0.0], [-0.1, 0.9, 0.0]], dtype=x.dtype).expand(len(x), 2, 3)
    g = F.affine_grid(m, x.shape, align_corners=False)
    x = F.grid_sample(x, g, align_corners=False)
inception | i > i | C = 2 * D
    + self.a = nn.Conv2d($C, $D, 1)
    + self.b = nn.Conv2d($C, $D, 3, padding=1)
    x = torch.cat([self.a(x), torch.relu(self.b(x))], 1)
split channels | i > i
    u, v = x[:, :1], x[:, 1:]
    x = torch.cat((v, torch.sigmoid(u)), dim=1)
reflected | i > i
    x = F.pad(x, (1, 0, 1, 0), mode="reflect")[..., 1:, 1:] * F.pad(x, (0, 1, 0, 1))[..., 1:, 1:]
largest pixel | i > v | F = C
    x = x.flatten(2).max(-1).values
"""
