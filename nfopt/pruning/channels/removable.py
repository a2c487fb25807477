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

    All at once first; where that fails each group alone; then those that passed together, each that
    fails in company left out.

    Args:
        prover: of the model.
        kept: for each group the indices that would remain.
        progress: hears of every group.
        exact: whether the smaller model must compute what the original does with zeros; else it must run.

    Returns:
        The part of `kept` that can be removed together, and for each other group the reason.
    """
    total = len(kept) + 1
    progress(Progress(TASK, 0, total))
    if _is_good(prover.prove(kept, explain=False), exact):
        progress(Progress(TASK, total, total))
        return dict(kept), {}
    free: dict[str, Tensor] = {}
    held: dict[str, str] = {}
    for done, (group, indices) in enumerate(kept.items()):
        progress(Progress(TASK, done + 1, total, group))
        proof = prover.prove({group: indices})
        if _is_good(proof, exact):
            free[group] = indices
        else:
            held[group] = proof.reason
    if free and not _is_good(prover.prove(free, explain=False), exact):
        together: dict[str, Tensor] = {}
        for group, indices in free.items():
            proof = prover.prove({**together, group: indices})
            if _is_good(proof, exact):
                together[group] = indices
            else:
                held[group] = f"not together with the other groups: {proof.reason}"
        free = together
    progress(Progress(TASK, total, total))
    return free, held


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
