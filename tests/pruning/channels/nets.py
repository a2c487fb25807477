"""Nets whose channels are coupled in the ways that break pruners."""

import torch
from torch import Tensor, nn
from torch.nn import functional


class Flat(nn.Module):
    """A convolution flattened into a linear map: strided blocks of C x H x W."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 7, 3, padding=1)
        self.head = nn.Linear(7 * 5 * 5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.conv(x)).flatten(1))


class Residual(nn.Module):
    """A residual block whose last norm is initialised to zero."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 11, 1)
        self.inner = nn.Conv2d(11, 7, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(7)
        self.outer = nn.Conv2d(7, 11, 1, bias=False)
        self.last = nn.BatchNorm2d(11)
        nn.init.zeros_(self.last.weight)
        self.head = nn.Linear(11, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.last(self.outer(torch.relu(self.norm(self.inner(x)))))
        return self.head(torch.relu(x).mean((2, 3)))


class Branches(nn.Module):
    """Two branches, concatenated, split by sizes that the module keeps, concatenated the other way."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 5, 1)
        self.b = nn.Conv2d(3, 7, 1)
        self.sizes = (5, 7)
        self.mix = nn.Conv2d(12, 11, 1)
        self.head = nn.Linear(11 + 7 + 5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.a(x), self.b(x)], 1)
        a, b = x.split(self.sizes, 1)
        return self.head(torch.cat([self.mix(x), b, a], 1).mean((2, 3)))


class Grouped(nn.Module):
    """A grouped, then a depthwise convolution with two outputs per input, then a transposed one."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 15, 1)
        self.grouped = nn.Conv2d(15, 10, 3, padding=1, groups=5)
        self.depthwise = nn.Conv2d(10, 20, 3, padding=1, groups=10)
        self.norm = nn.BatchNorm2d(20)
        self.up = nn.ConvTranspose2d(20, 7, 2, stride=2)
        self.head = nn.Linear(7, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.grouped(torch.relu(self.first(x))))
        return self.head(torch.relu(self.up(torch.relu(self.norm(self.depthwise(x))))).mean((2, 3)))


class Attention(nn.Module):
    """A transformer block over a stream that a LayerNorm holds; heads and hidden units can go."""

    def __init__(self, fused: bool = True) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.fused = 5, 3, fused
        self.embed = nn.Linear(3, 11)
        self.norm = nn.LayerNorm(11)
        self.qkv = nn.Linear(11, 3 * 15)
        self.proj = nn.Linear(15, 11)
        self.fc1, self.fc2 = nn.Linear(11, 13), nn.Linear(13, 11)
        self.head = nn.Linear(11, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        b, n, _ = x.shape
        qkv = self.qkv(self.norm(x)).reshape(b, n, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        out = functional.scaled_dot_product_attention(q, k, v)
        x = x + self.proj(out.transpose(1, 2).reshape(b, n, -1))
        x = x + self.fc2(functional.gelu(self.fc1(x)))
        return self.head(x.mean(1))


class Gate(nn.Module):
    """Squeeze and excite, whose gate is not zero where its input is."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 11, 1)
        self.squeeze, self.excite = nn.Conv2d(11, 5, 1), nn.Conv2d(5, 11, 1)
        self.head = nn.Linear(11, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        x = x * torch.sigmoid(self.excite(torch.relu(self.squeeze(x.mean((2, 3), keepdim=True)))))
        return self.head(x.mean((2, 3)))


class Tied(nn.Module):
    """One weight that is used twice, and a group on two axes of one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 7)
        self.square = nn.Linear(7, 7)
        self.again = nn.Linear(7, 7)
        self.again.weight = self.square.weight
        self.head = nn.Linear(7, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        x = x + torch.relu(self.square(x))
        return self.head(x + torch.relu(self.again(x)))


class SharedNorm(nn.Module):
    """One module that is called in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 7, 1), nn.Conv2d(7, 7, 1)
        self.norm = nn.BatchNorm2d(7)
        self.head = nn.Linear(7, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first(x)))
        return self.head(torch.relu(self.norm(self.second(x))).mean((2, 3)))


class GroupNormed(nn.Module):
    """A GroupNorm, of which whole groups can go."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 15, 1), nn.GroupNorm(5, 15)
        self.head = nn.Linear(15, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.norm(self.conv(x))).mean((2, 3)))


class Hard(nn.Module):
    """A number of channels that stands in the code itself."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 7, 1)
        self.head = nn.Linear(7, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.conv(x)).reshape(x.shape[0], 7, -1).mean(2))


class MeanOverChannels(nn.Module):
    """Subtracts the mean over the channels, which does not survive their removal."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.other = nn.Conv2d(3, 7, 1), nn.Conv2d(7, 5, 1)
        self.head = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return self.head(torch.relu(self.other(x - x.mean(1, keepdim=True))).mean((2, 3)))


class Recurrent(nn.Module):
    """Two layers of an LSTM in both directions, a GRU, and a cell: torch keeps one width for each."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 11)
        self.lstm = nn.LSTM(11, 7, num_layers=2, bidirectional=True, batch_first=True)
        self.gru = nn.GRU(14, 5, batch_first=True)
        self.cell = nn.GRUCell(5, 13)
        self.head = nn.Linear(13, 2)

    def forward(self, x: Tensor) -> Tensor:
        x, _ = self.gru(self.lstm(self.embed(x))[0])
        return self.head(self.cell(x[:, 1], self.cell(x[:, 0])))


class TorchAttention(nn.Module):
    """torch's own attention, in an encoder layer and with keys of another width."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 15)
        self.layer = nn.TransformerEncoderLayer(15, 5, 13, dropout=0.0, batch_first=True)
        self.across = nn.MultiheadAttention(15, 3, kdim=3, vdim=3, batch_first=True)
        self.head = nn.Linear(15, 2)

    def forward(self, x: Tensor) -> Tensor:
        seen = self.layer(self.embed(x), src_mask=torch.ones(7, 7).triu(1).bool())
        return self.head(self.across(seen, x, x, need_weights=False)[0].mean(1))


class Gated(nn.Module):
    """A linear map split into three, two as wide as the first; heads together as wide as the stream."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 2 * (5 + 7))
        self.split_sizes = (12, 5, 7)
        self.second = nn.Linear(12, 12)
        self.qkv, self.num_heads, self.attn_dim = nn.Linear(12, 36), 3, 12
        self.proj, self.head = nn.Linear(12, 7), nn.Linear(7, 2)

    def forward(self, x: Tensor) -> Tensor:
        gate, a, b = self.first(x).split(self.split_sizes, -1)
        x = self.second(torch.relu(gate) * torch.cat([a, b], -1))
        q, k, v = self.qkv(x).reshape(2, 7, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        x = torch.softmax(q @ k.transpose(-1, -2), -1) @ v
        return self.head(torch.relu(self.proj(x.transpose(1, 2).reshape(2, 7, self.attn_dim))).mean(1))


class Partial(nn.Module):
    """Convolves the first channels and hands on the others, of which it has no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.dim_conv, self.dim_untouched = 5, 11
        self.conv = nn.Conv2d(5, 5, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.split([self.dim_conv, self.dim_untouched], 1)
        return torch.cat([self.conv(a), b], 1)


class Mixed(nn.Module):
    """A convolution of some of the channels, and halves that are cut by half a number."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.partial = nn.Conv2d(3, 16, 1), Partial()
        self.expand_chs = 26
        self.expand, self.inner = nn.Conv2d(16, 26, 1), nn.Conv2d(13, 7, 1)
        self.head = nn.Linear(20, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.expand(torch.relu(self.partial(self.first(x))))
        a, b = x.split(self.expand_chs // 2, 1)
        return self.head(torch.cat([self.inner(a), b], 1).mean((2, 3)))


class TableOfHeads(nn.Module):
    """One bias per head, by an axis that is nothing but the heads."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.table = 5, nn.Linear(3, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.table(x).view(-1, self.num_heads)


class OneHeadSize(nn.Module):
    """Queries and values of one width, which the module keeps in one number, and a bias table in a shape."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.num_heads, self.dim_head = nn.Linear(3, 13), 5, 11
        self.qkv, self.table = nn.Linear(13, 165), nn.Parameter(torch.randn(49, 5))
        self.bias_shape, self.more = (7, 7, 5), TableOfHeads()
        self.proj, self.head = nn.Linear(55, 17), nn.Linear(17, 2)

    def forward(self, x: Tensor) -> Tensor:
        more = self.more(x[0]).T[:, None, :]
        x = self.qkv(self.embed(x)).view(2, 7, self.num_heads, 3 * self.dim_head).transpose(1, 2)
        q, k, v = x.chunk(3, -1)
        bias = self.table.view(self.bias_shape).permute(2, 0, 1)
        x = torch.softmax(q @ k.transpose(-1, -2) + bias + more, -1) @ v
        return self.head(torch.relu(self.proj(x.transpose(1, 2).flatten(2))).mean(1))


class ZeroKeyBias(nn.Module):
    """Keys whose bias is a buffer of zeros beside those of queries and values."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.num_heads, self.attn_dim = nn.Linear(3, 13), 5, 55
        self.qkv, self.proj, self.head = nn.Linear(13, 165, bias=False), nn.Linear(55, 7), nn.Linear(7, 2)
        self.q_bias, self.v_bias = nn.Parameter(torch.randn(55)), nn.Parameter(torch.randn(55))
        self.register_buffer("k_bias", torch.zeros(55), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        bias = torch.cat([self.q_bias, self.k_bias, self.v_bias])
        x = nn.functional.linear(self.embed(x), self.qkv.weight, bias)
        q, k, v = x.reshape(2, 7, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        x = torch.softmax(q @ k.transpose(-1, -2), -1) @ v
        return self.head(torch.relu(self.proj(x.transpose(1, 2).reshape(2, 7, self.attn_dim))).mean(1))


class BlurPool2d(nn.Module):
    """timm's blur: one filter for every channel, or for any number of them."""

    def __init__(self, channels: int | None) -> None:
        super().__init__()
        self.channels = channels
        self.register_buffer("filt", torch.full((channels or 1, 1, 3, 3), 1 / 9), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        channels = self.channels or x.shape[1]
        weight = self.filt if self.channels else self.filt.expand(channels, 1, 3, 3)
        return nn.functional.conv2d(x, weight, groups=channels)


class Blurred(nn.Module):
    """A convolution whose outputs are blurred."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.blur, self.head = nn.Conv2d(3, 14, 1), BlurPool2d(14), nn.Linear(14, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.blur(self.first(x))).mean((2, 3)))


class Bands(nn.Module):
    """Convolves one piece of its channels; the sizes of the pieces stand here, the whole is outside."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces, self.conv = (11, 5), nn.Conv2d(5, 5, 3, padding=1, groups=5)

    def forward(self, x: Tensor) -> Tensor:
        a, b = torch.split(x, self.pieces, 1)
        return torch.cat([a, self.conv(b)], 1)


class BandsBlock(nn.Module):
    """The pieces between norms that see them as one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.bands, self.norm = nn.Conv2d(3, 16, 1), Bands(), nn.BatchNorm2d(16)
        self.head = nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.norm(self.bands(self.first(x)))).mean((2, 3)))


class HeadsBesideAProduct(nn.Module):
    """All heads together are as wide as a stream that is a product of other factors."""

    def __init__(self) -> None:
        super().__init__()
        self.spread = nn.Conv1d(15, 30, 1, groups=15)
        self.embed, self.num_heads, self.attn_dim = nn.Linear(3, 15), 5, 30
        self.qkv, self.proj, self.head = nn.Linear(30, 90), nn.Linear(30, 30), nn.Linear(30, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.spread(self.embed(x).transpose(1, 2)).transpose(1, 2)
        q, k, v = self.qkv(x).reshape(2, 7, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        y = torch.softmax(q @ k.transpose(-1, -2), -1) @ v
        return self.head(torch.relu(x + self.proj(y.transpose(1, 2).reshape(2, 7, self.attn_dim))).mean(1))


IMAGE = (2, 3, 5, 5)
CASES: dict[str, tuple[type[nn.Module], tuple[int, ...]]] = {
    "flatten": (Flat, IMAGE),
    "residual": (Residual, IMAGE),
    "concat and split": (Branches, IMAGE),
    "grouped, depthwise, transposed": (Grouped, IMAGE),
    "attention": (Attention, (2, 7, 3)),
    "squeeze and excite": (Gate, IMAGE),
    "tied": (Tied, (2, 3)),
    "shared": (SharedNorm, IMAGE),
    "group norm": (GroupNormed, IMAGE),
    "recurrent": (Recurrent, (2, 5, 3)),
    "torch's attention": (TorchAttention, (2, 7, 3)),
    "parts of channels": (Mixed, IMAGE),
    "gated": (Gated, (2, 7, 3)),
    "one head size": (OneHeadSize, (2, 7, 3)),
    "zero bias of keys": (ZeroKeyBias, (2, 7, 3)),
    "blur": (Blurred, IMAGE),
    "pieces of what is outside": (BandsBlock, IMAGE),
    "heads beside a product": (HeadsBesideAProduct, (2, 7, 3)),
}


def build(name: str, seed: int = 0) -> tuple[nn.Module, Tensor]:
    kind, shape = CASES[name]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return kind(), torch.randn(shape)
