"""The sizes that modules outside torch keep as plain numbers, recognised by their names and old values."""

from typing import Any, TypeGuard

from torch import nn

from nfopt.pruning.channels.subset import Kept, kept_positions
from nfopt.symmetry import Atom, Axis, Prod, Sum
from nfopt.symmetry.axes import atoms_of

# Heads and hidden widths are often as many as something else is wide, so that for them only what has changed
# is looked at, and for heads first what is a factor of something.
HEAD_NAMES = frozenset({"num_heads", "heads", "n_heads", "num_attention_heads", "nh"})
WIDTH_NAMES = frozenset({"hidden_dim", "hidden_features", "nh_kd", "d_inner", "dh", "state_dim"})
# The width of all heads together is a product of heads and channels, and often that of the stream as well.
INNER_NAMES = frozenset(
    {"all_head_dim", "all_head_size", "attn_dim", "inner_dim"}
    | {"key_attn_dim", "o_proj_inpdim", "out_dim_attn", "qk_total_dim", "val_attn_dim"}
)
SIZE_NAMES = frozenset(
    {"attn_head_dim", "attention_head_size", "head_dim", "key_dim", "val_dim", "dim_head", "dim", "embed_dim"}
    | {"channels", "num_channels", "in_channels", "out_channels", "in_chs", "out_chs", "mid_chs", "width"}
    | {"num_features", "in_features", "out_features", "groups", "num_groups", "planes", "in_planes", "in_dim"}
    | {"out_dim", "dim_in", "dim_out", "dim_conv", "dim_conv3", "dim_untouched", "pdim", "qk_dim", "d"}
    | {"expand_chs", "num_1x1_c", "num_chs", "hidden_chs", "hidden_channels", "inner_channels"}
)

_Sizes = dict[int, set[int]]


def update_custom(module: nn.Module, axes: list[Axis], around: list[Axis], kept: Kept) -> None:
    """Set sizes that a module outside torch's own keeps as plain numbers, where they are recognised.

    A whole number of a customary name that equals an old size takes the new one, if it leads to one new size
    only; so do the numbers of a shape. A tuple of sizes into which a concatenation is split takes what is
    left of each piece.

    Args:
        module: the module, its tensors already smaller.
        axes: the axes, before, of its tensors and of those of its parts.
        around: those of the module that it is in, for numbers that are no size of its own.
        kept: for some groups the indices that remain.
    """
    heads = {value for key, value in vars(module).items() if key in HEAD_NAMES and isinstance(value, int)}
    levels = [_numbers(axes, kept, heads), _numbers(around, kept, heads)]
    for key, value in list(vars(module).items()):
        if isinstance(value, int) and not isinstance(value, bool):
            found = (
                sizes[value] for level in levels for names, sizes in level if key in names and value in sizes
            )
            new = next(found, set())
            if len(new) == 1:
                setattr(module, key, next(iter(new)))
        elif _is_sizes(value):
            sizes = (
                _pieces(value, axes, kept)
                or _pieces(value, around, kept)
                or _shape(key, value, levels[0][-1][1])
            )
            if sizes is not None:
                setattr(module, key, type(value)(sizes))


def _is_sizes(value: Any) -> TypeGuard[list[int] | tuple[int, ...]]:
    return type(value) in (list, tuple) and len(value) > 0 and all(type(each) is int for each in value)


def _numbers(axes: list[Axis], kept: Kept, heads_before: set[int]) -> list[tuple[frozenset[str], _Sizes]]:
    """Return for each kind of name the new sizes by the old ones."""
    heads: _Sizes = {}
    widths: _Sizes = {}
    inner: _Sizes = {}
    sizes: _Sizes = {}
    for axis in axes:
        for part in (axis, *atoms_of(axis)):
            new = _new_size(part, kept)
            sizes.setdefault(part.size, set()).add(new)
            if new != part.size:
                (widths if part is axis else heads).setdefault(part.size, set()).add(new)
        for product in _products(axis):
            # The stream may be a product too, of other factors.
            if heads_before and all(factor.size not in heads_before for factor in product.factors):
                continue
            inner.setdefault(product.size, set()).add(_new_size(product, kept))
    kinds = [
        (HEAD_NAMES, widths | heads),
        (WIDTH_NAMES, widths),
        (INNER_NAMES, widths | inner),
        (SIZE_NAMES, sizes),
    ]
    return [(names, {old: set(new) for old, new in found.items()}) for names, found in kinds]


def _products(axis: Axis) -> list[Prod]:
    if isinstance(axis, Atom):
        return []
    parts = axis.factors if isinstance(axis, Prod) else axis.blocks
    inside = [product for part in parts for product in _products(part)]
    return [axis, *inside] if isinstance(axis, Prod) else inside


def _pieces(value: list[int] | tuple[int, ...], axes: list[Axis], kept: Kept) -> list[int] | None:
    """Return what is left of each piece of a concatenation cut between its blocks; None if unclear."""
    found = set()
    for axis in axes:
        if not isinstance(axis, Sum) or len(value) < 2 or sum(value) != axis.size:
            continue
        new, blocks = [], list(axis.blocks)
        for size in value:
            old = left = 0
            while blocks and old < size:
                block = blocks.pop(0)
                old, left = old + block.size, left + _new_size(block, kept)
            new.append(left if old == size else -1)
        if -1 not in new:
            found.add(tuple(new))
    return list(found.pop()) if len(found) == 1 else None


def _shape(key: str, value: list[int] | tuple[int, ...], sizes: _Sizes) -> list[int] | None:
    """Return a shape with its new sizes; None where one of them is unclear."""
    if not key.endswith("shape"):
        return None
    new = [sizes.get(size, {size}) for size in value]
    return [each.pop() for each in map(set, new)] if all(len(each) == 1 for each in new) else None


def _new_size(axis: Axis, kept: Kept) -> int:
    positions = kept_positions(axis, kept)
    return axis.size if positions is None else len(positions)
