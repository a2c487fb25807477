"""The numbers that modules keep about their sizes, brought in line with the parameters they have left."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nfopt.errors import PruningError
from nfopt.pruning.channels.constant_buffers import cut_constants
from nfopt.pruning.channels.custom_sizes import update_custom
from nfopt.pruning.channels.narrow_attention import NarrowAttention
from nfopt.pruning.channels.subset import Kept, kept_positions
from nfopt.symmetry import Axis, PermutationSpec


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

    Modules of torch and their subclasses are known by type; for any other module see `update_custom`.

    Raises:
        PruningError: what remains of a grouped convolution or norm has groups of different sizes, or a
            recurrent network's layers would differ in width.
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
        if not type(module).__module__.startswith("torch.nn.") and not isinstance(module, _PLAIN):
            above = name.rpartition(".")[0]
            around = _near(model.get_submodule(above), above, own) if name else []
            cut_constants(module, part.axes, kept)
            update_custom(module, _near(module, name, own), around, kept)


def _near(module: nn.Module, name: str, own: Mapping[str, dict[str, tuple[Axis, ...]]]) -> list[Axis]:
    """Return the axes of the tensors of a module and of its parts down to two levels."""
    found = []
    for below, _ in module.named_modules():
        full = ".".join(part for part in (name, below) if part)
        if below.count(".") < 2 and full in own:
            found += [axis for axes in own[full].values() for axis in axes]
    return found


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


def _recurrent(part: Part) -> None:
    module: Any = part.module
    names = [name for name in module._parameters if name.startswith("weight_hh")]
    widths = [module._parameters[name].shape[1] for name in names]
    gates = part.axes[names[0]][0].size // module.hidden_size
    units = [module._parameters[name].shape[0] // gates for name in names]
    if len(set(units)) > 1 or len(set(widths)) > 1:
        raise PruningError(
            f"the {type(module).__name__} {part.name} has layers or directions of which {units} units would "
            "be left: torch keeps one number for all. Keep equally many of each."
        )
    module.input_size = module.weight_ih_l0.shape[1]
    module.hidden_size = units[0]
    if module.proj_size:
        module.proj_size = widths[0]
    # It computes with a list of its own; assigning its weights anew fills it.
    for name, weight in list(module._parameters.items()):
        setattr(module, name, weight)


def _recurrent_cell(part: Part) -> None:
    module: Any = part.module
    module.input_size, module.hidden_size = module.weight_ih.shape[1], module.weight_hh.shape[1]


def _attention(part: Part) -> None:
    module: Any = part.module
    name = "in_proj_weight" if module.in_proj_weight is not None else "q_proj_weight"
    if all(len(part.positions(tensor, dim)) == axis.size
           for tensor, axes in part.axes.items() for dim, axis in enumerate(axes)):  # fmt: skip
        return
    queries = part.positions(name, 0)
    queries = queries[queries < module.num_heads * module.head_dim]
    NarrowAttention.take_over(module, len(torch.unique(queries // module.head_dim)))


_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm)
_RECURRENT = (nn.RNNBase, nn.RNNCellBase)
_PLAIN = (nn.Linear, nn.modules.conv._ConvNd, *_NORMS, *_RECURRENT, nn.MultiheadAttention)
_KNOWN: tuple[tuple[Any, Callable[[Part], None]], ...] = (
    (nn.Linear, _linear),
    (nn.modules.conv._ConvNd, _convolution),
    (nn.GroupNorm, _group_norm),
    (nn.modules.batchnorm._NormBase, _batch_norm),
    ((nn.LayerNorm, nn.RMSNorm), _layer_norm),
    (nn.Embedding, _embedding),
    (nn.PReLU, _prelu),
    (nn.RNNBase, _recurrent),
    (nn.RNNCellBase, _recurrent_cell),
    (nn.MultiheadAttention, _attention),
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
