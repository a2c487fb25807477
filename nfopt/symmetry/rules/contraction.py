"""Sums of products: an index summed over is tied between the factors, the others go to the result."""

from string import ascii_letters

from nfopt.symmetry.calls import Axes, Call, UnruledError, Value, rule
from nfopt.symmetry.rules.pointwise import broadcast
from nfopt.symmetry.spec import DimRole
from nfopt.symmetry.unify import Term


def contract(call: Call, labels: list[str], out: str, values: list[Value]) -> Axes:
    """Tie all axes of one label (size-1 axes broadcast) and return those of the labels in `out`."""
    terms: dict[str, Term] = {}
    for text, value in zip(labels, values, strict=True):
        if len(text) != len(value.axes):
            raise UnruledError("labels do not fit the tensor")
        for label, axis in zip(text, value.axes, strict=True):
            known = terms.setdefault(label, axis)
            if known == ():
                terms[label] = axis
            elif axis != ():
                call.unifier.unify(known, axis)
    _note_roles(call, labels, out, values)
    return tuple(terms.get(label, ()) for label in out)


def _note_roles(call: Call, labels: list[str], out: str, values: list[Value]) -> None:
    """A parameter that meets an activation is a linear map: what the result keeps alone is its output."""
    if all(value.sources for value in values):
        return
    for text, value in zip(labels, values, strict=True):
        others = {label for other in labels if other is not text for label in other}
        dims: list[DimRole] = []
        for label in text:
            summed = label not in out
            dims.append("in" if summed else "other" if label in others else "out")
        call.note(value, "linear", *dims)


@rule("linear")
def linear(call: Call) -> list[Axes]:
    """The map y = x W^T + b."""
    value, weight, bias = call.tensor("input"), call.tensor("weight"), call.optional("bias")
    call.unifier.unify(value.axes[-1], weight.axes[-1])
    call.note(weight, "linear", "out", "in")
    if len(weight.axes) == 1:
        return [value.axes[:-1]]
    if bias is not None:
        call.unifier.unify(weight.axes[0], bias.axes[-1])
        call.note(bias, "bias", "out")
    return [(*value.axes[:-1], weight.axes[0])]


@rule("mm", "bmm", "matmul", "mv", "dot", "vdot", "inner", "outer", "ger", "chain_matmul")
def matmul(call: Call) -> list[Axes]:
    """Matrix products of any rank, batch axes broadcast from the right."""
    values = call.values()
    short = call.name.removeprefix("aten.")
    if len(values) != 2:
        raise UnruledError("a product of more than two matrices")
    a, b = values
    if short in ("outer", "ger"):
        return [contract(call, ["i", "j"], "ij", values)]
    rank_a, rank_b = len(a.axes), len(b.axes)
    if short == "inner":
        batch_a, batch_b = ascii_letters[: rank_a - 1], ascii_letters[26 : 26 + rank_b - 1]
        return [contract(call, [batch_a + "z", batch_b + "z"], batch_a + batch_b, values)]
    batch = ascii_letters[: max(rank_a, rank_b, 2) - 2]
    left = "z" if rank_a == 1 else batch[len(batch) - (rank_a - 2) :] + "yz"
    right = "z" if rank_b == 1 else batch[len(batch) - (rank_b - 2) :] + "zx"
    out = batch + ("y" if rank_a > 1 else "") + ("x" if rank_b > 1 else "")
    return [contract(call, [left, right], out, values)]


@rule("addmm", "baddbmm", "addbmm", "addmv", "addr", "_addmm_activation")
def add_product(call: Call) -> list[Axes]:
    """A matrix product plus a broadcast term."""
    offset, *factors = call.values()
    short = call.name.removeprefix("aten.").rstrip("_")
    forms = {
        "addmm": (["yz", "zx"], "yx"),
        "_addmm_activation": (["yz", "zx"], "yx"),
        "baddbmm": (["ayz", "azx"], "ayx"),
        "addbmm": (["ayz", "azx"], "yx"),
        "addmv": (["yz", "z"], "y"),
        "addr": (["y", "x"], "yx"),
    }
    labels, out = forms[short]
    product = contract(call, labels, out, factors)
    call.note(offset, "bias", *(["out"] if len(offset.axes) == 1 else ["other"] * len(offset.axes)))  # pyright: ignore[reportArgumentType]
    return [broadcast(call.unifier, [offset, Value(product)])]


@rule("_trilinear")
def trilinear(call: Call) -> list[Axes]:
    """Three tensors with axes of size 1 inserted, multiplied, and summed over some axes."""
    factors: list[Value] = []
    for i in ("1", "2", "3"):
        axes = list(call.tensor(f"i{i}").axes)
        for dim in sorted(call.args[f"expand{i}"]):
            axes.insert(dim, ())
        factors.append(Value(tuple(axes)))
    call.note(call.tensor("i2"), "linear", "out", "in", "in")
    product = broadcast(call.unifier, factors)
    return [tuple(axis for dim, axis in enumerate(product) if dim not in call.args["sumdim"])]


@rule("cdist", "_cdist_forward", "_euclidean_dist")
def distances(call: Call) -> list[Axes]:
    """Distances between all rows of two tensors (..., P, M) and (..., R, M)."""
    first, second = call.tensor("x1"), call.tensor("x2")
    if len(first.axes) != len(second.axes):
        raise UnruledError("batch axes that broadcast")
    batch = ascii_letters[: len(first.axes) - 2]
    return [contract(call, [batch + "Pz", batch + "Rz"], batch + "PR", [first, second])]


@rule("cosine_similarity", "pairwise_distance")
def similarity(call: Call) -> list[Axes]:
    """A symmetric function of two tensors along one axis."""
    both = broadcast(call.unifier, call.values())
    dim = call.get("dim", -1) % len(both)
    keep = len(call.out_shape) == len(both)
    return [tuple(() if d == dim else axis for d, axis in enumerate(both) if keep or d != dim)]


@rule("bilinear")
def bilinear(call: Call) -> list[Axes]:
    """The map y_o = x1_i W_oij x2_j + b_o."""
    first, second, weight = call.tensor("input1"), call.tensor("input2"), call.tensor("weight")
    batch = ascii_letters[: len(first.axes) - 1]
    axes = contract(call, [batch + "I", batch + "J", "OIJ"], batch + "O", [first, second, weight])
    bias = call.optional("bias")
    if bias is not None:
        call.unifier.unify(axes[-1], bias.axes[0])
        call.note(bias, "bias", "out")
    return [axes]


@rule("einsum")
def einsum(call: Call) -> list[Axes]:
    """Einstein sums, with ellipses and the implicit output."""
    values = call.values()
    text = call.args["equation"].replace(" ", "")
    left, arrow, out = text.partition("->")
    labels = left.split(",")
    if len(labels) != len(values):
        raise UnruledError("operands do not fit the equation")
    spare = [letter for letter in ascii_letters if letter not in text]
    ranks = [
        len(v.axes) - len(t.replace("...", "")) for t, v in zip(labels, values, strict=True) if "..." in t
    ]
    dots = "".join(spare[: max(ranks, default=0)])
    full = []
    for label, value in zip(labels, values, strict=True):
        rank = len(value.axes) - len(label.replace("...", ""))
        full.append(label.replace("...", dots[len(dots) - rank :]))
    if not arrow:
        joined = "".join(label.replace("...", "") for label in labels)
        out = "..." + "".join(sorted(letter for letter in set(joined) if joined.count(letter) == 1))
    return [contract(call, full, out.replace("...", dots), values)]
