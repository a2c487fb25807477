"""EditorConfig: what a WeightEditor reads, how far it may go, and how wide it is."""

import math
from dataclasses import dataclass, fields

from nfopt.errors import EditingError


@dataclass(frozen=True)
class EditorConfig:
    """The configuration of a `WeightEditor`.

    A change of a parameter W in one round is made of directions, each with a coefficient for every element:
    free (rms W), W itself, the normalised gradients (rms W), and image operators A W - W where the tensor
    faces pixels. All are bounded by the numbers below, relative to rms W.

    Attributes:
        rounds: how often it looks at gradients and statistics and proposes a change.
        source_count: how many target images the source's statistics weigh as much as at the nominal point.
        blend: largest change of the logit of a channel's share of target statistics, from the nominal one.
        free: bound of the free direction.
        rescale: bound of the coefficient of W.
        step: step along a normalised gradient at coefficient 1.
        reach: largest change of a gradient's coefficient from the nominal one.
        nominal_step: coefficient of the unsupervised gradient at the nominal point, for nets without
            BatchNorm; with BatchNorm it is 0, and the nominal point is blended statistics.
        operators: bound of the coefficients of the image operators; 0 leaves them away.
        channels: channels per token of the role-tied network.
        element_channels: channels per element.
        layers: exchanges.
    """

    rounds: int = 3
    source_count: float = 1.0
    blend: float = 4.0
    free: float = 0.05
    rescale: float = 0.1
    step: float = 0.02
    reach: float = 3.0
    nominal_step: float = 1.0
    operators: float = 0.0
    channels: int = 16
    element_channels: int = 8
    layers: int = 2

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            whole = each.name in ("rounds", "channels", "element_channels", "layers")
            least = 1 if whole else 0
            if whole and not isinstance(value, int):
                raise EditingError(f"{each.name} of the editor is {value!r}; it must be a whole number.")
            if not (math.isfinite(value) and value >= least):
                raise EditingError(f"{each.name} of the editor is {value!r}; it must be {least} or more.")
