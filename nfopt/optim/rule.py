"""LearnedUpdateRule: the optimizer's pure part, from (params, grads, state, progress) to (updates, state).

Per tensor W (rows x columns x kernel positions), with fast and slow momentum and a second moment as state:

    observe   statistics of rows, columns and tensors              observations.py
    decide    a role-tied network proposes bounded controls         nn/tokens.py, controls.py
    mix       d = live * unit(own + a (adam - own) + b (factored - own))   directions.py
    update    -s * schedule * exp(log step) * row gain * column gain * d - s * schedule * decay * W

where `own` is orthogonalised momentum for matrices and Adam for the rest, and s the nominal step. With
the network's output layers at zero this is the nominal optimizer. No control flow depends on data, so the
rule runs under `torch.func.vmap` over weights of the network, parameters, gradients and state.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce

import torch
from jaxtyping import Float
from torch import Tensor

from nfopt.errors import OptimizerError
from nfopt.nn.tokens import TokenNetwork
from nfopt.optim import directions, guard, observations
from nfopt.optim.controls import CONTROL_NAMES, Controls, bound
from nfopt.optim.directions import MomentumRates
from nfopt.optim.observations import ENTRY_FEATURES, TENSOR_FEATURES, Pooled, pool
from nfopt.optim.schedule import linear_schedule
from nfopt.symmetry import PermutationSpec
from nfopt.weightspace.incidence import Incidence, MatrixLayout, build_incidence

SLOW, FAST, SECOND, STEP, USUAL, SKIPPED, DAMPED = (
    "slow",
    "fast",
    "second",
    "step",
    "usual_log_grad",
    "skipped",
    "damped",
)
TENSOR_STATE = (SLOW, FAST, SECOND)
SCALAR_STATE = (STEP, USUAL, SKIPPED, DAMPED)
MATRIX_ROLES = ("linear", "conv", "recurrent", "other")


@dataclass(frozen=True)
class RuleConfig:
    """Constants of the nominal optimizer and size of the network.

    Attributes:
        matrix_step: nominal RMS change per element of a matrix or kernel, in units of 1 / sqrt(fan-in).
        vector_step: nominal RMS change per element of every other tensor.
        weight_decay: decay of matrices: a nominal step shrinks W by the share matrix_step x weight_decay.
        rates: decay rates of the momenta.
        hidden: hidden width of the network.
        couple: False: tensors do not hear of each other (an ablation).
    """

    matrix_step: float = 0.02
    vector_step: float = 0.003
    weight_decay: float = 0.1
    rates: MomentumRates = field(default_factory=MomentumRates)
    hidden: int = 8
    couple: bool = True


class LearnedUpdateRule:
    """A learned update rule for the tensors of one permutation spec.

    Args:
        spec: the symmetry of the model whose parameters are trained.
        config: constants and network size; a checkpoint belongs to one config.
        names: the trained tensors (default: all of the spec but the statistics).

    Raises:
        PermutationSpecError: the spec has no tensor of one of the names.
    """

    def __init__(
        self, spec: PermutationSpec, config: RuleConfig | None = None, names: tuple[str, ...] | None = None
    ) -> None:
        self.spec = spec
        self.config = config or RuleConfig()
        self.incidence: Incidence = build_incidence(spec, names)
        self.names = self.incidence.names
        self.layouts: dict[str, MatrixLayout] = dict(zip(self.names, self.incidence.layouts, strict=True))
        self.matrices = frozenset(n for n in self.names if _is_matrix(spec, n, self.layouts[n]))
        self.network = TokenNetwork(
            entry_features=len(ENTRY_FEATURES),
            tensor_features=len(TENSOR_FEATURES),
            tensor_outputs=len(CONTROL_NAMES),
            hidden=self.config.hidden,
            couple=self.config.couple,
        )
        self._static = observations.static_features(spec, self.incidence, self.matrices)
        self._units = torch.tensor([self._weight_unit(n) for n in self.names], dtype=torch.float64)

    def init_theta(self, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Draw the network's weights; its output layers are zero: the nominal optimizer."""
        return self.network.init(generator)

    def init_state(self, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the state before the first step, a flat dictionary with keys "<tensor name>/<quantity>"."""
        state: dict[str, Tensor] = {}
        work = common_work_dtype(params[n].dtype for n in self.names)
        for name in self.names:
            for key in TENSOR_STATE:
                state[f"{name}/{key}"] = torch.zeros_like(params[name], dtype=work)
            for key in SCALAR_STATE:
                state[f"{name}/{key}"] = torch.zeros((), dtype=work, device=params[name].device)
        return state

    def __call__(
        self,
        theta: Mapping[str, Tensor],
        params: Mapping[str, Tensor],
        grads: Mapping[str, Tensor],
        state: Mapping[str, Tensor],
        progress: Float[Tensor, ""],
        *,
        step_scale: Float[Tensor, " tensors"] | None = None,
        weight_decay: Sequence[float] | None = None,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Propose one step.

        Args:
            theta: the network's weights, from `init_theta` or a checkpoint.
            params: the parameters, by name.
            grads: their gradients, of the same shapes.
            state: from `init_state` or the previous call.
            progress: share of the training done with this step, in (0, 1].
            step_scale: factor on each tensor's step size; default: the built-in schedule at `progress`.
            weight_decay: one per tensor, in place of the config's; it acts on matrices only.

        Returns:
            Updates to be added to the parameters, and the new state. If any gradient is not finite, the
            updates are zero and the state stays, but for the count of skipped steps.
        """
        raw = [grads[n] for n in self.names]
        work = common_work_dtype(params[n].dtype for n in self.names)
        finite = guard.all_finite(raw)
        safe = [torch.where(finite, g, torch.zeros_like(g)).to(work) for g in raw]
        steps, safe, trust, scalars = self._guard(safe, state, finite)
        slow, fast, second = self._accumulate(safe, state, finite)
        weights = [params[n].to(work) for n in self.names]
        pooled_weight, pooled_slow, pooled_second = (
            [pool(square, layout) for square, layout in zip(squares, self.incidence.layouts, strict=True)]
            for squares in ([w.square() for w in weights], [m.square() for m in slow], second)
        )
        alive = directions.liveness(torch.stack([v.total for v in pooled_second]))
        agreement = [observations.cosine(f, s) for f, s in zip(fast, slow, strict=True)]
        controls = self._decide(
            theta, pooled_weight, pooled_slow, pooled_second, agreement, alive, steps, trust, progress
        )
        moves = self._mix(safe, slow, fast, second, pooled_second, controls, alive, steps)

        scale = linear_schedule(progress).expand(len(self.names)) if step_scale is None else step_scale
        scale = torch.where(finite, scale, torch.zeros_like(scale)).to(work)
        decay = [self.config.weight_decay] * len(self.names) if weight_decay is None else weight_decay
        updates = self._scale(moves, weights, controls, scale, decay)
        new_state: dict[str, Tensor] = {}
        for i, name in enumerate(self.names):
            new_state[f"{name}/{SLOW}"] = slow[i]
            new_state[f"{name}/{FAST}"] = fast[i]
            new_state[f"{name}/{SECOND}"] = second[i]
            for key, values in scalars.items():
                new_state[f"{name}/{key}"] = values[i]
        return {n: u.to(params[n].dtype) for n, u in zip(self.names, updates, strict=True)}, new_state

    def _guard(
        self, grads: list[Tensor], state: Mapping[str, Tensor], finite: Tensor
    ) -> tuple[Tensor, list[Tensor], Tensor, dict[str, Tensor]]:
        """Clip anomalous gradients; return steps, gradients, trust in the learned part, new scalar state."""
        before = {key: torch.stack([state[f"{n}/{key}"] for n in self.names]) for key in SCALAR_STATE}
        current = torch.stack([guard.log_norm(g) for g in grads])
        trust = guard.trust(before[USUAL], current, before[STEP])
        clip = guard.clip_factor(before[USUAL], current, before[STEP])
        clipped = [g * c for g, c in zip(grads, clip.unbind(0), strict=True)]
        done = finite.to(current.dtype)
        usual = guard.update_usual(before[USUAL], current, before[STEP])
        steps = before[STEP] + done
        after = {
            STEP: steps,
            USUAL: torch.where(finite, usual, before[USUAL]),
            SKIPPED: before[SKIPPED] + (1 - done),
            DAMPED: before[DAMPED] + done * (trust < 1).to(current.dtype),
        }
        return steps.clamp(min=1.0), clipped, trust, after

    def _accumulate(
        self, grads: list[Tensor], state: Mapping[str, Tensor], finite: Tensor
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Return the momenta with this step's gradients, unchanged when the step is skipped."""
        rates = self.config.rates
        done = finite.to(grads[0].dtype)

        def averaged(key: str, values: list[Tensor], rate: float) -> list[Tensor]:
            weight = (1 - rate) * done
            return [
                torch.lerp(state[f"{n}/{key}"], v, weight) for n, v in zip(self.names, values, strict=True)
            ]

        slow = averaged(SLOW, grads, rates.slow)
        fast = averaged(FAST, grads, rates.fast)
        return slow, fast, averaged(SECOND, [g.square() for g in grads], rates.second)

    def _decide(
        self,
        theta: Mapping[str, Tensor],
        weight: list[Pooled],
        momentum: list[Pooled],
        second: list[Pooled],
        agreement: list[Tensor],
        alive: Tensor,
        steps: Tensor,
        trust: Tensor,
        progress: Tensor,
    ) -> Controls:
        """Run the network on the observations."""
        self._move_to(steps)
        correction = observations.bias_correction(steps, self.config.rates)
        entries = observations.entry_features(weight, momentum, second, correction, alive)
        tensors = observations.tensor_features(
            weight, momentum, second, agreement, correction, alive, steps, progress, self._units, self._static
        )
        network = {key: value.to(steps.dtype) for key, value in theta.items()}
        outputs, entry_outputs = self.network(network, self.incidence, entries, tensors)
        return bound(outputs, entry_outputs, trust, trust[self.incidence.entry_tensor])

    def _mix(
        self,
        grads: list[Tensor],
        slow: list[Tensor],
        fast: list[Tensor],
        second: list[Tensor],
        pooled_second: list[Pooled],
        controls: Controls,
        alive: Tensor,
        steps: Tensor,
    ) -> list[Tensor]:
        """Return each tensor's direction, at RMS 1 before the gains."""
        momenta = [
            directions.lookahead(g, s, f, share, step, self.config.rates)
            for g, s, f, share, step in zip(
                grads, slow, fast, controls.fast_share.unbind(0), steps.unbind(0), strict=True
            )
        ]
        adam = [directions.adam(m, v) for m, v in zip(momenta, second, strict=True)]
        own = dict(zip(self.names, adam, strict=True))
        chosen = [i for i, name in enumerate(self.names) if name in self.matrices]
        layouts = [self.incidence.layouts[i] for i in chosen]
        for i, direction in zip(
            chosen, directions.orthogonal([momenta[i] for i in chosen], layouts), strict=True
        ):
            own[self.names[i]] = direction
        moves = []
        for i, name in enumerate(self.names):
            a, b = controls.adam_weight[i], controls.factored_weight[i]
            spread = directions.factored(momenta[i], pooled_second[i].rows, pooled_second[i].cols)
            mixed = (1 - a - b) * own[name] + a * adam[i] + b * spread
            moves.append(alive[i] * directions.unit_rms(mixed))
        return moves

    def _scale(
        self,
        moves: list[Tensor],
        weights: list[Tensor],
        controls: Controls,
        scale: Tensor,
        decay: Sequence[float],
    ) -> list[Tensor]:
        """Return the updates: directions with step sizes and gains, and the decoupled weight decay."""
        updates = []
        for i, name in enumerate(self.names):
            layout = self.layouts[name]
            row_gain, col_gain = self._gains(name, layout, controls.gain)
            size = scale[i] * self._nominal_step(name) * torch.exp(controls.log_step[i])
            update = -size * row_gain * moves[i]
            if col_gain is not None:
                update = update * col_gain
            if name in self.matrices and decay[i]:
                shrink = scale[i] * self.config.matrix_step * decay[i] * torch.exp(controls.log_decay[i])
                update = update - shrink * weights[i]
            updates.append(update)
        return updates

    def _gains(self, name: str, layout: MatrixLayout, gain: Tensor) -> tuple[Tensor, Tensor | None]:
        rows = gain[self.incidence.slices[name, "out"]]
        rows = rows.reshape([n if d in layout.out_dims else 1 for d, n in enumerate(layout.shape)])
        if not layout.in_dims:
            return rows, None
        cols = gain[self.incidence.slices[name, "in"]]
        return rows, cols.reshape([n if d in layout.in_dims else 1 for d, n in enumerate(layout.shape)])

    def _nominal_step(self, name: str) -> float:
        if self._has_fan_in(name):
            return self.config.matrix_step * self._weight_unit(name)
        return self.config.vector_step

    def _weight_unit(self, name: str) -> float:
        layout = self.layouts[name]
        return (layout.in_size * layout.rest_size) ** -0.5 if self._has_fan_in(name) else 1.0

    def _has_fan_in(self, name: str) -> bool:
        """Whether the tensor sums over inputs: matrices, and kernels of depthwise convolutions."""
        role = self.spec.tensors[self.spec.aliases.get(name, name)].role
        return name in self.matrices or (role == "conv" and self.layouts[name].rest_size > 1)

    def _move_to(self, like: Tensor) -> None:
        if self._static.device != like.device or self._static.dtype != like.dtype:
            self._static = self._static.to(like.device, like.dtype)
            self._units = self._units.to(like.device, like.dtype)
            self.incidence = self.incidence.to(like.device)


def work_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of state and arithmetic for a parameter's dtype: at least float32.

    Raises:
        OptimizerError: the dtype is complex or not floating.
    """
    if not dtype.is_floating_point:
        raise OptimizerError(
            f"parameters of dtype {dtype} cannot be optimised by nfopt; train real floating-point parameters "
            "(view complex ones with torch.view_as_real in the model)."
        )
    return torch.float32 if dtype.itemsize < 4 else dtype


def common_work_dtype(dtypes: Iterable[torch.dtype]) -> torch.dtype:
    """Return the one dtype of state and arithmetic for parameters of several dtypes."""
    return reduce(torch.promote_types, (work_dtype(dtype) for dtype in dtypes))


def _is_matrix(spec: PermutationSpec, name: str, layout: MatrixLayout) -> bool:
    role = spec.tensors[spec.aliases.get(name, name)].role
    return role in MATRIX_ROLES and bool(layout.in_dims) and layout.out_size > 1 and layout.in_size > 1
