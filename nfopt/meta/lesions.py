"""Lesions: the learned rule with parts of what it reads or writes cut off, to see what they are worth.

A lesion sets weights to zero, so that the rule falls back to its nominal behaviour there. It tells what the
trained rule makes use of; a rule that is trained without that part (`left_by`) may find another way.
"""

from collections.abc import Callable, Collection, Mapping

import torch
from torch import Tensor

from nfopt.meta.theta import ThetaLayout
from nfopt.optim.controls import CONTROL_NAMES
from nfopt.optim.observations import TENSOR_FEATURES

Theta = dict[str, Tensor]
Lesion = Callable[[Mapping[str, Tensor]], Theta]

CLOCK = ("age", "horizon", "progress", "early", "late")
GRADIENTS = ("signal", "agreement", "decline", "row_evenness", "column_evenness")
PLACE = ("depth", "fan_in", "fan_out", "kernel", "first", "last")


def without_control(name: str) -> Lesion:
    """Return the lesion that leaves the control `name` at its nominal value."""
    row = CONTROL_NAMES.index(name)

    def cut(theta: Mapping[str, Tensor]) -> Theta:
        return _zeroed(theta, tensor_output=row, tensor_output_bias=row)

    return cut


def without_gains(theta: Mapping[str, Tensor]) -> Theta:
    """Every row and column of a tensor moves alike."""
    return _zeroed(theta, entry_output=...)


def without_learned_part(theta: Mapping[str, Tensor]) -> Theta:
    """The nominal point."""
    return _zeroed(theta, tensor_output=..., tensor_output_bias=..., entry_output=...)


def without_tokens(theta: Mapping[str, Tensor]) -> Theta:
    """Nothing that the rule reads of rows, columns and neighbouring layers reaches its decisions."""
    hidden = theta["token"].shape[-1]
    return _zeroed(
        theta,
        tensor=(slice(None), slice(len(TENSOR_FEATURES), None)),
        entry_output=(..., slice(hidden, 2 * hidden)),
    )


def without_hidden_layer(theta: Mapping[str, Tensor]) -> Theta:
    """The decisions per tensor are linear in its features."""
    hidden = theta["token"].shape[-1]
    return _zeroed(theta, tensor_output=(slice(None), slice(hidden)))


def without_features(names: Collection[str]) -> Lesion:
    """Return the lesion that makes the rule blind to the tensor features `names`."""
    columns = [TENSOR_FEATURES.index(name) for name in names]

    def cut(theta: Mapping[str, Tensor]) -> Theta:
        hidden = theta["token"].shape[-1]
        return _zeroed(
            theta,
            entry_from_tensor=(slice(None), columns),
            tensor=(slice(None), columns),
            tensor_output=(slice(None), [hidden + c for c in columns]),
        )

    return cut


LESIONS: dict[str, Lesion] = {
    "no step control": without_control("log_step"),
    "no momentum control": without_control("fast_share"),
    "no decay control": without_control("log_decay"),
    "no row and column gains": without_gains,
    "no tokens": without_tokens,
    "no hidden layer": without_hidden_layer,
    "blind to the clock": without_features(CLOCK),
    "blind to gradients": without_features(GRADIENTS),
    "blind to the weights' scale": without_features(("weight_scale",)),
    "blind to the layer's place": without_features(PLACE),
}


def left_by(names: Collection[str], layout: ThetaLayout) -> Tensor:
    """Return which of the weights (meta-parameters,) remain under all of the named LESIONS, as booleans.

    Raises:
        KeyError: a name is not in LESIONS.
    """
    return _left([LESIONS[name] for name in names], layout)


def reading(features: Collection[str], layout: ThetaLayout) -> Tensor:
    """Return which of the weights (meta-parameters,) read one of the tensor features, as booleans."""
    return ~_left([without_features(features)], layout)


def _left(lesions: Collection[Lesion], layout: ThetaLayout) -> Tensor:
    theta = layout.unflatten(torch.ones(layout.length))
    for lesion in lesions:
        theta = lesion(theta)
    return layout.flatten(theta).bool()


def _zeroed(theta: Mapping[str, Tensor], **parts: object) -> Theta:
    cut = {name: value.clone() for name, value in theta.items()}
    for name, index in parts.items():
        cut[name][index] = 0.0  # pyright: ignore[reportArgumentType]
    return cut
