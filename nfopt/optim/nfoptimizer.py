"""NFOptimizer: the learned update rule as a torch.optim.Optimizer, to put in the place of AdamW."""

import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from nfopt.checkpoints import Checkpoint, digest_of
from nfopt.errors import OptimizerError
from nfopt.optim.moments import DAMPED, SCALAR_STATE, SKIPPED, TENSOR_STATE, initial_state
from nfopt.optim.rule import LearnedUpdateRule, common_work_dtype, work_dtype
from nfopt.optim.rule_checkpoint import NOMINAL, read_rule
from nfopt.optim.schedule import Schedule
from nfopt.optim.spec_source import NfoptWarning, SpecSource
from nfopt.symmetry import PermutationSpec
from nfopt.symmetry.skeleton import unwrap

STEPS_TAKEN = "steps_taken"
RULE_DIGEST = "rule_digest"
READ_GUARD_EVERY = 100


@dataclass(frozen=True)
class GuardReport:
    """What the guard did so far.

    Attributes:
        skipped: steps left out because a gradient was not finite.
        damped: for each tensor, the steps in which an anomalous gradient shrank the learned part.
    """

    skipped: int
    damped: Mapping[str, int]


class NFOptimizer(torch.optim.Optimizer):
    """A learned optimizer that sees which neurons belong together; there is no learning rate to tune.

    Args:
        params: the model to train; or named parameters, parameters or parameter groups as for any torch
            optimizer. From a model, or with `model`, the rule learns which axes of which tensors are permuted
            together; without, every tensor is on its own, and a warning says so.
        total_steps: optimizer steps of the whole training; drives the built-in schedule. None: constant
            step size, for an outside scheduler.
        lr: factor on the learned step sizes. 1 is what the rule was trained for.
        weight_decay: decoupled decay of matrices in units of the nominal step: W <- (1 - 0.02 lr s wd) W
            with s the schedule; None: the checkpoint's.
        checkpoint: "default", "nominal" (the network's output at zero), or a file written by meta-training.
        model: the model that `params` come from, when `params` is not the model itself.
        example_inputs: inputs of the model, to derive its symmetry at once; otherwise the first forward pass
            shows their shapes.

    All state is tensors in `state`, so that checkpoints of any host resume bit-exactly. A step with a
    gradient that is not finite is skipped, counted (`guard_report`) and warned about.

    Raises:
        OptimizerError: no parameters, an unusable dtype, `total_steps`, `lr` or `weight_decay` out of range.
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
    ) -> None:
        _check_range("lr", lr)
        if weight_decay is not None:
            _check_range("weight_decay", weight_decay)
        self.schedule = Schedule(total_steps)
        self._config, self._theta, self._checkpoint_name = read_rule(checkpoint)
        if isinstance(params, nn.Module):
            model = params if model is None else model
            params = list(unwrap(params).named_parameters())
        self._source = SpecSource(model, example_inputs)
        self._rules: dict[tuple[str, ...], LearnedUpdateRule] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._warned_past_end = False
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

    def __getstate__(self) -> dict[str, Any]:
        """Return everything, so that a deep copy of model and optimizer goes on like the original."""
        return dict(self.__dict__)

    @property
    def spec(self) -> PermutationSpec:
        """The permutation spec of the trained tensors; the model is traced now if it was not before."""
        return self._source.spec(self._shapes)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, as for any torch optimizer; its tensors join at the current progress.

        Raises:
            OptimizerError: a parameter is complex, not floating, or a name occurs twice.
        """
        params = param_group["params"]
        entries = [params] if isinstance(params, Tensor) else list(params)
        start = len(self._shapes)
        named = [self._named(entry, start + i) for i, entry in enumerate(entries)]
        shapes: dict[str, tuple[int, ...]] = {}
        for name, param in named:
            work_dtype(param.dtype)
            if name in self._shapes or name in shapes:
                raise OptimizerError(f"the parameter name {name!r} occurs twice; give each its own.")
            shapes[name] = tuple(param.shape)
        super().add_param_group({**param_group, "params": named})
        self._shapes.update(shapes)
        self.param_groups[-1][STEPS_TAKEN] = self.param_groups[0][STEPS_TAKEN]

    def _named(self, entry: Any, position: int) -> tuple[str, Tensor]:
        """Name a parameter as its model does, so that state and spec find each other by name."""
        if isinstance(entry, tuple):
            return entry
        if not isinstance(entry, Tensor):
            kind = type(entry).__name__
            raise OptimizerError(f"a parameter is a tensor or a (name, tensor) pair, not {kind}.")
        return self._source.name_of(entry) or f"parameter {position}", entry

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Take one step with the gradients that are there; parameters without a gradient stay as they are.

        Args:
            closure: computes and returns the loss, as for any torch optimizer.

        Returns:
            The closure's loss, or None.

        Raises:
            OptimizerError: a parameter has another shape than when it was given (ZeRO's flat partitions), or
                the parameters lie on several devices.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        active = self._active()
        if not active:
            return loss
        self._fill_state(active)
        if self._is_inert():
            return loss
        rule = self._rule(tuple(active))
        params = {name: param for name, (param, _) in active.items()}
        grads = {n: _dense(p.grad) for n, p in params.items()}
        taken = self.param_groups[0][STEPS_TAKEN]
        self._say_when_past_end(taken)
        like = next(iter(self.state[next(iter(params.values()))].values()))
        factor = self.schedule.factor(taken)
        scale = torch.tensor([float(g["lr"]) * factor for _, g in active.values()], dtype=like.dtype)
        keys = (*TENSOR_STATE, *SCALAR_STATE)
        state = {f"{n}/{k}": self.state[p][k] for n, p in params.items() for k in keys}
        updates, new_state = rule(
            self._theta_for(rule, like),
            params,
            grads,
            state,
            torch.tensor(self.schedule.progress(taken), dtype=like.dtype, device=like.device),
            step_scale=scale.to(like.device),
            weight_decay=[float(g["weight_decay"]) for _, g in active.values()],
        )
        torch._foreach_add_(  # pyright: ignore[reportPrivateImportUsage]
            list(params.values()), [updates[n] for n in params]
        )
        for name, param in params.items():
            for key in TENSOR_STATE:
                self.state[param][key] = new_state[f"{name}/{key}"]
        # The scalars come as views of one vector; copied, each tensor keeps memory of its own.
        scalars = [(self.state[p][k], new_state[f"{n}/{k}"]) for n, p in params.items() for k in SCALAR_STATE]
        torch._foreach_copy_(  # pyright: ignore[reportPrivateImportUsage]
            [old for old, _ in scalars], [new for _, new in scalars]
        )
        for group in self.param_groups:
            group[STEPS_TAKEN] = taken + 1
        self._say_when_skipped(taken, grads)
        return loss

    def guard_report(self) -> GuardReport:
        """Return what the guard did so far; this waits for the device."""
        skipped, damped = 0, {}
        for group in self.param_groups:
            for name, param in zip(group["param_names"], group["params"], strict=True):
                if state := self.state.get(param):
                    skipped = max(skipped, int(state[SKIPPED]))
                    damped[name] = int(state[DAMPED])
        return GuardReport(skipped, damped)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state; unlike torch's default, state keeps its own dtype when parameters are half precision.

        Raises:
            OptimizerError: the state belongs to another checkpoint of the rule, or to other parameters.
        """
        groups = state_dict.get("param_groups", [])
        mine = self.param_groups[0][RULE_DIGEST]
        for group in groups:
            theirs = group.get(RULE_DIGEST)
            if theirs != mine:
                raise OptimizerError(
                    "the optimizer state was not written by NFOptimizer."
                    if theirs is None
                    else f"the optimizer state belongs to the rule {theirs[:12]}, this optimizer uses "
                    f"{mine[:12]} ({self._checkpoint_name}). Build it with the checkpoint of the saved run."
                )
        try:
            super().load_state_dict(state_dict)
        except (ValueError, KeyError) as error:
            raise OptimizerError(f"the optimizer state does not fit these parameters: {error}") from error
        ids = chain.from_iterable(group["params"] for group in groups)
        params = chain.from_iterable(group["params"] for group in self.param_groups)
        for key, param in zip(ids, params, strict=True):
            for name, value in state_dict["state"].get(key, {}).items():
                self.state[param][name] = value.detach().to(device=param.device, copy=True)
        self._check_state()

    def _check_state(self) -> None:
        for group in self.param_groups:
            for name, param in zip(group["param_names"], group["params"], strict=True):
                state = self.state.get(param)
                if not state:
                    continue
                for key in TENSOR_STATE:
                    if key not in state or state[key].shape != param.shape:
                        found = tuple(state[key].shape) if key in state else "nothing"
                        raise OptimizerError(
                            f"the optimizer state does not fit: {key} of {name} is {found}, the parameter "
                            f"{tuple(param.shape)}. Load the state of the same model."
                        )

    def _active(self) -> dict[str, tuple[Tensor, dict[str, Any]]]:
        """Parameters that have a gradient, with their groups, by name."""
        active: dict[str, tuple[Tensor, dict[str, Any]]] = {}
        for group in self.param_groups:
            if len(group["param_names"]) != len(group["params"]):
                raise _flat_partition_error(f"{len(group['params'])} tensors", f"{len(group['param_names'])}")
            for name, param in zip(group["param_names"], group["params"], strict=True):
                if param.grad is None or param.numel() == 0:
                    continue
                if tuple(param.shape) != self._shapes[name]:
                    raise _flat_partition_error(
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

    def _fill_state(self, active: Mapping[str, tuple[Tensor, dict[str, Any]]]) -> None:
        """Give the parameters without state the state before their first step."""
        work = common_work_dtype(param.dtype for param, _ in active.values())
        for param, _ in active.values():
            if not self.state[param]:
                self.state[param].update(initial_state(param, work))

    def _is_inert(self) -> bool:
        """Whether this is a checkpointing library's first step, which only wants the state to exist."""
        return self.param_groups[0][STEPS_TAKEN] == 0 and all(float(g["lr"]) == 0 for g in self.param_groups)

    def _rule(self, names: tuple[str, ...]) -> LearnedUpdateRule:
        if names not in self._rules:
            self._rules[names] = LearnedUpdateRule(self.spec, self._config, names)
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


def _dense(grad: Tensor | None) -> Tensor:
    assert grad is not None
    return grad.to_dense() if grad.is_sparse else grad


def _check_range(name: str, value: float) -> None:
    if isinstance(value, Tensor):
        value = float(value)
    if not 0 <= value < float("inf"):
        raise OptimizerError(f"{name} is {value!r}; it must be a finite number of at least 0.")


def _flat_partition_error(found: str, expected: str) -> OptimizerError:
    return OptimizerError(
        f"the optimizer was built for {expected} but finds {found}. ZeRO and FSDP1 hand over flat "
        "partitions, in which rows and columns are gone; use FSDP2 (fully_shard) or DDP."
    )
