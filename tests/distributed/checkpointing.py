"""Saving and loading by torch.distributed.checkpoint, whatever the number of ranks."""

import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from nfopt import NFOptimizer


def save(folder: str, model: nn.Module, optimizer: NFOptimizer) -> None:
    """Save model and optimizer, each rank its slices."""
    weights, state = get_state_dict(model, optimizer)
    dcp.save({"model": weights, "optimizer": state}, checkpoint_id=folder)


def load(folder: str, model: nn.Module, optimizer: NFOptimizer) -> None:
    """Load them into a model and a fresh optimizer; its state comes to be by a step that must be inert."""
    weights, state = get_state_dict(model, optimizer)
    dcp.load({"model": weights, "optimizer": state}, checkpoint_id=folder)
    set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=state)
