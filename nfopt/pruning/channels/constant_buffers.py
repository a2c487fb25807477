"""Constant buffers that are as long as a layer is wide: a bias that stays zero, one filter for all."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nfopt.pruning.channels.subset import Kept, kept_positions
from nfopt.symmetry import Axis


def cut_constants(module: nn.Module, axes: Mapping[str, tuple[Axis, ...]], kept: Kept) -> None:
    """Shorten the constant buffers of a module as its parameters beside them are shortened.

    A buffer whose rows are all alike says nothing of single channels, so that no spec lists it; what is left
    of it is as many rows as of the module's own tensors of that length (keys' zero bias beside those of
    queries and values). timm's blur has no tensor beside it: it gets the single filter that stands there for
    any number of channels.

    Args:
        module: the module, its tensors already smaller.
        axes: the axes of its own tensors before, by the tensor's own name.
        kept: what remains of each group.
    """
    blur: Any = module
    for name, buffer in list(module._buffers.items()):
        if buffer is None or name in axes or buffer.dim() == 0 or not _rows_are_alike(buffer):
            continue
        lengths = {_new_size(each[0], kept) for each in axes.values() if each and each[0].size == len(buffer)}
        if len(lengths) == 1:
            module._buffers[name] = buffer[: lengths.pop()].clone()
        elif type(module).__name__ == "BlurPool2d" and getattr(blur, "channels", None) == len(buffer):
            module._buffers[name] = buffer[:1].clone()
            blur.channels = None


def _rows_are_alike(buffer: Tensor) -> bool:
    return len(buffer) > 0 and torch.equal(buffer, buffer[:1].expand_as(buffer))


def _new_size(axis: Axis, kept: Kept) -> int:
    positions = kept_positions(axis, kept)
    return axis.size if positions is None else len(positions)
