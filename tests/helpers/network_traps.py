"""Pieces of random networks that a recording of operations may misread (`random_networks` says how to read them).

Each row by itself, in ways that a recording may refuse: then with a reason, and with the right numbers.
"""

__all__ = ["TRAPS"]

TRAPS = """
view written | v > v
    y = x * 1.0
    y[:, ::2] += 1
    x = y
view multiplied | v > v
    + self.a = nn.Linear($F, $F)
    y = self.a(x)
    y[:, 1:].mul_(2)
    x = y
chunk written | v > v
    y = x + 0.5
    u, v = y.chunk(2, 1)
    u.add_(1)
    x = y * 0.9
base written, view read | v > v
    y = x * 2
    z = y.view(-1)
    y.add_(1)
    x = z.view_as(x)
boolean assignment | v > v
    y = x * 1.0
    y[y < 0] = 0.1
    x = y
boolean assignment of values | v > v
    y = torch.zeros_like(x)
    y[x > 0] = x[x > 0]
    x = y + 0.1 * x
masked_select back | v > v
    m = x > 0
    x = torch.zeros_like(x).masked_scatter(m, x.masked_select(m))
rows by a mask | v > v
    + self.a = nn.Linear($F, $F)
    m = x[:, 0] > 0
    y = x.clone()
    y[m] = self.a(x[m])
    x = y
rows by nonzero | v > v
    i = (x[:, 0] > 0).nonzero()[:, 0]
    x = x.index_add(0, i, x[i])
index_put_ | v > v
    y = torch.zeros_like(x)
    y.index_put_((torch.arange(len(x)), x.argmax(1)), torch.ones(len(x), dtype=x.dtype))
    x = x + y
scatter_ | v > v
    y = x.new_zeros(x.shape)
    y.scatter_(1, x.argmax(1, keepdim=True), 2.0)
    x = x + y
copied into empty | v > v
    y = torch.empty(len(x), $F, dtype=x.dtype)
    y.copy_(x)
    x = y * 1.5
out given | v > v
    y = torch.empty_like(x)
    torch.mul(x, 2.0, out=y)
    x = y
columns of empty | v > v
    y = torch.empty_like(x)
    for k in range($F):
        y[:, k] = x[:, k - 1] * k
    x = y
buffer of rows | v > v
    + self.register_buffer("b$k", torch.zeros(4096, $F))
    self.b[: len(x)] = x
    x = self.b[: len(x)] * 2
buffer counts | v > v
    + self.register_buffer("b$k", torch.zeros(()))
    self.b += 1
    x = x * 1.5
buffer of a mean | v > v
    + self.register_buffer("b$k", torch.zeros($F))
    self.b.copy_(x.detach().mean(0))
    x = x + 0.5
cache of positions | v > v
    + self.cache = {}
    if len(x) not in self.cache:
        self.cache[len(x)] = torch.arange(len(x))
    x = x + x[self.cache[len(x)], 0].unsqueeze(1)
cache of zeros | v > v
    + self.cache = {}
    z = self.cache.setdefault(len(x), torch.full((len(x), 1), 0.5))
    x = x * z
cache of a mask | s > s
    + self.cache = {}
    if x.shape not in self.cache:
        self.cache[x.shape] = torch.ones(x.shape[:2]).cumsum(1) < 3
    x = x.masked_fill(self.cache[x.shape][..., None], 0.3)
last token of a cache | s > v
    + self.last = None
    if self.last is None or len(self.last) != len(x):
        self.last = torch.arange(len(x))
    x = x[self.last, -1]
batch split | v > v
    + self.a = nn.Linear($F, $F)
    x = torch.cat([$ACT(self.a(p)) for p in x.split(4)])
batch in two | v > v
    u, v = x.chunk(2) if len(x) > 1 else (x, x[:0])
    x = torch.cat([torch.tanh(u), torch.tanh(v)])
row by row | v > v
    + self.a = nn.Linear($F, $F)
    x = torch.stack([self.a(r) for r in x])
rows in a loop | v > v
    x = torch.cat([2 * x[k : k + 1] for k in range(len(x))])
even rows first | v > v
    y = torch.empty_like(x)
    y[::2], y[1::2] = x[::2] * 2, x[1::2] * 2
    x = y
eye of rows | v > v
    x = torch.eye(len(x), dtype=x.dtype) @ x
rows by index | v > v
    x = x[torch.arange(len(x))] + x.index_select(0, torch.arange(x.shape[0]))
rows turned twice | v > v
    x = (x.flip(0) * 2).flip(0)
rows added by index | v > v
    x = torch.zeros_like(x).index_add(0, torch.arange(len(x)), x)
diagonal of rows | v > v
    x = x + (x @ x.t()).diagonal()[:, None]
vmap | v > v
    + self.a = nn.Linear($F, $F)
    x = torch.func.vmap(lambda r: torch.tanh(self.a(r)))(x)
jvp | v > v
    x = torch.func.jvp(torch.sin, (x,), (torch.ones_like(x),))[1]
fourier | v > v | F = F // 2 + 1
    x = torch.fft.rfft(x).abs()
complex | v > v
    x = torch.view_as_real(torch.complex(x, 0.5 * x)).sum(-1)
numpy | v > v
    x = x + torch.from_numpy(np.tanh(x.detach().numpy()))
tolist | v > v
    x = x + torch.tensor(x.argmax(1).tolist())[:, None]
numbers of rows | v > v
    x = x + torch.tensor([float(r.abs().max()) for r in x], dtype=x.dtype)[:, None]
assertion | v > v
    assert not bool(x.isnan().any())
    x = x * 1.1
packed | s > s
    + self.a = nn.GRU($F, $F, batch_first=True)
    n = (x[:, :, 0] > 0).sum(1).clamp(min=1)
    p = nn.utils.rnn.pack_padded_sequence(x, n.cpu(), batch_first=True, enforce_sorted=False)
    x = nn.utils.rnn.pad_packed_sequence(self.a(p)[0], batch_first=True, total_length=x.shape[1])[0]
longest length | s > s
    n = (x[:, :, 0] > 0).sum(1).clamp(min=1)
    m = torch.arange(int(n.max())) < n[:, None]
    x = F.pad(x[:, : m.shape[1]] * m[..., None], (0, 0, 0, x.shape[1] - m.shape[1]))
bfloat16 | v > v | F = G; half = 1
    + self.a = nn.Linear($F, $G).bfloat16()
    x = torch.relu(self.a(x.bfloat16())).to(x.dtype)
float16 | s > s | half = 1
    + self.a = nn.Linear($F, $F).half()
    x = x + self.a(x.half()).to(x.dtype)
bfloat16 convolution | i > i | half = 1
    + self.a = nn.Conv2d($C, $C, 3, padding=1).bfloat16()
    x = F.max_pool2d(torch.relu(self.a(x.to(torch.bfloat16))), 3, 1, 1).to(x.dtype)
autocast | v > v | half = 1
    + self.a = nn.Linear($F, $F).float()
    with torch.autocast("cpu", torch.bfloat16):
        y = self.a(x.float())
    x = y.to(x.dtype)
rounded to steps | v > v
    x = (x * 8).round() / 8
written where it stands | v > v
    x.mul_(2).add_(0.5)
written past autograd | v > v
    y = x * 1.0
    y.data.mul_(2)
    x = y + 0.1
written by a slice of a slice | v > v
    y = x * 1.0
    y[:, 1:][:, :1] = 0.5
    x = y
filled | v > v
    y = torch.empty(len(x), 1, dtype=x.dtype)
    y.fill_(0.5)
    x = x * y.zero_().add_(1.5)
expanded and written | v > v
    y = torch.zeros(1, dtype=x.dtype).expand(len(x), $F).contiguous()
    y[:, 0] += x[:, 0]
    x = x + y
a written view returned | s > s
    y = x * 1.0
    y[:, 0].add_(1).mul_(2)
    x = y
swapped views | s > s
    y = x * 1.0
    y[:, 0], y[:, -1] = y[:, -1] * 2, y[:, 0] * 2
    x = y
where as an index | v > v
    i, j = torch.where(x > 0.5)
    y = x.clone()
    y[i, j] = 0.5
    x = y
experts by masks | v > v
    + self.a = nn.Linear($F, $F)
    + self.b = nn.Linear($F, $F)
    y = torch.zeros_like(x)
    for k, e in enumerate((self.a, self.b)):
        m = (x.argmax(1) % 2) == k
        y[m] = torch.tanh(e(x[m]))
    x = y
numpy alone | v > v
    + self.a = nn.Linear($F, $F)
    x = torch.from_numpy(np.tanh(self.a(x).detach().numpy()))
tolist alone | v > v
    + self.a = nn.Linear($F, $F)
    x = torch.tensor(self.a(x).tolist(), dtype=x.dtype)
list of rows | v > v
    x = x * x.new_tensor([0.5] * len(x))[:, None]
number of elements | v > v
    x = x * x.numel() / x.shape[0]
batch twice | v > v
    + self.a = nn.Linear($F, $F)
    y = torch.tanh(self.a(torch.cat([x, -x])))
    x = y[: len(x)] + y[len(x) :]
batch repeated | v > v
    y = x.repeat(2, 1) * 1.5
    u, v = y.chunk(2, 0)
    x = u + v
flat | v > v
    x = torch.tanh(x.flatten()).view(-1, $F)
flat and sliced | v > v
    x = x.reshape(-1)[: len(x) * $F].view(len(x), $F) * 1.1
strided | v > v
    x = x.contiguous().as_strided((len(x), $F), ($F, 1)) * 1.1
rows unbound | v > v
    x = torch.stack([r * 2 for r in x.unbind(0)])
first token by a flat index | s > v
    x = x.reshape(-1, $F)[torch.arange(len(x)) * x.shape[1]]
rows picked in Python | s > v
    n = (x[:, :, 0] > 0).sum(1).clamp(min=1)
    x = torch.stack([x[k, n[k] - 1] for k in range(len(x))])
pooled by batch numbers | s > v
    k = torch.arange(len(x)).repeat_interleave(x.shape[1])
    x = torch.zeros(len(x), $F, dtype=x.dtype).index_add_(0, k, torch.relu(x).reshape(-1, $F))
bags | s > v | F = G
    + self.e = nn.EmbeddingBag(4, $G)
    i = (x[..., 0] > 0).long() + (x[..., 1] > 0)
    x = self.e(i.view(-1), torch.arange(0, i.numel(), i.shape[1]))
masks of heads | s > s
    + self.a = nn.MultiheadAttention($F, $h, batch_first=True)
    m = (x[:, None, :, 0] > 1).expand(-1, x.shape[1], -1) & ~torch.eye(x.shape[1], dtype=torch.bool)
    x = x + self.a(x, x, x, attn_mask=m.repeat_interleave($h, 0))[0]
convolution of each row | s > s
    w = x.mean(1).tanh().repeat_interleave(x.shape[1], 0)[:, None, :3]
    y = F.conv1d(F.pad(x, (1, 1)).reshape(1, -1, $F + 2), w, groups=len(w))
    x = y.view(len(x), -1, $F) + 0.1 * x
windows in front | s > s
    + self.a = nn.Linear($F, $F)
    y = x.transpose(0, 1).reshape(-1, $F)
    x = self.a(y).view(-1, len(x), $F).transpose(0, 1)
checkpointed | v > v
    + self.a = nn.Linear($F, $F)
    x = torch.utils.checkpoint.checkpoint(self.a, x, use_reentrant=False)
a function of its own | v > v
    x = Double.apply(x)
batch norm that learns | v > v
    + self.n = nn.BatchNorm1d($F)
    x = F.batch_norm(x, self.n.running_mean.clone(), self.n.running_var.clone(), momentum=0.5)
calls counted | v > v
    + self.calls = 0
    self.calls += 1
    x = x * 1.5
positions counted up | s > v
    k = torch.ones(len(x), dtype=torch.long).cumsum(0) - 1
    x = x[k, -1]
positions of numpy | s > v
    x = x[torch.from_numpy(np.arange(len(x))), 0]
positions of a list | s > v
    x = x[list(range(len(x))), -1]
positions of a tensor of a range | s > v
    x = x[torch.tensor(range(len(x))), 1]
a mesh of positions | s > s
    i, j = torch.meshgrid(torch.arange(len(x)), torch.arange(x.shape[1]), indexing="ij")
    x = x[i, j] * 0.9
rows backwards twice | v > v
    k = torch.arange(len(x) - 1, -1, -1)
    x = (x[k] * 1.5)[k]
rows as a table | v > v
    x = F.embedding(torch.arange(len(x)), x) * 1.1
rows gathered | v > v
    x = x.gather(0, torch.arange(len(x))[:, None].expand(-1, $F)) * 1.1
rows copied by index | v > v
    x = torch.zeros_like(x).index_copy(0, torch.arange(len(x)), torch.sin(x))
rows by one_hot | v > v
    x = F.one_hot(torch.arange(len(x)), len(x)).to(x.dtype) @ x
taken from the flat | v > v
    x = x + x.take(torch.arange(len(x)) * $F)[:, None]
along a dimension | v > v
    x = torch.take_along_dim(x, x.argsort(1), 1) + 0.1 * x
repeated by a tensor | v > v
    y = x.repeat_interleave(torch.full((len(x),), 2), dim=0)
    x = y.view(len(x), 2, -1).sum(1)
images in one with groups of rows | i > i
    + self.s = nn.Linear($C, $C)
    + self.w = nn.Parameter(torch.randn($C, $C, 3, 3) * 0.3)
    b, c, h, w = x.shape
    k = self.w * (self.s(x.mean((2, 3)))[:, None, :, None, None] + 1)
    y = F.conv2d(x.reshape(1, b * c, h, w), k.view(b * c, c, 3, 3), padding=1, groups=b)
    x = x + y.view(b, c, h, w)
"""
