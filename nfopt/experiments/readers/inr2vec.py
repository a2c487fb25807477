"""The encoder of INR2Vec over a zoo's weights: every row by one perceptron, then the maximum over rows."""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nfopt.experiments.question import Question, Tensors
from nfopt.experiments.readers.perceptron import Perceptron, Standardiser
from nfopt.experiments.readers.reader import WeightReader, reader
from nfopt.experiments.readers.rows import WeightRows

LAYERS = 3


class Inr2Vec(WeightReader):
    """Read each row of the stacked weight matrices by itself and pool by maximum (arXiv 2302.05438).

    The rows are those of `WeightRows`, padded to the widest; the paper stacks hidden layers alone, whose
    rows are of one width, and biases below them. Its layers are linear, BatchNorm and ReLU; LayerNorm stands
    here in the place of BatchNorm, whose statistics would depend on which nets share a batch. A perceptron
    answers from the pooled vector; the paper's decoder and its training by reconstruction are left out, as
    in the baseline of Navon et al. 2023.

    Args:
        question: what to answer, with an invariant head.
        width: of the first two layers; the last has twice as many channels.
        generator: source of the initial weights.
    """

    def __init__(self, question: Question, width: int, generator: torch.Generator) -> None:
        super().__init__()
        self.question, self.rows = question, WeightRows.of(question)
        self.standardiser = Standardiser(self.rows.count * self.rows.widest)
        widths = [self.rows.widest, *[width] * (LAYERS - 1), 2 * width]
        self.layers = nn.ModuleList(Perceptron(pair, generator) for pair in pairwise(widths))
        self.head = Perceptron([2 * width, width, question.outputs], generator)

    def fit_statistics(self, tensors: Tensors) -> None:
        """Take the mean and the standard deviation of each weight over the nets."""
        self.standardiser.fit(self.rows.padded(tensors).flatten(1))

    def forward(self, tensors: Tensors) -> Tensor:
        """Return [nets, outputs]."""
        rows = self.rows.padded(tensors)
        x = self.standardiser(rows.flatten(1)).view_as(rows)
        for layer in self.layers:
            x = layer(x)
            x = F.relu(F.layer_norm(x, x.shape[-1:]))
        return self.head(x.amax(1)) * self.question.output_scale


@reader("inr2vec", "INR2Vec (arch.)", heads=("invariant",))
def inr2vec(question: Question, width: int, generator: torch.Generator) -> Inr2Vec:
    """Build the encoder of INR2Vec."""
    return Inr2Vec(question, width, generator)
