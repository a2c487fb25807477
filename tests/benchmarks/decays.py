"""Benchmark: weight decay that rises as a tensor's gradient goes, against the same decay throughout.

    NFOPT_DATA=FOLDER OMP_NUM_THREADS=1 python -m tests.benchmarks.decays --results FILE [--table FILE]

What is measured, and on what, stands at the top of rule_forms.py.
"""

import torch

from nfopt.optim.directions import decay_factor
from tests.benchmarks.rule_forms import Forms, main

FORMS = Forms("nfopt.optim.rule.decay_factor", ("constant", torch.ones_like), decay_factor)

if __name__ == "__main__":
    main(FORMS, __doc__)
