"""Proof of a permutation spec: permute at random, compute in float64, compare; with negative controls."""

from typing import Any

import torch
from torch import Tensor, nn

from nfopt.errors import PermutationSpecError
from nfopt.symmetry.float64 import RandomisedModule
from nfopt.symmetry.report import NegativeControl, Place, VerificationReport
from nfopt.symmetry.skeleton import copy_module, plain_conditions, unwrap
from nfopt.symmetry.spec import Permutation, PermutationSpec, permuted_order

GAINS = (1.0, 0.5, 0.2)


def verify(
    module: nn.Module,
    spec: PermutationSpec,
    example_inputs: Any,
    *,
    seed: int = 0,
    trials: int = 2,
    controls: int | None = 8,
    tolerance: float = 1e-9,
) -> VerificationReport:
    """Prove by computing that a spec is a symmetry of a module.

    A float64 copy in eval mode gets random parameters and statistics, so that no zero-initialised scale
    hides a fault. Each trial permutes every group at random at once and compares outputs. Each negative
    control permutes one group but leaves out one occurrence, or all occurrences before some depth.

    Args:
        module: the module; not changed.
        spec: its spec.
        example_inputs: as for `trace_permutation_spec`. Floating inputs that are constant are drawn anew.
        seed: seed of everything random here.
        trials: number of random permutations, at least 1.
        controls: number of negative controls, drawn evenly over the groups; None for every one there is.
        tolerance: largest max |dy| / std(y) that passes.

    Raises:
        PermutationSpecError: the spec does not fit the module; the first difference is named.
    """
    if trials < 1:
        raise PermutationSpecError(f"verification needs at least one trial, not {trials}.")
    _check_fit(module, spec)
    with plain_conditions():
        return _verify(module, spec, example_inputs, seed, trials, controls, tolerance)


def _verify(
    module: nn.Module,
    spec: PermutationSpec,
    example_inputs: Any,
    seed: int,
    trials: int,
    controls: int | None,
    tolerance: float,
) -> VerificationReport:
    generator = torch.Generator().manual_seed(seed)
    proof = _Proof(module, spec, example_inputs, generator, trials, tolerance)
    guilty: list[tuple[str, float]] = []
    notes = list(proof.faults)
    done: tuple[NegativeControl, ...] = ()
    model = proof.model
    if not proof.faults:
        if not proof.passed:
            alone = {name: proof.error({name: _shift(atom.size)}) for name, atom in spec.groups.items()}
            guilty = sorted(
                ((n, e) for n, e in alone.items() if not e <= tolerance), key=lambda pair: -pair[1]
            )
            if not guilty:
                notes.append("no group fails alone: groups are at fault only together")
        done = tuple(
            NegativeControl(group, skipped, _difference(proof.reference, model.run(changed)))
            for group, skipped in _plan_controls(spec, controls, generator)
            for changed in [_act_except(spec, model, group, skipped)]
        )
    if model.promoted:
        notes.append("the module casts to less than float64 inside; the proof ran those parts in float64")
    if spec.unruled:
        notes.append(f"{len(spec.unruled)} operations without a rule fixed the axes they touch")
    return VerificationReport(
        model.description, len(spec.groups), tolerance, proof.errors, done, tuple(guilty), tuple(notes)
    )


class _Proof:
    """The trials on one draw of weights, drawn smaller where large ones blow rounding errors up."""

    def __init__(
        self,
        module: nn.Module,
        spec: PermutationSpec,
        example_inputs: Any,
        generator: torch.Generator,
        trials: int,
        tolerance: float,
    ) -> None:
        self.spec = spec
        self.tolerance = tolerance
        for gain in GAINS:
            self.model = RandomisedModule(module, spec, example_inputs, generator, gain)
            self.reference = self.model.run()
            self.faults = _output_faults(self.reference)
            self.errors = (float("nan"),)
            if self.faults:
                continue
            self.errors = tuple(self.error(spec.sample(generator)) for _ in range(trials))
            if self.passed or _difference(self.reference, self.model.rounding(generator)) < tolerance / 100:
                return

    @property
    def passed(self) -> bool:
        return all(error <= self.tolerance for error in self.errors)

    def error(self, permutation: Permutation) -> float:
        """Return the change of the output under one permutation."""
        return _difference(self.reference, self.model.run(self.spec.act(permutation, self.model.base)))


def _check_fit(module: nn.Module, spec: PermutationSpec) -> None:
    skeleton = copy_module(
        module, lambda _, tensor: torch.empty(tuple(tensor.shape), device="meta", dtype=tensor.dtype)
    )
    kind = type(unwrap(module)).__name__
    for name, tensor in skeleton.tensors.items():
        if name not in spec.tensors:
            raise PermutationSpecError(
                f"{kind} has the tensor {name!r}, which the spec does not know. Trace this model again."
            )
        if spec.tensors[name].shape != tuple(tensor.shape):
            raise PermutationSpecError(
                f"{name} has shape {tuple(tensor.shape)} in {kind}, but {spec.tensors[name].shape} in the "
                "spec. Trace this model again."
            )
    for name in spec.tensors:
        if name not in skeleton.tensors:
            raise PermutationSpecError(
                f"the spec has the tensor {name!r}, which {kind} does not. Trace this model again."
            )


def _output_faults(outputs: list[Tensor]) -> list[str]:
    if not outputs:
        return ["the outputs prove nothing: there is no tensor among them"]
    if any(bool(output.isnan().any()) for output in outputs):
        return ["the outputs prove nothing: some are not a number with random weights"]
    if all(_scale(_finite(output)) == 0 for output in outputs):
        return ["the outputs prove nothing: they are constant, or infinite, with random weights"]
    return []


def _finite(output: Tensor) -> Tensor:
    """Return the finite elements in double precision."""
    wide = output if output.is_complex() else output.double()
    return wide[wide.isfinite()]


def _scale(elements: Tensor) -> float:
    """Return the standard deviation, or the magnitude of a single element."""
    return float(elements.abs().sum() if elements.numel() < 2 else elements.std())


def _difference(reference: list[Tensor], outputs: list[Tensor]) -> float:
    """Return max |dy| / std(y), the worst over the outputs; infinite when shapes or infinities differ."""
    worst = 0.0
    for before, after in zip(reference, outputs, strict=True):
        if before.shape != after.shape or not torch.equal(_infinities(before), _infinities(after)):
            return float("inf")
        elements = _finite(before)
        if elements.numel() == 0:
            continue
        gap, scale = float((elements - _finite(after)).abs().max()), _scale(elements)
        worst = max(worst, gap / scale if scale > 0 else (0.0 if gap == 0 else float("inf")))
    return worst


def _infinities(output: Tensor) -> Tensor:
    """Return 1 and -1 where an output is infinite, 2 where it is not a number, else 0."""
    if not output.is_floating_point():
        return output.isfinite().logical_not().to(torch.int8)
    return output.isinf() * output.sign().nan_to_num() + 2 * output.isnan()


def _shift(size: int) -> Tensor:
    """Return the cyclic shift by one: it leaves no index in its place."""
    return torch.arange(size).roll(1)


def _act_except(
    spec: PermutationSpec, model: RandomisedModule, group: str, skipped: tuple[Place, ...]
) -> dict[str, Tensor]:
    permutation = {group: _shift(spec.groups[group].size)}
    changed: dict[str, Tensor] = {}
    for name, dim in dict.fromkeys(spec.occurrences[group]):
        if (name, dim) in skipped:
            continue
        order = permuted_order(spec.tensors[name].axes[dim], permutation)
        assert order is not None
        changed[name] = changed.get(name, model.base[name]).index_select(dim, order)
    return changed


def _plan_controls(
    spec: PermutationSpec, count: int | None, generator: torch.Generator
) -> list[tuple[str, tuple[Place, ...]]]:
    """Choose what to leave out: single occurrences, and everything before a cut along the depth."""
    plans: dict[str, list[tuple[Place, ...]]] = {}
    for group in spec.groups:
        places = [place for place in dict.fromkeys(spec.occurrences[group]) if spec.tensors[place[0]].used]
        places.sort(
            key=lambda place: (spec.tensors[place[0]].depth, spec.tensors[place[0]].dims[place[1]] != "in")
        )
        if len(places) < 2:
            continue
        singles = [(place,) for place in places]
        cuts = [tuple(places[:end]) for end in range(2, len(places) - 1)]
        plans[group] = singles + cuts
    everything = [(group, skipped) for group, options in plans.items() for skipped in options]
    if count is None or len(everything) <= count:
        return everything
    chosen: list[tuple[str, tuple[Place, ...]]] = []
    names = list(plans)
    turns = torch.randperm(len(names), generator=generator).tolist()
    for turn in range(count):
        group = names[turns[turn % len(names)]]
        options = plans[group]
        pick = int(torch.randint(len(options), (1,), generator=generator))
        chosen.append((group, options[pick]))
    return list(dict.fromkeys(chosen))
