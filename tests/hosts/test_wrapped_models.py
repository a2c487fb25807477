"""Models that hosts wrap: torch.compile, DistributedDataParallel, averages of weights."""

from collections.abc import Iterator

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import SWALR, AveragedModel, update_bn

from nfopt import NFOptimizer
from tests.hosts.models import IMAGES, RULE, TARGETS, cnn, equal, mlp, steps, weights

NAMES = [name for name, _ in mlp().named_parameters()]


@pytest.fixture
def alone(tmp_path) -> Iterator[None]:
    """A process group of this process alone."""
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def compiled(model: nn.Module) -> nn.Module:
    return torch.compile(model, backend="eager")  # pyright: ignore[reportReturnType]


def parallel(model: nn.Module) -> nn.Module:
    return nn.parallel.DistributedDataParallel(model)


def both(model: nn.Module) -> nn.Module:
    return compiled(parallel(model))


def given_the_model(wrapped: nn.Module) -> NFOptimizer:
    return NFOptimizer(wrapped, 20, checkpoint=RULE)


def given_named_parameters(wrapped: nn.Module) -> NFOptimizer:
    return NFOptimizer(wrapped.named_parameters(), 20, model=wrapped, checkpoint=RULE)


def given_groups(wrapped: nn.Module) -> NFOptimizer:
    params = list(wrapped.parameters())
    return NFOptimizer([{"params": params[:2]}, {"params": params[2:]}], 20, model=wrapped, checkpoint=RULE)


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("given", [given_the_model, given_named_parameters, given_groups])
@pytest.mark.parametrize("wrap", [compiled, parallel, both])
def test_a_wrapped_model_trains_like_the_bare_one(wrap, given) -> None:
    model, bare = mlp(), mlp()
    wrapped = wrap(model)
    optimizer, reference = given(wrapped), NFOptimizer(bare, 20, checkpoint=RULE)
    steps(wrapped, optimizer, 4)
    steps(bare, reference, 4)
    assert [name for group in optimizer.param_groups for name in group["param_names"]] == NAMES
    assert optimizer.spec == reference.spec
    assert equal(model, bare)


def test_a_model_that_is_compiled_after_the_optimizer_was_made_is_still_seen() -> None:
    model = cnn()
    optimizer = NFOptimizer(model, 20, checkpoint=RULE)
    losses = steps(compiled(model), optimizer, 4, IMAGES)
    assert [atom.size for atom in optimizer.spec.groups.values()] == [5, 7]
    assert losses[-1] < losses[0]


@pytest.mark.slow
def test_a_model_compiled_by_inductor_trains_like_the_bare_one() -> None:
    model, bare = mlp(), mlp()
    wrapped = torch.compile(model)
    optimizer, reference = NFOptimizer(wrapped, 20, checkpoint=RULE), NFOptimizer(bare, 20, checkpoint=RULE)
    steps(wrapped, optimizer, 4)  # pyright: ignore[reportArgumentType]
    steps(bare, reference, 4)
    assert optimizer.spec == reference.spec
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(weights(model), weights(bare), strict=True))


def test_stochastic_weight_averaging_with_its_scheduler() -> None:
    model = cnn()
    optimizer = NFOptimizer(model, None, checkpoint=RULE)
    averaged = AveragedModel(model)  # before the first forward: the copy must not disturb the trace
    scheduler = SWALR(optimizer, swa_lr=0.25, anneal_epochs=2, anneal_strategy="linear")
    seen, rates = [], []
    for _ in range(4):
        steps(model, optimizer, 1, IMAGES)
        averaged.update_parameters(model)
        seen.append(weights(model))
        scheduler.step()
        rates.append(optimizer.param_groups[0]["lr"])
    update_bn([IMAGES], averaged)
    mean = [torch.stack(tensors).mean(0) for tensors in zip(*seen, strict=True)]
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(weights(averaged), mean, strict=True))
    assert rates == pytest.approx([0.625, 0.25, 0.25, 0.25])
    assert [atom.size for atom in optimizer.spec.groups.values()] == [5, 7]
    with torch.no_grad():
        assert nn.functional.cross_entropy(averaged(IMAGES), TARGETS).isfinite()


def test_the_copy_that_an_average_keeps_is_left_without_a_hook() -> None:
    model = cnn()
    optimizer = NFOptimizer(model, 20, checkpoint=RULE)
    averaged = AveragedModel(model)
    averaged(IMAGES)
    steps(model, optimizer, 1, IMAGES)
    assert not model._forward_pre_hooks
    assert not averaged.module._forward_pre_hooks
