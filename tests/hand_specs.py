"""Permutation specs written by hand, and random ones, for the tests of what stands on a spec."""

from collections.abc import Mapping

import torch
from hypothesis import strategies as st
from torch import Tensor

from nfopt.symmetry import Atom, Axis, PermutationSpec, Prod, Sum, TensorAxes
from nfopt.symmetry.axes import UNIT

X, Y = Atom("x", 2), Atom("y", 3)
KH, KW = Atom("kh", 3), Atom("kw", 2)


def linear(out: Axis, into: Axis, depth: float = 0.0) -> TensorAxes:
    return TensorAxes((out, into), "linear", ("out", "in"), depth)


def conv(out: Axis, into: Axis, depth: float = 0.0) -> TensorAxes:
    return TensorAxes((out, into, KH, KW), "conv", ("out", "in", "kernel", "kernel"), depth)


def vector(role, axis: Axis, depth: float = 0.0) -> TensorAxes:
    return TensorAxes((axis,), role, ("out",), depth)


def batch_norm(name: str, axis: Axis, depth: float) -> dict[str, TensorAxes]:
    return {
        f"{name}.weight": vector("norm_scale", axis, depth),
        f"{name}.bias": vector("norm_shift", axis, depth),
        f"{name}.running_mean": vector("statistic", axis, depth),
        f"{name}.running_var": vector("statistic", axis, depth),
    }


def fix(tensors: dict[str, TensorAxes], *atoms: Atom) -> PermutationSpec:
    return PermutationSpec(tensors, {atom.name: "an input or output of the model" for atom in atoms})


def mlp() -> PermutationSpec:
    h, k = Atom("h", 5), Atom("k", 7)
    tensors = {
        "0.weight": linear(h, X),
        "0.bias": vector("bias", h),
        "2.weight": linear(k, h, 0.5),
        "2.bias": vector("bias", k, 0.5),
        "4.weight": linear(Y, k, 1.0),
        "4.bias": vector("bias", Y, 1.0),
    }
    return fix(tensors, X, Y)


def resnet() -> PermutationSpec:
    c, d = Atom("c", 5), Atom("d", 7)
    tensors = {
        "stem.weight": conv(c, X),
        **batch_norm("bn0", c, 0.1),
        "block.conv1.weight": conv(d, c, 0.3),
        **batch_norm("block.bn1", d, 0.4),
        "block.conv2.weight": conv(c, d, 0.6),
        **batch_norm("block.bn2", c, 0.7),
        "fc.weight": linear(Y, c, 1.0),
        "fc.bias": vector("bias", Y, 1.0),
    }
    return fix(tensors, X, Y, KH, KW)


def densenet() -> PermutationSpec:
    c, d, e = Atom("c", 5), Atom("d", 7), Atom("e", 11)
    tensors = {
        "stem.weight": conv(c, X),
        **batch_norm("norm1", c, 0.2),
        "conv1.weight": conv(d, c, 0.3),
        **batch_norm("norm2", Sum((c, d)), 0.4),
        "conv2.weight": conv(e, Sum((c, d)), 0.5),
        **batch_norm("norm3", Sum((c, d, e)), 0.8),
        "fc.weight": linear(Y, Prod((Sum((c, d, e)), KH, KW)), 1.0),
        "fc.bias": vector("bias", Y, 1.0),
    }
    return fix(tensors, X, Y, KH, KW)


def mobilenet() -> PermutationSpec:
    c, s = Atom("c", 5), Atom("s", 7)
    tensors = {
        "expand.weight": TensorAxes((c, X, UNIT, UNIT), "conv", ("out", "in", "kernel", "kernel")),
        **batch_norm("bn", c, 0.2),
        "depthwise.weight": conv(c, UNIT, 0.4),
        "se.reduce.weight": TensorAxes((s, c, UNIT, UNIT), "conv", ("out", "in", "kernel", "kernel"), 0.5),
        "se.reduce.bias": vector("bias", s, 0.5),
        "se.expand.weight": TensorAxes((c, s, UNIT, UNIT), "conv", ("out", "in", "kernel", "kernel"), 0.6),
        "se.expand.bias": vector("bias", c, 0.6),
        "project.weight": linear(Y, c, 1.0),
    }
    return fix(tensors, X, Y, KH, KW)


def convnext() -> PermutationSpec:
    c, h = Atom("c", 5), Atom("h", 7)
    tensors = {
        "stem.weight": conv(c, X),
        "depthwise.weight": conv(c, UNIT, 0.2),
        "depthwise.bias": vector("bias", c, 0.2),
        "norm.weight": vector("norm_scale", c, 0.3),
        "norm.bias": vector("norm_shift", c, 0.3),
        "fc1.weight": linear(h, c, 0.5),
        "fc1.bias": vector("bias", h, 0.5),
        "fc2.weight": linear(c, h, 0.6),
        "gamma": vector("other", c, 0.8),
        "head.weight": linear(Y, c, 1.0),
    }
    return fix(tensors, X, Y, KH, KW)


def mixer() -> PermutationSpec:
    p, t, c, h = Atom("patch", 3), Atom("t", 5), Atom("c", 7), Atom("h", 11)
    tensors = {
        "stem.weight": conv(c, X),
        "token.fc1.weight": linear(t, p, 0.3),
        "token.fc1.bias": vector("bias", t, 0.3),
        "token.fc2.weight": linear(p, t, 0.4),
        "token.fc2.bias": vector("bias", p, 0.4),
        "channel.fc1.weight": linear(h, c, 0.6),
        "channel.fc2.weight": linear(c, h, 0.8),
        "head.weight": linear(Y, c, 1.0),
    }
    return fix(tensors, X, Y, KH, KW, p)


def vit() -> PermutationSpec:
    """Fused queries, keys and values, the values of another width than the keys; a gated MLP."""
    c, heads, d, v, m = Atom("c", 7), Atom("heads", 2), Atom("d", 3), Atom("v", 5), Atom("m", 11)
    length = Atom("length", 4)
    q, values = Prod((heads, d)), Prod((heads, v))
    tensors = {
        "patch.weight": conv(c, X),
        "position": TensorAxes((UNIT, length, c), "other", ("other", "other", "out"), 0.1),
        "norm.weight": vector("norm_scale", c, 0.2),
        "qkv.weight": linear(Sum((q, q, values)), c, 0.3),
        "qkv.bias": vector("bias", Sum((q, q, values)), 0.3),
        "proj.weight": linear(c, values, 0.5),
        "gated.weight": linear(Sum((m, m)), c, 0.7),
        "gated.bias": vector("bias", Sum((m, m)), 0.7),
        "fc2.weight": linear(c, m, 0.8),
        "head.weight": linear(Y, c, 1.0),
    }
    return fix(tensors, X, Y, KH, KW, length)


def rnn() -> PermutationSpec:
    h, gates = Atom("h", 5), Atom("gates", 4)
    tensors = {
        "embed.weight": TensorAxes((Y, h), "embedding", ("in", "out")),
        "ih.weight": linear(Prod((gates, h)), X, 0.4),
        "hh.weight": TensorAxes((h, h), "recurrent", ("out", "in"), 0.5),
        "lstm.weight": TensorAxes((Prod((gates, h)), h), "recurrent", ("out", "in"), 0.5),
        "out.weight": linear(X, Sum((h, h)), 1.0),
        "scalar": TensorAxes((), "other", (), 1.0),
    }
    return fix(tensors, X, Y, gates)


SPECS = {
    "mlp": mlp(),
    "resnet": resnet(),
    "densenet": densenet(),
    "mobilenet": mobilenet(),
    "convnext": convnext(),
    "mixer": mixer(),
    "vit": vit(),
    "rnn": rnn(),
}


@st.composite
def random_specs(draw) -> PermutationSpec:
    """Specs of a few tensors whose axes nest products and sums of shared atoms, some of them fixed."""
    sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    atoms = [Atom(f"a{i}", n) for i, n in enumerate(sizes)]
    leaf = st.sampled_from(atoms)
    axis = st.recursive(
        leaf,
        lambda inner: (
            st.lists(inner, min_size=0, max_size=2).map(lambda parts: Prod(tuple(parts)))
            | st.lists(inner, min_size=1, max_size=2).map(lambda parts: Sum(tuple(parts)))
        ),
        max_leaves=3,
    )
    shapes = draw(st.lists(st.lists(axis, max_size=3), min_size=1, max_size=4))
    tensors = {}
    for i, axes in enumerate(shapes):
        dims = tuple(draw(st.sampled_from(["out", "in", "kernel", "other"])) for _ in axes)
        role = draw(st.sampled_from(["linear", "conv", "recurrent", "bias", "other"]))
        tensors[f"t{i}"] = TensorAxes(tuple(axes), role, dims, i / len(shapes))
    fixed = {atom.name: "drawn" for atom in atoms if draw(st.booleans())}
    return PermutationSpec(tensors, fixed)


def random_tensors(
    spec: PermutationSpec, seed: int, batch: tuple[int, ...] = (), dtype: torch.dtype = torch.float64
) -> dict[str, Tensor]:
    """Normal tensors of the spec's shapes, each with its own scale and mean."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn((*batch, *entry.shape), generator=generator, dtype=dtype) * (i % 3 + 0.5) + 0.1 * i
        for i, (name, entry) in enumerate(spec.tensors.items())
    }


def act_on_each(
    spec: PermutationSpec, permutation: Mapping[str, Tensor], tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Permute tensors with one leading batch dimension, net by net."""
    return {
        name: torch.stack([spec.act_on(name, permutation, net) for net in tensor])
        for name, tensor in tensors.items()
    }
