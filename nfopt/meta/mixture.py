"""TaskMixture: several task families, each with its share of the tasks."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch

from nfopt.errors import NfoptError
from nfopt.meta.family import TaskFamily
from nfopt.meta.task import TaskConfig


class TaskDistribution(Protocol):
    """What tasks are drawn from: a dataclass, so that a checkpoint can say which one it was."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def sample(self, draw: torch.Generator, horizon_factor: int = 1) -> TaskConfig:
        """Draw one task, `horizon_factor` times as long as usual; it depends on the generator alone."""
        ...


@dataclass(frozen=True, slots=True)
class TaskMixture:
    """Task families by name, drawn with probabilities proportional to their shares.

    Attributes:
        families: the families.
        shares: one share >= 0 per family, by the same names.
    """

    families: Mapping[str, TaskFamily]
    shares: Mapping[str, float]

    def __post_init__(self) -> None:
        if set(self.families) != set(self.shares):
            raise NfoptError(
                f"a mixture needs one share per family: it has the families {', '.join(self.families)} and "
                f"shares for {', '.join(self.shares)}."
            )
        if not self.shares or min(self.shares.values()) < 0 or sum(self.shares.values()) <= 0:
            raise NfoptError(f"shares must be >= 0, and one above 0, not {dict(self.shares)}.")

    def sample(self, draw: torch.Generator, horizon_factor: int = 1) -> TaskConfig:
        """Draw one task, `horizon_factor` times as long as usual; it depends on the generator alone."""
        shares = torch.tensor([self.shares[name] for name in self.families])
        drawn = int(torch.multinomial(shares, 1, generator=draw))
        return list(self.families.values())[drawn].sample(draw, horizon_factor)
