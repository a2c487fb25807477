from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional

from nfopt.data import Split
from nfopt.zoo import Machine, ZooError, small_cnn
from nfopt.zoo.runs import LOSS_CAP, Run, train_runs

IMAGES, TESTED, BATCH = 23, 13, 5


def mlp():
    return nn.Sequential(nn.Flatten(), nn.Linear(2 * 3 * 3, 7), nn.Tanh(), nn.Linear(7, 4))


def cnn():
    return small_cnn((2, 3, 3), 4, channels=(3, 5), activation="tanh")


def split(count, seed):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 2, 3, 3, generator=generator, dtype=torch.float64)
    return Split(images, torch.randint(4, (count,), generator=generator))


TRAIN, TEST = split(IMAGES, 0), split(TESTED, 1)


def run_of(make, seed, *, steps=11, checkpoints=(0, 3, 11), rate=1e-2, classes=None):
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    pool = torch.arange(IMAGES)
    if classes is not None:
        pool = pool[torch.isin(TRAIN.labels, torch.tensor(classes))]
    return Run(
        {name: p.detach().double() for name, p in make().named_parameters()},
        learning_rate=rate * (1 + seed),
        weight_decay=0.1 * seed,
        batches=pool[torch.randint(len(pool), (steps, BATCH), generator=generator)],
        checkpoints=checkpoints,
        train_images=pool[:3],
        test_images=torch.arange(TESTED),
        classes=classes,
    )


def trained_alone(make, run):
    """Train one ordinary module with torch's own AdamW; return its state at each checkpoint."""
    model = make().double()
    model.load_state_dict(run.start)
    optimizer = torch.optim.AdamW(model.parameters(), lr=run.learning_rate, weight_decay=run.weight_decay)
    found = []
    for step in range(run.checkpoints[-1] + 1):
        if step in run.checkpoints:
            images = run.train_images
            loss = functional.cross_entropy(model(TRAIN.images[images]), TRAIN.labels[images])
            right = model(TEST.images[run.test_images]).argmax(1) == TEST.labels[run.test_images]
            state = {name: value.clone() for name, value in model.state_dict().items()}
            found.append((step, state, loss.item(), right.double().mean().item()))
        if step < run.checkpoints[-1]:
            batch = run.batches[step]
            optimizer.zero_grad()
            functional.cross_entropy(model(TRAIN.images[batch]), TRAIN.labels[batch]).backward()
            optimizer.step()
    return found


@pytest.mark.parametrize("make", [mlp, cnn])
@pytest.mark.parametrize("workers", [1, 2])
def test_every_run_ends_as_in_a_loop_of_modules(make, workers):
    runs = [run_of(make, 0), run_of(make, 1, steps=7, checkpoints=(2, 5)), run_of(make, 2)]
    kept = train_runs(make(), TRAIN, TEST, runs, Machine(lanes=2, workers=workers))
    for run, nets in zip(runs, kept, strict=True):
        alone = trained_alone(make, run)
        assert [net.steps for net in nets] == list(run.checkpoints)
        for net, (_, state, loss, accuracy) in zip(nets, alone, strict=True):
            for name, tensor in net.tensors.items():
                torch.testing.assert_close(tensor, state[name], rtol=0, atol=1e-9)
            assert net.train_loss == pytest.approx(loss, rel=1e-5)
            assert net.test_accuracy == pytest.approx(accuracy)
            assert not net.diverged


def test_a_run_does_not_depend_on_those_beside_it():
    runs = [run_of(cnn, seed, steps=5 + seed, checkpoints=(1, 5 + seed)) for seed in range(5)]
    together = train_runs(cnn(), TRAIN, TEST, runs, Machine(lanes=3, workers=1))
    for i, run in enumerate(runs):
        (alone,) = train_runs(cnn(), TRAIN, TEST, [run], Machine(workers=1))
        for one, other in zip(alone, together[i], strict=True):
            for name, tensor in one.tensors.items():
                # Sums over a batch of other nets may be taken in another order: last digits.
                torch.testing.assert_close(tensor, other.tensors[name], rtol=0, atol=1e-11)


def test_two_classes_are_learned_as_outputs_0_and_1():
    model = nn.Sequential(nn.Flatten(), nn.Linear(18, 7), nn.Tanh(), nn.Linear(7, 2))
    run = replace(
        run_of(lambda: model, 0, steps=60, checkpoints=(60,), rate=0.05, classes=(3, 1)),
        test_images=torch.arange(TESTED)[torch.isin(TEST.labels, torch.tensor([1, 3]))],
    )
    ((net,),) = train_runs(model, TRAIN, TEST, [run], Machine(workers=1))
    images = run.batches.unique()
    model = model.double()
    model.load_state_dict(net.tensors)
    assert torch.equal(model(TRAIN.images[images]).argmax(1), (TRAIN.labels[images] == 1).long())
    right = model(TEST.images[run.test_images]).argmax(1) == (TEST.labels[run.test_images] == 1).long()
    assert net.test_accuracy == pytest.approx(right.double().mean().item())


def test_a_run_whose_step_is_not_finite_stands_still_and_says_so():
    broken = run_of(mlp, 0)
    broken.start["1.weight"].mul_(1e200)
    broken.start["3.weight"].mul_(1e200)
    model = nn.Sequential(nn.Flatten(), nn.Linear(18, 7), nn.ReLU(), nn.Linear(7, 4))
    kept = train_runs(model, TRAIN, TEST, [broken, run_of(mlp, 1)], Machine(workers=1))
    assert [net.diverged for net in kept[0]] == [True] * 3
    assert [net.diverged for net in kept[1]] == [False] * 3
    for net in kept[0]:
        assert all(torch.equal(net.tensors[name], broken.start[name]) for name in net.tensors)
        assert net.train_loss == LOSS_CAP


def test_progress_counts_runs_and_an_error_in_it_ends_the_work():
    runs = [run_of(mlp, seed) for seed in range(5)]
    heard = []
    train_runs(mlp(), TRAIN, TEST, runs, Machine(lanes=2, workers=2), heard.append)
    assert heard == sorted(heard) and heard[-1] == 5

    class StopError(Exception):
        pass

    def stop(done):
        raise StopError

    with pytest.raises(StopError):
        train_runs(mlp(), TRAIN, TEST, runs, Machine(lanes=2, workers=2), stop)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: replace(r, start={"0.weight": torch.zeros(3)}), "run 0 starts from tensors of another"),
        (lambda r: replace(r, checkpoints=(3, 2)), "must ascend"),
        (lambda r: replace(r, checkpoints=(3, 12)), "not pass its 11 batches"),
        (lambda r: replace(r, checkpoints=()), "must ascend"),
    ],
)
def test_a_run_that_does_not_fit_is_refused(change, message):
    with pytest.raises(ZooError, match=message):
        train_runs(mlp(), TRAIN, TEST, [change(run_of(mlp, 0))])


def test_runs_that_are_measured_on_unequal_numbers_of_images_are_refused():
    other = replace(run_of(mlp, 1), test_images=torch.arange(3))
    with pytest.raises(ZooError, match="run 1 is measured on another number"):
        train_runs(mlp(), TRAIN, TEST, [run_of(mlp, 0), other])


def test_a_model_with_statistics_is_refused():
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3))
    with pytest.raises(ZooError, match="BatchNorm"):
        train_runs(model, TRAIN, TEST, [run_of(lambda: model, 0)])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("make", [mlp, cnn])
def test_runs_on_a_gpu_end_as_those_on_the_cpu(make):
    runs = [run_of(make, seed) for seed in range(3)]
    on_cpu = train_runs(make(), TRAIN, TEST, runs, Machine(workers=1))
    on_gpu = train_runs(make(), TRAIN, TEST, runs, Machine("cuda", lanes=2))
    for one, other in zip(on_cpu, on_gpu, strict=True):
        for name, tensor in one[-1].tensors.items():
            torch.testing.assert_close(other[-1].tensors[name], tensor, rtol=0, atol=1e-9)
