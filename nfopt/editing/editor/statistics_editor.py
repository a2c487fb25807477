"""StatisticsEditor: a small equivariant network that chooses BatchNorm statistics, layer by layer."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from nfopt.editing.editor.forward import NetForward, NormInput, NormRule
from nfopt.errors import EditingError

CHANNEL_FEATURES = 10
POOLED_FEATURES = CHANNEL_FEATURES + 3
PLACE_FEATURES = 3
MEAN_SHARE, VARIANCE_SHARE, SHIFT, SCALE = range(4)
CUT = 4.0
TINY = 1e-6
ROUND = 1e-4
"""Keeps the derivatives of roots finite where nothing has moved."""


@dataclass(frozen=True)
class StatisticsConfig:
    """The configuration of a `StatisticsEditor`.

    Attributes:
        source_count: how many target images the source's statistics weigh as much as at the nominal point.
        blend: largest change of the logit of a share of target statistics, from the nominal one.
        shift: largest further change of a mean, in deviations.
        scale: largest further change of the logarithm of a deviation.
        geometric: whether variances are blended by their logarithms: a target of little contrast, whose
            variances are a hundredth of the source's, then counts as much as one of too much.
        width: of the hidden layers.
        memory: numbers that one layer hands on to the next.
    """

    source_count: float = 8.0
    blend: float = 6.0
    shift: float = 0.0
    scale: float = 0.0
    geometric: bool = True
    width: int = 32
    memory: int = 8

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if isinstance(each.default, bool):
                if not isinstance(value, bool):
                    raise EditingError(
                        f"{each.name} of the statistics editor is {value!r}, not true or false."
                    )
                continue
            if isinstance(each.default, int) and (not isinstance(value, int) or value < 1):
                raise EditingError(f"{each.name} of the statistics editor is {value!r}; give 1 or more.")
            if not (math.isfinite(value) and value >= 0):
                raise EditingError(f"{each.name} of the statistics editor is {value!r}; give 0 or more.")
        if self.source_count == 0:
            raise EditingError("source_count of the statistics editor is 0; give a positive one.")


class StatisticsEditor(nn.Module):
    """Chooses by which mean and variance each channel of each BatchNorm layer normalises.

    The target images run through the net once. A layer whose source statistics are (m, v) sees the target's
    (m', v') and normalises by

        mean = m + a (m' - m) + shift tanh(o_2) sqrt(v'')
        variance = v'' exp(2 scale tanh(o_3)),    v'' = v + a' (v' - v)
        a = sigmoid(logit n/(n + source_count) + blend tanh(o_0 / blend))

    for n images, and a' likewise of o_1; `geometric` blends the logarithms of variances. Since a layer scales
    and shifts what it has normalised, any change of its scale and shift is such a change of statistics, too.

    The outputs o come from a network that reads, of each channel, how far mean and deviation have moved, in
    deviations and in standard errors over the images, and the layer's scale and shift; the means of these
    over the channels; the number of images and of values per image; how deep the layer is; and what the
    layers before have handed on. Its last layer starts at zero: a fresh editor blends (Schneider et al. 2020,
    equation 2). It is equivariant, and fits any net.

    Args:
        config: bounds and sizes.
        generator: source of the initial weights.
    """

    def __init__(self, config: StatisticsConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        shared = POOLED_FEATURES + PLACE_FEATURES + config.memory
        sizes = (CHANNEL_FEATURES + shared, config.width, config.width, 4)
        layers = [nn.Linear(*pair) for pair in pairwise(sizes)]
        self.channels = nn.ModuleList(layers)
        self.memory = nn.Linear(shared, config.memory)
        with torch.no_grad():
            for layer in (*layers, self.memory):
                weight = layer.weight
                weight.normal_(generator=generator).mul_(weight.shape[1] ** -0.5)
                layer.bias.zero_()
            layers[-1].weight.zero_()

    def edited(
        self, forward: NetForward, tensors: Mapping[str, Tensor], images: Float[Tensor, "..."]
    ) -> dict[str, Tensor]:
        """Return the tensors of one net, or of many side by side, with their new running statistics.

        Differentiable in the editor's weights, through all layers.

        Args:
            forward: the nets' forward pass.
            tensors: parameters and running statistics by name, each [*nets, *shape].
            images: target images, [*nets, images, ...].
        """
        _, norms = forward(tensors, images, rule=lambda: _Pass(self, len(forward.norms)))
        chosen = {n: v.to(tensors[n].dtype) for n, v in norms.blended.items() if n in tensors}
        return {**tensors, **chosen}


class _Pass(NormRule):
    """One run of target images through one net: what each layer normalises by, and what it hands on."""

    def __init__(self, editor: StatisticsEditor, layers: int) -> None:
        self.editor, self.layers = editor, layers
        self.memory = editor.memory.bias.new_zeros(editor.config.memory)
        self.done = 0

    def __call__(self, seen: NormInput) -> tuple[Tensor, Tensor]:
        editor, config = self.editor, self.editor.config
        kind = editor.memory.bias.dtype
        values = seen.inputs.movedim(1, 0).to(kind)
        values = values.reshape(*values.shape[:2], -1)
        count = values.shape[1]
        mean, var = (t.to(kind) for t in (seen.mean, seen.var))
        channel, moments = _channel_features(values, mean, var, seen)
        squares = channel[:, [0, 1, 4]].square().mean(0)
        pooled = torch.cat([channel.mean(0), (squares + TINY).log() / 2])
        depth = min(1.0, self.done / max(1, self.layers - 1))
        place = (math.log(count / 64) / 2, math.log(values.shape[2]) / 4, depth)
        shared = torch.cat([pooled, pooled.new_tensor(place), self.memory])
        self.memory = self.memory + editor.memory(shared).tanh()
        self.done += 1
        said = torch.cat([channel, shared.expand(len(channel), -1)], dim=1)
        for number, layer in enumerate(editor.channels):
            said = layer(said if number == 0 else functional.silu(said))
        nominal = math.log(count / config.source_count)
        limited = _bounded(said[:, :SHIFT], config.blend)
        share, var_share = (nominal + limited).sigmoid().unbind(1)
        if config.geometric:
            ratio = ((moments[1] + seen.eps) / (var + seen.eps)).log()
            blended = (var + seen.eps) * (var_share * ratio).exp() - seen.eps
        else:
            blended = var + var_share * (moments[1] - var)
        sign = torch.ones_like(mean) if seen.weight is None else seen.weight.to(kind).sign()
        shift = config.shift * said[:, SHIFT].tanh() * sign * (blended + seen.eps).sqrt()
        return (
            mean + share * (moments[0] - mean) + shift,
            (blended + seen.eps) * (2 * config.scale * said[:, SCALE].tanh()).exp() - seen.eps,
        )


def _bounded(said: Tensor, bound: float) -> Tensor:
    return bound * (said / bound).tanh() if bound else torch.zeros_like(said)


def _channel_features(
    values: Float[Tensor, "channels images values"], mean: Tensor, var: Tensor, seen: NormInput
) -> tuple[Float[Tensor, "channels features"], tuple[Tensor, Tensor]]:
    """Return what is read of each channel, and the target's mean and unbiased variance."""
    images, each = values.shape[1:]
    by_image = values.mean(2)
    found = by_image.mean(1)
    squares = (values - found[:, None, None]).square().mean(2)
    target = squares.mean(1) * (images * each / max(images * each - 1, 1))
    deviation = (var + seen.eps).sqrt()
    weight = torch.ones_like(mean) if seen.weight is None else seen.weight.to(mean)
    bias = torch.zeros_like(mean) if seen.bias is None else seen.bias.to(mean)
    moved = (found - mean) / deviation * weight.sign()
    ratio = (((target + seen.eps) / (var + seen.eps)).log() / 2).clamp(-CUT, CUT)
    if images > 1:
        error = _spread(by_image) / deviation / images**0.5
        ratio_error = _spread(squares) / (target + seen.eps) / (2 * images**0.5)
    else:
        error, ratio_error = torch.ones_like(moved), torch.ones_like(ratio)
    size = weight.abs() + TINY
    features = (
        moved.asinh(),
        ratio,
        (error + TINY).log() / 4,
        (ratio_error + TINY).log() / 4,
        (moved / (error + TINY)).asinh(),
        (ratio / (ratio_error + TINY)).asinh(),
        (moved.square() + ROUND).pow(0.25),
        (ratio.square() + ROUND).pow(0.25),
        (bias / size).asinh(),
        size.log() / 4,
    )
    return torch.stack(features, dim=1), (found, target)


def _spread(by_image: Float[Tensor, "channels images"]) -> Float[Tensor, " channels"]:
    """Return the standard deviation over images, with a derivative where there is none of it."""
    return (by_image.var(1) + TINY**2).sqrt()
