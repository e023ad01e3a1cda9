"""Graphs, points, sets and tables: GCN, message passing, PyG's batches, GAT, DLRM, PointNet, DGCNN, Perceiver, DeepFM,
NeRF, a normalising flow and a Siamese pair."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.inputs import VOCABULARY, Made, series, table, tokens

__all__ = ["SETS"]

NODES = 5
EDGES = torch.tensor([[0, 1, 1, 2, 3, 4, 0, 2], [1, 0, 2, 1, 4, 3, 4, 0]])


class GCN(nn.Module):
    """Rows are graphs of the same edges: messages are summed at their targets, along the dimension of nodes."""

    def __init__(self) -> None:
        super().__init__()
        self.lin1, self.lin2, self.out = nn.Linear(3, 6, bias=False), nn.Linear(6, 6, bias=False), nn.Linear(6, 4)
        self.register_buffer("edge_index", EDGES)

    def propagate(self, x: Tensor) -> Tensor:
        source, target = self.edge_index
        degree = torch.zeros(NODES).scatter_add_(0, target, torch.ones(target.size(0))).clamp(min=1)
        weight = degree[source].pow(-0.5) * degree[target].pow(-0.5)
        out = torch.zeros_like(x)
        return out.index_add_(1, target, weight.view(1, -1, 1) * x[:, source])

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.propagate(self.lin1(x)))
        return self.out(self.propagate(self.lin2(x)).mean(1))


class PyG(nn.Module):
    """As torch-geometric batches graphs: nodes of all graphs in dimension 0, edges moved by the nodes before, and a
    vector that says to which graph a node belongs, over which its nodes are summed."""

    def __init__(self) -> None:
        super().__init__()
        self.lin1, self.lin2, self.out = nn.Linear(6, 8), nn.Linear(11, 8), nn.Linear(8, 4)
        self.register_buffer("edges", EDGES)

    def forward(self, x: Tensor) -> Tensor:
        graphs = x.size(0)
        offsets = torch.arange(graphs, device=x.device) * NODES
        edge_index = (self.edges.unsqueeze(1) + offsets.view(1, -1, 1)).view(2, -1)
        batch = torch.arange(graphs, device=x.device).repeat_interleave(NODES)
        x = x.reshape(-1, x.size(-1))
        source, target = edge_index[0], edge_index[1]
        messages = F.relu(self.lin1(torch.cat([x.index_select(0, target), x.index_select(0, source)], dim=-1)))
        size = x.new_zeros(x.size(0), messages.size(-1))
        index = target.view(-1, 1).expand_as(messages)
        summed = size.scatter_add_(0, index, messages)
        x = F.relu(self.lin2(torch.cat([x, summed], dim=-1)))
        pooled = x.new_zeros(graphs, x.size(-1)).index_add_(0, batch, x)
        return self.out(pooled)


class NodeGCN(nn.Module):
    """One graph, of which the rows are nodes that see each other: no batch can be cut."""

    def __init__(self) -> None:
        super().__init__()
        self.lin1, self.lin2 = nn.Linear(6, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        ring = torch.arange(x.size(0))
        x = F.relu(self.lin1(x))
        x = (x + x[(ring + 1) % x.size(0)]) / 2
        return self.lin2(x)


class GAT(nn.Module):
    """Attention over edges: a softmax of the scores that meet at a node, by maxima and sums that are scattered."""

    def __init__(self) -> None:
        super().__init__()
        self.lin, self.att_src, self.att_dst = (
            nn.Linear(3, 6, bias=False),
            nn.Parameter(torch.randn(6)),
            nn.Parameter(torch.randn(6)),
        )
        self.out = nn.Linear(6, 4)
        self.register_buffer("edge_index", EDGES)

    def forward(self, x: Tensor) -> Tensor:
        h = self.lin(x)
        source, target = self.edge_index
        alpha = F.leaky_relu((h * self.att_src).sum(-1)[:, source] + (h * self.att_dst).sum(-1)[:, target], 0.2)
        index = target.expand_as(alpha)
        largest = torch.full((x.size(0), NODES), -1e9).scatter_reduce(1, index, alpha, reduce="amax")
        alpha = (alpha - largest.gather(1, index)).exp()
        total = torch.zeros_like(largest).scatter_add(1, index, alpha)
        alpha = alpha / (total.gather(1, index) + 1e-16)
        messages = alpha.unsqueeze(-1) * h[:, source]
        out = torch.zeros_like(h).index_add(1, target, messages)
        return self.out(F.elu(out).amax(1))


class DLRM(nn.Module):
    """Bags of categories, dense features, and the dot products of all pairs."""

    def __init__(self) -> None:
        super().__init__()
        self.bags = nn.ModuleList(nn.EmbeddingBag(VOCABULARY, 4, mode="sum") for _ in range(2))
        self.bot, self.top = (
            nn.Sequential(nn.Linear(2, 4), nn.ReLU()),
            nn.Sequential(nn.Linear(7, 8), nn.ReLU(), nn.Linear(8, 2)),
        )

    def forward(self, ids: Tensor) -> Tensor:
        dense = self.bot(torch.log1p(ids[:, :2].float()))
        ly = [bag(ids[:, 2 + 2 * i : 4 + 2 * i]) for i, bag in enumerate(self.bags)]
        t = torch.cat([dense, *ly], dim=1).view((dense.size(0), -1, 4))
        z = torch.bmm(t, torch.transpose(t, 1, 2))
        _, ni, nj = z.shape
        li = torch.tensor([i for i in range(ni) for _ in range(i)])
        lj = torch.tensor([j for i in range(nj) for j in range(i)])
        return self.top(torch.cat([dense, z[:, li, lj]], dim=1))


class PointNet(nn.Module):
    """A transform of the points that the points themselves decide, and a maximum over them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv1d(3, 8, 1), nn.Linear(8, 9)
        self.conv1, self.conv2, self.bn, self.out = (
            nn.Conv1d(3, 8, 1),
            nn.Conv1d(8, 12, 1),
            nn.BatchNorm1d(12),
            nn.Linear(12, 4),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(2, 1)
        rows = x.size()[0]
        t = torch.max(F.relu(self.conv(x)), 2, keepdim=True)[0].view(-1, 8)
        iden = torch.eye(3).flatten().view(1, 9).repeat(rows, 1)
        trans = (self.fc(t) + iden).view(-1, 3, 3)
        x = torch.bmm(x.transpose(2, 1), trans).transpose(2, 1)
        x = self.bn(self.conv2(F.relu(self.conv1(x))))
        x = torch.max(x, 2, keepdim=True)[0].view(-1, 12)
        return F.log_softmax(self.out(x), dim=1)


class DGCNN(nn.Module):
    """Nearest neighbours of every point, found by distances, taken from points that are folded into rows."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.out = nn.Conv2d(6, 8, 1, bias=False), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(2, 1)
        rows, dims, points = x.size()
        inner = -2 * torch.matmul(x.transpose(2, 1), x)
        square = torch.sum(x**2, dim=1, keepdim=True)
        idx = (-square - inner - square.transpose(2, 1)).topk(k=2, dim=-1)[1]
        base = torch.arange(0, rows, device=x.device).view(-1, 1, 1) * points
        idx = (idx + base).view(-1)
        x = x.transpose(2, 1).contiguous()
        feature = x.view(rows * points, -1)[idx, :].view(rows, points, 2, dims)
        x = x.view(rows, points, 1, dims).repeat(1, 1, 2, 1)
        feature = torch.cat((feature - x, x), dim=3).permute(0, 3, 1, 2).contiguous()
        return self.out(F.leaky_relu(self.conv(feature), 0.2).max(dim=-1)[0].max(dim=-1)[0])


class Perceiver(nn.Module):
    """A few learned latents ask the inputs, then each other; queries of their own read the answers."""

    def __init__(self) -> None:
        super().__init__()
        self.latents, self.queries = nn.Parameter(torch.randn(3, 8)), nn.Parameter(torch.randn(2, 8))
        self.norm, self.context_norm = nn.LayerNorm(8), nn.LayerNorm(4)
        self.to_q, self.to_kv, self.to_out = nn.Linear(8, 8, bias=False), nn.Linear(4, 16, bias=False), nn.Linear(8, 8)
        self.self_attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.reader, self.out = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 3)

    def forward(self, data: Tensor) -> Tensor:
        rows = data.shape[0]
        x = self.latents.unsqueeze(0).expand(rows, -1, -1)
        q, (k, v) = self.to_q(self.norm(x)), self.to_kv(self.context_norm(data)).chunk(2, dim=-1)
        q, k, v = (t.reshape(rows, -1, 2, 4).permute(0, 2, 1, 3).reshape(rows * 2, -1, 4) for t in (q, k, v))
        attn = torch.einsum("b i d, b j d -> b i j", q, k).mul(0.5).softmax(dim=-1)
        out = torch.einsum("b i j, b j d -> b i d", attn, v)
        x = self.to_out(out.reshape(rows, 2, -1, 4).permute(0, 2, 1, 3).reshape(rows, -1, 8)) + x
        x = x + self.self_attention(x, x, x, need_weights=False)[0]
        queries = self.queries.unsqueeze(0).repeat(rows, 1, 1)
        return self.out(self.reader(queries, x, x)[0])


class DeepFM(nn.Module):
    """Fields with offsets in one table, squares of sums less sums of squares."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.first, self.bias = (
            nn.Embedding(3 * VOCABULARY, 4),
            nn.Embedding(3 * VOCABULARY, 1),
            nn.Parameter(torch.zeros(1)),
        )
        self.mlp = nn.Sequential(nn.Linear(12, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 1))
        self.offsets = torch.tensor([0, VOCABULARY, 2 * VOCABULARY])

    def forward(self, x: Tensor) -> Tensor:
        x = x + x.new_tensor(self.offsets.tolist()).unsqueeze(0)
        e = self.embedding(x)
        square_of_sum, sum_of_square = torch.sum(e, dim=1) ** 2, torch.sum(e**2, dim=1)
        pairs = 0.5 * torch.sum(square_of_sum - sum_of_square, dim=1, keepdim=True)
        return torch.sigmoid(torch.sum(self.first(x), dim=1) + self.bias + pairs + self.mlp(e.view(-1, 12)))


class NeRF(nn.Module):
    """Samples along a ray become tokens folded into rows; colours are summed by how much light is left."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.sigma, self.rgb = (
            nn.Linear(15, 12),
            nn.Linear(27, 12),
            nn.Linear(12, 1),
            nn.Linear(12, 3),
        )

    def forward(self, rays: Tensor) -> Tensor:
        origin, direction = rays[:, :3], F.normalize(rays[:, 3:], dim=-1)
        z = torch.linspace(0.2, 1.0, steps=4, device=rays.device).expand(rays.shape[0], 4)
        points = origin[..., None, :] + direction[..., None, :] * z[..., :, None]
        flat = torch.reshape(points, [-1, points.shape[-1]])
        embedded = torch.cat([flat, *(f(flat * 2.0**i) for i in range(2) for f in (torch.sin, torch.cos))], -1)
        h = F.relu(self.fc1(embedded))
        h = F.relu(self.fc2(torch.cat([embedded, h], -1)))
        sigma, rgb = self.sigma(h), torch.sigmoid(self.rgb(h))
        raw = torch.reshape(torch.cat([rgb, sigma], -1), [*points.shape[:-1], 4])
        distances = z[..., 1:] - z[..., :-1]
        distances = torch.cat([distances, torch.tensor([3.0]).expand(distances[..., :1].shape)], -1)
        alpha = 1.0 - torch.exp(-F.relu(raw[..., 3]) * distances)
        left = torch.cumprod(torch.cat([torch.ones((alpha.shape[0], 1)), 1.0 - alpha + 1e-10], -1), -1)[:, :-1]
        return torch.sum((alpha * left)[..., None] * raw[..., :3], -2)


class RealNVP(nn.Module):
    """Coupling layers: one half decides how the other is scaled and moved; written into one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.nets = nn.ModuleList(nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 12)) for _ in range(2))
        self.register_buffer("mask", torch.tensor([1.0, 0.0] * 3))

    def forward(self, x: Tensor) -> Tensor:
        log_det = x.new_zeros(x.shape[0])
        for i, net in enumerate(self.nets):
            mask = self.mask if i % 2 == 0 else 1 - self.mask
            s, t = net(x * mask).chunk(2, dim=-1)
            s = torch.tanh(s) * (1 - mask)
            x = x * mask + (1 - mask) * (x * torch.exp(s) + t)
            log_det += s.sum(dim=-1)
        prior = -0.5 * (x**2 + math.log(2 * math.pi)).sum(-1)
        return torch.stack([prior, log_det], dim=1)


class Siamese(nn.Module):
    """One network for both halves of a row, stacked along the rows; their distance and their likeness."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(5, 8), nn.PReLU(), nn.Linear(8, 6))

    def forward(self, pairs: Tensor) -> Tensor:
        a, b = pairs[:, 0], pairs[:, 1]
        both = self.net(torch.cat([a, b], dim=0))
        u, v = both.chunk(2, dim=0)
        return torch.stack([F.pairwise_distance(u, v), F.cosine_similarity(u, v)], dim=1)


SETS = {
    "GCN": Made(GCN, series(NODES, 3)),
    "message passing (PyG's batch)": Made(PyG, series(NODES, 3)),
    "GCN of nodes": Made(NodeGCN, table(6)),
    "GAT": Made(GAT, series(NODES, 3)),
    "DLRM": Made(DLRM, tokens(6)),
    "PointNet": Made(PointNet, series(6, 3)),
    "DGCNN": Made(DGCNN, series(6, 3)),
    "Perceiver": Made(Perceiver, series(5, 4)),
    "DeepFM": Made(DeepFM, tokens(3)),
    "NeRF": Made(NeRF, table(6)),
    "RealNVP": Made(RealNVP, table(6)),
    "Siamese": Made(Siamese, series(2, 5)),
}
