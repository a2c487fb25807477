"""MaskNetwork: from a model's weights and gradients to how its elements rank and what each layer keeps."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from nfopt.checkpoints import Checkpoint, load_checkpoint
from nfopt.errors import CheckpointError, PruningError
from nfopt.nn.metanet import RoleTiedConfig, RoleTiedNetwork, RoleTiedOutput
from nfopt.nn.roles import ROLES, RoleLinear, gate, role_index
from nfopt.pruning.neural.look_ahead import LR, STEPS
from nfopt.pruning.neural.mask_inputs import FEATURES, TENSOR_INPUTS, MaskInputs
from nfopt.weightspace import FeatureBlocks

CHECKPOINT_KIND = "pruning-mask"
MOST = 6.0
"""Bound of the ranking, in nats, before it is centred."""
MOST_SHARE = 1.5
"""Bound of the allocation, in nats: so little that the flow, which rises as a layer empties, can outdo it."""
LARGEST_INPUT = 2.0
"""Bound of the tensors' inputs: deep nets have layers further apart than any that was learned from."""


@dataclass(frozen=True, slots=True)
class MaskNetworkConfig:
    """Sizes of the network, and how its inputs and the mask are made.

    Attributes:
        channels: channels per neuron.
        element_channels: channels per weight.
        layers: exchanges between weights and neurons.
        look_ahead_steps: steps of Adam on the given batches whose outcome the network reads.
        look_ahead_lr: their learning rate.
        rounds: rounds of scoring and pruning, as for SynFlow.
        pointwise: True lets every weight be judged by its own features and its tensor's alone (the ablation
            of the exchange between neurons).
        added_exchange: True adds the network whose neurons exchange to the pointwise one, from zero on.
    """

    channels: int = 16
    element_channels: int = 8
    layers: int = 1
    look_ahead_steps: int = STEPS
    look_ahead_lr: float = LR
    rounds: int = 30
    pointwise: bool = False
    added_exchange: bool = False

    def __post_init__(self) -> None:
        least = {"look_ahead_steps": 0, "pointwise": 0, "added_exchange": 0}
        for name, value in asdict(self).items():
            if not value >= least.get(name, 1 if isinstance(value, int) else 0.0):
                raise PruningError(f"MaskNetworkConfig.{name} is {value!r}, which is too small.")
        if self.pointwise and self.added_exchange:
            raise PruningError("a mask network is pointwise or has an exchange added to it, not both.")


@dataclass(frozen=True, eq=False)
class MaskProposal:
    """What the network says of each scored tensor.

    Attributes:
        ranking: log factor on each weight's magnitude, of mean 0 over the tensor; within -2 MOST .. 2 MOST.
        allocation: log factor on the worth of all weights of a tensor; one number each, within
            -MOST_SHARE .. MOST_SHARE.
    """

    ranking: Mapping[str, Tensor]
    allocation: Mapping[str, Tensor]


class MaskNetwork(nn.Module):
    """Two heads that stay apart: one ranks the weights within a tensor, one shares out what is kept.

        ranking     r = bounded(gain x what a network says of each element), centred in each tensor
        allocation  a = bounded(linear in the tensor's inputs)

    The network's weights belong to roles, never to a layer: a `RoleTiedNetwork`, in which neurons exchange,
    `PointwiseRanking`, or the sum of both. Both heads begin at zero, where the mask is SynFlow's. Renumbering
    neurons renumbers `ranking` and leaves `allocation` alone; the same weights serve every architecture and
    width.

    Args:
        config: sizes.
        generator: source of the initial weights.
    """

    def __init__(self, config: MaskNetworkConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        self.ranking = _ranking(config, generator)
        self.gain = nn.Parameter(torch.ones(()))
        self.allocation = nn.Parameter(torch.zeros(len(TENSOR_INPUTS)))

    def begin_at(self, trained: "MaskNetwork") -> None:
        """Take over a pointwise network, frozen, as the part that the exchange is added to.

        Raises:
            PruningError: this one has no such part, or the other is not pointwise or of another width.
        """
        if not (isinstance(self.ranking, AddedExchange) and isinstance(trained.ranking, PointwiseRanking)):
            raise PruningError(
                "only a network with added_exchange can begin at another, and only at a pointwise one."
            )
        if trained.config.channels != self.config.channels:
            raise PruningError(
                f"a network of {self.config.channels} channels cannot begin at one of "
                f"{trained.config.channels}."
            )
        self.ranking.pointwise.load_state_dict(trained.ranking.state_dict())
        self.ranking.pointwise.requires_grad_(False)
        with torch.no_grad():
            self.gain.copy_(trained.gain)
            self.allocation.copy_(trained.allocation)

    def forward(self, inputs: MaskInputs) -> MaskProposal:
        """Return both residuals for the tensors that are scored."""
        return weighed(inputs, self.raw_ranking(inputs), self.gain, self.allocation)

    def raw_ranking(self, inputs: MaskInputs) -> dict[str, Tensor]:
        """Return the ranking of each scored tensor before gain, bound and centring."""
        written = self.ranking(inputs.features).elements
        return {name: written[name].squeeze(-1) for name in inputs.names}


class PointwiseRanking(nn.Module):
    """The ablation without neurons: a gated perceptron for each role, over one weight's features.

    Args:
        channels: half the width of its hidden layer.
        generator: source of the initial weights.
    """

    def __init__(self, channels: int, generator: torch.Generator | None = None) -> None:
        super().__init__()
        inputs, hidden = FEATURES.element_channels + FEATURES.tensor_channels + 1, 2 * channels
        self.enter = RoleLinear(len(ROLES), inputs, 2 * hidden, generator)
        self.element_out = RoleLinear(len(ROLES), hidden, 1, generator, scale=0.0)

    def forward(self, features: FeatureBlocks) -> RoleTiedOutput:
        """Return what is said of every element; nothing of neurons."""
        blocks = []
        for b, (block, values) in enumerate(zip(features.plan.blocks, features.elements, strict=True)):
            role, values = role_index(block.role), values.to(self.enter.weight)
            tensor = features.tensors[..., b, :].to(values)
            tensor = torch.cat([tensor, torch.ones_like(tensor[..., :1])], dim=-1)
            wide = tensor.reshape(*(1,) * len(block.dims), -1).expand(*values.shape[:-1], -1)
            blocks.append(self.element_out(gate(self.enter(torch.cat([values, wide], dim=-1), role)), role))
        return RoleTiedOutput(features.plan.from_blocks(blocks, channels=True), {}, features.tensors[..., :0])


class AddedExchange(nn.Module):
    """A pointwise ranking, and what neurons that exchange add to it: nothing at first.

    Args:
        pointwise: the one part.
        exchanging: the other, which writes zeros.
    """

    def __init__(self, pointwise: PointwiseRanking, exchanging: RoleTiedNetwork) -> None:
        super().__init__()
        self.pointwise = pointwise
        self.exchanging = exchanging

    def forward(self, features: FeatureBlocks) -> RoleTiedOutput:
        """Return what both say of every element together, and what the exchange says of neurons."""
        alone, more = self.pointwise(features), self.exchanging(features)
        elements = {name: value + more.elements[name] for name, value in alone.elements.items()}
        return replace(more, elements=elements)


def _ranking(
    config: MaskNetworkConfig, generator: torch.Generator | None
) -> PointwiseRanking | RoleTiedNetwork | AddedExchange:
    if config.pointwise:
        return PointwiseRanking(config.channels, generator)
    if config.added_exchange:
        return AddedExchange(PointwiseRanking(config.channels, generator), _exchanging(config, generator))
    return _exchanging(config, generator)


def _exchanging(config: MaskNetworkConfig, generator: torch.Generator | None) -> RoleTiedNetwork:
    sizes = RoleTiedConfig.reading(
        FEATURES,
        element_outputs=1,
        channels=config.channels,
        element_channels=config.element_channels,
        layers=config.layers,
        output_scale=0.0,
    )
    return RoleTiedNetwork(sizes, generator)


def weighed(
    inputs: MaskInputs, raw_ranking: Mapping[str, Tensor], gain: Tensor, allocation: Tensor
) -> MaskProposal:
    """Return the proposal of a raw ranking under a gain, and of the weights of the tensors' inputs."""
    free = {name: bounded(gain * raw, MOST) for name, raw in raw_ranking.items()}
    ranking = {name: r - r.mean() if r.numel() else r for name, r in free.items()}
    tensors = inputs.tensors.to(allocation).clamp(-LARGEST_INPUT, LARGEST_INPUT)
    shares = bounded(tensors @ allocation, MOST_SHARE)
    return MaskProposal(ranking, dict(zip(inputs.names, shares, strict=True)))


def bounded(x: Tensor, most: float) -> Tensor:
    """Return most tanh(x / most)."""
    return most * (x / most).tanh()


def network_checkpoint(network: MaskNetwork, card: Mapping[str, Any], name: str = "unsaved") -> Checkpoint:
    """Bundle a network for `nfopt.checkpoints.save_checkpoint`."""
    theta = {key: value.detach().clone() for key, value in network.state_dict().items()}
    return Checkpoint(CHECKPOINT_KIND, theta, asdict(network.config), card, name)


def read_network(checkpoint: str | Checkpoint) -> MaskNetwork:
    """Return the network of a bundled checkpoint's name, a path, or a checkpoint in memory.

    Raises:
        UnknownNameError: there is no checkpoint of that name.
        CheckpointError: it is damaged, of another version, or no mask network.
    """
    found = (
        checkpoint
        if isinstance(checkpoint, Checkpoint)
        else load_checkpoint(checkpoint, kind=CHECKPOINT_KIND)
    )
    if found.kind != CHECKPOINT_KIND:
        raise CheckpointError(
            f"{found.name} is a checkpoint of kind {found.kind!r}, not {CHECKPOINT_KIND!r}."
        )
    try:
        network = MaskNetwork(MaskNetworkConfig(**found.config))
        network.load_state_dict(dict(found.theta))
    except (TypeError, RuntimeError) as error:
        raise CheckpointError(
            f"{found.name} was written for another version of the network ({error})."
        ) from error
    return network.requires_grad_(False)
