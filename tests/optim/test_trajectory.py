"""Whole-trajectory equivariance: from a permuted start, every later step is the permuted one."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from nfopt.optim import NFOptimizer
from nfopt.symmetry.trace import trace_permutation_spec
from tests.optim.models import learned_checkpoint, mlp, resnet

Trajectory = list[dict[str, Tensor]]


def train(model: nn.Module, inputs: Tensor, targets: Tensor, steps: int, coupled: bool = True) -> Trajectory:
    params = model if coupled else model.parameters()
    optimizer = NFOptimizer(
        params, total_steps=steps, checkpoint=learned_checkpoint(), example_inputs=inputs if coupled else None
    )
    trajectory: Trajectory = []
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
        trajectory.append({name: value.detach().clone() for name, value in model.state_dict().items()})
    return trajectory


def largest_error(first: Trajectory, second: Trajectory) -> float:
    return max(
        float((a[name] - b[name]).abs().max() / a[name].abs().max().clamp(min=1e-3))
        for a, b in zip(first, second, strict=True)
        for name in a
        if a[name].is_floating_point()
    )


def permute(spec, permutation, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    known = {n: t for n, t in tensors.items() if spec.aliases.get(n, n) in spec.tensors}
    return {**tensors, **spec.act(permutation, known)}


@pytest.mark.parametrize(
    ("make", "shape"), [(mlp, (13, 5)), (resnet, (13, 3, 6, 6))], ids=["mlp", "batchnorm resnet"]
)
def test_fifty_steps_from_a_permuted_start_are_the_permuted_fifty_steps(
    make: Callable[[], nn.Module], shape: tuple[int, ...]
) -> None:
    inputs = torch.randn(shape, dtype=torch.float64)
    targets = torch.randint(3, (13,))
    model = make().double()
    spec = trace_permutation_spec(model, inputs)
    assert spec.groups
    permutation = spec.sample(torch.Generator().manual_seed(1))
    start = {name: value.clone() for name, value in model.state_dict().items()}
    plain = train(model, inputs, targets, 50)

    twin = make().double()
    twin.load_state_dict(permute(spec, permutation, start))
    permuted = train(twin, inputs, targets, 50)
    expected = [permute(spec, permutation, step) for step in plain]
    assert largest_error(expected, permuted) < 1e-9
    assert largest_error(plain, permuted) > 1e-2  # the permutation really did something
    assert largest_error(plain[:1] * 50, plain) > 1e-2  # and so did the training


def test_the_learned_controls_take_part_in_the_trajectory() -> None:
    inputs, targets = torch.randn(13, 5, dtype=torch.float64), torch.randint(3, (13,))
    coupled = train(mlp().double(), inputs, targets, 5)
    with pytest.warns(UserWarning, match="on its own"):
        uncoupled = train(mlp().double(), inputs, targets, 5, coupled=False)
    assert largest_error(coupled, uncoupled) > 1e-4
