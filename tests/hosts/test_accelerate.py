"""accelerate: loss scaling, accumulation, clipping, schedulers, saved states, several processes."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.scheduler import AcceleratedScheduler
from accelerate.state import AcceleratorState
from accelerate.utils import set_seed
from safetensors.torch import load_file
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from nfopt import NFOptimizer
from tests.hosts import parallel_script
from tests.hosts.models import IMAGES, INPUTS, RULE, TARGETS, cnn, equal, mlp, weights

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def fresh_accelerator() -> Iterator[None]:
    """accelerate keeps its settings in a process-wide singleton."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def loss_of(model: nn.Module) -> torch.Tensor:
    return nn.functional.cross_entropy(model(INPUTS), TARGETS)


def test_a_step_skipped_by_loss_scaling_leaves_weights_state_progress_and_schedule_alone() -> None:
    Accelerator(cpu=True)
    model, bare = mlp(), mlp()
    optimizer = NFOptimizer(model, None, checkpoint=RULE)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    schedule = LambdaLR(optimizer, lambda step: 0.5**step)
    prepared = AcceleratedOptimizer(optimizer, scaler=scaler)
    scheduler = AcceleratedScheduler(schedule, prepared)
    reference = NFOptimizer(bare, None, checkpoint=RULE)
    for step in range(4):
        scaler.scale(loss_of(model)).backward()
        before = weights(model)
        overflows = step == 1
        if overflows:
            next(model.parameters()).grad.fill_(float("inf"))  # pyright: ignore[reportOptionalMemberAccess]
        prepared.step()
        scheduler.step()
        prepared.zero_grad()
        assert prepared.step_was_skipped == overflows
        if overflows:
            assert all(torch.equal(a, b) for a, b in zip(before, weights(model), strict=True))
    for step in range(3):
        reference.param_groups[0]["lr"] = 0.5**step
        reference.zero_grad()
        loss_of(bare).backward()
        reference.step()
    assert optimizer.param_groups[0]["steps_taken"] == 3
    assert optimizer.param_groups[0]["lr"] == 0.5**3
    assert optimizer.guard_report().skipped == 0
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(weights(model), weights(bare), strict=True))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_half_precision_on_a_gpu_skips_overflows_and_trains() -> None:
    accelerator = Accelerator(mixed_precision="fp16")
    model = mlp()
    model, optimizer = accelerator.prepare(model, NFOptimizer(model, 20, checkpoint=RULE))
    inputs, targets = INPUTS.to(accelerator.device), TARGETS.to(accelerator.device)
    losses, skipped = [], 0
    for step in range(12):
        loss = nn.functional.cross_entropy(model(inputs), targets)
        accelerator.backward(loss * (1e30 if step == 3 else 1.0))
        optimizer.step()
        skipped += optimizer.step_was_skipped
        optimizer.zero_grad()
        losses.append(loss.item())
    assert skipped >= 1
    assert optimizer.param_groups[0]["steps_taken"] == 12 - skipped
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_batch_norm_net_trains_clipped_with_accumulated_gradients(precision: str) -> None:
    set_seed(0)
    accelerator = Accelerator(cpu=True, mixed_precision=precision, gradient_accumulation_steps=2)
    model = cnn()
    optimizer = NFOptimizer(model, 9, checkpoint="nominal")
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(IMAGES, TARGETS), batch_size=13)
    model, prepared, data = accelerator.prepare(model, optimizer, data)
    losses = []
    for _ in range(8):
        for images, targets in data:
            with accelerator.accumulate(model):
                loss = nn.functional.cross_entropy(model(images), targets)
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                prepared.step()
                prepared.zero_grad()
                losses.append(float(loss.detach()))
    assert optimizer.param_groups[0]["steps_taken"] == 8
    assert sum(losses[-2:]) < sum(losses[:2])
    assert [atom.size for atom in optimizer.spec.groups.values()] == [5, 7]


def test_a_saved_state_continues_net_optimizer_and_schedule_with_the_same_bits(tmp_path: Path) -> None:
    def build(seed: int):
        accelerator = Accelerator(cpu=True)
        model = cnn(seed)
        optimizer = NFOptimizer(model, None, checkpoint=RULE)
        scheduler = LambdaLR(optimizer, lambda step: 1 / (1 + step))
        return accelerator, *accelerator.prepare(model, optimizer, scheduler)

    def train(accelerator, model, optimizer, scheduler) -> None:
        for _ in range(3):
            accelerator.backward(nn.functional.cross_entropy(model(IMAGES), TARGETS))
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()

    first, second = build(0), build(1)
    train(*first)
    first[0].save_state(str(tmp_path))
    train(*first)
    second[0].load_state(str(tmp_path))
    train(*second)
    assert equal(first[1], second[1])
    assert first[3].get_last_lr() == second[3].get_last_lr() == [1 / 7]


def test_two_processes_go_the_way_of_one_on_the_joint_batch(tmp_path: Path) -> None:
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--no-python"]
    command = [sys.executable, *launch, sys.executable, "-m", "tests.hosts.parallel_script", str(tmp_path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    ranks = [load_file(tmp_path / f"rank{rank}.safetensors") for rank in (0, 1)]
    alone = parallel_script.train(0, 1)
    for name, value in alone.items():
        assert torch.equal(ranks[0][name], ranks[1][name])
        torch.testing.assert_close(ranks[0][name], value, atol=1e-9, rtol=0)
