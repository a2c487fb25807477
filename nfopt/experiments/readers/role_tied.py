"""Our network as a reader: RoleTiedNetwork over WeightSpaceFeatures, whose weights belong to no layer."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nfopt.experiments.question import Question, Tensors
from nfopt.experiments.readers.perceptron import Perceptron, Standardiser
from nfopt.experiments.readers.reader import WeightReader, reader
from nfopt.nn import GaussianFourierFeatures, RoleTiedConfig, RoleTiedNetwork, RoleTiedOutput
from nfopt.nn.normalisation import BatchStandardiser
from nfopt.weightspace import FeatureBlocks, WeightSpaceFeatures, block_plan

LAYERS = 3
STATISTICS_NETS = 512
FOURIER_FREQUENCIES = 8
FOURIER_SCALE = 0.5


class RoleTied(WeightReader):
    """Read nets by a `RoleTiedNetwork`.

    Its features are scale-free within a net; here each is besides standardised over the zoo, block by block,
    so that what differs from net to net is not drowned by what differs from layer to layer, and the weight
    itself is a further channel, as a network that is to compute what a net computes needs it undistorted; for
    a vector per net its Fourier features are channels too, as for the other equivariant readers.
    Equivariant by itself, so nothing is augmented; fixed indices (pixels, classes) have positions.

    The vector of a net is read by a perceptron off the mean and the spread of the tokens of each atom, and
    off the network's own readout, which averages over atoms: the trunk knows any architecture, the head this
    spec's. A `BatchStandardiser` stands before it: the trunk drifts in training by far more than the spread
    of these means from net to net, and without it the units of the head fall silent. With `own_head` there is
    only the readout.

    Args:
        question: what to answer.
        width: channels of a token and of an element.
        generator: source of the initial weights.
        own_head: whether the network's own readout answers.
    """

    def __init__(
        self, question: Question, width: int, generator: torch.Generator, *, own_head: bool = False
    ) -> None:
        super().__init__()
        self.question, self.own_head = question, own_head
        self.features = WeightSpaceFeatures(gradients=False)
        plan = block_plan(question.spec)
        channels = self.features.element_channels + 1
        self.element_scales = nn.ModuleList(Standardiser(channels) for _ in plan.blocks)
        self.tensor_scale = Standardiser(len(plan.blocks) * self.features.tensor_channels)
        equivariant = question.head == "equivariant"
        self.waves = None
        if not equivariant:
            self.waves = GaussianFourierFeatures(
                1, FOURIER_FREQUENCIES, scale=FOURIER_SCALE, keep_inputs=False, generator=generator
            )
            channels += self.waves.out_channels
        readouts = 0 if equivariant else question.outputs if own_head else width
        config = RoleTiedConfig.reading(
            self.features,
            element_features=channels,
            element_outputs=question.outputs if equivariant else 0,
            neuron_outputs=0 if equivariant or own_head else width,
            readouts=readouts,
            channels=width,
            element_channels=width,
            layers=LAYERS,
        )
        self.network = RoleTiedNetwork(config, generator)
        self.head = None
        if not equivariant and not own_head:
            read = readouts + 2 * width * len(plan.atoms)
            self.pooled_scale = BatchStandardiser(read)
            self.head = Perceptron([read, width, question.outputs], generator, F.silu)

    def fit_statistics(self, tensors: Tensors) -> None:
        """Take mean and standard deviation of each feature over the nets, block by block."""
        read = self._read(tensors)
        for scale, values in zip(self.element_scales, read.elements, strict=True):
            scale.fit(values)  # pyright: ignore[reportCallIssue]
        self.tensor_scale.fit(read.tensors.flatten(1))
        if self.head is not None:
            some = {name: tensor[:STATISTICS_NETS] for name, tensor in tensors.items()}
            with torch.no_grad():
                self.pooled_scale.fit(self._pooled(self.network(self._standardised(some))))

    def forward(self, tensors: Tensors) -> Tensor | dict[str, Tensor]:
        """Return what is read off each net."""
        found = self.network(self._standardised(tensors))
        scale = self.question.output_scale
        if self.question.head == "equivariant":
            several = self.question.outputs > 1
            return {
                name: (values if several else values[..., 0]) * scale
                for name, values in found.elements.items()
            }
        if self.head is None:
            return found.readout * scale
        return self.head(self.pooled_scale(self._pooled(found))) * scale

    @staticmethod
    def _pooled(found: RoleTiedOutput) -> Tensor:
        pooled = [found.readout]
        for values in found.neurons.values():
            mean = values.mean(-2)
            pooled.append(mean)
            # The norm has a gradient of zero, not infinity, where neurons are alike.
            pooled.append(torch.linalg.vector_norm(values - mean[:, None], dim=-2) / values.shape[-2] ** 0.5)
        return torch.cat(pooled, dim=-1)

    @torch.enable_grad()
    def count_parameters(self) -> int:
        """Return the number of parameters that nets of this spec reach.

        A role-tied network has maps for every role; those of roles that the architecture lacks (convolutions
        in an MLP) are never touched, and no part of what it can learn from a zoo. Told by the gradient.
        """
        draws = torch.Generator().manual_seed(0)
        like = next(self.parameters())
        nets = {
            name: torch.randn(2, *shape, generator=draws).to(like)
            for name, shape in self.question.shapes.items()
        }
        found = self.network(self._standardised(nets))
        said = [*found.elements.values(), *found.neurons.values(), found.readout]
        total = torch.stack([values.sin().sum() for values in said]).sum()
        grads = torch.autograd.grad(total, list(self.network.parameters()), allow_unused=True)
        reached = sum(int((grad != 0).sum()) for grad in grads if grad is not None)
        return reached + (0 if self.head is None else sum(p.numel() for p in self.head.parameters()))

    def _standardised(self, tensors: Tensors) -> FeatureBlocks:
        raw = self._read(tensors)
        elements = tuple(
            scale(values) for scale, values in zip(self.element_scales, raw.elements, strict=True)
        )
        if self.waves is not None:
            # The last channel is the weight itself.
            waves = self.waves([values[..., -1:] for values in elements])
            elements = tuple(torch.cat(pair, dim=-1) for pair in zip(elements, waves, strict=True))
        standard = self.tensor_scale(raw.tensors.flatten(1)).view_as(raw.tensors)
        return FeatureBlocks(raw.plan, elements, standard)

    def _read(self, tensors: Tensors) -> FeatureBlocks:
        found = self.features(self.question.spec, tensors)
        raw = found.plan.to_blocks(tensors)
        both = [torch.cat(pair, dim=-1) for pair in zip(found.elements, raw, strict=True)]
        return FeatureBlocks(found.plan, tuple(both), found.tensors)


@reader("role_tied", "role-tied (ours)")
@reader("role_tied_canonical", "role-tied + canonical", prepare="canonical")
def role_tied(question: Question, width: int, generator: torch.Generator) -> RoleTied:
    """Build the role-tied network with a head over the spec's atoms."""
    return RoleTied(question, width, generator)


@reader("role_tied_readout", "role-tied, own readout", heads=("invariant",))
def role_tied_readout(question: Question, width: int, generator: torch.Generator) -> RoleTied:
    """Build the role-tied network with the readout that any architecture has."""
    return RoleTied(question, width, generator, own_head=True)
