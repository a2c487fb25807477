"""NFOptimizer under accelerate's `prepare`, on one process."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import set_seed
from torch import nn

from nfopt.optim import NFOptimizer
from tests.optim.models import learned_checkpoint, mlp

INPUTS = torch.randn(26, 5, generator=torch.Generator().manual_seed(0))
TARGETS = (INPUTS @ torch.randn(5, 3, generator=torch.Generator().manual_seed(1))).argmax(dim=1)


@pytest.fixture(autouse=True)
def fresh_accelerator() -> Iterator[None]:
    """accelerate keeps its settings in a process-wide singleton."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def prepare(precision: str = "no", accumulate: int = 1, seed: int = 0):
    set_seed(0)
    accelerator = Accelerator(cpu=True, mixed_precision=precision, gradient_accumulation_steps=accumulate)
    model = mlp(seed)
    optimizer = NFOptimizer(model, total_steps=20, checkpoint=learned_checkpoint())
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(INPUTS, TARGETS), batch_size=13)
    return accelerator, *accelerator.prepare(model, optimizer, data)


def train(accelerator: Accelerator, model: nn.Module, optimizer, data, epochs: int) -> list[float]:
    losses = []
    for _ in range(epochs):
        for inputs, targets in data:
            with accelerator.accumulate(model):
                loss = nn.functional.cross_entropy(model(inputs), targets)
                accelerator.backward(loss)
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
                losses.append(float(loss.detach()))
    return losses


def weights(model: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def test_prepared_training_is_the_bare_training() -> None:
    accelerator, model, optimizer, data = prepare()
    train(accelerator, model, optimizer, data, 3)
    bare = mlp()
    bare_optimizer = NFOptimizer(bare, total_steps=20, checkpoint=learned_checkpoint())
    for _ in range(3):
        for inputs, targets in zip(INPUTS.split(13), TARGETS.split(13), strict=True):
            nn.functional.cross_entropy(bare(inputs), targets).backward()
            nn.utils.clip_grad_norm_(bare.parameters(), 1.0)
            bare_optimizer.step()
            bare_optimizer.zero_grad()
    # Orthogonalisation magnifies the rounding of gradients that were summed in another order.
    assert all(torch.allclose(a, b, atol=5e-5) for a, b in zip(weights(model), weights(bare), strict=True))
    assert optimizer.optimizer.spec == bare_optimizer.spec
    assert bare_optimizer.spec.groups


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_the_model_is_traced_although_prepare_patched_its_forward(precision: str) -> None:
    accelerator, model, optimizer, data = prepare(precision)
    losses = train(accelerator, model, optimizer, data, 4)
    assert [atom.size for atom in optimizer.optimizer.spec.groups.values()] == [7, 11]
    assert losses[-1] < losses[0]


def test_accumulated_batches_count_as_one_step() -> None:
    accelerator, model, optimizer, data = prepare(accumulate=2)
    train(accelerator, model, optimizer, data, 3)
    assert optimizer.param_groups[0]["steps_taken"] == 3


def test_save_state_and_load_state_resume_bit_exactly(tmp_path: Path) -> None:
    accelerator, model, optimizer, data = prepare()
    train(accelerator, model, optimizer, data, 2)
    accelerator.save_state(str(tmp_path))
    train(accelerator, model, optimizer, data, 2)
    other, model2, optimizer2, data2 = prepare(seed=1)
    other.load_state(str(tmp_path))
    train(other, model2, optimizer2, data2, 2)
    assert all(torch.equal(a, b) for a, b in zip(weights(model), weights(model2), strict=True))


def test_a_prepared_scheduler_multiplies_the_step() -> None:
    accelerator, model, optimizer, data = prepare()
    scheduler = accelerator.prepare(torch.optim.lr_scheduler.LambdaLR(optimizer.optimizer, lambda step: 0.0))
    optimizer.step()
    scheduler.step()
    before = weights(model)
    train(accelerator, model, optimizer, data, 1)
    assert all(torch.equal(a, b) for a, b in zip(before, weights(model), strict=True))
