"""Neuron tokens: our reader of zoos of one architecture, a token per neuron made of all its own weights."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from nfopt.experiments.question import Question, Tensors
from nfopt.experiments.readers.functional import FOURIER_FREQUENCIES, FOURIER_SCALE, WIDE
from nfopt.experiments.readers.perceptron import Perceptron
from nfopt.experiments.readers.reader import WeightReader, reader
from nfopt.nn import GaussianFourierFeatures
from nfopt.nn.layout import weight_layout
from nfopt.nn.normalisation import BatchStandardiser, WeightStandardiser
from nfopt.nn.roles import GatedMLP

ROUNDS = 2
FEW = 4
"""Blocks of more fixed positions than this (a kernel's) enter without Fourier features."""
HEAD = 64
STATISTICS_NETS = 512


class NeuronTokens(WeightReader):
    """Read nets by tokens of their neurons.

    With v_b the standardised weights of block b and their Fourier features, fixed dimensions (inputs,
    outputs, kernel positions) side by side in the channels, and x_a the tokens of the neurons of atom a:

        x_a <- [mean over what is not a of v_b, for the blocks b that a indexes] A_a
        h_a  = sum over blocks b of a and another atom d of n_d^-1/2 sum_j (v_b E_b)_ij * (x_d P)_j
        x_a <- x_a + GatedMLP [x_a, mean of x_a, h_a]                                    `ROUNDS` times
        answer = MLP [mean and spread of x_a for every a, what no neuron indexes]

    A neuron's token sees its incoming weights, bias and outgoing weights at once, jointly and not linearly,
    before anything is averaged over neurons: that is what linear equivariant layers need depth for. Where
    two layers meet, h is a forward or backward pass with learned weights. Maps into tokens belong to the
    spec, those between them to no layer. Invariant exactly, so nothing is augmented.

    Fixed dimensions of more than `WIDE` indices are not put into channels: their indices have learned tokens.

    Args:
        question: what to answer, with an invariant head.
        width: channels of a token.
        generator: source of the initial weights.
        compressed: whether the head reads asinh of what is pooled. Messages and gates multiply; where the
            weights of some nets are twenty times those of others (classifiers over random hyper-parameters),
            a few nets would else set the scale by which all are standardised.
    """

    def __init__(
        self, question: Question, width: int, generator: torch.Generator, *, compressed: bool = False
    ) -> None:
        super().__init__()
        self.question, self.compressed = question, compressed
        fixed = set(question.spec.fixed)
        wide = [n for n, atom in question.spec.atoms.items() if n in fixed and atom.size > WIDE]
        self.layout = layout = weight_layout(question.spec, also_permuted=wide)
        self.standardiser = WeightStandardiser(layout, 1)
        self.waves = GaussianFourierFeatures(1, FOURIER_FREQUENCIES, scale=FOURIER_SCALE, generator=generator)
        features = [
            block.multiplicity * (self.waves.out_channels if block.multiplicity <= FEW else 2)
            for block in layout.blocks
        ]
        self.atoms = [atom for atom in layout.sizes if atom not in wide]
        self.enter, self.edges = nn.ModuleList(), nn.ModuleDict()
        for atom in self.atoms:
            read = sum(features[b] for b, block in enumerate(layout.blocks) for a in block.atoms if a == atom)
            self.enter.append(Perceptron([read, width], generator))
        for b, block in enumerate(layout.blocks):
            if len(block.atoms) > 1:
                self.edges[str(b)] = Perceptron([features[b], width], generator)
        self.wide = nn.ParameterDict()
        for number, atom in enumerate(wide):
            codes = torch.randn(layout.sizes[atom], width, generator=generator)
            self.wide[str(number)] = nn.Parameter(codes)
        self._wide = {atom: str(number) for number, atom in enumerate(wide)}
        self.rounds = nn.ModuleList()
        self.send = nn.ModuleList()
        for _ in range(ROUNDS if self.atoms else 0):
            heard = 3 if len(self.edges) else 2
            self.rounds.append(GatedMLP(heard * width, width, width, generator))
            if len(self.edges):
                self.send.append(nn.ModuleList(Perceptron([width, width], generator) for _ in range(2)))
        rest = sum(count for count, block in zip(features, layout.blocks, strict=True) if not block.atoms)
        read = 2 * width * len(self.atoms) + rest
        self.pooled_scale = BatchStandardiser(read)
        self.head = Perceptron([read, HEAD, question.outputs], generator, F.silu)

    def fit_statistics(self, tensors: Tensors) -> None:
        """Take the statistics of the weights over the nets, and of what the head reads over some of them."""
        self.standardiser.fit(self.layout.enter(tensors))
        with torch.no_grad():
            some = {name: tensor[:STATISTICS_NETS] for name, tensor in tensors.items()}
            self.pooled_scale.fit(self._pooled(some))

    def forward(self, tensors: Tensors) -> Tensor:
        """Return [nets, outputs]."""
        return self.head(self.pooled_scale(self._pooled(tensors))) * self.question.output_scale

    def _pooled(self, tensors: Tensors) -> Float[Tensor, "nets features"]:
        values = [
            torch.cat([given, given.abs()], dim=-1) if block.multiplicity > FEW else self.waves([given])[0]
            for given, block in zip(
                self.standardiser(self.layout.enter(tensors)), self.layout.blocks, strict=True
            )
        ]
        tokens = self._tokens(values)
        edges = {b: enter(values[int(b)]) for b, enter in self.edges.items()}
        for number, update in enumerate(self.rounds):
            heard = self._messages(tokens, edges, self.send[number]) if edges else {}  # pyright: ignore[reportArgumentType]
            for atom in self.atoms:
                x = tokens[atom]
                parts = [x, x.mean(-2, keepdim=True).expand_as(x), *([heard[atom]] if edges else [])]
                tokens[atom] = x + update(torch.cat(parts, dim=-1))
        pooled = [given for given, block in zip(values, self.layout.blocks, strict=True) if not block.atoms]
        for atom in self.atoms:
            mean = tokens[atom].mean(-2)
            # The norm has a gradient of zero, not infinity, where neurons are alike.
            spread = torch.linalg.vector_norm(tokens[atom] - mean[..., None, :], dim=-2)
            pooled += [mean, spread / tokens[atom].shape[-2] ** 0.5]
        found = torch.cat(pooled, dim=-1)
        return found.asinh() if self.compressed else found

    def _tokens(self, values: Sequence[Tensor]) -> dict[str, Float[Tensor, "nets size width"]]:
        """Return the tokens as they are before any exchange, those of wide fixed atoms among them."""
        rows: dict[str, list[Tensor]] = {atom: [] for atom in self.atoms}
        for given, block in zip(values, self.layout.blocks, strict=True):
            for position, atom in enumerate(block.atoms):
                if atom in rows:
                    others = [p - len(block.atoms) - 1 for p in range(len(block.atoms)) if p != position]
                    rows[atom].append(given.mean(others) if others else given)
        tokens = {
            atom: enter(torch.cat(rows[atom], dim=-1))
            for atom, enter in zip(self.atoms, self.enter, strict=True)
        }
        for atom, key in self._wide.items():
            tokens[atom] = self.wide[key].expand(len(values[0]), -1, -1)
        return tokens

    def _messages(
        self, tokens: dict[str, Tensor], edges: dict[str, Tensor], send: nn.ModuleList
    ) -> dict[str, Tensor]:
        """Return what the neurons of each atom hear through the blocks that they share with others."""
        heard = {atom: [torch.zeros_like(tokens[atom])] for atom in self.atoms}
        sent = {atom: [speak(x) for speak in send] for atom, x in tokens.items()}
        for b, edge in edges.items():
            atoms = self.layout.blocks[int(b)].atoms
            for here, atom in enumerate(atoms):
                if atom not in heard:
                    continue
                for there, other in enumerate(atoms):
                    if there == here:
                        continue
                    rest = [p - len(atoms) - 1 for p in range(len(atoms)) if p not in (here, there)]
                    pair = edge.mean(rest) if rest else edge
                    ends = "nijc" if here < there else "njic"
                    speech = sent[other][int(here > there)]
                    message = torch.einsum(f"{ends},njc->nic", pair, speech)
                    heard[atom].append(message / speech.shape[-2] ** 0.5)
        return {
            atom: torch.stack(parts).sum(0) / max(1, len(parts) - 1) ** 0.5 for atom, parts in heard.items()
        }


@reader("neuron_tokens", "neuron tokens (ours)", heads=("invariant",))
@reader("neuron_tokens_canonical", "neuron tokens + canonical", heads=("invariant",), prepare="canonical")
def neuron_tokens(question: Question, width: int, generator: torch.Generator) -> NeuronTokens:
    """Build the network over tokens of neurons."""
    return NeuronTokens(question, width, generator)


@reader("neuron_tokens_compressed", "neuron tokens, compressed", heads=("invariant",))
@reader(
    "neuron_tokens_compressed_canonical",
    "neuron tokens, compressed + canonical",
    heads=("invariant",),
    prepare="canonical",
)
def neuron_tokens_compressed(question: Question, width: int, generator: torch.Generator) -> NeuronTokens:
    """Build the network over tokens of neurons for zoos of which some nets are much larger than others."""
    return NeuronTokens(question, width, generator, compressed=True)
