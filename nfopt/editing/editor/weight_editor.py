"""WeightEditor: an equivariant network that proposes a bounded change of every weight of any model."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nfopt.editing.editor.config import EditorConfig
from nfopt.editing.editor.evidence import CONTEXT, NORM_CHANNELS, Observed
from nfopt.editing.editor.image_operators import OPERATORS, image_operators
from nfopt.nn import RoleTiedConfig, RoleTiedNetwork
from nfopt.symmetry import PermutationSpec
from nfopt.weightspace import FeatureBlocks, WeightSpaceFeatures

SCALE_FLOOR = 0.02
"""The scale of a tensor of zeros, which says nothing of how far it may go."""
GRADIENT_CUT = 5.0
FREE, RESCALE, UNSUPERVISED, LABELLED, FIRST_OPERATOR = range(5)

FEATURES = WeightSpaceFeatures(gradients=True, extras=("labelled",))


@dataclass(frozen=True)
class Proposal:
    """What the editor wants to change.

    Attributes:
        changes: to add to each parameter by name, [*nets, *shape].
        shares: for each running mean by name the change of the logit of its layer's share of target
            statistics, [*nets, channels].
    """

    changes: dict[str, Tensor]
    shares: dict[str, Tensor]


class WeightEditor(nn.Module):
    """Reads weights and what was observed on target images; writes a change of every weight.

    With s = rms W (at least `SCALE_FLOOR`), o the outputs of a `RoleTiedNetwork` per element, g and l the
    gradients of information maximisation and of labelled cross-entropy over their rms, and A_k the image
    operators of a tensor that faces pixels:

        change W = s free tanh o_0 + W rescale tanh o_1 - s step (c_g + reach tanh o_2) g
                   - s step reach tanh(o_3) l + sum_k operators tanh(o_{4+k}) (A_k W - W)
        logit of a channel's share of target statistics = logit n / (n + source_count) + blend tanh o_0

    with c_g = `nominal_step` for nets without BatchNorm, else 0. The output layer starts at zero: a fresh
    editor blends statistics, or takes scaled gradient steps, and no more. It is equivariant: renumber the
    neurons of a net, and its edit is renumbered alike.

    Args:
        config: bounds and sizes.
        generator: source of the initial weights.
    """

    def __init__(self, config: EditorConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        outputs = FIRST_OPERATOR + (len(OPERATORS) if config.operators else 0)
        self.network = RoleTiedNetwork(
            RoleTiedConfig(
                element_features=FEATURES.element_channels + NORM_CHANNELS,
                tensor_features=FEATURES.tensor_channels + CONTEXT,
                element_outputs=outputs,
                channels=config.channels,
                element_channels=config.element_channels,
                layers=config.layers,
                output_scale=0.0,
            ),
            generator,
        )

    def forward(
        self,
        spec: PermutationSpec,
        tensors: Mapping[str, Float[Tensor, "..."]],
        observed: Observed,
        image_shape: tuple[int, ...] = (),
    ) -> Proposal:
        """Return the proposal for one net, or for many nets of one spec side by side.

        Args:
            spec: the nets' permutation spec.
            tensors: parameters and running statistics by name, each [*nets, *shape].
            observed: what was seen of the nets; an empty `Observed` where no images are given.
            image_shape: shape of one image, for the image operators.

        Raises:
            FeatureError: a weight or a gradient is not finite.
            PermutationSpecError: the tensors do not fit the spec.
        """
        features = _with_context(
            FEATURES(spec, tensors, observed.unsupervised, {"labelled": observed.labelled}), observed
        )
        outputs = self.network(features).elements
        normed = any(_is_mean(spec, name) for name in tensors)
        nominal = 0.0 if normed else self.config.nominal_step
        changes, shares = {}, {}
        for name, weight in features.plan.canonical(tensors).items():
            said = outputs[name].to(weight.dtype).tanh()
            if spec.tensors[name].role == "statistic":
                if _is_mean(spec, name):
                    shares[name] = self.config.blend * said[..., FREE]
                continue
            changes[name] = self._change(name, weight, said, observed, spec, nominal, image_shape)
        return Proposal(changes, shares)

    def _change(
        self,
        name: str,
        weight: Tensor,
        said: Float[Tensor, "... outputs"],
        observed: Observed,
        spec: PermutationSpec,
        nominal: float,
        image_shape: tuple[int, ...],
    ) -> Tensor:
        config, axes = self.config, spec.tensors[name].axes
        scale = _rms(weight, len(axes)).clamp_min(SCALE_FLOOR)
        change = config.free * scale * said[..., FREE] + config.rescale * weight * said[..., RESCALE]
        for channel, source, base in (
            (UNSUPERVISED, observed.unsupervised, nominal),
            (LABELLED, observed.labelled, 0.0),
        ):
            if name in source:
                direction = _normalised(source[name].to(weight.dtype), len(axes))
                change = change - config.step * scale * (base + config.reach * said[..., channel]) * direction
        if config.operators:
            for channel, moved in image_operators(spec, name, weight, image_shape).items():
                change = change + config.operators * said[..., FIRST_OPERATOR + channel] * (moved - weight)
        return change


def _is_mean(spec: PermutationSpec, name: str) -> bool:
    entry = spec.tensors.get(name)
    return entry is not None and entry.role == "statistic" and name.endswith("running_mean")


def _with_context(features: FeatureBlocks, observed: Observed) -> FeatureBlocks:
    """Append the channels of BatchNorm layers to the elements, and the context to every tensor."""
    plan = features.plan
    norms: dict[str, Tensor] = {}
    for block, values in zip(plan.blocks, features.elements, strict=True):
        if block.tensor not in norms:
            sizes = tuple(axis.size for axis in plan.axes[block.tensor])
            batch = values.shape[: values.ndim - 1 - len(block.dims)]
            empty = values.new_zeros(*batch, *sizes, NORM_CHANNELS)
            seen = observed.norms.get(block.tensor)
            norms[block.tensor] = empty if seen is None else seen.to(values).expand_as(empty)
    extra = plan.to_blocks(norms, channels=True)
    elements = tuple(torch.cat(pair, dim=-1) for pair in zip(features.elements, extra, strict=True))
    context = observed.context.to(features.tensors).unsqueeze(-2)
    context = context.expand(*features.tensors.shape[:-1], CONTEXT)
    return FeatureBlocks(plan, elements, torch.cat([features.tensors, context], dim=-1))


def _rms(tensor: Tensor, dims: int) -> Tensor:
    """Return the root mean square over the last `dims` dimensions, kept with size 1."""
    if not dims:
        return tensor.abs()
    square = tensor.detach().square().mean(tuple(range(-dims, 0)), keepdim=True)
    return square.sqrt()


def _normalised(gradient: Tensor, dims: int) -> Tensor:
    """Return a gradient over its rms, cut at `GRADIENT_CUT`; zeros stay zeros."""
    scale = _rms(gradient, dims)
    unit = gradient / torch.where(scale > 0, scale, 1)
    return unit.clamp(-GRADIENT_CUT, GRADIENT_CUT)
