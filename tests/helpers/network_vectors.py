"""Pieces of random networks: what people write on one vector for each row (`random_networks` says how to read them).

The engine that shares work should reach all of these.
"""

__all__ = ["VECTORS"]

VECTORS = """
linear | v > v | F = G
    + self.a = nn.Linear($F, $G)
    x = $ACT(self.a(x))
residual | v > v
    + self.a = nn.Linear($F, $F)
    x = x + $ACT(self.a(x))
batch norm | v > v
    + self.a = nn.Linear($F, $F)
    + self.n = nn.BatchNorm1d($F)
    x = $ACT(self.n(self.a(x)))
layer norm | v > v
    + self.n = nn.LayerNorm($F)
    x = self.n(x)
functional norm | v > v
    x = F.layer_norm(x, (x.shape[-1],)) + F.normalize(x, dim=1)
gated | v > v | F = G
    + self.a = nn.Linear($F, 2 * $G)
    u, v = self.a(x).chunk(2, -1)
    x = u * torch.sigmoid(v)
split and cat | v > v
    u, v = x.split([1, $F - 1], 1)
    x = torch.cat([$ACT(v), u], dim=1)
unbind and stack | v > v
    x = torch.stack([k * u for k, u in enumerate(x.unbind(1))], 1)
einsum | v > v | F = G
    + self.w = nn.Parameter(torch.randn($G, $F))
    x = torch.einsum("bf,gf->bg", x, self.w)
bmm with an expanded weight | v > v
    + self.w = nn.Parameter(torch.randn($F, $F))
    x = torch.bmm(x.unsqueeze(1), self.w.expand(len(x), -1, -1)).squeeze(1)
outer product | v > v
    x = (x.unsqueeze(2) @ x.unsqueeze(1)).tanh().mean(2)
addmm | v > v | F = G
    + self.a = nn.Linear($F, $G)
    x = torch.addmm(self.a.bias, x, self.a.weight.t())
matmul by method | v > v
    + self.w = nn.Parameter(torch.randn($F, $F))
    x = x.matmul(self.w).clamp(-2, 2)
bilinear | v > v | F = G
    + self.a = nn.Bilinear($F, $F, $G)
    x = self.a(x, torch.tanh(x))
relu_ | v > v
    + self.a = nn.Linear($F, $F)
    x = self.a(x)
    x.relu_()
relu in place | v > v
    + self.a = nn.Linear($F, $F)
    + self.r = nn.ReLU(inplace=True)
    x = self.r(self.a(x))
functional in place | v > v
    + self.a = nn.Linear($F, $F)
    x = F.elu(self.a(x), inplace=True)
add_ and mul_ | v > v
    + self.a = nn.Linear($F, $F)
    y = self.a(x)
    y += x
    y.mul_(0.5).add_(0.1)
    x = y
a column written | v > v
    + self.a = nn.Linear($F, $F)
    y = self.a(x)
    y[:, 0] = x[:, 1]
    x = y
masked_fill | v > v
    x = x.masked_fill(x < -0.5, 0.25)
where | v > v
    x = torch.where(x > 0, x, 0.1 * x)
where of rows | v > v
    x = torch.where((x[:, 0] > 0)[:, None], 2 * x, $ACT(x))
zeros with rows | v > v
    z = torch.zeros(len(x), $F, dtype=x.dtype)
    z[:, 0] = 1
    x = x + z
new_zeros behind | v > v | F = F + 1
    x = torch.cat([x, x.new_zeros(x.shape[0], 1)], 1)
ones_like | v > v
    x = x / (1 + torch.ones_like(x))
full of rows | v > v
    x = x * torch.full((x.size(0), 1), 1.5, dtype=x.dtype)
rows counted in Python | v > v
    x = x.reshape(len(x), -1).view(x.shape[0], $F) * (x.shape[0] / len(x))
largest feature added | v > v
    x = x + x[torch.arange(len(x)), x.argmax(1)].unsqueeze(1)
gather | v > v
    x = x + 0.5 * x.gather(1, x.argmax(1, keepdim=True))
scatter | v > v
    x = x + torch.zeros_like(x).scatter(1, x.argmax(1, keepdim=True), 1.0)
scatter of values | v > v
    x = x.scatter(1, x.argmin(1, keepdim=True), x.mean(1, keepdim=True))
index_select | v > v
    x = x.index_select(1, torch.arange($F - 1, -1, -1)) + x
features by a list | v > v
    x = x[:, [*range(1, $F), 0]] * 0.7
index_add | v > v
    x = x.index_add(1, torch.tensor([1, 0]), x[:, :2])
one_hot | v > v
    + self.a = nn.Linear($F, $F)
    x = x + self.a(F.one_hot(x.argmax(1), $F).to(x.dtype))
one_hot against arange | v > v
    x = x * (1 + (x.argmax(1)[:, None] == torch.arange($F)[None]))
eye | v > v
    x = x @ (torch.eye($F, dtype=x.dtype) + 0.1)
dropout | v > v
    + self.d = nn.Dropout(0.5)
    x = F.dropout(self.d(x), 0.3, self.training)
a module called twice | v > v
    + self.a = nn.Linear($F, $F)
    x = self.a(torch.relu(self.a(x)))
recursion of modules | v > v
    + self.a = Tree($F, 2)
    x = self.a(x)
a module in itself | v > v
    + self.a = Again($F)
    x = self.a(x, 2)
unused head | v > v
    + self.a = nn.Linear($F, 2)
    self.side = torch.relu(self.a(x)).sum()
kept and read | v > v
    self.kept = x
    x = torch.sin(self.kept) + 0.5 * self.kept
softmax | v > v
    x = x.softmax(1) + torch.log_softmax(x, dim=-1)
sorted | v > v
    x = x.sort(1).values + 0.1 * x
topk | v > v | F = F - 1
    x = x.topk($F - 1, dim=1).values
extremes | v > v
    x = x - x.amax(1, keepdim=True) + x.min(1, keepdim=True).values
deviation | v > v
    x = (x - x.mean(1, keepdim=True)) / (x.std(1, keepdim=True) + 0.5)
embedding of the largest | v > v
    + self.e = nn.Embedding($F, $F)
    x = x + self.e(x.argmax(1))
scalars | v > v
    x = 1 - 2 * x / 3 + x**2 * 0.1
powers and signs | v > v
    x = x.abs().sqrt() * x.sign() - torch.exp(-x * x)
cancelled | v > v
    + self.a = nn.Linear($F, $F)
    x = x + (self.a(x) - F.linear(x, self.a.weight, self.a.bias))
transposed twice | v > v
    x = x.t().contiguous().t() * 1.25
detached | v > v
    x = x.detach().clone() + torch.zeros(1, dtype=x.dtype)
modules in a row | v > v | F = G
    + self.a = nn.Sequential(nn.Linear($F, 5), nn.ReLU(), nn.Linear(5, $G), nn.Identity())
    x = self.a(x)
modules in a list | v > v
    + self.a = nn.ModuleList(nn.Linear($F, $F) for _ in range(3))
    x = torch.stack([torch.tanh(a(x)) for a in self.a]).mean(0)
names like patterns | v > v
    + self.add_module("a*$k", nn.Linear($F, $F))
    + self.add_module("a[$k]", nn.Linear($F, $F))
    x = getattr(self, "a[$k]")(torch.relu(getattr(self, "a*$k")(x)))
names like others | v > v
    + self.add_module("input#$k", nn.Linear($F, $F))
    + self.add_module("Input x:$k", nn.Linear($F, $F))
    x = x + getattr(self, "Input x:$k")(torch.relu(getattr(self, "input#$k")(x)))
a hook that doubles | v > v
    + self.a = nn.Linear($F, $F)
    + self.a.register_forward_hook(lambda module, given, y: y * 2)
    x = $ACT(self.a(x))
weight norm | v > v
    + self.a = nn.utils.parametrizations.weight_norm(nn.Linear($F, $F))
    x = $ACT(self.a(x))
a computed weight | v > v
    + self.w = nn.Parameter(torch.randn($F, $F))
    x = F.linear(x, torch.tanh(self.w) * 0.5)
a weight of each row | v > v | F = G
    + self.a = nn.Linear($F, $F * $G)
    x = torch.einsum("bf,bfg->bg", x, torch.tanh(self.a(x)).view(len(x), $F, $G))
mixture of experts | v > v
    + self.a = nn.Linear($F, $F)
    + self.b = nn.Linear($F, $F)
    x = torch.where((x.argmax(1) % 2 == 0)[:, None], self.a(x), self.b(x))
relu in place of what came | v > v
    x = F.leaky_relu(x, 0.2, inplace=True)
as many as the input has | v > v
    x = x + torch.zeros(x.shape, dtype=x.dtype) + 0.5 * torch.ones(*x.size(), dtype=x.dtype)
eyes of each row | v > v
    x = (torch.eye($F, dtype=x.dtype).expand(len(x), $F, $F) @ x[..., None]).squeeze(-1)
rows repeated and folded | v > v
    + self.a = nn.Linear($F, $F)
    y = x.repeat_interleave(2, 0)
    x = $ACT(self.a(y)).view(len(x), 2, -1).mean(1)
rows expanded and folded | v > v
    y = x[:, None].expand(-1, 3, -1).reshape(-1, $F)
    x = torch.tanh(y).view(x.size(0), 3, -1).sum(1)
an ensemble | v > v
    + self.a = nn.Linear($F, $F)
    + self.b = nn.Linear($F, $F)
    x = torch.stack([self.a(x), self.b(x)]).softmax(-1).mean(0)
prototypes | v > v | F = G
    + self.w = nn.Parameter(torch.randn($G, $F))
    x = torch.cdist(x, self.w)
cosines | v > v
    x = x * F.cosine_similarity(x, x.roll(1, 1), dim=1)[:, None]
steps of each row | v > v
    s = x.abs().amax(1, keepdim=True) / 7 + 1e-3
    x = (x / s).round() * s
fake quantisation | v > v
    x = torch.fake_quantize_per_tensor_affine(x.float(), 0.125, 0, -128, 127).to(x.dtype) + 0.5 * x
buckets | v > v
    x = x + torch.bucketize(x, torch.tensor([-1.0, 0.0, 1.0], dtype=x.dtype))
median and quantile | v > v
    x = x - x.median(1, keepdim=True).values + x.quantile(0.5, dim=1, keepdim=True)
lerp and addcmul | v > v
    x = torch.lerp(x, x.tanh(), 0.3).addcmul(x, x, value=0.1)
kept and clamped in place | v > v
    y = x.clone()
    y.clamp_(-1, 1)
    y.sub_(0.1).neg_()
    x = x + y
triangle of each row | v > v
    x = x + (x[:, :, None] * x[:, None]).tril().sum(2) * 0.1
diagonals | v > v
    x = torch.diag_embed(x).sum(1) * 1.5
none, ellipsis, steps | v > v
    x = x[..., None][:, ::1, 0] + x[:, -1:]
sums of other forms | v > v
    + self.p = nn.Parameter(torch.randn($F))
    y = torch.add(x, torch.relu(x), alpha=-0.5)
    x = torch.rsub(y, 1.0) - torch.sub(self.p, x) + x[:, :1]
linear sums | v > v
    + self.p = nn.Parameter(torch.randn($F))
    x = (1 - x.sub(2).neg() / 3) + x.mean(1, keepdim=True) - self.p
products of other forms | v > v
    + self.p = nn.Parameter(torch.randn($F))
    x = self.p * x * 0.5 + torch.true_divide(x, 3) + x.div(self.p.abs() + 0.5)
reduced by Python | v > v
    x = sum([x, 2 * x, torch.sin(x)]) / 3
"""
