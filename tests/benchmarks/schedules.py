"""Benchmark: the built-in schedule against a plain linear decay.

    NFOPT_DATA=FOLDER OMP_NUM_THREADS=1 python -m tests.benchmarks.schedules --results FILE [--table FILE]

What is measured, and on what, stands at the top of rule_forms.py.
"""

import torch
from torch import Tensor

from nfopt.optim.schedule import FINAL, WARMUP, built_in_schedule
from tests.benchmarks.rule_forms import Forms, main


def linear(progress: Tensor, step: Tensor) -> Tensor:
    """Return the linear schedule that was built in before."""
    return (progress / WARMUP).clamp(max=1.0) * (1.0 - progress).clamp(min=FINAL) * torch.ones_like(step)


FORMS = Forms("nfopt.optim.rule.built_in_schedule", ("linear", linear), built_in_schedule)

if __name__ == "__main__":
    main(FORMS, __doc__)
