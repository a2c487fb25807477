"""The field's equivariant networks as readers: DWS and its ablations, HNP, NP, NFT, pointwise."""

from collections.abc import Iterable

import torch
from torch import nn

from nfopt.experiments.question import Question
from nfopt.experiments.readers.reader import reader
from nfopt.nn import SECTORS, DWSLinear, NeuralFunctional, NeuralFunctionalConfig, Sector
from nfopt.nn.neural_functional import LayerKind

DEPTH = 4
HEADS = 4
FOURIER_FREQUENCIES = 8
FOURIER_SCALE = 0.5
WIDE = 64
"""Fixed atoms of more indices than this (784 pixels) are dimensions with positions, not channels."""


def _functional(
    question: Question, width: int, generator: torch.Generator, layer: LayerKind
) -> NeuralFunctional:
    wide = tuple(
        name for name, atom in question.spec.atoms.items() if name in question.spec.fixed and atom.size > WIDE
    )
    permuted_io = layer in ("np", "attention")
    invariant = question.head == "invariant"
    # Between layers, norms per element forget how large weights are, which is most of what tells one net from
    # another; an attention needs them.
    bare = invariant and layer != "attention"
    config = NeuralFunctionalConfig(
        layer=layer,
        head=question.head,
        outputs=question.outputs,
        channels=width,
        depth=DEPTH,
        heads=HEADS,
        norm=None if bare else "element",
        fourier_frequencies=FOURIER_FREQUENCIES if invariant else 0,
        fourier_scale=FOURIER_SCALE,
        standardise_pooled=invariant,
        position="learned" if permuted_io or wide else None,
        also_permuted=() if permuted_io else wide,
        output_scale=question.output_scale,
    )
    return NeuralFunctional(question.spec, config, generator=generator)


@reader("dws", "DWS")
@reader("dws_canonical", "DWS + canonical", prepare="canonical")
def dws(question: Question, width: int, generator: torch.Generator) -> nn.Module:
    """Build Deep Weight-Space layers (Navon et al. 2023)."""
    return _functional(question, width, generator, "dws")


@reader("hnp", "NFN, HNP")
def hnp(question: Question, width: int, generator: torch.Generator) -> nn.Module:
    """Build hidden-neuron-permutation layers (Zhou et al. 2023)."""
    return _functional(question, width, generator, "hnp")


@reader("np", "NFN, NP")
@reader("np_canonical", "NFN, NP + canonical", prepare="canonical")
def np(question: Question, width: int, generator: torch.Generator) -> nn.Module:
    """Build neuron-permutation layers with learned positions of inputs and outputs (Zhou et al. 2023)."""
    return _functional(question, width, generator, "np")


@reader("nft", "NFT", step=HEADS)
def nft(question: Question, width: int, generator: torch.Generator) -> nn.Module:
    """Build neural functional transformer layers (Zhou et al. 2023, arXiv 2305.13546)."""
    return _functional(question, width, generator, "attention")


@reader("pointwise", "pointwise")
def pointwise(question: Question, width: int, generator: torch.Generator) -> nn.Module:
    """Build the ablation that reads every weight by itself."""
    return _functional(question, width, generator, "pointwise")


def without(
    question: Question, width: int, generator: torch.Generator, left_out: Iterable[Sector]
) -> NeuralFunctional:
    """Return the DWS network with some of the blocks W2W, W2B, B2W, B2B left out of all its layers.

    The ablation of Navon et al. 2023. What a residual connection carries on stays.
    """
    network = _functional(question, width, generator, "dws")
    kept: list[Sector] = [sector for sector in SECTORS if sector not in set(left_out)]

    def ablated(layer: nn.Module) -> DWSLinear:
        assert isinstance(layer, DWSLinear)
        return DWSLinear(
            layer.layout, layer.in_channels, layer.out_channels, sectors=kept, generator=generator
        )

    network.lift = ablated(network.lift)
    for layer in network.layers:
        layer.linear = ablated(layer.linear)  # pyright: ignore[reportArgumentType, reportAttributeAccessIssue]
    if question.head == "equivariant":
        network.head = ablated(network.head)
    return network


def _enter_ablation(sector: Sector) -> None:
    @reader(f"dws_without_{sector}", f"DWS without {sector.upper()}")
    def ablation(question: Question, width: int, generator: torch.Generator) -> nn.Module:
        return without(question, width, generator, [sector])


for _sector in SECTORS:
    _enter_ablation(_sector)
