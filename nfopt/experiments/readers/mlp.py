"""MLP over all weights as one vector: the plain baseline, also with augmentation and with alignment."""

import torch
from torch import Tensor

from nfopt.experiments.question import Question, Tensors, flatten, unflatten
from nfopt.experiments.readers.perceptron import Perceptron, Standardiser
from nfopt.experiments.readers.reader import WeightReader, reader

HIDDEN_LAYERS = 3


class WeightsMLP(WeightReader):
    """A perceptron of three hidden layers over the standardised weights of a net, flattened.

    It knows nothing of the order of neurons: the baseline "MLP" of Navon et al. 2023 and Zhou et al. 2023.

    Args:
        question: what to answer.
        width: of its hidden layers.
        generator: source of the initial weights.
    """

    def __init__(self, question: Question, width: int, generator: torch.Generator) -> None:
        super().__init__()
        self.question = question
        weights = sum(torch.Size(shape).numel() for shape in question.shapes.values())
        outputs = question.outputs * (1 if question.head == "invariant" else weights)
        self.standardiser = Standardiser(weights)
        self.layers = Perceptron([weights, *[width] * HIDDEN_LAYERS, outputs], generator)

    def fit_statistics(self, tensors: Tensors) -> None:
        """Take the mean and the standard deviation of each weight over the nets."""
        self.standardiser.fit(flatten(self.question, tensors))

    def forward(self, tensors: Tensors) -> Tensor | dict[str, Tensor]:
        """Return what is read off each net."""
        x = self.layers(self.standardiser(flatten(self.question, tensors))) * self.question.output_scale
        if self.question.head == "invariant":
            return x
        edits = self.question.outputs
        return unflatten(self.question, x if edits == 1 else x.unflatten(1, (-1, edits)))


@reader("mlp", "MLP")
@reader("mlp_permuted", "MLP + permutations", permutes=True)
@reader("mlp_aligned", "MLP + alignment", prepare="aligned")
def weights_mlp(question: Question, width: int, generator: torch.Generator) -> WeightsMLP:
    """Build the perceptron over all weights."""
    return WeightsMLP(question, width, generator)
