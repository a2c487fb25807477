"""What a step costs beside arithmetic: it waits for no device, and holds on to nothing."""

import gc
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nfopt import NFOptimizer
from nfopt.errors import NfoptWarning
from tests.optim.loops import build, take_steps
from tests.optim.models import learned_checkpoint, mlp

SHAPES = {"matrix": (5, 3), "bias": (5,), "kernel": (7, 5, 3, 3), "other bias": (7,), "scalar": ()}


class Crossings(TorchDispatchMode):
    """Notes the copies between devices for which the host waits."""

    def __init__(self) -> None:
        super().__init__()
        self.waited: list[str] = []
        self.copies = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        came, went = ({t.device for t in tree_leaves(x) if isinstance(t, Tensor)} for x in (args, result))
        if went and came - went:
            self.copies += 1
            if not kwargs.get("non_blocking"):
                self.waited.append(str(func))
        return result


@pytest.fixture
def pretended_device() -> None:
    """Skip where PyTorch asks the driver for tensors that only pretend to be on a GPU (2.9, CUDA build)."""
    try:
        with FakeTensorMode():
            torch.ones(3).to("cuda") + torch.ones(3, device="cuda").sum()
    except RuntimeError as error:
        pytest.skip(f"this PyTorch cannot pretend a GPU on this machine: {str(error).splitlines()[0]}")


def on_a_device(mode: FakeTensorMode) -> tuple[NFOptimizer, list[Tensor]]:
    """Return an optimizer of parameters that are on a GPU, but for their numbers."""
    with mode:
        params = [(name, nn.Parameter(torch.empty(shape, device="cuda"))) for name, shape in SHAPES.items()]
    groups = [{"params": params[:2]}, {"params": params[2:], "lr": 0.5, "weight_decay": 0.3}]
    optimizer = NFOptimizer(groups, 100, checkpoint=learned_checkpoint())
    with pytest.warns(NfoptWarning, match="without their model"):
        rule = optimizer._rule(tuple(SHAPES))
    # Counts, which are taken once per rule, have no shape without numbers.
    counts = {k: getattr(rule.incidence, k) for k in ("token_degree", "entry_degree", "pool_degree")}
    with mode:
        rule._move_to(torch.device("cuda"), torch.float32)
        for key, value in counts.items():
            rule.incidence.__dict__[key] = torch.empty(value.shape, dtype=value.dtype, device="cuda")
    return optimizer, [param for _, param in params]


def bare_step(optimizer: torch.optim.Optimizer) -> None:
    """Take a step without the profiler's record around it, which is no operation of ours."""
    step = optimizer.step
    while hasattr(step, "__wrapped__"):
        step = step.__wrapped__
    with torch.no_grad():
        step(optimizer)


@pytest.mark.usefixtures("pretended_device")
def test_no_step_on_a_device_waits_for_it() -> None:
    mode, crossings = FakeTensorMode(allow_non_fake_inputs=True), Crossings()
    optimizer, params = on_a_device(mode)
    with mode:
        for step in range(12):  # the network decides in the first and in the eleventh
            for param in params:
                param.grad = torch.randn_like(param)
            if step == 0:
                bare_step(optimizer)
            else:
                with crossings:
                    bare_step(optimizer)
    assert optimizer.param_groups[0]["steps_taken"] == 12
    assert crossings.waited == []
    assert crossings.copies > 0  # the groups' step sizes


@pytest.mark.usefixtures("pretended_device")
def test_a_wait_would_be_noticed() -> None:
    mode, crossings = FakeTensorMode(), Crossings()
    with mode, crossings:
        torch.ones(3).to("cuda")
        number = torch.ones(3, device="cuda").sum()
        with pytest.raises(DataDependentOutputException):
            number.item()
    assert len(crossings.waited) == 1


def tensors_alive() -> int:
    gc.collect()
    return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())


@pytest.mark.parametrize("state_dtype", [None, torch.bfloat16])
def test_steps_hold_on_to_nothing(state_dtype: torch.dtype | None) -> None:
    model = mlp()
    optimizer = build(model, total_steps=100, state_dtype=state_dtype)
    counts = []
    for _ in range(3):
        take_steps(model, optimizer, 11)
        memory = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in state_of(optimizer)}
        counts.append((tensors_alive(), sum(memory.values())))
    assert counts[1:] == counts[:-1]
    # No tensor of the state keeps more memory than its own.
    assert counts[0][1] == sum(t.numel() * t.element_size() for t in state_of(optimizer))


def state_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [value for entry in optimizer.state.values() for value in entry.values()]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_half_precision_gradient_is_cast_once_while_decisions_hold(dtype: torch.dtype) -> None:
    model = mlp().to(dtype)
    optimizer = build(model, total_steps=100)
    take_steps(model, optimizer, 2)
    casts: list[torch.Size] = []

    class Casts(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.ops.aten._to_copy.default and args[0].dtype == dtype:
                casts.append(args[0].shape)
            return func(*args, **(kwargs or {}))

    grads = [param.grad for param in model.parameters() if param.grad is not None]
    with Casts():
        bare_step(optimizer)
    # Matrices are cast once as gradients and once as weights, for their decay; biases once, end to end.
    expected = [g.shape for g in grads if g.dim() == 2] * 2
    expected.append(torch.Size([sum(g.numel() for g in grads if g.dim() == 1)]))
    assert sorted(casts) == sorted(expected)
