"""Self-supervised embedding of nets: two views of a net lie near each other, views of others do not."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from nfopt.experiments.question import ExperimentError, Forward, Question, Tensors
from nfopt.experiments.tasks.regression import single
from nfopt.experiments.tasks.task import Network, Task, answers
from nfopt.zoo import SIDES, Transform, Zoo, views

RIDGE = 1e-6


@dataclass(frozen=True)
class Embedding(Task):
    """InfoNCE between two views of each net; scored by a linear probe (Navon et al. 2023).

    With embeddings z of unit length of the two views of every net of a batch, the loss is the cross-entropy
    of recognising each view's partner among all others by z z^T / temperature (SimCLR, Chen et al. 2020).
    The score is the mean squared error of a linear map from the embedding, not of unit length, to some
    facts, fitted on the train side, over the nets and the facts.

    Attributes:
        view: draws a view of each net, as noise and masks.
        facts: what the linear probe predicts, one number per net each, in their own units.
        dimensions: of the embedding.
        temperature: of the loss.
    """

    metric: ClassVar[str] = "mse"
    higher_is_better: ClassVar[bool] = False
    view: Transform
    facts: tuple[str, ...] = ("amplitude", "frequency")
    dimensions: int = 16
    temperature: float = 0.1

    def __post_init__(self) -> None:
        if not self.facts or self.dimensions < 2 or not self.temperature > 0:
            raise ExperimentError(
                "an embedding needs facts to be probed for, 2 or more dimensions and a temperature above 0."
            )

    def question(self, zoo: Zoo, forward: Forward | None = None, inputs: int = 0) -> Question:
        """Return what a reader is asked: an embedding per net."""
        return Question(zoo.spec, outputs=self.dimensions, forward=forward, inputs=inputs)

    def targets(self, zoo: Zoo) -> Mapping[str, Tensor]:
        """Return the facts of each net, which the loss never sees: [nets, facts]."""
        return {"facts": torch.stack([single(zoo, name) for name in self.facts], dim=1)}

    def loss(
        self, network: Network, tensors: Tensors, targets: Mapping[str, Tensor], draws: torch.Generator
    ) -> Tensor:
        """Return the mean InfoNCE in nats, over both views."""
        first, second = views(self.view, tensors, draws)
        both = network({name: torch.cat([first[name], second[name]]) for name in tensors})
        return info_nce(both, self.temperature)

    @torch.no_grad()
    def scores(
        self, network: Network, zoo: Zoo, targets: Mapping[str, Tensor], side: str
    ) -> dict[str, float]:
        """Return the linear probe's mean squared error, over all facts and for each of them."""
        train, here = zoo.side == 0, zoo.side == SIDES.index(side)
        embedded = answers(network, zoo.tensors).double()
        wanted = targets["facts"].double()
        found = probe(embedded[train], wanted[train], embedded[here])
        errors = (found - wanted[here]).square().mean(0)
        by_fact = {f"mse {name}": error.item() for name, error in zip(self.facts, errors, strict=True)}
        return {"mse": errors.mean().item(), **by_fact}

    def floor(self, zoo: Zoo, targets: Mapping[str, Tensor], side: str) -> tuple[str, float]:
        """Return the error of the train side's means."""
        facts = targets["facts"]
        mean = facts[zoo.side == 0].mean(0)
        error = (facts[zoo.side == SIDES.index(side)] - mean).square().mean()
        return "always the train side's means", error.item()


def info_nce(both: Float[Tensor, "views dimensions"], temperature: float) -> Tensor:
    """Return the InfoNCE of views, the partner of view i being i + half (van den Oord et al. 2018)."""
    count = len(both)
    unit = F.normalize(both, dim=-1)
    alike = (unit @ unit.mT / temperature).masked_fill(
        torch.eye(count, dtype=torch.bool, device=both.device), -torch.inf
    )
    partner = torch.arange(count, device=both.device).roll(count // 2)
    return F.cross_entropy(alike, partner)


def probe(
    train: Float[Tensor, "nets dimensions"],
    wanted: Float[Tensor, "nets facts"],
    others: Float[Tensor, "others dimensions"],
) -> Float[Tensor, "others facts"]:
    """Return what the least-squares affine map from `train` to `wanted` says of `others`.

    A ridge of 1e-6 of the mean variance keeps dimensions that do not vary from mattering.
    """
    mean, centre = train.mean(0), wanted.mean(0)
    x = train - mean
    gram = x.mT @ x
    ridge = RIDGE * gram.diagonal().mean().clamp(min=1e-30)
    weights = torch.linalg.solve(gram + ridge * torch.eye(len(gram)).to(gram), x.mT @ (wanted - centre))
    return (others - mean) @ weights + centre
