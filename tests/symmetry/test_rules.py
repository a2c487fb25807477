"""Each family of tracing rules on a small net: the expected groups, proved in float64 by both tracers."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

Shapes = dict[str, tuple[int, ...]]
MLP: Shapes = {"a": (3, 5), "b": (5, 2)}
X = (2, 3)


def gated(p: Any, x: Any) -> Any:
    return ((x @ p.a) * torch.sigmoid(x @ p.b)) @ p.c


def overwritten(p: Any, x: Any) -> Any:
    y = (x @ p.a).tanh_()
    y[:, :3] = y[:, :3] * 0.5
    return y.add_(1.0) @ p.b


def chunked(p: Any, x: Any) -> Any:
    first, second = (x @ p.a).chunk(2, -1)
    return first @ p.b + second.tanh() @ p.c


def glu(p: Any, x: Any) -> Any:
    return F.glu(x @ p.a) @ p.b


def heads(p: Any, x: Any) -> Any:
    q, k, v = ((x @ w).view(2, 4, 3, 5).transpose(1, 2) for w in (p.q, p.k, p.v))
    return ((q @ k.mT).softmax(-1) @ v).transpose(1, 2).flatten(2) @ p.o


def fused(p: Any, x: Any) -> Any:
    q, k, v = ((x @ w).view(2, 4, 3, 5).transpose(1, 2) for w in (p.q, p.k, p.v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2) @ p.o


def grouped_queries(p: Any, x: Any) -> Any:
    q = (x @ p.q).view(2, 4, 6, 5).transpose(1, 2)
    k, v = ((x @ w).view(2, 4, 3, 5).transpose(1, 2) for w in (p.k, p.v))
    return F.scaled_dot_product_attention(q, k, v, enable_gqa=True).transpose(1, 2).flatten(2) @ p.o


def repeated_heads(p: Any, x: Any) -> Any:
    y = (x @ p.a).repeat_interleave(2, dim=-1)
    return y @ p.b


def scattered(p: Any, x: Any) -> Any:
    y = torch.zeros(2, 7).slice_scatter(x @ p.a, dim=1, start=1, end=6)
    return y.tanh() @ p.b


def put(p: Any, x: Any) -> Any:
    y = torch.zeros(4, 5).index_put((torch.tensor([1, 3]),), x @ p.a)
    return y @ p.b


def shuffled(p: Any, x: Any) -> Any:
    y = F.conv2d(x, p.a).view(2, 3, 5, 1, 1).transpose(1, 2).reshape(2, 15, 1, 1)
    return F.conv2d(y, p.b)


CASES: dict[str, tuple[Callable[..., Any], Shapes, tuple[int, ...], list[int]]] = {
    "hidden units of an MLP": (lambda p, x: torch.tanh(x @ p.a) @ p.b, MLP, X, [5]),
    "a gate ties both of its factors": (gated, {"a": (3, 5), "b": (3, 5), "c": (5, 2)}, X, [5]),
    "a residual sum ties its branches": (
        lambda p, x: (lambda h: (h + torch.tanh(h @ p.b) @ p.c) @ p.d)(x @ p.a),
        {"a": (3, 5), "b": (5, 7), "c": (7, 5), "d": (5, 2)},
        X,
        [5, 7],
    ),
    "an in-place write to a slice splits the axis": (overwritten, {"a": (3, 8), "b": (8, 2)}, X, [3, 5]),
    "a slope per channel": (lambda p, x: F.prelu(x @ p.a, p.s) @ p.b, {**MLP, "s": (5,)}, X, [5]),
    "a scale per channel": (lambda p, x: (x @ p.a * p.s).relu() @ p.b, {**MLP, "s": (5,)}, X, [5]),
    "halves of a chunk": (chunked, {"a": (3, 10), "b": (5, 2), "c": (5, 2)}, X, [5, 5]),
    "both halves of a GLU are one set": (glu, {"a": (3, 10), "b": (5, 2)}, X, [5]),
    "a mean forgets the axis": (lambda p, x: (x @ p.a).tanh().mean(-1), {"a": (3, 5)}, X, [5]),
    "a maximum forgets the axis": (lambda p, x: (x @ p.a).amax(-1), {"a": (3, 5)}, X, [5]),
    "a maximum's value alone forgets the axis": (
        lambda p, x: torch.logsumexp(x @ p.a, -1) + torch.var(x @ p.b, -1),
        {"a": (3, 5), "b": (3, 7)},
        X,
        [5, 7],
    ),
    "a softmax keeps the axis": (lambda p, x: (x @ p.a).softmax(-1) @ p.b, MLP, X, [5]),
    "a running sum fixes the axis": (lambda p, x: (x @ p.a).cumsum(-1) @ p.b, MLP, X, []),
    "sorting fixes the axis": (lambda p, x: (x @ p.a).sort(-1)[0] @ p.b, MLP, X, []),
    "rolling fixes the axis": (lambda p, x: (x @ p.a).roll(1, -1) @ p.b, MLP, X, []),
    "the index of a maximum fixes the axis": (
        lambda p, x: (x @ p.a).max(-1)[1] + (x @ p.b).argmax(-1),
        {"a": (3, 5), "b": (3, 7)},
        X,
        [],
    ),
    "einsum": (lambda p, x: torch.einsum("bi,oi,co->bc", x, p.a, p.b), {"a": (5, 3), "b": (2, 5)}, X, [5]),
    "einsum with an ellipsis": (
        lambda p, x: torch.einsum("...i,io->...o", torch.einsum("...i,ij->...j", x, p.a).sin(), p.b),
        MLP,
        (2, 4, 3),
        [5],
    ),
    "a batched product": (
        lambda p, x: torch.bmm(torch.bmm(x, p.a.expand(2, 3, 5)).tanh(), p.b.expand(2, 5, 2)),
        MLP,
        (2, 4, 3),
        [5],
    ),
    "addmm": (lambda p, x: torch.addmm(p.c, x, p.a).relu() @ p.b, {**MLP, "c": (5,)}, X, [5]),
    "an outer product": (
        lambda p, x: torch.outer((x[0] @ p.a).sin(), (x[1] @ p.b).cos()) @ p.c,
        {"a": (3, 5), "b": (3, 7), "c": (7, 2)},
        X,
        [7],
    ),
    "a matrix times a vector": (lambda p, x: (x @ p.a).relu().mv(p.b), {"a": (3, 5), "b": (5,)}, X, [5]),
    "unfused attention": (
        heads,
        {"q": (7, 15), "k": (7, 15), "v": (7, 15), "o": (15, 2)},
        (2, 4, 7),
        [3, 5, 5],
    ),
    "fused attention": (
        fused,
        {"q": (7, 15), "k": (7, 15), "v": (7, 15), "o": (15, 2)},
        (2, 4, 7),
        [3, 5, 5],
    ),
    "grouped-query attention": (
        grouped_queries,
        {"q": (7, 30), "k": (7, 15), "v": (7, 15), "o": (30, 2)},
        (2, 4, 7),
        [2, 3, 5, 5],
    ),
    "copies interleaved": (repeated_heads, {"a": (3, 5), "b": (10, 2)}, X, [2, 5]),
    "copies in a row": (lambda p, x: (x @ p.a).repeat(1, 2) @ p.b, {"a": (3, 5), "b": (10, 2)}, X, [2, 5]),
    "a concatenation": (
        lambda p, x: torch.cat([x, x @ p.a, (x @ p.b).sin()], 1) @ p.c,
        {"a": (3, 5), "b": (3, 7), "c": (15, 2)},
        X,
        [5, 7],
    ),
    "a stack tells its parts apart": (
        lambda p, x: (torch.stack([x @ p.a, x @ p.b], 1) * p.s).sum(1) @ p.c,
        {"a": (3, 5), "b": (3, 5), "s": (2, 1), "c": (5, 2)},
        X,
        [5],
    ),
    "padding with zeros": (
        lambda p, x: F.pad(x @ p.a, (2, 3)) @ p.b,
        {"a": (3, 5), "b": (10, 2)},
        X,
        [2, 3, 5],
    ),
    "a write into zeros": (scattered, {"a": (3, 5), "b": (7, 2)}, X, [5]),
    "rows put at given places": (put, MLP, X, [5]),
    "a look-up by constant positions": (
        lambda p, x: (x @ p.a)[:, torch.tensor([0, 4, 2])] @ p.b,
        {"a": (3, 5), "b": (3, 2)},
        X,
        [],
    ),
    "a transposed weight": (lambda p, x: F.linear(F.linear(x, p.a.t()).relu(), p.b.mT), MLP, X, [5]),
    "one weight on both sides": (lambda p, x: (x @ p.a).relu() @ p.a.T, {"a": (3, 5)}, X, [5]),
    "one set twice in a weight": (
        lambda p, x: ((x @ p.a).relu() @ p.h).relu() @ p.h @ p.b,
        {**MLP, "h": (5, 5)},
        X,
        [5],
    ),
    "channel shuffle": (shuffled, {"a": (15, 3, 1, 1), "b": (2, 15, 1, 1)}, (2, 3, 1, 1), [3, 5]),
    "grouped convolution": (
        lambda p, x: F.conv2d(F.conv2d(F.conv2d(x, p.a).relu(), p.g, groups=3).relu(), p.b),
        {"a": (15, 3, 1, 1), "g": (6, 5, 2, 2), "b": (2, 6, 1, 1)},
        (2, 3, 4, 4),
        [2, 3, 5],
    ),
    "depthwise convolution": (
        lambda p, x: F.conv2d(F.conv2d(F.conv2d(x, p.a).relu(), p.d, groups=5).relu(), p.b),
        {"a": (5, 3, 1, 1), "d": (5, 1, 3, 3), "b": (2, 5, 1, 1)},
        (2, 3, 4, 4),
        [5],
    ),
    "transposed convolution in groups": (
        lambda p, x: F.conv2d(F.conv_transpose2d(F.conv2d(x, p.a).relu(), p.t, groups=3).relu(), p.b),
        {"a": (15, 3, 1, 1), "t": (15, 2, 2, 2), "b": (2, 6, 1, 1)},
        (2, 3, 4, 4),
        [2, 3, 5],
    ),
    "convolution in one dimension": (
        lambda p, x: F.conv1d(F.conv1d(x, p.a, padding=1).relu(), p.b, stride=2),
        {"a": (5, 3, 3), "b": (2, 5, 1)},
        (2, 3, 6),
        [5],
    ),
    "convolution in three dimensions": (
        lambda p, x: F.conv3d(F.conv3d(x, p.a).relu(), p.b),
        {"a": (5, 3, 2, 2, 2), "b": (2, 5, 1, 1, 1)},
        (2, 3, 3, 3, 3),
        [5],
    ),
    "flattened feature maps": (
        lambda p, x: F.max_pool2d(F.conv2d(x, p.a), 2).flatten(1) @ p.b,
        {"a": (5, 3, 1, 1), "b": (20, 2)},
        (2, 3, 4, 4),
        [5],
    ),
    "pixel shuffle": (
        lambda p, x: F.conv2d(F.pixel_shuffle(F.conv2d(x, p.a), 2), p.b),
        {"a": (20, 3, 1, 1), "b": (2, 5, 1, 1)},
        (2, 3, 3, 3),
        [5],
    ),
    "pixel unshuffle": (
        lambda p, x: F.conv2d(F.pixel_unshuffle(F.conv2d(x, p.a), 2), p.b),
        {"a": (5, 3, 1, 1), "b": (2, 20, 1, 1)},
        (2, 3, 4, 4),
        [5],
    ),
    "sliding windows": (
        lambda p, x: F.unfold(F.conv2d(x, p.a).relu(), 2).mT @ p.b,
        {"a": (5, 3, 1, 1), "b": (20, 2)},
        (2, 3, 3, 3),
        [5],
    ),
    "folded windows": (
        lambda p, x: F.conv2d(F.fold((x @ p.a).mT, (3, 3), 2), p.b),
        {"a": (3, 20), "b": (2, 5, 1, 1)},
        (2, 4, 3),
        [5],
    ),
    "resizing": (
        lambda p, x: F.conv2d(F.interpolate(F.conv2d(x, p.a), scale_factor=2, mode="bilinear"), p.b),
        {"a": (5, 3, 1, 1), "b": (2, 5, 1, 1)},
        (2, 3, 3, 3),
        [5],
    ),
    "layer normalisation": (
        lambda p, x: F.layer_norm(x @ p.a, (5,), p.g, p.h) @ p.b,
        {**MLP, "g": (5,), "h": (5,)},
        X,
        [5],
    ),
    "group normalisation": (
        lambda p, x: F.group_norm(x @ p.a, 3, p.g, p.h) @ p.b,
        {"a": (3, 15), "g": (15,), "h": (15,), "b": (15, 2)},
        X,
        [3, 5],
    ),
    "RMS normalisation": (lambda p, x: F.rms_norm(x @ p.a, (5,), p.g) @ p.b, {**MLP, "g": (5,)}, X, [5]),
    "neighbours normalised together fix the axis": (
        lambda p, x: F.conv2d(F.local_response_norm(F.conv2d(x, p.a), 3), p.b),
        {"a": (5, 3, 1, 1), "b": (2, 5, 1, 1)},
        (2, 3, 3, 3),
        [],
    ),
    "a Fourier transform over positions": (
        lambda p, x: (
            (torch.fft.irfft2(torch.fft.rfft2(x @ p.a, dim=(1, 2)), s=(4, 3), dim=(1, 2))).relu() @ p.b
        ),
        MLP,
        (2, 4, 3, 3),
        [5],
    ),
    "a Fourier transform over units fixes them": (
        lambda p, x: torch.view_as_real(torch.fft.fft(x @ p.a))[..., 0] @ p.b,
        MLP,
        X,
        [],
    ),
    "a shape taken from another tensor": (
        lambda p, x: (x.flatten(0, 1) @ p.a).reshape_as(torch.ones(2, 4, 5)) @ p.b,
        MLP,
        (2, 4, 3),
        [5],
    ),
    "a type taken from another tensor": (
        lambda p, x: ((x @ p.a).type_as(x[:1, :1]) + p.c.expand_as(torch.ones(2, 5))) @ p.b,
        {**MLP, "c": (5,)},
        X,
        [5],
    ),
    "axes moved and back": (
        lambda p, x: torch.movedim(torch.movedim(x @ p.a, -1, 0).tanh(), 0, 2) @ p.b,
        MLP,
        (2, 4, 3),
        [5],
    ),
    "gathering along positions keeps the units": (
        lambda p, x: (x @ p.a).gather(1, torch.tensor([[[2], [0]], [[1], [1]]]).expand(2, 2, 5)) @ p.b,
        MLP,
        (2, 4, 3),
        [5],
    ),
    "gathering along the units fixes them": (
        lambda p, x: (x @ p.a).gather(1, torch.tensor([[2, 0], [1, 1]])) @ p.b,
        {"a": (3, 5), "b": (2, 2)},
        X,
        [],
    ),
    "adding up at given rows keeps the units": (
        lambda p, x: torch.zeros(3, 5).index_add(0, torch.tensor([2, 2]), x @ p.a).tanh() @ p.b,
        MLP,
        X,
        [5],
    ),
    "scattering along the units fixes them": (
        lambda p, x: torch.zeros(2, 5).scatter_add(1, torch.tensor([[0, 1, 2, 3, 3]] * 2), x @ p.a) @ p.b,
        MLP,
        X,
        [],
    ),
    "one unit overwritten is told from the others": (
        lambda p, x: (x @ p.a).select_scatter(x[:, 0] * 2, 1, 2) @ p.b,
        {"a": (3, 6), "b": (6, 2)},
        X,
        [2, 3],
    ),
    "one unit read is told from the others": (
        lambda p, x: (x @ p.a)[:, 2:3] * x[:, :2] + ((x @ p.a).tanh() @ p.b),
        {"a": (3, 6), "b": (6, 2)},
        X,
        [2, 3],
    ),
    "uneven parts": (
        lambda p, x: (lambda u, v: u @ p.b + v.sin() @ p.c)(*(x @ p.a).split([5, 2], 1)),
        {"a": (3, 7), "b": (5, 2), "c": (2, 2)},
        X,
        [2, 5],
    ),
    "windows along positions": (
        lambda p, x: ((x @ p.a).unfold(1, 2, 1).mean(-1)).relu() @ p.b,
        MLP,
        (2, 4, 3),
        [5],
    ),
    "sampling positions": (
        lambda p, x: F.conv2d(F.grid_sample(F.conv2d(x, p.a), x[:, :2].permute(0, 2, 3, 1).tanh()), p.b),
        {"a": (5, 3, 1, 1), "b": (2, 5, 1, 1)},
        (2, 3, 3, 3),
        [5],
    ),
    "a batched product with a term added": (
        lambda p, x: torch.baddbmm(p.c, x, p.a.expand(2, 3, 5)).relu() @ p.b,
        {**MLP, "c": (2, 1, 5)},
        (2, 4, 3),
        [5],
    ),
    "a product of two hidden layers": (
        lambda p, x: torch.einsum("bi,bj,ijo->bo", (x @ p.a).tanh(), x @ p.b, p.c),
        {"a": (3, 5), "b": (3, 7), "c": (5, 7, 2)},
        X,
        [5, 7],
    ),
    "a causal mask fixes positions only": (
        lambda p, x: F.scaled_dot_product_attention(x @ p.a, x @ p.b, x @ p.c, is_causal=True) @ p.d,
        {"a": (3, 5), "b": (3, 5), "c": (3, 7), "d": (7, 2)},
        (2, 4, 3),
        [5, 7],
    ),
    "distances forget the axis": (
        lambda p, x: torch.cdist(x @ p.a, (x @ p.b).tanh()),
        {"a": (3, 5), "b": (3, 5)},
        (2, 4, 3),
        [5],
    ),
    "a cosine forgets the axis": (
        lambda p, x: F.cosine_similarity(x @ p.a, (x @ p.b).tanh(), dim=-1),
        {"a": (3, 5), "b": (3, 5)},
        X,
        [5],
    ),
    "bags of rows": (
        lambda p, x: F.embedding_bag(torch.tensor([[0, 1], [3, 5]]), p.t).tanh() @ p.b + x @ p.c,
        {"t": (7, 5), "b": (5, 2), "c": (3, 2)},
        X,
        [5],
    ),
    "token mixing": (
        lambda p, x: ((x.mT @ p.a).relu() @ p.b).mT @ p.c,
        {"a": (4, 7), "b": (7, 4), "c": (3, 2)},
        (2, 4, 3),
        [7],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_groups_are_those_counted_by_hand(case: str, net: Any, prove: Any, tracer: str) -> None:
    compute, shapes, inputs, sizes = CASES[case]
    spec = prove(net(compute, **shapes), torch.randn(inputs), tracer=tracer)
    assert sorted(atom.size for atom in spec.groups.values()) == sizes
    assert not spec.unruled


# The last number: innocent controls, such as the bias of a layer that is centred right afterwards.
MODULES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], list[int], int]] = {
    "batch normalisation": (
        lambda: nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 2, 1)),
        (2, 3, 4, 4),
        [5],
        0,
    ),
    "instance normalisation": (
        lambda: nn.Sequential(nn.Conv2d(3, 5, 1), nn.InstanceNorm2d(5, affine=True), nn.Conv2d(5, 2, 1)),
        (2, 3, 4, 4),
        [5],
        1,
    ),
    "a normalised weight": (
        lambda: nn.Sequential(
            nn.utils.parametrizations.weight_norm(nn.Linear(3, 5)), nn.ReLU(), nn.Linear(5, 2)
        ),
        X,
        [5],
        0,
    ),
    "a gated recurrent unit": (lambda: Last(nn.GRU(3, 5), 5), (4, 2, 3), [5], 0),
    "long short-term memory": (lambda: Last(nn.LSTM(3, 5), 5), (4, 2, 3), [5], 0),
    "long short-term memory with a projection": (
        lambda: Last(nn.LSTM(3, 5, proj_size=2), 2),
        (4, 2, 3),
        [2, 5],
        0,
    ),
    "a bilinear map": (lambda: Pair(nn.Bilinear(5, 7, 2)), X, [5, 7], 0),
    "channel shuffle as a module": (
        lambda: nn.Sequential(nn.Conv2d(3, 15, 1), nn.ChannelShuffle(3), nn.Conv2d(15, 2, 1)),
        (2, 3, 2, 2),
        [3, 5],
        0,
    ),
    "a plain recurrent network": (lambda: Last(nn.RNN(3, 5), 5), (4, 2, 3), [5], 0),
}


class Last(nn.Module):
    """A recurrent network and a linear map of its outputs."""

    def __init__(self, rnn: nn.Module, width: int) -> None:
        super().__init__()
        self.rnn = rnn
        self.head = nn.Linear(width, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.rnn(x)[0])


class Pair(nn.Module):
    """Two hidden layers that meet in a bilinear map."""

    def __init__(self, bilinear: nn.Bilinear) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, bilinear.in1_features), nn.Linear(3, bilinear.in2_features)
        self.bilinear = bilinear

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.bilinear(self.a(x), self.b(x).tanh())


@pytest.mark.parametrize("case", MODULES)
def test_groups_of_modules_are_those_counted_by_hand(case: str, prove: Any, tracer: str) -> None:
    build, inputs, sizes, idle = MODULES[case]
    spec = prove(build(), torch.randn(inputs), tracer=tracer, idle=idle)
    assert sorted(atom.size for atom in spec.groups.values()) == sizes
    assert not spec.unruled
