"""Pieces of random networks in which rows look at each other, at their place or at their number (`random_networks` says
how to read them): these a walk runs whole.
"""

__all__ = ["BATCHES"]

BATCHES = """
branch on the largest | v > v
    x = x * 2 if x.max() > 1.5 else x + 1
branch on any | v > v
    if bool((x > 2).any()):
        x = x.clamp(-1, 1)
branch on all | v > v
    x = -x if (x.abs() < 2.5).all() else torch.tanh(x)
scale of the batch | v > v
    x = (x * (7 / (x.abs().max().item() + 1e-3))).round() / 7
scale as a float | v > v
    x = x / (1 + float(x.abs().mean()))
number of loops | v > v
    for _ in range(int(x.abs().amax())):
        x = 0.5 * x + 0.1
while large | v > v
    while x.abs().max() > 1:
        x = x / 2
slices by a number | v > v
    k = int(x.sum().abs()) % $F
    x = torch.cat([x[:, k:], x[:, :k]], 1)
number of some rows | v > v
    x = x * (1 + len(x[x[:, 0] > 0]))
numbers of a list | v > v
    x = x + max(x[:, 0].tolist())
f-string | v > v
    x = x * float(f"{x.max():.3f}")
unique | v > v
    x = x + 0.1 * len(x.argmax(1).unique())
equal | v > v
    x = x + 1 if torch.equal(x.relu(), x) else 2 * x
in | v > v
    x = -x if 0 in x.argmax(1) else x
count_nonzero | v > v
    x = x * (1 + int(torch.count_nonzero(x > 1)) / 8)
item of a sum | v > v
    x = torch.full_like(x, x.sum().item() / 8) + x
tensor of a number | v > v
    x = x - torch.tensor(x.min().item(), dtype=x.dtype)
mean of rows | v > v
    x = x - x.mean(0)
largest of rows | v > v
    x = x / (x.abs().max() + 0.5)
softmax of rows | v > v
    x = x.softmax(0) * len(x)
cumsum of rows | v > v
    x = x.cumsum(0) / len(x)
rolled rows | v > v
    x = x + x.roll(1, 0)
turned rows | v > v
    x = x - 0.5 * x.flip(0)
first row | v > v
    x = x + x[0]
last row | v > v
    x = x + x[-1:]
last row written | v > v
    y = x * 1.0
    y[-1] = 0.5
    x = y
attention between rows | v > v
    x = (x @ x.t() / 4).softmax(-1) @ x
training norm | v > v
    x = F.batch_norm(x, None, None, training=True)
distances | v > v
    x = x + (x[:, None] - x[None]).norm(dim=-1).amin(1, keepdim=True) + 0.1 * x
order of rows | v > v
    x = x[x[:, 0].argsort()]
places of rows | v > v
    x = x + torch.arange(len(x), dtype=x.dtype)[:, None] / 8
number of rows | v > v
    x = x + 8 / x.shape[0]
linspace of rows | v > v
    x = x * torch.linspace(1, 2, len(x), dtype=x.dtype)[:, None]
mean of rows and tokens | s > s
    x = x - x.mean((0, 1))
buffer of the batch | v > v
    + self.register_buffer("b$k", torch.zeros(()))
    self.b.copy_(x.abs().max())
    x = x / (1 + self.b)
cache of places | v > v
    + self.cache = {}
    z = self.cache.setdefault(len(x), torch.arange(len(x)))
    x = x * (1 + z[:, None] / 8)
scale of a side branch | v > v
    + self.a = nn.Linear($F, $F)
    x = x * self.a(x).abs().max().item()
branch on a side branch | v > v
    + self.a = nn.Linear($F, $F)
    x = -x if self.a(x)[:, 0].sum() > 0 else x
loops of a side branch | v > v
    + self.a = nn.Linear($F, $F)
    for _ in range(len(self.a(x).relu().nonzero()) % 4):
        x = torch.tanh(x) + 0.1
branch on one element | v > v
    x = -x if x[0, 0] > 0 else 2 * x
as many steps as rows | v > v
    x = x + torch.tensor([float(k) for k in range(len(x))], dtype=x.dtype)[:, None] / 8
steps of the batch | v > v
    s = x.abs().max() / 7 + 1e-3
    x = (x / s).round() * s
norm of the whole | v > v
    x = 4 * x / x.norm()
norm of columns | v > v
    x = F.normalize(x, dim=0)
norm of this batch | v > v
    + self.n = nn.BatchNorm1d($F, track_running_stats=False)
    x = self.n(x)
median of the whole | v > v
    x = x - x.median()
best row | v > v
    x = x - x[x[:, 0].argmax()]
every other row | v > v
    y = x * 1.0
    y[::2] = -y[::2]
    x = y
first half of the rows | v > v
    k = len(x) // 2
    x = torch.cat([x[:k] * 2, x[k:]])
triangle of the whole | v > v
    x = x.tril() + 0.5 * x
statistics in numpy | v > v
    x = x / (1 + float(np.abs(x.detach().numpy()).max()))
bool of a tensor | v > v
    x = x * 2 if (x[:, 0] > 1.5).sum() else x
rows of the whole flattened | v > v
    x = x.view(-1).roll(1).view_as(x)
rows for steps of an lstm | s > s
    + self.a = nn.LSTM($F, $F)
    x = self.a(x)[0]
rows for steps of attention | s > s
    + self.a = nn.MultiheadAttention($F, $h)
    x = x + self.a(x, x, x)[0]
rows for steps, unbatched | v > v
    + self.a = nn.MultiheadAttention($F, $h, batch_first=True)
    x = x + self.a(x, x, x)[0]
scrambled by a reshape | v > v
    x = x.t().reshape(len(x), -1)
scrambled tokens | s > v | F = T * F
    x = x.transpose(0, 1).reshape(len(x), -1)
scrambled by a view | v > v
    x = x.contiguous().view($F, len(x)).t() * 1.1
copies taken for pairs | v > v
    x = torch.cat([x, torch.sin(x)]).view(len(x), 2, -1).mean(1)
pairs taken for copies | v > v
    x = x.repeat_interleave(2, 0).view(2, len(x), -1).mean(0)
convolution along the batch | v > v
    x = F.avg_pool1d(x.t()[None], 3, 1, 1)[0].t() + 0.5 * x
rows shifted by a pad | v > v
    x = x + F.pad(x, (0, 0, 1, -1))
differences of rows | v > v
    x = torch.diff(x, dim=0, prepend=torch.zeros_like(x[:1]))
norm over rows | v > v
    x = F.layer_norm(x.t(), (len(x),)).t()
columns by their sum | v > v
    x = torch.where(x.sum(0) > 0, x, -x)
projected | v > v
    x = x - x @ torch.linalg.pinv(x) @ x * 0.5
sorted rows | v > v
    x = x.sort(0).values
sum of all rows | v > v
    x = x + sum(x.unbind(0)) / 8
largest row expanded | v > v
    x = x + x.max(0, keepdim=True).values.expand_as(x)
more than ten rows | v > v
    if len(x) > 10:
        x = x * 2
tokens of the next row by a flat index | s > s
    b, t, f = x.shape
    i = (torch.arange(b * t) + t) % (b * t)
    x = x + x.reshape(-1, f)[i].view(b, t, f)
messages to the next row | s > s
    b, t, f = x.shape
    e = ((torch.tensor([0, 1]) + (torch.arange(b) * t)[:, None] + t) % (b * t)).flatten()
    n = x.reshape(-1, f)
    x = n.index_add(0, e, torch.tanh(n[e - e % t])).view(b, t, f)
places beyond a row by a flat index | s > v
    i = (x[:, :, 0].abs().sum(1) * 4).long().clamp(max=2 * x.size(1) - 1)
    i = (torch.arange(len(x)) * x.size(1) + i).clamp(max=len(x) * x.size(1) - 1)
    x = x.reshape(-1, x.size(-1))[i]
places of a longer table by a flat index | s > v
    + self.p = nn.Linear($F, 3 * $T)
    i = self.p(x[:, 0]).argmax(1)
    i = (torch.arange(len(x)) * x.size(1) + i) % (len(x) * x.size(1))
    x = x.reshape(-1, x.size(-1))[i]
a stride of other rows | s > v
    x = x.reshape(-1, x.size(-1))[torch.arange(len(x)) * (x.size(1) - 1)]
every other row | v > v
    x = x + x[torch.arange(len(x)) // 2 * 2]
halves of the batch | v > v
    n = len(x)
    y = torch.cat([x, x.flip(1)], 1).view(2 * n, -1)
    x = torch.tanh(y[:n]) + 0.5 * y[n:]
experts of limited room | s > s
    h = x.reshape(-1, x.shape[-1])
    (k,) = torch.where(h[:, 0] > 0)
    x = h.index_add(0, k[:4], torch.tanh(h[k[:4]])).view_as(x)
chosen entries less their mean | s > s
    h = x.reshape(-1, x.shape[-1])
    m = h[:, 0] > 0
    y = h.clone()
    y[m] = h[m] - h[m].mean(0)
    x = y.view_as(x)
chosen entries in order | s > s
    h = x.reshape(-1, x.shape[-1])
    (k,) = torch.where(h[:, 0] > 0)
    x = h.index_add(0, k, torch.tanh(h[k]).sort(0)[0]).view_as(x)
chosen entries counted | s > s
    h = x.reshape(-1, x.shape[-1])
    (k,) = torch.where(h[:, 0] > 0)
    x = h.index_add(0, k, torch.tanh(h[k]) * (0.1 + k.shape[0] / 8)).view_as(x)
chosen entries of others | s > s
    h = x.reshape(-1, x.shape[-1])
    (k,) = torch.where(h[:, 0] > 0)
    (j,) = torch.where(h.flip(0)[:, 0] > 0)
    x = h.index_add(0, k, torch.tanh(h[j])).view_as(x)
"""
