"""What the nets of a zoo compute, as far as its card says it."""

from collections.abc import Mapping
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from nfopt.errors import NfoptError
from nfopt.experiments.question import ExperimentError, Forward, Tensors
from nfopt.models import build_model
from nfopt.zoo import Zoo
from nfopt.zoo.siren import siren


def omega_of(zoo: Zoo) -> float:
    """Return the frequency factor inside the sines of a zoo of SIRENs, from its card.

    Raises:
        ExperimentError: the card tells of no SIRENs.
    """
    found = _mapping(zoo.card, "architecture").get("omega_0")
    if not isinstance(found, int | float):
        raise ExperimentError(
            "the zoo's card tells of no SIREN (an architecture with omega_0), so the nets can neither be "
            "rendered nor brought to canonical form. Make the zoo with a recipe of kind: zoo."
        )
    return float(found)


def is_siren(zoo: Zoo) -> bool:
    """Return whether the zoo's card tells of SIRENs."""
    return "omega_0" in _mapping(zoo.card, "architecture")


def forward_of(zoo: Zoo) -> tuple[Forward | None, int]:
    """Return what the nets compute and the number of their inputs; None and 0 where the card does not say.

    A card says it of SIRENs, and of classifiers whose model is one of nfopt's by name.
    """
    if is_siren(zoo):
        return partial(_siren, omega_of(zoo)), int(zoo.tensors["0.weight"].shape[-1])
    model = _mapping(zoo.card, "recipe", "nets", "model")
    shape = zoo.card.get("in_shape")
    name = model.get("name")
    # A name with a colon is a function to import: a file of weights must not choose code that runs.
    if not isinstance(name, str) or ":" in name or not isinstance(shape, list | tuple):
        return None, 0
    # The last tensor belongs to the last layer: one row for each class.
    classes = list(zoo.tensors.values())[-1].shape[1]
    try:
        module = build_model(name, tuple(shape), classes, seed=0, options=model.get("options", {}))
    except NfoptError:
        return None, 0
    shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    if shapes != {name: tuple(tensor.shape[1:]) for name, tensor in zoo.tensors.items()}:
        return None, 0
    return partial(_classifier, module.eval().to("meta"), tuple(shape)), prod(shape)


def _siren(omega: float, tensors: Tensors, inputs: Tensor) -> Tensor:
    return siren(tensors, inputs, omega_0=omega)


def _classifier(module: nn.Module, shape: tuple[int, ...], tensors: Tensors, inputs: Tensor) -> Tensor:
    images = inputs.unflatten(-1, shape)

    def one(net: dict[str, Tensor]) -> Tensor:
        return torch.log_softmax(functional_call(module, net, (images,)), dim=-1)

    return vmap(one)(dict(tensors))


def _mapping(card: Mapping[str, Any], *path: str) -> Mapping[str, Any]:
    """Return the mapping at a path of a card; an empty one if there is none."""
    found: Any = card
    for key in path:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found if isinstance(found, Mapping) else {}
