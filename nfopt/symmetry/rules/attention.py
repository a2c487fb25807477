"""Scaled-dot-product attention as one operation, in its public and its fused forms."""

from nfopt.symmetry.calls import Axes, Call, UnruledError, rule
from nfopt.symmetry.unify import Term, size_of


@rule(
    "scaled_dot_product_attention", "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_attention_math", "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention",
)  # fmt: skip
def attention(call: Call) -> list[Axes]:
    """softmax(q k^T + mask) v: q (..., L, E), k (..., S, E), v (..., S, V), result (..., L, V)."""
    query, key, value = call.tensor("query"), call.tensor("key"), call.tensor("value")
    unifier = call.unifier
    if len({len(query.axes), len(key.axes), len(value.axes)}) != 1:
        raise UnruledError("query, key and value of different ranks")
    if call.get("dropout_p", 0.0) > 0:
        raise UnruledError("random numbers")
    unifier.unify(query.axes[-1], key.axes[-1])
    unifier.unify(key.axes[-2], value.axes[-2])
    batch: list[Term] = []
    for dim in range(len(query.axes) - 2):
        batch.append(_tie_batch(call, [query.axes[dim], key.axes[dim], value.axes[dim]]))
    mask = call.optional("attn_mask")
    if mask is not None:
        scores = (*batch, query.axes[-2], key.axes[-2])
        for mine, its in zip(reversed(scores), reversed(mask.axes), strict=False):
            if its != ():
                unifier.unify(mine, its)
    if call.get("is_causal", False):
        call.fix_dim(query, -2, "causal positions")
        call.fix_dim(key, -2, "causal positions")
    result = (*batch, query.axes[-2], value.axes[-1])
    return [result] + [_extra(call, result, shape) for shape in call.out_shapes[1:]]


def _tie_batch(call: Call, terms: list[Term]) -> Term:
    """Tie one batch axis of query, key and value; with grouped queries key heads repeat within it."""
    query, *others = terms
    wide = query
    for other in others:
        size, other_size = size_of(wide), size_of(other)
        if size == other_size:
            call.unifier.unify(wide, other)
        elif other_size != 1 and size % other_size == 0:
            head, _ = call.unifier.factor(wide, [other_size, size // other_size])
            call.unifier.unify(head, other)
        elif size == 1:
            wide = other
        elif other_size != 1:
            raise UnruledError("batch axes that do not broadcast")
    return wide


def _extra(call: Call, result: Axes, shape: tuple[int, ...]) -> Axes:
    if shape == tuple(size_of(term) for term in result[:-1]):
        return result[:-1]
    return tuple(call.fixed(size, "bookkeeping of fused attention") for size in shape)
