"""torch itself: the plain loop, its schedulers, its distributed checkpoints, and what ZeRO hands over."""

import copy
import math
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    get_optimizer_state_dict,
    get_state_dict,
    set_optimizer_state_dict,
    set_state_dict,
)
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, OneCycleLR, ReduceLROnPlateau, SequentialLR

from nfopt import NfoptError, NFOptimizer
from tests.hosts.models import IMAGES, INPUTS, RULE, backward, cnn, equal, mlp, steps, weights


@pytest.mark.parametrize(("build", "inputs", "widths"), [(mlp, INPUTS, [7, 11]), (cnn, IMAGES, [5, 7])])
def test_a_plain_loop_learns_and_sees_the_symmetry(build, inputs, widths) -> None:
    model = build()
    optimizer = NFOptimizer(model, 20, checkpoint="nominal")
    losses = steps(model, optimizer, 20, inputs)
    assert losses[-1] < 0.9 * losses[0]
    assert [atom.size for atom in optimizer.spec.groups.values()] == widths


def rates(scheduler, model: nn.Module, optimizer: NFOptimizer, count: int = 6) -> list[float]:
    found = []
    for _ in range(count):
        found.append(float(optimizer.param_groups[0]["lr"]))
        steps(model, optimizer, 1)
        scheduler.step()
    return found


def test_a_factor_of_lambda_lr_multiplies_every_update_exactly() -> None:
    model, other = mlp(), mlp()
    halved = NFOptimizer(model, None, checkpoint=RULE, weight_decay=0.0)
    whole = NFOptimizer(other, None, checkpoint=RULE, weight_decay=0.0)
    scheduler = LambdaLR(halved, lambda step: 0.5)
    start = weights(model)
    steps(model, halved, 1)
    steps(other, whole, 1)
    scheduler.step()
    for before, half, full in zip(start, weights(model), weights(other), strict=True):
        torch.testing.assert_close(2 * (half - before), full - before, atol=1e-6, rtol=1e-4)


def test_sequences_of_schedulers_drive_lr() -> None:
    model = mlp()
    optimizer = NFOptimizer(model, None, checkpoint=RULE)
    warm_up = LambdaLR(optimizer, lambda step: (step + 1) / 4)
    scheduler = SequentialLR(optimizer, [warm_up, CosineAnnealingLR(optimizer, 4)], milestones=[3])
    assert rates(scheduler, model, optimizer)[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 0.853553], abs=1e-5)


def test_one_cycle_drives_lr_when_it_leaves_the_momentum_alone() -> None:
    model = mlp()
    optimizer = NFOptimizer(model, None, checkpoint=RULE)
    scheduler = OneCycleLR(optimizer, max_lr=2.0, total_steps=7, cycle_momentum=False)
    found = rates(scheduler, model, optimizer)
    assert max(found) == pytest.approx(2.0, rel=0.1)
    assert found[0] == pytest.approx(2.0 / 25)


def test_one_cycle_of_the_momentum_is_refused_since_the_rule_mixes_several() -> None:
    with pytest.raises(ValueError, match="momentum"):
        OneCycleLR(NFOptimizer(mlp(), None, checkpoint=RULE), max_lr=2.0, total_steps=7)


def test_a_plateau_lowers_lr() -> None:
    optimizer = NFOptimizer(mlp(), None, checkpoint=RULE)
    scheduler = ReduceLROnPlateau(optimizer, factor=0.5, patience=0)
    for loss in (1.0, 1.0, 1.0):
        scheduler.step(loss)
    assert optimizer.param_groups[0]["lr"] == 0.25


def test_schedule_and_optimizer_resume_together_to_the_same_bits() -> None:
    def build(seed: int):
        model = mlp(seed)
        optimizer = NFOptimizer(model, None, checkpoint=RULE)
        return model, optimizer, CosineAnnealingLR(optimizer, 9)

    model, optimizer, scheduler = build(0)
    rates(scheduler, model, optimizer, 3)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict(), scheduler.state_dict()))
    other, other_optimizer, other_scheduler = build(1)
    for target, state in zip((other, other_optimizer, other_scheduler), saved, strict=True):
        target.load_state_dict(state)
    assert rates(scheduler, model, optimizer) == rates(other_scheduler, other, other_optimizer)
    assert equal(model, other)


def test_distributed_checkpointing_before_the_first_step_changes_nothing() -> None:
    model, other = mlp(), mlp()
    optimizer, untouched = (NFOptimizer(m, 20, checkpoint=RULE) for m in (model, other))
    get_optimizer_state_dict(model, optimizer)
    assert equal(model, other)
    assert optimizer.param_groups[0]["steps_taken"] == 0
    steps(model, optimizer, 3)
    steps(other, untouched, 3)
    assert equal(model, other)


def test_a_state_dict_by_names_resumes_to_the_same_bits() -> None:
    model, other = mlp(0), mlp(1)
    optimizer, other_optimizer = (NFOptimizer(m, 20, checkpoint=RULE) for m in (model, other))
    steps(model, optimizer, 4)
    state = copy.deepcopy(get_optimizer_state_dict(model, optimizer))
    assert set(state["state"]) == {name for name, _ in model.named_parameters()}
    other.load_state_dict(model.state_dict())
    set_optimizer_state_dict(other, other_optimizer, state)
    steps(model, optimizer, 4)
    steps(other, other_optimizer, 4)
    assert equal(model, other)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_a_distributed_checkpoint_on_disk_resumes_to_the_same_bits(tmp_path: Path) -> None:
    model, other = cnn(0), cnn(1)
    optimizer, other_optimizer = (NFOptimizer(m, 20, checkpoint=RULE) for m in (model, other))
    steps(model, optimizer, 4, IMAGES)
    dcp.save(dict(zip("mo", get_state_dict(model, optimizer), strict=True)), checkpoint_id=tmp_path)
    weights_to_load, state = get_state_dict(other, other_optimizer)
    dcp.load({"m": weights_to_load, "o": state}, checkpoint_id=tmp_path)
    set_state_dict(other, other_optimizer, model_state_dict=weights_to_load, optim_state_dict=state)
    for pair in ((model, optimizer), (other, other_optimizer)):
        steps(*pair, 4, IMAGES)
    assert equal(model, other)
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), other.buffers(), strict=True))


def test_a_flat_partition_of_zero_is_refused_when_it_takes_the_parameters_place() -> None:
    model = mlp()
    optimizer = NFOptimizer(model, 20, checkpoint=RULE)
    flat = nn.Parameter(torch.cat([p.detach().flatten() for p in model.parameters()]))
    optimizer.param_groups[0]["params"] = [flat]  # what DeepSpeed's initialisation does
    flat.grad = torch.ones_like(flat)
    with pytest.raises(NfoptError, match=r"flat\s+partitions.*FSDP2"):
        optimizer.step()


def test_a_flat_parameter_that_is_not_in_the_model_is_refused_when_it_is_given() -> None:
    model = mlp()
    flat = nn.Parameter(torch.cat([p.detach().flatten() for p in model.parameters()]))
    with pytest.raises(NfoptError, match=r"none of the parameters are in the model.*flat partitions"):
        NFOptimizer([flat], 20, model=model, checkpoint=RULE)


def test_a_loop_that_clips_gradients_bounds_them_and_trains_on() -> None:
    model = mlp()
    optimizer = NFOptimizer(model, 20, checkpoint=RULE)
    for _ in range(3):
        optimizer.zero_grad()
        backward(model)
        nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
        optimizer.step()
    norms = [float(p.grad.norm()) for p in model.parameters() if p.grad is not None]
    assert math.hypot(*norms) <= 1.01e-3
    assert all(w.isfinite().all() for w in weights(model))
