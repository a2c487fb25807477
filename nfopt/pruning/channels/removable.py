"""Which groups of channels can be removed from a model at all, and what holds the others."""

from collections.abc import Mapping, Sequence
from math import isfinite

from torch import Tensor

from nfopt.errors import PruningError
from nfopt.progress import Progress, ProgressCallback
from nfopt.pruning.channels.proof import RemovalProof, RemovalProver
from nfopt.symmetry import PermutationSpec

TASK = "prove that channels can be removed"


def removable_groups(
    prover: RemovalProver, kept: Mapping[str, Tensor], progress: ProgressCallback, *, exact: bool = True
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Divide groups into those that can be removed together and those that something holds.

    All at once first. What fails is halved until the single groups that fail are found, each tried beside all
    that passed before it: with h held groups of n about 2 h log2(n / h) proofs, and the last one that passed
    is of the very set that is returned.

    Args:
        prover: of the model.
        kept: for each group the indices that would remain.
        progress: hears of every group.
        exact: whether the smaller model must compute what the original does with zeros; else it must run.

    Returns:
        The part of `kept` that can be removed together, and for each other group the reason.
    """
    free: dict[str, Tensor] = {}
    held: dict[str, str] = {}
    waiting = [list(kept)] if kept else []
    while waiting:
        batch = waiting.pop()
        progress(Progress(TASK, len(free) + len(held), len(kept), batch[0]))
        trial = {**free, **{group: kept[group] for group in batch}}
        proof = prover.prove(trial, explain=len(batch) == 1)
        if _is_good(proof, exact):
            free = trial
        elif len(batch) > 1:
            half = len(batch) // 2
            waiting += [batch[half:], batch[:half]]
        else:
            held[batch[0]] = _reason(prover, batch[0], kept, proof, exact) if free else proof.reason
    progress(Progress(TASK, len(kept), len(kept)))
    return free, held


def _reason(
    prover: RemovalProver, group: str, kept: Mapping[str, Tensor], in_company: RemovalProof, exact: bool
) -> str:
    """Return what holds a group that cannot be removed with others: itself, or the company."""
    alone = prover.prove({group: kept[group]})
    if _is_good(alone, exact):
        return f"not together with the other groups: {in_company.reason}"
    return alone.reason


def nothing_removable(spec: PermutationSpec, held: Mapping[str, str], wanted: Sequence[str]) -> PruningError:
    """Build the error for groups that cannot be removed, each with what holds it."""
    if not spec.groups:
        reasons = sorted(set(spec.fixed.values()))[:4]
        return PruningError(
            f"the model has no group of interchangeable channels to remove: {'; '.join(reasons)}."
        )
    shown = [f"{group}: {held[group]}" for group in list(wanted)[:6]]
    more = f"\n  ... ({len(wanted)} in all)" if len(wanted) > 6 else ""
    return PruningError(
        "these channels cannot be removed, since the model would not compute the same as with zeros in "
        "their place:\n  " + "\n  ".join(shown) + more
    )


def check_final(proof: RemovalProof, *, exact: bool = True) -> RemovalProof:
    """Return the proof of the plan that was chosen; raises PruningError if it fails."""
    if not _is_good(proof, exact):
        raise PruningError(f"the chosen channels cannot be removed together: {proof.reason}.")
    return proof


def _is_good(proof: RemovalProof, exact: bool) -> bool:
    return proof.passed if exact else isfinite(proof.error)
