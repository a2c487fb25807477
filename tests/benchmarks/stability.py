"""The stress suite as a table: final losses of AdamW, nfopt and its nominal point, and the guard's part.

    python -m tests.benchmarks.stability [--case "inputs x 100" ...] [--seeds 1]

Losses are in nats, the mean over the seeds. Guard: steps skipped / largest share of steps, over the tensors,
in which it damped the learned part. A case that breaks its claim says how. Some minutes on one core; the
cases on real data need NFOPT_DATA and are left out without.
"""

import argparse
import os
import statistics
import time
from dataclasses import replace

import torch

from tests.optim.stability.cases import CASES, REAL_CASES
from tests.optim.stability.contest import ADAMW, CONTESTANTS, Case, Outcome, train, violations


def row(case: Case, seeds: int) -> str:
    """Return a case's row of the table."""
    begin = time.perf_counter()
    outcomes: dict[str, list[Outcome]] = {}
    for contestant in (ADAMW, *CONTESTANTS):
        outcomes[contestant] = [
            train(replace(case, problem=replace(case.problem, seed=seed)), contestant)
            for seed in range(seeds)
        ]
    finals = {c: statistics.fmean(o.final for o in done) for c, done in outcomes.items()}
    broken = {
        f"{contestant}: {violation}"
        for contestant in CONTESTANTS
        for reference, outcome in zip(outcomes[ADAMW], outcomes[contestant], strict=True)
        for violation in violations(case, reference, outcome)
    }
    cells = [
        case.name,
        f"{outcomes[ADAMW][0].start:.3f}",
        *(f"{finals[c]:.4f}" for c in (ADAMW, *CONTESTANTS)),
        *(guard_cell(outcomes[c]) for c in CONTESTANTS),
        "; ".join(sorted(broken)) or "holds",
        f"{time.perf_counter() - begin:.0f}",
    ]
    return f"| {' | '.join(cells)} |"


def guard_cell(outcomes: list[Outcome]) -> str:
    """Return the guard's interventions: steps skipped / largest damped share, over the seeds."""
    reports = [outcome.guard for outcome in outcomes if outcome.guard is not None]
    skipped = sum(report.skipped for report in reports)
    share = max(max(report.damped_share.values(), default=0.0) for report in reports)
    return f"{skipped} / {100 * share:.1f} %"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--case", action="append", help="only cases whose name contains this")
    parser.add_argument("--seeds", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    cases = CASES + (REAL_CASES if os.environ.get("NFOPT_DATA") else ())
    print("| case | start | AdamW | default | nominal | guard, default | guard, nominal | claim | s |")
    print("|---|---|---|---|---|---|---|---|---|")
    for case in cases:
        if not options.case or any(part in case.name for part in options.case):
            print(row(case, options.seeds), flush=True)


if __name__ == "__main__":
    main()
