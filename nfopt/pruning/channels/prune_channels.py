"""`prune_channels`: the one call from a model to a smaller module, with its plan, its proof and its costs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from nfopt.errors import PruningError, unknown_name
from nfopt.progress import ProgressCallback, silent
from nfopt.pruning.channels.cost import Cost, cost_of
from nfopt.pruning.channels.plan import PruningPlan
from nfopt.pruning.channels.proof import RemovalProof, RemovalProver
from nfopt.pruning.channels.removable import bundles_of, check_final, nothing_removable, removable_groups
from nfopt.pruning.channels.worth import channel_worth
from nfopt.pruning.mask import model_digest
from nfopt.pruning.prune import score_once
from nfopt.pruning.scores import Batch, LossFunction, Score
from nfopt.pruning.select import check_density, top
from nfopt.pruning.targets import as_patterns
from nfopt.symmetry import PermutationSpec, trace_permutation_spec, unwrap


@dataclass(frozen=True)
class ChannelPruning:
    """What `prune_channels` has done.

    Attributes:
        model: the smaller module, a plain one; the original is unchanged. torch's attention with other heads
            than `embed_dim` allows is a `NarrowAttention`, of the same parameters and calls.
        plan: which channels remain; applies to a fresh model too.
        held: groups that cannot be removed, and what holds each.
        proof: that the smaller model computes what the original does with zeroed channels.
        before: cost of the original on the example inputs.
        after: cost of the smaller model.
    """

    model: nn.Module
    plan: PruningPlan
    held: Mapping[str, str]
    proof: RemovalProof
    before: Cost
    after: Cost

    def __str__(self) -> str:
        b, a = self.before, self.after
        verdict = f"proved to {self.proof.error:.0e}" if self.proof.passed else "NOT what zeros would give"
        lines = [
            f"parameters {b.parameters:,} -> {a.parameters:,} ({_share(a.parameters, b.parameters)}), "
            f"MACs {b.macs:,} -> {a.macs:,} ({_share(a.macs, b.macs)}); {verdict}",
            str(self.plan),
        ]
        lines += [f"  held {group}: {reason}" for group, reason in self.held.items()]
        return "\n".join(lines)


def prune_channels(
    model: nn.Module,
    example_inputs: Any,
    density: float = 0.5,
    score: str | Score = "magnitude",
    scope: str = "layer",
    *,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] = (),
    multiple_of: int = 1,
    exact: bool = True,
    batches: Sequence[Batch] = (),
    loss: LossFunction = functional.cross_entropy,
    spec: PermutationSpec | None = None,
    seed: int = 0,
    progress: ProgressCallback = silent,
) -> ChannelPruning:
    """Remove channels from a model wherever they occur, and prove that nothing else changes.

    A group is a set of channels that are one in all tensors of the model's symmetry: filters, biases, norms
    and their statistics, the inputs of later layers, attention heads. A group can be removed if in float64,
    with random weights, the smaller model gives the outputs that the original gives with zeros in the place
    of the removed slices. A group that something holds (a LayerNorm over the channels, a number that the
    model's code keeps) is left whole and reported, or an error if `include` asks for it.

    Args:
        model: the model; it is not changed.
        example_inputs: as for `trace_permutation_spec`.
        density: kept fraction in (0, 1] of the channels of each group, or of all removable ones together.
        score: a score of single weights, summed over what goes with a channel (`channel_worth`).
        scope: "layer": `round(density * size)` of each group; "global": the best of all groups. At least
            one channel of every group is kept.
        include: patterns of group names; None for every group that can be removed.
        exclude: patterns of groups that stay whole.
        multiple_of: kept counts are rounded up to a multiple of this, for hardware; of attention heads and
            other groups smaller than it only by density.
        exact: False also removes channels that norms and means look at, as long as the smaller model runs;
            it then computes something else even than the original with zeros, and must be trained on.
            `proof.error` says how far it is off with random weights.
        batches: pairs of inputs and targets for scores that need them.
        loss: mean loss from outputs and targets.
        spec: the model's symmetry; None to trace it.
        seed: of everything random.
        progress: hears of the proof.

    Raises:
        PruningError: a number is out of range, a pattern matches nothing, or nothing can be removed; the
            message says which part of the model holds the channels.
    """
    _check(density, scope, multiple_of)
    spec = trace_permutation_spec(model, example_inputs) if spec is None else spec
    groups = _chosen_groups(spec, include, exclude)
    worth = channel_worth(
        spec, groups, _element_scores(model, spec, score, batches, loss, example_inputs, seed)
    )
    prover = RemovalProver(model, spec, example_inputs, seed=seed)
    trial = {group: _best(worth[group], density, multiple_of) for group in groups}
    trial = {group: indices for group, indices in trial.items() if len(indices) < len(worth[group])}
    bundles = bundles_of(spec)
    free, held = removable_groups(prover, trial, progress, bundles=bundles, exact=exact)
    if held and (not free or include is not None):
        raise nothing_removable(spec, held, list(held))
    kept = free if scope == "layer" else _over_all({g: worth[g] for g in free}, density, multiple_of, bundles)
    proof = check_final(prover.prove(kept), exact=exact)
    origin = {
        "score": score if isinstance(score, str) else score.name,
        "scope": scope,
        "density": f"{density:g}",
        "multiple_of": str(multiple_of),
        "seed": str(seed),
    }
    plan = PruningPlan(kept, spec, model_digest(model), origin)
    smaller = plan.apply(model)
    return ChannelPruning(
        smaller, plan, held, proof, cost_of(unwrap(model), example_inputs), cost_of(smaller, example_inputs)
    )


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "-"


def _check(density: float, scope: str, multiple_of: int) -> None:
    check_density(density)
    if density == 0:
        raise PruningError("density is 0: a layer would lose all its channels. Give a kept fraction above 0.")
    if scope not in ("layer", "global"):
        raise unknown_name("scope of channel pruning", scope, ["layer", "global"])
    if multiple_of < 1:
        raise PruningError(f"multiple_of is {multiple_of}; give 1 or more.")


def _chosen_groups(
    spec: PermutationSpec, include: Sequence[str] | None, exclude: Sequence[str]
) -> tuple[str, ...]:
    include = None if include is None else as_patterns(include)
    exclude = as_patterns(exclude)
    names = list(spec.groups)
    if not names:
        raise nothing_removable(spec, {}, ())
    for word, patterns in (("include", include or ()), ("exclude", exclude)):
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in names):
                shown = ", ".join(names[:8]) + (f", ... ({len(names)})" if len(names) > 8 else "")
                raise PruningError(f"{word} pattern {pattern!r} matches no group. The groups are: {shown}.")
    chosen = tuple(
        name
        for name in names
        if (include is None or any(fnmatchcase(name, pattern) for pattern in include))
        and not any(fnmatchcase(name, pattern) for pattern in exclude)
    )
    if not chosen:
        raise PruningError("every group that include names is excluded; nothing is left to prune.")
    return chosen


def _element_scores(
    model: nn.Module,
    spec: PermutationSpec,
    score: str | Score,
    batches: Sequence[Batch],
    loss: LossFunction,
    example_inputs: Any,
    seed: int,
) -> Mapping[str, Tensor]:
    names = [name for name, entry in spec.tensors.items() if entry.role != "statistic" and entry.used]
    return score_once(
        model, names, score, batches=batches, loss=loss, example_inputs=example_inputs, spec=spec, seed=seed
    )


def _count(size: int, density: float, multiple_of: int) -> int:
    count = max(1, round(density * size))
    if size >= multiple_of:
        count = min(size, ceil(count / multiple_of) * multiple_of)
    return count


def _best(worth: Tensor, density: float, multiple_of: int) -> Tensor:
    return top(worth, _count(len(worth), density, multiple_of)).nonzero().flatten()


def _over_all(
    worth: Mapping[str, Tensor], density: float, multiple_of: int, bundles: Sequence[Sequence[str]]
) -> dict[str, Tensor]:
    """Return the best channels of all groups together, at least one of each, counts rounded up.

    Groups of one size in one bundle get one count, their mean: a module may keep it in one number.
    """
    everything = torch.cat(list(worth.values()))
    chosen = top(everything, round(density * len(everything))).split([len(w) for w in worth.values()])
    counts = {group: float(mask.sum()) for group, mask in zip(worth, chosen, strict=True)}
    for bundle in bundles:
        for size in {len(worth[group]) for group in bundle if group in worth}:
            alike = [group for group in bundle if group in worth and len(worth[group]) == size]
            counts.update(dict.fromkeys(alike, sum(counts[group] for group in alike) / len(alike)))
    kept = {}
    for group, values in worth.items():
        indices = _best(values, counts[group] / len(values), multiple_of)
        if len(indices) < len(values):
            kept[group] = indices
    return kept
