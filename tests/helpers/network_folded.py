"""Pieces of random networks in which tokens, heads, nodes or windows are folded into the rows, indices go by positions
of rows, parts are the same for all rows, or one call makes several sites (`random_networks` says how to read them).

The engine that shares work should reach all of these.
"""

__all__ = ["FOLDED"]

FOLDED = """
tokens folded for addmm | s > s | F = G
    + self.w = nn.Parameter(torch.randn($F, $G) * 0.5)
    + self.b = nn.Parameter(torch.randn($G))
    x = $ACT(torch.addmm(self.b, x.reshape(-1, x.size(-1)), self.w)).view(*x.size()[:-1], $G)
heads folded for bmm | s > s
    + self.q = nn.Linear($F, 3 * $F)
    b, t, f = x.shape
    q, k, v = (y.view(b, t, $h, -1).transpose(1, 2).reshape(b * $h, t, -1) for y in self.q(x).chunk(3, -1))
    y = torch.bmm(torch.bmm(q, k.transpose(1, 2)).softmax(-1), v)
    x = x + y.view(b, $h, t, -1).transpose(1, 2).reshape(b, t, f)
steps outside of rows | s > s
    + self.a = nn.Linear($F, $F)
    b, t, f = x.shape
    y = $ACT(self.a(x.transpose(0, 1).reshape(t * b, f)))
    x = x + y.view(t, b, f).transpose(0, 1)
layer norm of folded tokens | s > s
    + self.n = nn.LayerNorm($F)
    x = self.n(x.reshape(-1, x.shape[-1])).view_as(x)
batch norm of folded tokens | s > s
    + self.n = nn.BatchNorm1d($F)
    x = self.n(x.flatten(0, 1)).unflatten(0, (-1, x.shape[1]))
columns folded into rows | s > s
    + self.a = nn.Linear($T, $T)
    b, t, f = x.shape
    x = torch.relu(self.a(x.permute(0, 2, 1).reshape(b * f, t))).reshape(b, f, t).permute(0, 2, 1) + x
pixels folded into rows | i > i
    + self.a = nn.Linear($C, $C)
    b, c, h, w = x.shape
    x = $ACT(self.a(x.permute(0, 2, 3, 1).reshape(-1, c))).view(b, h, w, c).permute(0, 3, 1, 2)
windows and a bias of theirs | i > i
    + self.a = nn.Linear($C, $C)
    + self.p = nn.Parameter(torch.randn(4, 4))
    b, c, h, w = x.shape
    y = F.pad(x, (0, w % 2, 0, h % 2))
    m, n = y.shape[2] // 2, y.shape[3] // 2
    y = self.a(y.view(b, c, m, 2, n, 2).permute(0, 2, 4, 3, 5, 1).reshape(-1, 4, c))
    s = (y @ y.transpose(1, 2)).view(b, m * n, 4, 4) + self.p
    y = s.view(-1, 4, 4).softmax(-1) @ y
    y = y.view(b, m, n, 2, 2, c).permute(0, 5, 1, 3, 2, 4).reshape(b, c, 2 * m, 2 * n)
    x = x + y[:, :, :h, :w]
grid of windows | i > i
    + self.a = nn.Linear($C, $C)
    b, c, h, w = x.shape
    y = F.pad(x, (0, w % 2, 0, h % 2))
    m, n = y.shape[2] // 2, y.shape[3] // 2
    y = y.view(b, c, 2, m, 2, n).permute(0, 3, 5, 2, 4, 1).reshape(-1, 4, c)
    y = torch.tanh(self.a(y)).view(b, m, n, 2, 2, c).permute(0, 5, 3, 1, 4, 2).reshape(b, c, 2 * m, 2 * n)
    x = x + y[:, :, :h, :w]
frames through a convolution | s > s
    + self.a = nn.Conv1d(1, 2, 3, padding=1)
    b, t, f = x.shape
    x = x + self.a(x.reshape(b * t, 1, f)).mean(1).view(b, t, f)
recurrent layer and its state | s > s | F = G
    + self.a = nn.GRU($F, $G, batch_first=True)
    y, h = self.a(x)
    x = y * torch.sigmoid(h[-1])[:, None]
recurrent layers, steps first | s > s | F = G
    + self.a = nn.LSTM($F, $G, 2)
    y, (h, c) = self.a(x.transpose(0, 1), (x.new_zeros(2, len(x), $G), x.new_zeros(2, len(x), $G)))
    x = y.transpose(0, 1) + (h[1] - c[0])[:, None]
both directions and their states | s > v | F = 2 * G
    + self.a = nn.RNN($F, $G, batch_first=True, bidirectional=True)
    y, h = self.a(x)
    x = torch.cat([h[0], h[1]], -1) + y.mean(1)
einsum of three | s > s
    + self.w = nn.Parameter(torch.randn($F, $F) * 0.4)
    x = torch.einsum("btf,fg,bsg->bts", x, self.w, torch.tanh(x)).softmax(-1) @ x
einsum of four | s > v
    + self.u = nn.Parameter(torch.randn($F, 3))
    + self.v = nn.Parameter(torch.randn(3, $F))
    x = torch.einsum("btf,fr,rg,btg->bg", x, self.u, self.v, x.sigmoid())
multi_dot of each | v > v
    + self.u = nn.Parameter(torch.randn($F, 3))
    + self.v = nn.Parameter(torch.randn(3, $F))
    x = x + torch.linalg.multi_dot([x, self.u, self.v])
edges of graphs in one | s > s
    + self.a = nn.Linear(2 * $F, $F)
    b, t, f = x.shape
    e = torch.tensor([[0, 1, 2, 2], [1, 2, 0, 1]])
    e = (e[:, None] + (torch.arange(b) * t).view(1, -1, 1)).view(2, -1)
    n = x.reshape(-1, f)
    m = torch.relu(self.a(torch.cat([n[e[0]], n.index_select(0, e[1])], -1)))
    x = (n + x.new_zeros(b * t, f).index_add_(0, e[1], m)).view(b, t, f)
messages scattered | s > s
    b, t, f = x.shape
    e = torch.tensor([0, 2, 1, 2])
    e = (e + (torch.arange(b) * t)[:, None]).flatten()
    n = x.reshape(-1, f)
    m = torch.tanh(n[e])
    x = (n + torch.zeros_like(n).scatter_add(0, e.view(-1, 1).expand_as(m), m)).view(b, t, f)
pooled by the number of its graph | s > v
    n, g = x.reshape(-1, x.shape[-1]), torch.arange(len(x)).repeat_interleave(x.shape[1])
    x = x.new_zeros(len(x), x.shape[-1]).index_add(0, g, n) / x.shape[1] + n[torch.arange(len(x)) * x.shape[1]]
nearest tokens by a flat index | s > s
    + self.a = nn.Linear($F, $F)
    b, t, f = x.shape
    i = (x @ x.transpose(1, 2)).topk(2, -1)[1] + torch.arange(b).view(-1, 1, 1) * t
    x = $ACT(self.a(x)).reshape(b * t, f)[i.view(-1)].view(b, t, 2, f).amax(2)
a token of each row by a flat index | s > v
    + self.a = nn.Linear($F, $F)
    i = torch.arange(len(x)) * x.size(1) + x.sum(-1).argmax(1)
    x = torch.tanh(self.a(x)).reshape(-1, x.size(-1))[i]
a table of positions through a layer | s > s
    + self.p = nn.Parameter(torch.randn(40, $F))
    + self.a = nn.Linear($F, $F)
    x = x + torch.tanh(self.a(self.p[: x.shape[1]]))
a table for all rows, expanded | s > s
    + self.p = nn.Parameter(torch.randn(3, $F))
    + self.a = nn.Linear($F, $F)
    k = self.a(self.p).unsqueeze(0).expand(len(x), -1, -1)
    x = x + (x @ k.transpose(1, 2)).softmax(-1) @ k
standardised weight | s > s
    + self.w = nn.Parameter(torch.randn($F, $F))
    x = torch.relu(F.linear(x, F.layer_norm(self.w, ($F,)))) + x
a weight made by a network | v > v
    + self.a = nn.Linear(2, $F)
    + self.c = nn.Parameter(torch.randn($F, 2))
    x = x + F.linear(x, torch.tanh(self.a(self.c)))
two views through one | v > v
    + self.a = nn.Linear($F, $F)
    u, v = torch.relu(self.a(torch.cat([x, x.flip(1)], 0))).chunk(2, 0)
    x = u - 0.5 * v
two views cut apart by the number of rows | v > v
    + self.a = nn.Linear($F, $F)
    n = x.shape[0]
    y = torch.tanh(self.a(torch.cat([x, -x], 0)))
    x = y[:n] + 0.5 * y[n:].flip(1)
new_tensor of numbers | v > v
    x = x * x.new_tensor([1.0, -0.5] + [0.5] * ($F - 2))
a grid that is kept | v > v
    + self.grid = None
    if self.grid is None or self.grid.shape[0] != x.shape[1]:
        self.grid = torch.arange(x.shape[1], dtype=x.dtype).sin()
    x = x + self.grid
rms norm written out | s > s
    + self.w = nn.Parameter(torch.rand($F) + 0.5)
    x = self.w * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))
rotary positions | s > s
    t = torch.arange(x.shape[1])[None].expand(len(x), -1)
    s = t[..., None].to(x.dtype) * torch.linspace(0.1, 1, x.shape[-1], dtype=x.dtype)
    x = x * s.cos() + torch.cat([-x[..., 1:], x[..., :1]], -1) * s.sin()
experts by their tokens | s > s
    + self.g = nn.Linear($F, 3)
    + self.e = nn.Linear($F, $F)
    + self.w = nn.Parameter(torch.randn(3, $F))
    b, t, f = x.shape
    h = x.reshape(-1, f)
    p, i = self.g(h).softmax(-1).topk(2, -1)
    m, y = F.one_hot(i, 3).permute(2, 1, 0), torch.zeros_like(h)
    for n in range(3):
        j, k = torch.where(m[n])
        y.index_add_(0, k, torch.tanh(self.e(h[None, k].reshape(-1, f)) * self.w[n]) * p[k, j, None])
    x = x + y.view(b, t, f)
experts by a mask of tokens | s > s
    + self.g = nn.Linear($F, 2)
    + self.e = nn.Linear($F, $F)
    h = x.reshape(-1, x.shape[-1])
    i, y = self.g(h).argmax(-1), torch.zeros_like(h)
    for n in range(2):
        y[i == n] = torch.relu(self.e(h[i == n])) * (n + 1)
    x = y.view_as(x)
chosen before what is taken there | s > s
    + self.a = nn.Linear($F, $F)
    h = x.reshape(-1, x.shape[-1])
    (k,) = torch.where(h[:, 0] > 0.1)
    u = h[k] + 1
    z = torch.tanh(self.a(x)).reshape(h.shape)
    x = z.index_add(0, k, u * z[k]).view_as(x)
rows of a kind | v > v
    + self.e = nn.Linear($F, $F)
    m = x[:, 0] > 0.2
    y = x.clone()
    y[m] = torch.tanh(self.e(x[m]))
    x = y
"""
