"""NFOptimizer: the learned update rule as a torch.optim.Optimizer, to put in the place of AdamW."""

import warnings
from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn

from nfopt.checkpoints import Checkpoint, digest_of
from nfopt.errors import OptimizerError
from nfopt.optim import kept_state
from nfopt.optim.dtypes import row_of, work_dtype
from nfopt.optim.elementwise import fold, fused_fold
from nfopt.optim.guard_report import GuardReport, read_report
from nfopt.optim.moments import SKIPPED, STEP
from nfopt.optim.parameters import check_range, flat_partition_error, named_parameter
from nfopt.optim.restore import RULE_DIGEST, STEPS_TAKEN, check_saved_state
from nfopt.optim.rounding import Rounding, check_half
from nfopt.optim.rule import LearnedUpdateRule
from nfopt.optim.rule_checkpoint import NOMINAL, read_rule
from nfopt.optim.schedule import Schedule
from nfopt.optim.sharded_tensors import Distribution, local_gradient
from nfopt.optim.spec_source import NfoptWarning, SpecSource
from nfopt.symmetry import PermutationSpec
from nfopt.symmetry.skeleton import unwrap

READ_GUARD_EVERY = 100
MOST_RULES = 16  # sets of tensors with a gradient whose rules are kept at hand


class NFOptimizer(torch.optim.Optimizer):
    """A learned optimizer that sees which neurons belong together; there is no learning rate to tune.

    Args:
        params: the model to train; or named parameters, parameters or parameter groups as for any torch
            optimizer. From a model, or with `model`, the rule learns which axes of which tensors are permuted
            together; without, every tensor is on its own, and a warning says so.
        total_steps: optimizer steps of the whole training; drives the built-in schedule. None: constant
            step size, for an outside scheduler.
        lr: factor on the learned step sizes. 1 is what the rule was trained for.
        weight_decay: decoupled decay of matrices in units of the nominal step: W <- (1 - 0.025 lr s f wd) W
            with s the schedule and f from 0.3 to 1, see `directions.decay_factor`, or 1 with no end given;
            None: the checkpoint's (0.1).
        checkpoint: "default", "nominal" (the network's output at zero), or a file written by meta-training.
        model: the model that `params` come from, when `params` is not the model itself.
        example_inputs: inputs of the model, to derive its symmetry at once; otherwise the first forward pass
            shows their shapes.
        share_work: whether the processes of the default group, which all train the same plain model
            (DistributedDataParallel), orthogonalise each matrix on one of them only; all must take every
            step together. Parameters sharded by `fully_shard` share the work in any case.
        state_dtype: torch.bfloat16 keeps the momenta in half the memory, rounded at random; None: float32.
        matmul_dtype: torch.bfloat16 orthogonalises with bfloat16 products, as Muon does; None: float32, with
            which the rule was trained.
        fused: whether a Triton kernel does the element-wise part of larger tensors; for GPUs.

    All state is tensors in `state`, so that checkpoints of any host resume bit-exactly. A step with a
    gradient that is not finite is skipped and warned about; gradients far above their usual size are clipped
    and turn the step of their tensor towards the nominal optimizer. `guard_report()` counts both.

    Raises:
        OptimizerError: no parameters, none that the model has, an unusable dtype, `total_steps`, `lr` or
            `weight_decay` out of range.
        CheckpointError: the checkpoint is damaged or of another version.
        TraceError: the model cannot be traced with `example_inputs`.
    """

    def __init__(
        self,
        params: nn.Module | Iterable[Any],
        total_steps: int | None,
        *,
        lr: float = 1.0,
        weight_decay: float | None = None,
        checkpoint: str | Checkpoint = "default",
        model: nn.Module | None = None,
        example_inputs: Any = None,
        share_work: bool = False,
        state_dtype: torch.dtype | None = None,
        matmul_dtype: torch.dtype | None = None,
        fused: bool = False,
    ) -> None:
        check_range("lr", lr)
        check_half("state_dtype", state_dtype)
        check_half("matmul_dtype", matmul_dtype)
        if weight_decay is not None:
            check_range("weight_decay", weight_decay)
        self.schedule = Schedule(total_steps)
        self._config, self._theta, self._checkpoint_name = read_rule(checkpoint)
        self._learned = bool(self._theta)
        if isinstance(params, nn.Module):
            model = params if model is None else model
            params = list(unwrap(params).named_parameters())
        self._source = SpecSource(model, example_inputs)
        self._rules: dict[tuple[str, ...], LearnedUpdateRule] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._warned_past_end = False
        self._share_work = share_work
        self._state_dtype = state_dtype
        self._matmul_dtype = matmul_dtype
        self._fold = fused_fold() if fused else fold
        self._skips_seen = 0
        self._pending_skips: Tensor | None = None
        decay = self._config.weight_decay if weight_decay is None else weight_decay
        defaults = {
            "lr": lr,
            "weight_decay": decay,
            STEPS_TAKEN: 0,
            RULE_DIGEST: digest_of(self._theta) if self._theta else NOMINAL,
        }
        try:
            super().__init__(params, defaults)
        except (ValueError, TypeError) as error:
            raise OptimizerError(f"NFOptimizer cannot use these parameters: {error}") from error
        names = self._source.names()
        if names is not None and not any(id(p) in names for g in self.param_groups for p in g["params"]):
            raise OptimizerError(
                "none of the parameters are in the model. They are those of a copy of it, or flat partitions "
                "(ZeRO, FSDP1), in which rows and columns are gone; use FSDP2 (fully_shard) or DDP."
            )

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy needs to go on like the original.

        As for any torch optimizer, hooks stay behind, and so does the `step` that a learning-rate scheduler
        has put in place of ours, which would move the original.
        """
        kept = {k: v for k, v in self.__dict__.items() if k != "step" and not k.endswith("_hooks")}
        return {**kept, "_rules": {}}

    @property
    def spec(self) -> PermutationSpec:
        """The permutation spec of the trained tensors; the model is traced now if it was not before."""
        return self._source.spec(self._shapes)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, as for any torch optimizer; its tensors join at the current progress.

        Raises:
            OptimizerError: a parameter is complex, not floating, or a name occurs twice; parameters come as a
                set, which has no order; lr or weight decay is out of range.
        """
        params = param_group["params"]
        if isinstance(params, set | frozenset):
            raise OptimizerError("parameters come in an order, for their state to be saved; give a list.")
        for key in ("lr", "weight_decay"):
            if key in param_group:
                check_range(key, param_group[key])
        entries = [params] if isinstance(params, Tensor) else list(params)
        start = len(self._shapes)
        names = self._source.names() or {}
        named = [named_parameter(entry, names, start + i) for i, entry in enumerate(entries)]
        shapes: dict[str, tuple[int, ...]] = {}
        for name, param in named:
            work_dtype(param.dtype)
            if name in self._shapes or name in shapes:
                raise OptimizerError(f"the parameter name {name!r} occurs twice; give each its own.")
            shapes[name] = tuple(param.shape)
        super().add_param_group({**param_group, "params": named})
        self._shapes.update(shapes)
        self.param_groups[-1][STEPS_TAKEN] = self.param_groups[0][STEPS_TAKEN]

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Take one step with the gradients that are there; parameters without a gradient stay as they are.

        Args:
            closure: computes and returns the loss, as for any torch optimizer.

        Returns:
            The closure's loss, or None.

        Raises:
            OptimizerError: a parameter has another shape than when it was given (ZeRO's flat partitions), or
                the parameters lie on several devices, or a group's lr or weight decay is not finite.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        distribution = Distribution.of(self._all_params(), self._share_work)
        active = self._active(distribution)
        if not active:
            return loss
        params = {name: param for name, (param, _) in active.items()}
        tables = self._source.tables() if len(self.state) < len(active) else frozenset()
        kept_state.fill(self.state, params, tables, self._state_dtype)
        taken = self.param_groups[0][STEPS_TAKEN]
        inert = self._is_inert()
        if inert and not self._source.is_traced:
            return loss
        rule = self._rule(tuple(active))
        kept_state.complete(self.state, params, rule, self._state_dtype)
        if inert:
            return loss
        grads = {n: local_gradient(p) for n, p in params.items()}
        here = distribution.local(params)
        self._say_when_past_end(taken)
        like = self.state[next(iter(params.values()))][STEP]
        factor = self.schedule.factor(taken)
        scale = row_of([factor * lr for lr in self._option("lr", active)], like)
        state = {f"{n}/{k}": value for n, p in params.items() for k, value in self.state[p].items()}
        state = distribution.local(state)
        plan = rule.plan(
            self._theta_for(rule, like),
            here,
            grads,
            state,
            like.new_full((), self.schedule.progress(taken)),
            step_scale=scale,
            weight_decay=self._option("weight_decay", active),
            ease_decay=self.schedule.total_steps is not None,
            decide=self._learned and taken % rule.config.cadence == 0,
            holding=distribution.holding(
                rule.incidence.layouts,
                list(params.values()),
                rule.config.rates,
                rule.matrix_positions,
                self._matmul_dtype,
            ),
        )
        rounding = Rounding(self._state_dtype, taken + 1)
        for part in plan.parts(here, grads, state):
            torch._foreach_add_(  # pyright: ignore[reportPrivateImportUsage]
                [here[name] for name in part.updates], list(part.updates.values())
            )
            kept_state.keep_momenta(self.state, params, part, rounding)
            for key in part.state:
                del state[key]  # with it goes the old tensor's memory
        kept_state.keep_numbers(self.state, params, plan, taken + 1)
        for group in self.param_groups:
            group[STEPS_TAKEN] = taken + 1
        self._say_when_skipped(taken, grads)
        return loss

    def guard_report(self) -> GuardReport:
        """Return what the guard did so far; this waits for the device, which `step` never does for it."""
        named = [
            (name, self.state[param])
            for group in self.param_groups
            for name, param in zip(group["param_names"], group["params"], strict=True)
            if self.state.get(param)
        ]
        return read_report(named, self.param_groups[0][STEPS_TAKEN])

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state; a state that is refused changes nothing.

        Unlike torch's default, state keeps its own dtype when parameters are half precision, and parameters
        keep the names that they have here.

        Raises:
            OptimizerError: the state belongs to another checkpoint of the rule, or to other parameters.
        """
        if not isinstance(state_dict, dict):
            raise OptimizerError(f"an optimizer state is a dictionary, not a {type(state_dict).__name__}.")
        names = [group["param_names"] for group in self.param_groups]
        saved: dict[str, Any] = {}

        def check(_: torch.optim.Optimizer, given: dict[str, Any]) -> None:
            check_saved_state(given, self.param_groups, self._checkpoint_name)
            saved.update(given)

        def restore(_: torch.optim.Optimizer) -> None:
            ids = chain.from_iterable(group["params"] for group in saved["param_groups"])
            params = chain.from_iterable(group["params"] for group in self.param_groups)
            for key, param in zip(ids, params, strict=True):
                for name, value in saved["state"].get(key, {}).items():
                    self.state[param][name] = value.detach().to(device=param.device, copy=True)
            for group, own in zip(self.param_groups, names, strict=True):
                group["param_names"] = own
            self._skips_seen, self._pending_skips = self.guard_report().skipped, None

        # After the user's hooks that may rewrite the state, and before those that read the outcome.
        handles = (
            self.register_load_state_dict_pre_hook(check),
            self.register_load_state_dict_post_hook(restore, prepend=True),
        )
        try:
            super().load_state_dict(state_dict)
        finally:
            for handle in handles:
                handle.remove()

    def _all_params(self) -> list[Tensor]:
        return [param for group in self.param_groups for param in group["params"]]

    def _active(self, distribution: Distribution) -> dict[str, tuple[Tensor, dict[str, Any]]]:
        """Parameters that have a gradient, on any rank, with their groups, by name."""
        everything = self._all_params()
        has_gradient = iter(distribution.with_gradient(everything) if everything else [])
        active: dict[str, tuple[Tensor, dict[str, Any]]] = {}
        for group in self.param_groups:
            if len(group["param_names"]) != len(group["params"]):
                raise flat_partition_error(f"{len(group['params'])} tensors", f"{len(group['param_names'])}")
            for name, param in zip(group["param_names"], group["params"], strict=True):
                if not next(has_gradient) or param.numel() == 0:
                    continue
                if tuple(param.shape) != self._shapes[name]:
                    raise flat_partition_error(
                        f"{name} of shape {tuple(param.shape)}", f"{self._shapes[name]}"
                    )
                active[name] = (param, group)
        devices = {param.device for param, _ in active.values()}
        if len(devices) > 1:
            raise OptimizerError(
                f"the parameters lie on several devices ({', '.join(map(str, devices))}); "
                "use one NFOptimizer for the parameters of each device."
            )
        return active

    def _option(self, key: str, active: Mapping[str, tuple[Tensor, dict[str, Any]]]) -> list[float]:
        """Return an option of the groups for each active parameter; groups may have been edited since."""
        values = {id(group): float(group[key]) for group in self.param_groups}
        for value in values.values():
            if not isfinite(value):
                raise OptimizerError(f"{key} of a parameter group is {value}; nothing was changed.")
        return [values[id(group)] for _, group in active.values()]

    def _is_inert(self) -> bool:
        """Whether this is a checkpointing library's first step, which only wants the state to exist."""
        return self.param_groups[0][STEPS_TAKEN] == 0 and all(float(g["lr"]) == 0 for g in self.param_groups)

    def _rule(self, names: tuple[str, ...]) -> LearnedUpdateRule:
        if names not in self._rules:
            if len(self._rules) == MOST_RULES:
                del self._rules[next(iter(self._rules))]
            self._rules[names] = LearnedUpdateRule(
                self.spec, self._config, names, self._matmul_dtype, self._fold
            )
        return self._rules[names]

    def _theta_for(self, rule: LearnedUpdateRule, like: Tensor) -> dict[str, Tensor]:
        if not self._theta:
            self._theta = rule.init_theta(torch.Generator().manual_seed(0))
        if (first := next(iter(self._theta.values()))).device != like.device or first.dtype != like.dtype:
            self._theta = {k: v.to(like.device, like.dtype) for k, v in self._theta.items()}
        return self._theta

    def _say_when_past_end(self, taken: int) -> None:
        total = self.schedule.total_steps
        if total is not None and taken >= total and not self._warned_past_end:
            self._warned_past_end = True
            warnings.warn(
                f"NFOptimizer is past its total_steps={total} and goes on at its final step size. "
                "Give the number of steps of the whole training.",
                NfoptWarning,
                stacklevel=4,
            )

    def _say_when_skipped(self, taken: int, grads: Mapping[str, Tensor]) -> None:
        """Warn of skipped steps: at once on the CPU; on a device within 200 steps, without waiting for it."""
        first = next(p for g in self.param_groups for p in g["params"] if self.state.get(p))
        counter = self.state[first][SKIPPED]
        if counter.device.type != "cpu":
            if taken % READ_GUARD_EVERY:
                return
            counter, self._pending_skips = self._pending_skips, counter.to("cpu", non_blocking=True)
            if counter is None:
                return
        skips = int(counter)
        if skips > self._skips_seen:
            guilty = [name for name, grad in grads.items() if not bool(grad.isfinite().all())]
            where = f" (this time in {', '.join(guilty[:3])})" if guilty else ""
            warnings.warn(
                f"NFOptimizer skipped {skips} step(s) so far because a gradient was not finite{where}.",
                NfoptWarning,
                stacklevel=4,
            )
        self._skips_seen = skips
