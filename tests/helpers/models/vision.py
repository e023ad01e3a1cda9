"""Vision transformers as timm and torchvision lay them out: ViT, DeiT, Swin, MaxViT, MobileViT, SegFormer, LeViT-like,
PoolFormer and MLP-Mixer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.inputs import Made, images

__all__ = ["VISION"]

WIDTH, HEADS = 16, 2


class PatchEmbed(nn.Module):
    def __init__(self, patch: int, width: int = WIDTH, flatten: bool = True) -> None:
        super().__init__()
        self.proj, self.flatten = nn.Conv2d(3, width, patch, stride=patch), flatten

    def forward(self, x: Tensor) -> Tensor:
        _, _, height, width = x.shape
        assert height == width, f"Input height ({height}) doesn't match width ({width})."
        x = self.proj(x)
        return x.flatten(2).transpose(1, 2) if self.flatten else x


class Attention(nn.Module):
    """timm's: all three projections in one, "fused" or not."""

    def __init__(self, width: int, fused: bool = True) -> None:
        super().__init__()
        self.scale, self.fused = (width // HEADS) ** -0.5, fused
        self.qkv, self.proj = nn.Linear(width, width * 3), nn.Linear(width, width)
        self.attn_drop, self.proj_drop = nn.Dropout(0.0), nn.Dropout(0.0)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, HEADS, c // HEADS).permute(2, 0, 3, 1, 4).unbind(0)
        if self.fused:
            x = F.scaled_dot_product_attention(q, k, v, dropout_p=0.0)
        else:
            q = q * self.scale
            attn = self.attn_drop((q @ k.transpose(-2, -1)).softmax(dim=-1))
            x = attn @ v
        return self.proj_drop(self.proj(x.transpose(1, 2).reshape(b, n, c)))


class Mlp(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class LayerScale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.rand(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Block(nn.Module):
    def __init__(self, width: int = WIDTH, fused: bool = True) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn, self.mlp = Attention(width, fused), Mlp(width, 2 * width)
        self.ls1, self.ls2 = LayerScale(width), LayerScale(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class ViT(nn.Module):
    """With a class token; DeiT has a second one and two heads."""

    def __init__(self, distilled: bool = False, fused: bool = True) -> None:
        super().__init__()
        self.patch_embed, self.distilled = PatchEmbed(4), distilled
        self.cls_token, self.dist_token = nn.Parameter(torch.randn(1, 1, WIDTH)), nn.Parameter(torch.randn(1, 1, WIDTH))
        self.pos_embed = nn.Parameter(torch.randn(1, 4 + 1 + distilled, WIDTH) * 0.3)
        self.blocks = nn.Sequential(Block(fused=fused), Block(fused=fused))
        self.norm, self.head, self.head_dist = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 5), nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x)
        first = [self.cls_token.expand(x.shape[0], -1, -1)]
        if self.distilled:
            first.append(self.dist_token.expand(x.shape[0], -1, -1))
        x = torch.cat([*first, x], dim=1) + self.pos_embed
        x = self.norm(self.blocks(x))
        if self.distilled:
            return (self.head(x[:, 0]) + self.head_dist(x[:, 1])) / 2
        return self.head(x[:, 0])


def window_partition(x: Tensor, size: int) -> Tensor:
    b, h, w, c = x.shape
    x = x.view(b, h // size, size, w // size, size, c)
    return x.permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, size, size, c)


def window_reverse(windows: Tensor, size: int, h: int, w: int) -> Tensor:
    c = windows.shape[-1]
    x = windows.view(-1, h // size, w // size, size, size, c)
    return x.permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, h, w, c)


class WindowAttention(nn.Module):
    """With a table of relative positions, and a mask of shifted windows."""

    def __init__(self, width: int, size: int) -> None:
        super().__init__()
        self.area, self.scale = size * size, (width // HEADS) ** -0.5
        self.relative_position_bias_table = nn.Parameter(torch.randn((2 * size - 1) ** 2, HEADS))
        coords = torch.stack(torch.meshgrid([torch.arange(size), torch.arange(size)], indexing="ij")).flatten(1)
        relative = (coords[:, :, None] - coords[:, None, :]).permute(1, 2, 0) + size - 1
        self.register_buffer("relative_position_index", relative[..., 0] * (2 * size - 1) + relative[..., 1])
        self.qkv, self.proj = nn.Linear(width, width * 3), nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        windows, n, c = x.shape
        q, k, v = self.qkv(x).reshape(windows, n, 3, HEADS, -1).permute(2, 0, 3, 1, 4).unbind(0)
        attn = (q * self.scale) @ k.transpose(-2, -1)
        bias = self.relative_position_bias_table[self.relative_position_index.view(-1)].view(n, n, -1)
        attn = attn + bias.permute(2, 0, 1).contiguous().unsqueeze(0)
        if mask is not None:
            many = mask.shape[0]
            attn = attn.view(-1, many, HEADS, n, n) + mask.unsqueeze(1).unsqueeze(0)
            attn = attn.view(-1, HEADS, n, n)
        attn = attn.softmax(dim=-1)
        return self.proj((attn @ v).transpose(1, 2).reshape(windows, n, c))


class SwinBlock(nn.Module):
    """Windows, every other time rolled by half of one."""

    def __init__(self, width: int, size: int, shift: int, mask_by_input: bool) -> None:
        super().__init__()
        self.size, self.shift, self.mask_by_input = size, shift, mask_by_input
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn, self.mlp = WindowAttention(width, size), Mlp(width, 2 * width)

    def mask(self, x: Tensor, h: int, w: int) -> Tensor | None:
        if not self.shift:
            return None
        found = x.new_zeros((1, h, w, 1)) if self.mask_by_input else torch.zeros((1, h, w, 1))
        slices = (slice(0, -self.size), slice(-self.size, -self.shift), slice(-self.shift, None))
        count = 0
        for a in slices:
            for b in slices:
                found[:, a, b, :] = count
                count += 1
        windows = window_partition(found, self.size).view(-1, self.size * self.size)
        apart = windows.unsqueeze(1) - windows.unsqueeze(2)
        return apart.masked_fill(apart != 0, (-100.0)).masked_fill(apart == 0, 0.0)

    def forward(self, x: Tensor) -> Tensor:
        b, h, w, c = x.shape
        shortcut, x = x, self.norm1(x)
        x = F.pad(x, (0, 0, 0, (self.size - w % self.size) % self.size, 0, (self.size - h % self.size) % self.size))
        _, hp, wp, _ = x.shape
        if self.shift:
            x = torch.roll(x, shifts=(-self.shift, -self.shift), dims=(1, 2))
        windows = window_partition(x, self.size).view(-1, self.size * self.size, c)
        windows = self.attn(windows, self.mask(x, hp, wp)).view(-1, self.size, self.size, c)
        x = window_reverse(windows, self.size, hp, wp)
        if self.shift:
            x = torch.roll(x, shifts=(self.shift, self.shift), dims=(1, 2))
        x = shortcut + x[:, :h, :w, :].contiguous()
        x = x.reshape(b, -1, c)
        return (x + self.mlp(self.norm2(x))).view(b, h, w, c)


class PatchMerging(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.reduction = nn.LayerNorm(4 * width), nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        b, h, w, c = x.shape
        x = x.reshape(b, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 4, 2, 5).flatten(3)
        return self.reduction(self.norm(x))


class Swin(nn.Module):
    """timm's, or torchvision's, which makes its mask of the input."""

    def __init__(self, mask_by_input: bool = False) -> None:
        super().__init__()
        self.patch_embed, self.norm = PatchEmbed(2, 8, flatten=False), nn.LayerNorm(16)
        self.stage1 = nn.Sequential(*(SwinBlock(8, 2, s, mask_by_input) for s in (0, 1)))
        self.merge = PatchMerging(8)
        self.stage2 = nn.Sequential(SwinBlock(16, 2, 0, mask_by_input))
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x).permute(0, 2, 3, 1)
        x = self.stage2(self.merge(self.stage1(x)))
        return self.head(self.norm(x).mean(dim=(1, 2)))


def grid_partition(x: Tensor, size: int) -> Tensor:
    b, h, w, c = x.shape
    x = x.view(b, size, h // size, size, w // size, c)
    return x.permute(0, 2, 4, 1, 3, 5).contiguous().view(-1, size, size, c)


def grid_reverse(windows: Tensor, size: int, h: int, w: int) -> Tensor:
    c = windows.shape[-1]
    x = windows.view(-1, h // size, w // size, size, size, c)
    return x.permute(0, 3, 1, 4, 2, 5).contiguous().view(-1, h, w, c)


class MaxViTBlock(nn.Module):
    """A convolution with squeeze and excitation, attention in blocks, attention on a grid."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(width, width, 3, padding=1, groups=width), nn.BatchNorm2d(width)
        self.reduce, self.expand = nn.Conv2d(width, 4, 1), nn.Conv2d(4, width, 1)
        self.block, self.grid = Block(width, fused=False), Block(width, fused=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.gelu(self.norm(self.conv(x)), approximate="tanh")
        x = x + y * self.expand(F.silu(self.reduce(y.mean((2, 3), keepdim=True)))).sigmoid()
        x = x.permute(0, 2, 3, 1)
        for attention, cut, back in (
            (self.block, window_partition, window_reverse), (self.grid, grid_partition, grid_reverse)
        ):  # fmt: skip
            _, h, w, c = x.shape
            windows = attention(cut(x, 2).view(-1, 4, c)).view(-1, 2, 2, c)
            x = back(windows, 2, h, w)
        return x.permute(0, 3, 1, 2)


class MaxViT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Linear(8, 5)
        self.stages = nn.Sequential(MaxViTBlock(8), nn.AvgPool2d(2, 2, ceil_mode=True), MaxViTBlock(8))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stages(self.stem(x)).mean((-2, -1)))


class MobileViTBlock(nn.Module):
    """Patches are folded into the rows, as timm writes it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv_kxk, self.conv_1x1 = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, WIDTH, 1, bias=False)
        self.transformer, self.norm = nn.Sequential(Block(), Block()), nn.LayerNorm(WIDTH)
        self.conv_proj, self.conv_fusion = nn.Conv2d(WIDTH, width, 1), nn.Conv2d(2 * width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        shortcut, x = x, self.conv_1x1(F.silu(self.conv_kxk(x)))
        patch, (b, c, h, w) = 2, x.shape
        rows, columns = h // patch, w // patch
        x = x.reshape(b * c * rows, patch, columns, patch).transpose(1, 2)
        x = x.reshape(b, c, rows * columns, patch * patch).transpose(1, 3).reshape(b * patch * patch, -1, c)
        x = self.norm(self.transformer(x))
        x = x.contiguous().view(b, patch * patch, rows * columns, -1)
        x = x.transpose(1, 3).reshape(b * c * rows, columns, patch, patch)
        x = x.transpose(1, 2).reshape(b, c, rows * patch, columns * patch)
        return self.conv_fusion(torch.cat((shortcut, self.conv_proj(x)), dim=1))


class MobileViT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block, self.head = nn.Conv2d(3, 8, 3, 2, 1), MobileViTBlock(8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.adaptive_avg_pool2d(self.block(F.silu(self.stem(x))), 1).flatten(1))


class MixerBlock(nn.Module):
    def __init__(self, length: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH, eps=1e-6), nn.LayerNorm(WIDTH, eps=1e-6)
        self.mlp_tokens, self.mlp_channels = Mlp(length, 8), Mlp(WIDTH, 32)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mlp_tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.mlp_channels(self.norm2(x))


class Mixer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.blocks = PatchEmbed(4), nn.Sequential(MixerBlock(4), MixerBlock(4))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.stem(x))).mean(dim=1))


class SegFormer(nn.Module):
    """Attention to fewer keys, two scales, and a decoder that gives a class for each pixel of the patches."""

    def __init__(self) -> None:
        super().__init__()
        self.patch1, self.patch2 = nn.Conv2d(3, 8, 7, 4, 3), nn.Conv2d(8, 16, 3, 2, 1)
        self.norm1, self.norm2 = nn.LayerNorm(8), nn.LayerNorm(16)
        self.sr, self.sr_norm = nn.Conv2d(8, 8, 2, 2), nn.LayerNorm(8)
        self.q, self.kv, self.proj = nn.Linear(8, 8), nn.Linear(8, 16), nn.Linear(8, 8)
        self.fc1, self.dwconv, self.fc2 = nn.Linear(8, 16), nn.Conv2d(16, 16, 3, 1, 1, groups=16), nn.Linear(16, 8)
        self.linear_c1, self.linear_c2 = nn.Linear(8, 12), nn.Linear(16, 12)
        self.linear_fuse, self.bn, self.classifier = (
            nn.Conv2d(24, 12, 1, bias=False),
            nn.BatchNorm2d(12),
            nn.Conv2d(12, 3, 1),
        )

    def attention(self, x: Tensor, h: int, w: int) -> Tensor:
        b, n, c = x.shape
        q = self.q(x).reshape(b, n, HEADS, c // HEADS).permute(0, 2, 1, 3)
        small = self.sr(x.permute(0, 2, 1).reshape(b, c, h, w)).reshape(b, c, -1).permute(0, 2, 1)
        kv = self.kv(self.sr_norm(small)).reshape(b, -1, 2, HEADS, c // HEADS).permute(2, 0, 3, 1, 4)
        k, v = kv[0], kv[1]
        attn = (q @ k.transpose(-2, -1)) * (c // HEADS) ** -0.5
        return self.proj((attn.softmax(dim=-1) @ v).transpose(1, 2).reshape(b, n, c))

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch1(x)
        b, _, h, w = x.shape
        t = self.norm1(x.flatten(2).transpose(1, 2))
        t = t + self.attention(t, h, w)
        u = self.fc1(t)
        u = self.dwconv(u.transpose(1, 2).view(b, -1, h, w)).flatten(2).transpose(1, 2)
        first = (t + self.fc2(F.gelu(u))).reshape(b, h, w, -1).permute(0, 3, 1, 2).contiguous()
        second = self.patch2(first)
        found = []
        for value, linear in ((first, self.linear_c1), (second, self.linear_c2)):
            y = linear(value.flatten(2).transpose(1, 2)).permute(0, 2, 1)
            y = y.reshape(b, -1, value.shape[2], value.shape[3])
            found.append(F.interpolate(y, size=(h, w), mode="bilinear", align_corners=False))
        return self.classifier(F.relu(self.bn(self.linear_fuse(torch.cat(found[::-1], dim=1)))))


class PoolFormer(nn.Module):
    """A pool in place of attention, group norm of one group, a scale for each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.norm1, self.norm2, self.pool = (
            nn.GroupNorm(1, 8),
            nn.GroupNorm(1, 8),
            nn.AvgPool2d(3, 1, 1, count_include_pad=False),
        )
        self.fc1, self.fc2 = nn.Conv2d(8, 16, 1), nn.Conv2d(16, 8, 1)
        self.scale, self.head = nn.Parameter(torch.rand(8)), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.norm1(x)
        x = x + self.scale.unsqueeze(-1).unsqueeze(-1) * (self.pool(y) - y)
        x = x + self.scale.view(1, -1, 1, 1) * self.fc2(F.gelu(self.fc1(self.norm2(x))))
        return self.head(x.mean([-2, -1]))


VISION = {
    "ViT": Made(ViT, images(8)),
    "DeiT": Made(lambda: ViT(distilled=True, fused=False), images(8)),
    "Swin (timm)": Made(Swin, images(8)),
    "Swin (torchvision)": Made(lambda: Swin(mask_by_input=True), images(8)),
    "MaxViT": Made(MaxViT, images(8)),
    "MobileViT": Made(MobileViT, images(8)),
    "MLP-Mixer": Made(Mixer, images(8)),
    "SegFormer": Made(SegFormer, images(16)),
    "PoolFormer": Made(PoolFormer, images(8)),
}
