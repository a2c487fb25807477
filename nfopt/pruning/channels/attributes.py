"""The numbers that modules keep about their sizes, brought in line with the parameters they have left."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from nfopt.errors import PruningError
from nfopt.pruning.channels.subset import Kept, kept_positions
from nfopt.symmetry import Axis, PermutationSpec, Sum
from nfopt.symmetry.axes import atoms_of


@dataclass(frozen=True)
class Part:
    """One module that holds tensors of which some indices are removed.

    Attributes:
        name: its qualified name.
        module: the module, its tensors already smaller.
        axes: the axes of its tensors before, by the tensor's own name.
        kept: what remains of each group.
    """

    name: str
    module: nn.Module
    axes: Mapping[str, tuple[Axis, ...]]
    kept: Kept

    def positions(self, tensor: str, dim: int) -> Tensor:
        """Return the positions that remain along one axis."""
        axis = self.axes[tensor][dim]
        found = kept_positions(axis, self.kept)
        return torch.arange(axis.size) if found is None else found


def update_attributes(model: nn.Module, spec: PermutationSpec, kept: Kept) -> None:
    """Set channel counts, group counts and head counts of a model whose tensors are smaller already.

    Modules of torch and their subclasses are known by type. Of any other module, whole numbers of customary
    names that equal an old size among its own tensors or those of its parts take the new size; so does a
    tuple of the sizes of concatenated blocks.

    Raises:
        PruningError: what remains of a grouped convolution or norm has groups of different sizes.
    """
    own: dict[str, dict[str, tuple[Axis, ...]]] = {}
    for name, entry in spec.tensors.items():
        owner, _, leaf = name.rpartition(".")
        own.setdefault(owner, {})[leaf] = entry.axes
    for alias, name in spec.aliases.items():
        owner, _, leaf = alias.rpartition(".")
        own.setdefault(owner, {})[leaf] = spec.tensors[name].axes
    for name, module in model.named_modules():
        part = Part(name, module, own.get(name, {}), kept)
        if part.axes:
            update_known(part)
        axes = [axis for tensors in _near(module, name, own) for every in tensors.values() for axis in every]
        update_custom(module, axes, kept)


def _near(
    module: nn.Module, name: str, own: Mapping[str, dict[str, tuple[Axis, ...]]]
) -> Iterator[dict[str, tuple[Axis, ...]]]:
    """Yield the tensors of a module and of its parts down to two levels."""
    for below, _ in module.named_modules():
        if below.count(".") < 2:
            full = ".".join(part for part in (name, below) if part)
            if full in own:
                yield own[full]


def update_known(part: Part) -> None:
    """Set the size attributes of a module of one of torch's types."""
    for kind, update in _KNOWN:
        if isinstance(part.module, kind):
            update(part)
            return


def _linear(part: Part) -> None:
    module: Any = part.module
    module.out_features, module.in_features = module.weight.shape


def _convolution(part: Part) -> None:
    module: Any = part.module
    transposed = module.transposed
    # A transposed convolution's groups divide its inputs, which come first in its weight.
    groups = _groups_left(part, "weight", 0, module.groups, "convolution")
    first, second = module.weight.shape[:2]
    module.groups = groups
    module.out_channels, module.in_channels = (
        (second * groups, first) if transposed else (first, second * groups)
    )


def _group_norm(part: Part) -> None:
    module: Any = part.module
    module.num_groups = _groups_left(part, "weight", 0, module.num_groups, "group norm")
    module.num_channels = module.weight.shape[0]


def _batch_norm(part: Part) -> None:
    module: Any = part.module
    tensor = next(t for t in (module.weight, module.running_mean) if t is not None)
    module.num_features = tensor.shape[0]


def _layer_norm(part: Part) -> None:
    module: Any = part.module
    shape = tuple(module.weight.shape)
    module.normalized_shape = shape


def _embedding(part: Part) -> None:
    module: Any = part.module
    module.num_embeddings, module.embedding_dim = module.weight.shape


def _prelu(part: Part) -> None:
    module: Any = part.module
    module.num_parameters = module.weight.shape[0]


_KNOWN: tuple[tuple[Any, Callable[[Part], None]], ...] = (
    (nn.Linear, _linear),
    (nn.modules.conv._ConvNd, _convolution),
    (nn.GroupNorm, _group_norm),
    (nn.modules.batchnorm._NormBase, _batch_norm),
    ((nn.LayerNorm, nn.RMSNorm), _layer_norm),
    (nn.Embedding, _embedding),
    (nn.PReLU, _prelu),
)


def _groups_left(part: Part, tensor: str, dim: int, groups: int, what: str) -> int:
    """Return how many of the groups that an axis is divided into have anything left; all must be alike."""
    if groups == 1 or tensor not in part.axes or not part.axes[tensor]:
        return groups
    size = part.axes[tensor][dim].size
    counts = torch.bincount(part.positions(tensor, dim) // (size // groups), minlength=groups)
    left = counts[counts > 0]
    if bool((left != left[0]).any()):
        raise PruningError(
            f"the {what} {part.name} has {groups} groups, of which {sorted(set(left.tolist()))} channels "
            "would be left: groups must stay of one size. Keep equally many channels of each."
        )
    return len(left)


# What modules outside torch call their sizes. Heads and attention widths are often as many as something
# else is wide, so that for them only what has changed is looked at.
HEAD_NAMES = frozenset({"num_heads", "heads", "n_heads", "num_attention_heads", "nh"})
WIDTH_NAMES = frozenset(
    {
        "all_head_dim",
        "all_head_size",
        "attn_dim",
        "hidden_dim",
        "hidden_features",
        "inner_dim",
        "key_attn_dim",
    }
    | {"nh_kd", "out_dim_attn", "qk_total_dim", "val_attn_dim", "d_inner", "dh"}
)
SIZE_NAMES = frozenset(
    {"attn_head_dim", "attention_head_size", "head_dim", "key_dim", "val_dim", "dim_head", "dim", "embed_dim"}
    | {"channels", "num_channels", "in_channels", "out_channels", "in_chs", "out_chs", "mid_chs", "width"}
    | {"num_features", "in_features", "out_features", "groups", "num_groups", "planes", "in_planes", "in_dim"}
    | {"out_dim", "dim_in", "dim_out", "dim_conv", "dim_conv3", "dim_untouched", "pdim", "qk_dim", "d"}
)
_TORCH_TYPES = (nn.Linear, nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase, nn.GroupNorm)


def update_custom(module: nn.Module, axes: list[Axis], kept: Kept) -> None:
    """Set sizes that a module outside torch's own keeps as plain numbers, where they are recognised.

    A number is recognised by its name and by its old value, if that leads to one new value only.
    """
    if type(module).__module__.startswith("torch.nn.") or isinstance(module, _TORCH_TYPES):
        return
    heads, widths, sizes = _new_sizes(axes, kept)
    blocks = _new_blocks(axes, kept)
    for key, value in list(vars(module).items()):
        known = (
            heads
            if key in HEAD_NAMES
            else widths
            if key in WIDTH_NAMES
            else sizes
            if key in SIZE_NAMES
            else {}
        )
        if isinstance(value, int) and not isinstance(value, bool):
            new = known.get(value, ())
            if len(new) == 1:
                setattr(module, key, next(iter(new)))
        elif key == "normalized_shape" and isinstance(value, tuple):
            new = sizes.get(prod(value), ())
            if len(new) == 1:
                setattr(module, key, (next(iter(new)),))
        elif _is_sizes(value) and len(new := blocks.get(tuple(value), ())) == 1:
            setattr(module, key, type(value)(next(iter(new))))


def _is_sizes(value: Any) -> TypeGuard[list[int] | tuple[int, ...]]:
    return type(value) in (list, tuple) and len(value) > 1 and all(type(each) is int for each in value)


_Sizes = dict[int, set[int]]


def _new_sizes(axes: list[Axis], kept: Kept) -> tuple[_Sizes, _Sizes, _Sizes]:
    """Return new sizes by old ones: of groups that change, of whole axes that change, and of both in all."""
    heads: _Sizes = {}
    widths: _Sizes = {}
    sizes: _Sizes = {}
    for axis in axes:
        for part in (axis, *atoms_of(axis)):
            new = _new_size(part, kept)
            sizes.setdefault(part.size, set()).add(new)
            if new != part.size:
                (widths if part is axis else heads).setdefault(part.size, set()).add(new)
    return heads, widths, sizes


def _new_blocks(axes: list[Axis], kept: Kept) -> dict[tuple[int, ...], set[tuple[int, ...]]]:
    """Return the new sizes of concatenated blocks by the old."""
    blocks: dict[tuple[int, ...], set[tuple[int, ...]]] = {}
    for axis in axes:
        if isinstance(axis, Sum):
            old = tuple(block.size for block in axis.blocks)
            blocks.setdefault(old, set()).add(tuple(_new_size(block, kept) for block in axis.blocks))
    return blocks


def _new_size(axis: Axis, kept: Kept) -> int:
    positions = kept_positions(axis, kept)
    return axis.size if positions is None else len(positions)
