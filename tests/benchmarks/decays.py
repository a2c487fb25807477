"""Benchmark: weight decay that is eased early on, while gradients live, against the same decay throughout.

    NFOPT_DATA=FOLDER OMP_NUM_THREADS=1 python -m tests.benchmarks.decays --results FILE [--table FILE]

What is measured, and on what, stands at the top of rule_forms.py.
"""

import torch
from torch import Tensor

from nfopt.optim.directions import decay_factor
from tests.benchmarks.rule_forms import Forms, main


def constant(alive: Tensor, step: Tensor) -> Tensor:
    """Return the factor of a decay that is the same throughout."""
    return torch.ones_like(alive)


FORMS = Forms("nfopt.optim.rule.decay_factor", ("constant", constant), decay_factor)

if __name__ == "__main__":
    main(FORMS, __doc__)
