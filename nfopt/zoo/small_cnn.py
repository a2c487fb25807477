"""The small CNN of the Small CNN Zoo: three convolutions, mean pooling, a linear head; no normalisation."""

from itertools import pairwise

from torch import nn

from nfopt.models import MODELS, ModelError, Shape

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh}


@MODELS.register("small-cnn")
def small_cnn(
    in_shape: Shape,
    classes: int,
    *,
    channels: list[int] | tuple[int, ...] = (16, 16, 16),
    activation: str = "relu",
) -> nn.Module:
    """3 x 3 convolutions of stride 2, an activation after each, mean pooling, a linear head; no BatchNorm.

    The architecture of "Predicting Neural Network Accuracy from Weights" (Unterthiner et al. 2020).
    """
    if activation not in ACTIVATIONS:
        raise ModelError(f"small-cnn has no activation {activation!r}; it has {', '.join(ACTIVATIONS)}.")
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise((in_shape[0], *channels)):
        layers += [nn.Conv2d(fan_in, fan_out, 3, stride=2, padding=1), ACTIVATIONS[activation]()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels[-1], classes))
