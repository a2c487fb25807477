"""The small CNN of the Small CNN Zoo: three convolutions, mean pooling, a linear head; no normalisation."""

from itertools import pairwise

from torch import nn

from nfopt.zoo.zoo import ZooError

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh}


def small_cnn(
    in_channels: int, classes: int, *, channels: tuple[int, ...] = (16, 16, 16), activation: str = "relu"
) -> nn.Module:
    """Return 3 x 3 convolutions of stride 2, an activation after each, mean pooling and a linear head.

    The architecture of "Predicting Neural Network Accuracy from Weights" (Unterthiner et al. 2020).

    Raises:
        ZooError: the activation is unknown.
    """
    if activation not in ACTIVATIONS:
        raise ZooError(f"the small CNN has no activation {activation!r}; it has {', '.join(ACTIVATIONS)}.")
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise((in_channels, *channels)):
        layers += [nn.Conv2d(fan_in, fan_out, 3, stride=2, padding=1), ACTIVATIONS[activation]()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels[-1], classes))
