"""What each channel is worth: a score of single weights, summed over everything that goes with a channel."""

from collections.abc import Mapping

import torch
from torch import Tensor

from nfopt.pruning.channels.subset import group_index
from nfopt.symmetry import PermutationSpec


def channel_worth(
    spec: PermutationSpec, groups: tuple[str, ...], scores: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return for each group the worth of its indices.

    In every tensor the scores of an index's slice are summed (with magnitudes, the L1 norm of a filter:
    Li et al., arXiv:1608.08710, section 3.1) and divided by the tensor's mean over the group; the worth is
    the mean over the tensors that hold the group (coupled as in DepGraph: Fang et al., arXiv:2301.12900,
    section 3.3). Vectors (biases, norms) count only where no matrix holds the group.

    Args:
        spec: the model's symmetry.
        groups: names of groups of the spec.
        scores: for each parameter the worth of its elements; tensors left out do not count.
    """
    worth = {}
    for group in groups:
        places = dict.fromkeys(spec.occurrences[group])
        held = [(name, dim) for name, dim in places if name in scores]
        matrices = [(name, dim) for name, dim in held if scores[name].ndim > 1]
        size = spec.groups[group].size
        total = torch.zeros(size, dtype=torch.float64)
        for name, dim in matrices or held:
            sums = _sums(scores[name], spec, name, dim, group, size)
            mean = sums.abs().mean()
            total += sums / mean if mean > 0 else sums
        worth[group] = total / max(len(matrices or held), 1)
    return worth


def _sums(scores: Tensor, spec: PermutationSpec, name: str, dim: int, group: str, size: int) -> Tensor:
    index = group_index(spec.tensors[name].axes[dim], group)
    assert index is not None
    along = scores.detach().cpu().double().movedim(dim, 0).flatten(1).sum(1)
    inside = index >= 0
    return torch.zeros(size, dtype=torch.float64).index_add_(0, index[inside], along[inside])
