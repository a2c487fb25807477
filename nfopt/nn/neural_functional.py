"""NeuralFunctional: a stack of spec-bound layers with an invariant or an equivariant head."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import isfinite
from typing import Literal, TypeAlias, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from nfopt.errors import unknown_name
from nfopt.nn.attention import NPAttention
from nfopt.nn.attention_pooling import AttentionPooling
from nfopt.nn.dws import DWSLinear
from nfopt.nn.encoding import Encoding, GaussianFourierFeatures, PositionEncoding
from nfopt.nn.invariant_head import InvariantHead
from nfopt.nn.layout import LayoutError, WeightLayout, weight_layout
from nfopt.nn.nf_linear import HNPLinear, NPLinear, PointwiseLinear
from nfopt.nn.normalisation import ChannelDropout, Over, WeightSpaceNorm, WeightStandardiser
from nfopt.nn.pooling import InvariantPooling, Statistic
from nfopt.nn.resolution import Reduction
from nfopt.nn.unf import UNFLinear
from nfopt.symmetry.spec import PermutationSpec

LayerKind: TypeAlias = Literal["dws", "hnp", "np", "attention", "unf", "pointwise"]
Head: TypeAlias = Literal["invariant", "equivariant"]
Activation: TypeAlias = Literal["relu", "gelu", "silu"]
# With the gain that gives a standard normal input a root mean square of 1 again (He et al. 2015, for relu).
_ACTIVATIONS = {"relu": (F.relu, 2**0.5), "gelu": (F.gelu, 1.5335), "silu": (F.silu, 1.6765)}
_STATISTICS_NETS = 512
_PERMUTES_IO: tuple[LayerKind, ...] = ("np", "attention")


@dataclass(frozen=True)
class NeuralFunctionalConfig:
    """What a `NeuralFunctional` is made of.

    Attributes:
        layer: "dws", "hnp" and "unf" follow the permutations of hidden neurons; "np" and "attention" (NFT)
        those
            of inputs and outputs too, unless `position` tells these apart; "pointwise" is the ablation.
        head: "invariant" returns a vector per net, "equivariant" tensors of the net's shapes.
        outputs: channels of the head.
        in_channels: channels per weight read.
        channels: channels per element inside.
        depth: number of layers before the head.
        residual: x + depth^-1/2 layer(activation(norm(x))) after the first layer; else the layers follow each
        other. norm: over "element", "tensor", or None.
        activation: "relu", "gelu" or "silu".
        dropout: probability of `ChannelDropout` in each layer.
        fourier_frequencies: frequencies of `GaussianFourierFeatures` of the weights; 0 for none.
        fourier_scale: their scale.
        position: kind of `PositionEncoding`, or None.
        also_permuted: fixed atoms that are dimensions and not channels, for inputs so wide that weights for
            each would be too many; `position` tells their indices apart.
        reduction: "mean", or "max" (for "dws").
        heads: heads of the attention.
        pooling: statistics of the invariant head, where it has no queries.
        queries: vectors of an `AttentionPooling` in the invariant head; 0 for statistics.
        head_hidden: width of the hidden layer of the invariant head; 0 for a linear one.
        standardise_pooled: whether a `BatchStandardiser` stands between pooling and invariant head.
        output_scale: factor on the outputs of the head (editing starts near no edit with .01, as in NFN).
    """

    layer: LayerKind = "dws"
    head: Head = "invariant"
    outputs: int = 1
    in_channels: int = 1
    channels: int = 32
    depth: int = 4
    residual: bool = True
    norm: Over | None = "element"
    activation: Activation = "relu"
    dropout: float = 0.0
    fourier_frequencies: int = 0
    fourier_scale: float = 1.0
    position: Encoding | None = None
    also_permuted: tuple[str, ...] = ()
    reduction: Reduction = "mean"
    heads: int = 4
    pooling: tuple[Statistic, ...] = ("mean",)
    queries: int = 0
    head_hidden: int = 64
    standardise_pooled: bool = False
    output_scale: float = 1.0

    def __post_init__(self) -> None:
        for field, kinds in (("layer", LayerKind), ("head", Head), ("activation", Activation)):
            if getattr(self, field) not in get_args(kinds):
                raise unknown_name(field, getattr(self, field), get_args(kinds))
        for field in ("outputs", "in_channels", "channels", "depth", "heads"):
            if not getattr(self, field) >= 1:
                raise LayoutError(
                    f"NeuralFunctionalConfig.{field} is {getattr(self, field)!r}; it must be 1 or more."
                )
        for field in ("fourier_frequencies", "head_hidden", "queries"):
            if not getattr(self, field) >= 0:
                raise LayoutError(
                    f"NeuralFunctionalConfig.{field} is {getattr(self, field)!r}; it must be 0 or more."
                )
        if not (isfinite(self.output_scale) and isfinite(self.fourier_scale)):
            raise LayoutError("NeuralFunctionalConfig.output_scale and fourier_scale must be finite numbers.")
        if self.reduction != "mean" and self.layer != "dws":
            raise LayoutError(f"reduction {self.reduction!r} is for layer 'dws' alone, not {self.layer!r}.")


class NeuralFunctional(nn.Module):
    """A network over the weights of nets of one architecture.

    Weights are standardised (once `fit_statistics` was called), encoded, lifted to channels, passed through
    equivariant layers, and read out. It follows the spec's permutations whatever the configuration. Numbers
    that are not finite are passed on and show in that net's answer; `stack_nets` refuses them beforehand.

        spec = trace_permutation_spec(nets[0], inputs)
        zoo = stack_nets(spec, [net.state_dict() for net in nets])
        network = NeuralFunctional(spec, NeuralFunctionalConfig(outputs=1))
        network.fit_statistics(zoo)
        predictions = network(zoo)  # [nets, 1]

    Args:
        spec: the permutation spec of the nets.
        config: what it is made of.
        names: tensors that it reads and, with an equivariant head, writes (default: all of the spec).
        generator: source of the initial weights.

    Raises:
        PermutationSpecError: the spec has no tensor of one of the names.
        LayoutError: there is nothing to read, or `also_permuted` is given to a layer that cannot.
        UnknownNameError: the tensors have no atom of one of `also_permuted`.
    """

    def __init__(
        self,
        spec: PermutationSpec,
        config: NeuralFunctionalConfig,
        names: Iterable[str] | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.layout = layout = weight_layout(
            spec, names, permute_io=config.layer in _PERMUTES_IO, also_permuted=config.also_permuted
        )
        c = config.channels
        self.standardiser = WeightStandardiser(layout, config.in_channels)
        width = config.in_channels
        fourier = None
        if config.fourier_frequencies:
            fourier = GaussianFourierFeatures(
                width, config.fourier_frequencies, scale=config.fourier_scale, generator=generator
            )
            width = fourier.out_channels
        self.fourier = fourier
        self.lift = _linear(layout, config, width, c, generator)
        self.position = None
        if config.position is not None:
            self.position = PositionEncoding(layout, c, config.position, generator=generator)
        self.layers = nn.ModuleList(_Layer(layout, config, generator) for _ in range(config.depth - 1))
        self.last_norm = None if config.norm is None else WeightSpaceNorm(layout, c, config.norm)
        if config.head == "equivariant":
            self.head = _linear(layout, config, c, config.outputs, generator)
        else:
            self.head = _invariant_head(layout, config, generator)

    def forward(
        self, tensors: Mapping[str, Float[Tensor, "..."]]
    ) -> Float[Tensor, "*batch outputs"] | dict[str, Float[Tensor, "..."]]:
        """Read the weights of one net or of a batch of nets.

        Args:
            tensors: by name [*batch, *shape], or with more than one `in_channels` [*batch, *shape,
            in_channels].

        Returns:
            With an invariant head [*batch, outputs]; with an equivariant one tensors by name
            [*batch, *shape], or with more than one of `outputs` [*batch, *shape, outputs].

        Raises:
            PermutationSpecError: a tensor is not the spec's.
            LayoutError: the channels are not those configured.
        """
        config = self.config
        values = self.encode(self._enter(tensors))
        if isinstance(self.head, InvariantHead):
            return self.head(values) * config.output_scale
        written = [each * config.output_scale for each in self.head(values)]
        return self.layout.leave(written, channels=config.outputs > 1)

    def fit_statistics(self, tensors: Mapping[str, Float[Tensor, "..."]]) -> None:
        """Standardise by a zoo's means and standard deviations from now on (`WeightStandardiser`).

        Args:
            tensors: the zoo, as for `forward`: [nets, *shape] by name.

        Raises:
            PermutationSpecError: a tensor is not the spec's.
            LayoutError: the channels are not those configured, or a number is not finite.
        """
        values = self._enter(tensors)
        self.standardiser.fit(values)
        if not (self.config.standardise_pooled and isinstance(self.head, InvariantHead)):
            return
        was_training = self.training
        self.eval()
        with torch.no_grad():
            # The statistics of the first nets serve all, and their features fit into memory.
            self.head.fit(self.encode([each[:_STATISTICS_NETS] for each in values]))
        self.train(was_training)

    def _enter(self, tensors: Mapping[str, Tensor]) -> list[Tensor]:
        return self.layout.enter(tensors, channels=self.config.in_channels > 1)

    def encode(self, values: Sequence[Float[Tensor, "..."]]) -> list[Float[Tensor, "..."]]:
        """Return the equivariant features before the head, from the values of `layout`.

        Raises:
            LayoutError: the values do not fit the layout.
        """
        hidden = self.standardiser(values)
        if self.fourier is not None:
            hidden = self.fourier(hidden)
        hidden = self.lift(hidden)
        if self.position is not None:
            hidden = self.position(hidden)
        for layer in self.layers:
            hidden = layer(hidden)
        if self.last_norm is not None:
            hidden = self.last_norm(hidden)
        return [_activate(each, self.config.activation) for each in hidden]


class _Layer(nn.Module):
    """One layer of the stack; attention is followed by a pointwise perceptron, as in a transformer."""

    def __init__(
        self, layout: WeightLayout, config: NeuralFunctionalConfig, generator: torch.Generator | None
    ) -> None:
        super().__init__()
        c = config.channels
        self.config, self.layout = config, layout
        self.scale = config.depth**-0.5
        self.norm = None if config.norm is None else WeightSpaceNorm(layout, c, config.norm)
        self.attention = None
        if config.layer == "attention":
            self.attention = NPAttention(layout, c, c, heads=config.heads, generator=generator)
        self.linear = _linear(layout, config, c, c, generator)
        self.dropout = ChannelDropout(config.dropout)

    def forward(self, values: Sequence[Tensor]) -> list[Tensor]:
        hidden = list(values)
        if self.attention is not None:
            heard = self.attention(hidden if self.norm is None else self.norm(hidden))
            hidden = [each + self.scale * more for each, more in zip(hidden, heard, strict=True)]
        read = hidden if self.norm is None else self.norm(hidden)
        mixed = self.dropout(
            self.linear([_activate(each, self.config.activation) for each in read]), self.layout
        )
        if not self.config.residual:
            return mixed
        return [each + self.scale * more for each, more in zip(hidden, mixed, strict=True)]


def _invariant_head(
    layout: WeightLayout, config: NeuralFunctionalConfig, generator: torch.Generator | None
) -> InvariantHead:
    c = config.channels
    if config.queries:
        pooling = AttentionPooling(layout, c, config.queries, heads=config.heads, generator=generator)
    else:
        pooling = InvariantPooling(layout, c, config.pooling)
    return InvariantHead(
        pooling,
        config.head_hidden,
        config.outputs,
        partial(_activate, activation=config.activation),
        standardise=config.standardise_pooled,
        generator=generator,
    )


def _activate(x: Tensor, activation: Activation) -> Tensor:
    function, gain = _ACTIVATIONS[activation]
    return function(x) * gain


def _linear(
    layout: WeightLayout,
    config: NeuralFunctionalConfig,
    inputs: int,
    outputs: int,
    generator: torch.Generator | None,
) -> nn.Module:
    match config.layer:
        case "dws":
            return DWSLinear(layout, inputs, outputs, reduction=config.reduction, generator=generator)
        case "hnp":
            return HNPLinear(layout, inputs, outputs, generator=generator)
        case "np":
            return NPLinear(layout, inputs, outputs, generator=generator)
        case "unf":
            return UNFLinear(layout, inputs, outputs, generator=generator)
        case "pointwise" | "attention":
            return PointwiseLinear(layout, inputs, outputs, generator=generator)
