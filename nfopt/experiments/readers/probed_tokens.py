"""Probed tokens: neuron tokens read the weights of a net, learned probes its function, and both are added."""

import torch
from torch import Tensor, nn

from nfopt.experiments.question import Question, Tensors
from nfopt.experiments.readers.neuron_tokens import NeuronTokens
from nfopt.experiments.readers.probes import Probes
from nfopt.experiments.readers.reader import WeightReader, reader

TOKENS_SHARE = 8


class ProbedTokens(WeightReader):
    """The sum of what `NeuronTokens` reads off the weights and `Probes` off the functions of nets.

    The tokens' part begins at zero: it is learned where it is of use beyond what the nets compute. It has
    an eighth of the channels, and so a fraction of the parameters.

    Args:
        question: what to answer, with an invariant head and `forward`.
        width: of the hidden layers over the answers; tokens have a `TOKENS_SHARE`-th of these channels.
        generator: source of the initial weights and inputs.
    """

    def __init__(self, question: Question, width: int, generator: torch.Generator) -> None:
        super().__init__()
        self.probes = Probes(question, width, generator)
        self.tokens = NeuronTokens(question, max(1, width // TOKENS_SHARE), generator)
        nn.init.zeros_(self.tokens.head.weights[-1])

    def fit_statistics(self, tensors: Tensors) -> None:
        """Take the statistics of both."""
        self.probes.fit_statistics(tensors)
        self.tokens.fit_statistics(tensors)

    def forward(self, tensors: Tensors) -> Tensor:
        """Return [nets, outputs]."""
        return self.probes(tensors) + self.tokens(tensors)


@reader(
    "neuron_tokens_probes", "neuron tokens + probes", heads=("invariant",), probes=True, prepare="canonical"
)
def probed_tokens(question: Question, width: int, generator: torch.Generator) -> ProbedTokens:
    """Build the network over tokens of neurons and answers to learned inputs."""
    return ProbedTokens(question, width, generator)
