"""LearnedUpdateRule: the optimizer's pure part, from (params, grads, state, progress) to (updates, state).

Per tensor W (rows x columns x kernel positions), with a fast and a slow momentum as state, and a second
moment unless it is a matrix:

    observe   statistics of rows, columns and tensors              observations.py
    decide    a role-tied network proposes bounded controls         nn/tokens.py, controls.py
    direct    d = orthogonalised mixed momentum for matrices, Adam with it for the rest   directions.py
    update    -s * schedule * live * exp(log step) * row gain * column gain * d
              -s * schedule * decay * exp(log decay) * eased * W

with s the nominal step, `live` near 0 where the gradient has gone, and `eased` from 0.3, early on, to 1. With
the network's output layers at zero this is the nominal optimizer. No control flow depends on data, and all of
theta, params, grads and state may have the same leading dimensions, in which copies run side by side.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from nfopt.nn.tokens import TokenNetwork
from nfopt.optim import directions, observations
from nfopt.optim.controls import CONTROL_NAMES, Controls, controls_of
from nfopt.optim.decisions import DECISIONS, Decisions, Packing
from nfopt.optim.directions import MomentumRates, decay_factor
from nfopt.optim.dtypes import common_work_dtype, row_of
from nfopt.optim.elementwise import Fold, fold
from nfopt.optim.holding import Holding, Whole
from nfopt.optim.moments import MOMENTA, STEP, initial_state, weigh
from nfopt.optim.observations import ENTRY_FEATURES, TENSOR_FEATURES, Observed
from nfopt.optim.plan import Plan
from nfopt.optim.schedule import built_in_schedule
from nfopt.optim.strips import strips_of
from nfopt.symmetry import PermutationSpec
from nfopt.weightspace.incidence import Incidence, MatrixLayout, build_incidence

MATRIX_ROLES = ("linear", "conv", "recurrent", "other")


@dataclass(frozen=True)
class RuleConfig:
    """Constants of the nominal optimizer and size of the network.

    Attributes:
        matrix_step: nominal RMS change per element of a matrix, in units of 1 / sqrt(fan-in).
        kernel_step: the same of a convolution's kernel.
        vector_step: nominal RMS change per element of every other tensor.
        weight_decay: decay of matrices: a nominal step shrinks W by the share matrix_step x weight_decay x
            `decay_factor`.
        rates: decay rates of the momenta.
        cadence: steps from one decision of the network to the next; between them it holds.
        hidden: hidden width of the network.
        couple: False: tensors do not hear of each other (an ablation).
    """

    matrix_step: float = 0.025
    kernel_step: float = 0.06
    vector_step: float = 0.01
    weight_decay: float = 0.1
    rates: MomentumRates = field(default_factory=MomentumRates)
    cadence: int = 10
    hidden: int = 4
    couple: bool = True


@dataclass(frozen=True)
class Proposal:
    """One step of the rule.

    Attributes:
        updates: to be added to the parameters.
        state: the new state.
        controls: what was done.
    """

    updates: dict[str, Tensor]
    state: dict[str, Tensor]
    controls: Controls


class LearnedUpdateRule:
    """A learned update rule for the tensors of one permutation spec.

    Args:
        spec: the symmetry of the model whose parameters are trained.
        config: constants and network size; a checkpoint belongs to one config.
        names: the trained tensors (default: all of the spec but the statistics).
        products: dtype of the matrix products that orthogonalise; None: that of the arithmetic.
        fold: what takes the gradients of larger tensors into their momenta.

    Raises:
        PermutationSpecError: the spec has no tensor of one of the names.
    """

    def __init__(
        self,
        spec: PermutationSpec,
        config: RuleConfig | None = None,
        names: tuple[str, ...] | None = None,
        products: torch.dtype | None = None,
        fold: Fold = fold,
    ) -> None:
        self.spec = spec
        self._fold = fold
        self.config = config or RuleConfig()
        self.incidence: Incidence = build_incidence(spec, names)
        self.names = self.incidence.names
        self.layouts: dict[str, MatrixLayout] = dict(zip(self.names, self.incidence.layouts, strict=True))
        self.matrices = frozenset(n for n in self.names if _is_matrix(spec, n, self.layouts[n]))
        self.scaled = frozenset(self.names) - self.matrices
        self.network = TokenNetwork(
            entry_features=len(ENTRY_FEATURES),
            tensor_features=len(TENSOR_FEATURES),
            tensor_outputs=len(CONTROL_NAMES),
            hidden=self.config.hidden,
            couple=self.config.couple,
        )
        self.packing = Packing.of(self.incidence)
        self._static = observations.static_features(spec, self.incidence, self.matrices)
        self._units = torch.tensor([self._weight_unit(n) for n in self.names], dtype=torch.float64)
        self._steps = torch.tensor([self._nominal_step(n) for n in self.names], dtype=torch.float64)
        self.matrix_positions = tuple(i for i, n in enumerate(self.names) if n in self.matrices)
        others = [i for i, n in enumerate(self.names) if n in self.scaled]
        strips = strips_of(self.incidence, others)
        self._whole = Whole(self.incidence.layouts, self.matrix_positions, strips, products)
        self._is_matrix = torch.tensor([float(n in self.matrices) for n in self.names], dtype=torch.float64)
        self._decay: tuple[tuple[float, ...] | None, Tensor] = (), self._units

    def init_theta(self, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Draw the network's weights; its output layers are zero: the nominal optimizer."""
        return self.network.init(generator)

    def init_state(self, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the state before the first step, a flat dictionary with keys "<tensor name>/<quantity>"."""
        work = common_work_dtype(params[n].dtype for n in self.names)
        state = {
            f"{name}/{key}": value
            for name in self.names
            for key, value in initial_state(params[name], work, second=name in self.scaled).items()
        }
        sizes = zip(self.names, self.packing.sizes, strict=True)
        return state | {f"{n}/{DECISIONS}": state[f"{n}/{STEP}"].new_zeros(size) for n, size in sizes}

    def __call__(
        self,
        theta: Mapping[str, Tensor],
        params: Mapping[str, Tensor],
        grads: Mapping[str, Tensor],
        state: Mapping[str, Tensor],
        progress: Float[Tensor, ""],
        step: int = 1,
        **options: Any,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the updates and the state of `propose`, which takes the same arguments.

        In place of `decide` comes the number of the step, counted from 1: the network decides in the first
        step and in every `cadence`-th after it.
        """
        decide = (step - 1) % self.config.cadence == 0
        proposal = self.propose(theta, params, grads, state, progress, decide=decide, **options)
        return proposal.updates, proposal.state

    def propose(
        self,
        theta: Mapping[str, Tensor],
        params: Mapping[str, Tensor],
        grads: Mapping[str, Tensor],
        state: Mapping[str, Tensor],
        progress: Float[Tensor, ""],
        **options: Any,
    ) -> Proposal:
        """Return `plan`, carried out: it takes the same arguments."""
        plan = self.plan(theta, params, grads, state, progress, **options)
        updates: dict[str, Tensor] = {}
        after = {**state, **plan.state}
        for part in plan.parts(params, grads, state):
            updates |= part.updates
            after |= part.state
        return Proposal({name: updates[name] for name in self.names}, after, plan.controls)

    def plan(
        self,
        theta: Mapping[str, Tensor],
        params: Mapping[str, Tensor],
        grads: Mapping[str, Tensor],
        state: Mapping[str, Tensor],
        progress: Float[Tensor, ""],
        *,
        step_scale: Float[Tensor, " tensors"] | None = None,
        weight_decay: Sequence[float] | None = None,
        ease_decay: bool = True,
        decide: bool = True,
        holding: Holding | None = None,
    ) -> Plan:
        """Decide one step.

        All of theta, params, grads and state may have the same leading dimensions: one copy each.

        Args:
            theta: the network's weights, from `init_theta` or a checkpoint.
            params: the parameters, by name.
            grads: their gradients, of the same shapes.
            state: from `init_state` or the previous step.
            progress: share of the training done with this step, in (0, 1].
            step_scale: factor on each tensor's step size; default: the built-in schedule at `progress`.
            weight_decay: one per tensor, in place of the config's; it acts on matrices only.
            ease_decay: take `decay_factor` of it. Where step sizes never fall, all of it is needed.
            decide: ask the network; otherwise the last decisions, which the state holds, go on.
            holding: what this process has of the tensors; default: all of them.

        If any gradient is not finite, the updates are zero and the state stays, but for the count of skipped
        steps.
        """
        work = common_work_dtype(params[n].dtype for n in self.names)
        self._move_to(params[self.names[0]].device, work)
        holding = self._whole if holding is None else holding
        gradients = [grads[n] for n in self.names]
        measured = None
        if decide:
            weights = [params[n] for n in self.names]
            slow, fast = ([state[f"{n}/{key}"] for n in self.names] for key in MOMENTA)
            measured = holding.measure(weights, gradients, slow, fast, work)
        squares = holding.squares(gradients, work) if measured is None else measured.squares
        numbers = weigh(squares, state, self.names, self.config.rates)
        alive = directions.liveness(numbers.power, numbers.peak)
        decisions, kept = self.packing.read(state), {}
        if measured is not None:
            seen = Observed(measured.pools(numbers), alive, numbers, progress[..., None])
            decisions = self._decide(theta, seen).where(numbers.finite, decisions)
            kept = self.packing.write(decisions)
        trust = numbers.trust
        entry_trust = trust.index_select(-1, self.incidence.entry_tensor)
        controls = controls_of(decisions.tensors, decisions.entries, trust, entry_trust)

        scale = built_in_schedule(progress[..., None], numbers.step) if step_scale is None else step_scale
        scale = scale.to(work) * numbers.finite[..., None]
        decay = self._decay_for(weight_decay) * (decay_factor(alive, numbers.step) if ease_decay else 1)
        return Plan(
            incidence=self.incidence,
            matrices=frozenset(self.matrix_positions),
            numbers=numbers,
            controls=controls,
            sizes=scale * alive * self._steps * torch.exp(controls.log_step),
            shrink=scale * decay * torch.exp(controls.log_decay),
            decisions=kept,
            holding=holding,
            fold=self._fold,
        )

    def _decide(self, theta: Mapping[str, Tensor], seen: Observed) -> Decisions:
        """Run the network on the observations."""
        entries, tensors = observations.features(
            seen, self.incidence, self.config.rates, self._units, self._static
        )
        network = {key: value.to(entries.dtype) for key, value in theta.items()}
        outputs, entry_outputs = self.network(network, self.incidence, entries, tensors)
        return Decisions(torch.tanh(outputs), torch.tanh(entry_outputs))

    def _decay_for(self, weight_decay: Sequence[float] | None) -> Float[Tensor, " tensors"]:
        """Return the nominal decay of every tensor, 0 but for matrices; kept until other values come."""
        values = None if weight_decay is None else tuple(weight_decay)
        if values != self._decay[0]:
            given = [self.config.weight_decay] * len(self.names) if values is None else values
            units = self._is_matrix * self.config.matrix_step
            self._decay = values, units * row_of(given, units)
        return self._decay[1]

    def _nominal_step(self, name: str) -> float:
        if not self._has_fan_in(name):
            return self.config.vector_step
        step = self.config.kernel_step if self._role(name) == "conv" else self.config.matrix_step
        return step * self._weight_unit(name)

    def _weight_unit(self, name: str) -> float:
        layout = self.layouts[name]
        return (layout.in_size * layout.rest_size) ** -0.5 if self._has_fan_in(name) else 1.0

    def _has_fan_in(self, name: str) -> bool:
        """Whether the tensor sums over inputs: matrices, and kernels of depthwise convolutions."""
        return name in self.matrices or (self._role(name) == "conv" and self.layouts[name].rest_size > 1)

    def _role(self, name: str) -> str:
        return self.spec.tensors[self.spec.aliases.get(name, name)].role

    def _move_to(self, device: torch.device, dtype: torch.dtype) -> None:
        """Bring the constants to where the parameters are."""
        if self._static.device != device or self._static.dtype != dtype:
            self._static, self._units, self._steps, self._is_matrix = (
                constant.to(device, dtype)
                for constant in (self._static, self._units, self._steps, self._is_matrix)
            )
            self._decay = (), self._units
            self.incidence = self.incidence.to(device)
            self.packing = self.packing.to(device)
            self._whole = self._whole.to(device)


def _is_matrix(spec: PermutationSpec, name: str, layout: MatrixLayout) -> bool:
    role = spec.tensors[spec.aliases.get(name, name)].role
    return role in MATRIX_ROLES and bool(layout.in_dims) and layout.out_size > 1 and layout.in_size > 1
