"""Which groups of channels can be removed from a model at all, and what holds the others."""

import re
from collections.abc import Mapping, Sequence
from math import isfinite

from torch import Tensor

from nfopt.errors import PruningError
from nfopt.progress import Progress, ProgressCallback
from nfopt.pruning.channels.proof import RemovalProof, RemovalProver
from nfopt.symmetry import PermutationSpec
from nfopt.symmetry.axes import atoms_of

_DIGITS = re.compile(r"\d+")
TASK = "prove that channels can be removed"


def removable_groups(
    prover: RemovalProver,
    kept: Mapping[str, Tensor],
    progress: ProgressCallback,
    *,
    bundles: Sequence[Sequence[str]] = (),
    exact: bool = True,
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Divide groups into those that can be removed together and those that something holds.

    All at once first. What fails is halved until the single groups that fail are found, each tried beside all
    that passed before it: with h held groups of n about 2 h log2(n / h) proofs, and the last one that passed
    is of the very set that is returned. Groups that fail alone and stand in a bundle are tried once more with
    its other members.

    Args:
        prover: of the model.
        kept: for each group the indices that would remain.
        progress: hears of every group.
        bundles: groups whose sizes a module may keep in one number (`bundles_of`).
        exact: whether the smaller model must compute what the original does with zeros; else it must run.

    Returns:
        The part of `kept` that can be removed together, and for each other group the reason.
    """
    free: dict[str, Tensor] = {}
    held: dict[str, str] = {}
    # Groups of one kind stand together (blocks.*.attn.qkv#2): what holds one often holds them all.
    order = sorted(kept, key=lambda group: _DIGITS.sub("", group))
    waiting = [order] if order else []
    while waiting:
        batch = waiting.pop()
        progress(Progress(TASK, len(free) + len(held), len(kept), batch[0]))
        trial = {**free, **{group: kept[group] for group in batch}}
        # What fails alone would fail in company; to ask that first gives the reason as well.
        alone = prover.prove({batch[0]: kept[batch[0]]}) if len(batch) == 1 and free else None
        if alone is not None and not _is_good(alone, exact):
            held[batch[0]] = alone.reason
        elif _is_good(proof := prover.prove(trial, explain=len(batch) == 1), exact):
            free = trial
        elif len(batch) > 1:
            half = len(batch) // 2
            waiting += [batch[half:], batch[:half]]
        else:
            company = "not together with the other groups: " if free else ""
            held[batch[0]] = company + proof.reason
    for bundle in bundles:
        again = [group for group in bundle if group in held]
        trial = {**free, **{group: kept[group] for group in again}}
        if len(again) > 1 and _is_good(prover.prove(trial, explain=False), exact):
            free = trial
            for group in again:
                del held[group]
    progress(Progress(TASK, len(kept), len(kept)))
    return {g: kept[g] for g in kept if g in free}, {g: held[g] for g in kept if g in held}


def bundles_of(spec: PermutationSpec) -> list[list[str]]:
    """Return the groups on the first axes of one module's tensors: layers of an LSTM, queries and values.

    A module may keep their sizes in one number (`hidden_size`, `head_dim`): they can only go together then.
    Only bundles of at least two groups are returned.
    """
    bundles: dict[str, dict[str, None]] = {}
    for name, entry in spec.tensors.items():
        if entry.axes:
            found = bundles.setdefault(name.rpartition(".")[0], {})
            found.update(dict.fromkeys(a.name for a in atoms_of(entry.axes[0]) if a.name in spec.groups))
    return [list(found) for found in bundles.values() if len(found) > 1]


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
