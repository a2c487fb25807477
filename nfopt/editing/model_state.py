"""The state of a model that an edit is about: parameters and saved buffers, each tensor once."""

import torch
from torch import Tensor, nn

from nfopt.editing.bits import Mark, check_readable, mark_of
from nfopt.symmetry import unwrap


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """Return the model's own parameters and saved buffers by name, not copied; a tied tensor once.

    Raises:
        EditingError: a tensor has no values that could be read.
    """
    model = unwrap(model)
    saved = model.state_dict(keep_vars=True)
    every = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    state = {name: tensor for name, tensor in every.items() if name in saved}
    check_readable(state)
    return state


def marks_of(model: nn.Module) -> dict[str, Mark]:
    """Return the mark of every tensor of `state_of`."""
    return {name: mark_of(tensor) for name, tensor in state_of(model).items()}


@torch.no_grad()
def write_into(model: nn.Module, values: dict[str, Tensor]) -> None:
    """Copy values into the model's own tensors, on their devices and in their places in memory."""
    state = state_of(model)
    for name, value in values.items():
        state[name].copy_(value)
