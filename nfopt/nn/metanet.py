"""RoleTiedNetwork: one set of weights reads the weights and gradients of any architecture, at any width."""

from dataclasses import dataclass, fields

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nfopt.errors import NfoptError
from nfopt.nn.role_layer import RoleTiedLayer
from nfopt.nn.roles import ROLES, GatedMLP, RoleLinear, normalise, role_index
from nfopt.weightspace import (
    BLOCK_STRUCTURE,
    FeatureBlocks,
    WeightSpaceFeatures,
    describe_blocks,
    describe_tokens,
)


class MetanetError(NfoptError):
    """A role-tied network was configured, or given features, that make no sense."""


@dataclass(frozen=True)
class RoleTiedConfig:
    """What a `RoleTiedNetwork` reads, writes, and how wide it is.

    Attributes:
        element_features: channels read per element.
        tensor_features: channels read per tensor.
        element_outputs: channels written per element (masks, edits); 0 for none.
        neuron_outputs: channels written per index of each atom; 0 for none.
        readouts: channels of the invariant vector; 0 for none.
        channels: channels per token. Cost grows with neurons x channels^2.
        element_channels: channels per element. Cost grows with parameters x element_channels^2.
        layers: number of exchanges; a neuron hears of neurons one tensor further away with each.
        position_frequencies: waves that tell the indices of a fixed atom apart; 0 makes them alike.
        output_scale: root mean square of the outputs of a fresh network, about.
    """

    element_features: int
    tensor_features: int
    element_outputs: int = 1
    neuron_outputs: int = 0
    readouts: int = 0
    channels: int = 32
    element_channels: int = 8
    layers: int = 2
    position_frequencies: int = 3
    output_scale: float = 1.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            least = 1 if field.name in ("element_features", "channels", "element_channels", "layers") else 0
            if not value >= least:
                raise MetanetError(f"RoleTiedConfig.{field.name} is {value!r}; it must be {least} or more.")

    @classmethod
    def reading(cls, features: WeightSpaceFeatures, **options: int | float) -> "RoleTiedConfig":
        """Return the configuration that reads `features`, with any other attribute by name."""
        known = {field.name for field in fields(cls)}
        for name in options:
            if name not in known:
                raise MetanetError(f"RoleTiedConfig has no {name!r}; it has {', '.join(sorted(known))}.")
        chosen = {
            "element_features": features.element_channels,
            "tensor_features": features.tensor_channels,
            **options,
        }
        return cls(**chosen)  # pyright: ignore[reportArgumentType]  # checked above, by name


@dataclass(frozen=True, eq=False)
class RoleTiedOutput:
    """What a `RoleTiedNetwork` says of a model.

    Attributes:
        elements: for each tensor by name [*batch, *shape, element_outputs]; permuted as the tensor is.
        neurons: for each atom by name [*batch, size, neuron_outputs]; permuted as the atom is.
        readout: [*batch, readouts]; the same however neurons are numbered.
    """

    elements: dict[str, Float[Tensor, "..."]]
    neurons: dict[str, Float[Tensor, "*batch size channels"]]
    readout: Float[Tensor, "*batch readouts"]


class RoleTiedNetwork(nn.Module):
    """An equivariant network over the weight space of any model.

    Elements of the tensors, one token per neuron (index of an atom) and one token per block exchange through
    `RoleTiedLayer`. Its weights belong to roles (linear, conv, bias, ...; outputs, inputs, kernel), never to
    a layer, so that the same network reads a model of another depth, width or family. The outputs are read
    linearly off the elements: with the layers silent, a score that is linear in the features stays exact.

    Fixed indices (kernel positions, input pixels, classes) have tokens too, with a position, so nothing
    ties them to each other; the cost stays O(parameters + neurons x channels^2).

    Args:
        config: what it reads and writes.
        generator: source of the initial weights.
    """

    def __init__(self, config: RoleTiedConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        c, e = config.channels, config.element_channels
        self.element_in = RoleLinear(len(ROLES), config.element_features, e, generator)
        self.tensor_in = RoleLinear(1, config.tensor_features + BLOCK_STRUCTURE, c, generator)
        self.role_in = nn.Parameter(torch.randn(len(ROLES), c, generator=generator))
        self.token_in = RoleLinear(1, 2 + 2 * config.position_frequencies, c, generator)
        self.layers = nn.ModuleList(
            RoleTiedLayer(
                c,
                e,
                update_elements=config.element_outputs > 0 or i + 1 < config.layers,
                generator=generator,
            )
            for i in range(config.layers)
        )
        scale = config.output_scale
        if config.element_outputs:
            self.element_out = RoleLinear(len(ROLES), e, config.element_outputs, generator, scale)
        if config.neuron_outputs:
            self.neuron_out = RoleLinear(1, c, config.neuron_outputs, generator, scale)
        if config.readouts:
            self.readout_mix = GatedMLP(3 * c, 2 * c, c, generator)
            self.readout_out = RoleLinear(1, c, config.readouts, generator, scale)

    def forward(self, features: FeatureBlocks) -> RoleTiedOutput:
        """Return the outputs for the model, or the batch of models, that `features` were made of.

        Raises:
            MetanetError: the features have other numbers of channels than configured, or none at all.
        """
        config, plan = self.config, features.plan
        self._check(features)
        like = self.role_in
        roles = [role_index(block.role) for block in plan.blocks]
        elements = [
            self.element_in(values.to(like), role)
            for values, role in zip(features.elements, roles, strict=True)
        ]
        given = features.tensors.to(like)
        batch = given.shape[:-2]
        structure = describe_blocks(plan).to(like).expand(*batch, -1, -1)
        tensors = self.tensor_in(torch.cat([given, structure], dim=-1)) + self.role_in[roles]
        tokens = self.token_in(describe_tokens(plan, config.position_frequencies).to(like))
        tokens = tokens.expand(*batch, -1, -1)
        for layer in self.layers:
            elements, tokens, tensors = layer(plan, elements, tokens, tensors)
        written: dict[str, Tensor] = {}
        if config.element_outputs:
            blocks = [self.element_out(values, role) for values, role in zip(elements, roles, strict=True)]
            written = plan.from_blocks(blocks, channels=True)
        read = normalise(tokens)
        neurons: dict[str, Tensor] = {}
        if config.neuron_outputs:
            table = self.neuron_out(read)
            neurons = {n: table.narrow(-2, plan.offsets[n], atom.size) for n, atom in plan.atoms.items()}
        return RoleTiedOutput(written, neurons, self._readout(features, read, normalise(tensors)))

    def _readout(self, features: FeatureBlocks, tokens: Tensor, tensors: Tensor) -> Tensor:
        if not self.config.readouts:
            return tensors.new_zeros(*tensors.shape[:-2], 0)
        plan = features.plan
        # Each atom counts once, whatever its size: a wide layer must not drown a narrow one.
        tables = [tokens.narrow(-2, plan.offsets[n], a.size) for n, a in plan.atoms.items() if a.size]
        if not tables:
            tables = [torch.zeros_like(tensors[..., :1, :])]
        means = [table.mean(-2, keepdim=True) for table in tables]
        # Means alone hide how neurons differ; the norm has a gradient where they do not.
        spreads = [
            torch.linalg.vector_norm(table - mean, dim=-2, keepdim=True) / table.shape[-2] ** 0.5
            for table, mean in zip(tables, means, strict=True)
        ]
        pooled = [tensors, torch.cat(means, dim=-2), torch.cat(spreads, dim=-2)]
        summary = torch.cat([normalise(table.mean(-2)) for table in pooled], dim=-1)
        return self.readout_out(normalise(self.readout_mix(summary)))

    def _check(self, features: FeatureBlocks) -> None:
        if not features.plan.blocks:
            raise MetanetError("there is nothing to read: the features hold no tensor.")
        here = (features.elements[0].shape[-1], features.tensors.shape[-1])
        expected = (self.config.element_features, self.config.tensor_features)
        if here != expected:
            raise MetanetError(
                f"the features have {here[0]} channels per element and {here[1]} per tensor, but the network "
                f"reads {expected[0]} and {expected[1]}. Configure it with RoleTiedConfig.reading(features)."
            )
