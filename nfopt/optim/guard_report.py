"""What the guard did: noted per tensor and step without waiting for the device, and reported when asked."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nfopt.optim.moments import DAMPED, SKIPPED, STEP

FIRST, LAST = "first_intervention", "last_intervention"

TensorState = Mapping[str, Tensor]


@dataclass(frozen=True)
class GuardReport:
    """What the guard did so far. `print` shows it in a line or two.

    Attributes:
        steps: optimizer steps so far, the skipped ones included.
        skipped: steps left out because a gradient was not finite.
        damped: for each tensor, the steps in which an anomalous gradient shrank the learned part.
        damped_share: the same as a share in [0, 1] of the steps that the tensor took.
        first_step: number of the first step, counted from 1, that was skipped or damped; None: none was.
        last_step: number of the last one.
    """

    steps: int
    skipped: int
    damped: Mapping[str, int]
    damped_share: Mapping[str, float]
    first_step: int | None
    last_step: int | None

    def __str__(self) -> str:
        """Say it in a line or two: totals, and the tensors that were damped most."""
        if self.last_step is None:
            return f"guard: no intervention in {self.steps} steps"
        lines = [
            f"guard: {self.skipped} of {self.steps} steps skipped; "
            f"interventions from step {self.first_step} to {self.last_step}"
        ]
        most = sorted((n for n in self.damped if self.damped[n]), key=lambda n: -self.damped_share[n])
        if most:
            shown = ", ".join(f"{n} in {self.damped[n]} ({self.damped_share[n]:.1%})" for n in most[:5])
            more = f", and {len(most) - 5} more tensors" if len(most) > 5 else ""
            lines.append(f"learned part damped: {shown}{more}")
        return "\n".join(lines)


def mark(
    first: Float[Tensor, " tensors"],
    last: Float[Tensor, " tensors"],
    hit: Bool[Tensor, " tensors"],
    step: int,
) -> tuple[Float[Tensor, " tensors"], Float[Tensor, " tensors"]]:
    """Return the first and the last step of an intervention, after one more step.

    Args:
        first: number of the first such step per tensor, counted from 1; 0: there was none.
        last: number of the last one.
        hit: whether the guard intervened in this step.
        step: number of this step, counted from 1.
    """
    now = float(step)
    return torch.where(hit & (first == 0), now, first), torch.where(hit, now, last)


def read_report(states: Iterable[tuple[str, TensorState]], steps: int) -> GuardReport:
    """Read the report off the states of the tensors, by name; this waits for the device.

    Args:
        states: tensors with a state; one from before FIRST and LAST were noted counts as never marked.
        steps: optimizer steps so far.
    """
    known = dict(states)
    keys = (STEP, SKIPPED, DAMPED, FIRST, LAST)
    table = [
        [state[key] if key in state else torch.zeros_like(state[STEP]) for key in keys]
        for state in known.values()
    ]
    rows = torch.stack([value for row in table for value in row]).tolist() if table else []
    numbers = [[int(n) for n in rows[i : i + len(keys)]] for i in range(0, len(rows), len(keys))]
    marks = [n for _, _, _, *pair in numbers for n in pair if n]
    return GuardReport(
        steps=steps,
        skipped=max((row[1] for row in numbers), default=0),
        damped={name: row[2] for name, row in zip(known, numbers, strict=True)},
        damped_share={name: row[2] / max(row[0], 1) for name, row in zip(known, numbers, strict=True)},
        first_step=min(marks, default=None),
        last_step=max(marks, default=None),
    )
