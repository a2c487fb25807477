"""Tasks: pure functions of their seeds, and what the configs promise."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import functional_call

from nfopt.errors import DataError, NfoptError, UnknownNameError
from nfopt.meta.family import TaskFamily
from nfopt.meta.mixture import TaskMixture
from nfopt.meta.nets import Architecture
from nfopt.meta.sources import load_source, require_trainable
from nfopt.meta.task import Task, TaskConfig
from nfopt.seeds import derive_seed, generator

MLP = Architecture("mlp", (5, 7), 10, (1, 8, 8))
CONFIG = TaskConfig(MLP, batch_images=6, train_images=31, validation_images=17)
KINDS = [
    MLP,
    replace(MLP, norm="layer"),
    replace(MLP, norm="batch", activation="gelu"),
    Architecture("cnn", (3, 5), 10, (1, 8, 8), norm="batch"),
    Architecture("resnet", (3, 5, 7), 10, (1, 8, 8), norm="batch"),
    Architecture("depthwise", (3, 5), 10, (1, 8, 8), activation="silu"),
]


def copy_of(params: dict[str, torch.Tensor], index: int) -> dict[str, torch.Tensor]:
    return {name: p[index] for name, p in params.items()}


@pytest.mark.parametrize("architecture", KINDS, ids=str)
def test_every_kind_of_net_maps_images_to_classes_and_has_gradients(architecture: Architecture) -> None:
    task = Task.make(replace(CONFIG, architecture=architecture), torch.float64)
    instances = task.instances([0, 1])
    params = copy_of(task.initial_parameters(instances), 1)
    assert {n: p.shape for n, p in params.items()} == {n: p.shape for n, p in task.module.named_parameters()}
    images, labels = (x[1] for x in task.train_batch(instances, task.batch_positions(instances, 0, 1)[0]))
    for p in params.values():
        p.requires_grad_()
    grads = torch.autograd.grad(task.loss(params, {}, images, labels), list(params.values()))
    assert task.logits(params, {}, images).shape == (6, 10)
    assert all(g.abs().max() > 0 for g in grads)


def test_instances_depend_on_their_own_seed_alone() -> None:
    task = Task.make(replace(CONFIG, label_noise=0.3, rescale=3.0))
    both, second = task.instances([3, 8]), task.instances([8])
    assert torch.equal(both.train_labels[1], second.train_labels[0])
    assert torch.equal(both.validation_index[1], second.validation_index[0])
    for one, other in zip(
        task.initial_parameters(both).values(), task.initial_parameters(second).values(), strict=True
    ):
        assert torch.equal(one[1], other[0])
        assert not torch.equal(one[0], one[1])


@settings(max_examples=30, deadline=None)
@given(start=st.integers(0, 40), steps=st.integers(1, 23), seed=st.integers(0, 5))
def test_a_batch_does_not_depend_on_how_the_training_is_cut(start: int, steps: int, seed: int) -> None:
    task = Task.make(CONFIG)
    instances = task.instances([seed, seed + 1])
    whole = task.batch_positions(instances, 0, start + steps)
    assert torch.equal(task.batch_positions(instances, start, steps), whole[start:])


def test_an_epoch_visits_no_image_twice_and_epochs_differ() -> None:
    task = Task.make(CONFIG)
    instances = task.instances([0])
    first, second = task.batch_positions(instances, 0, 10)[:, 0].split(5)
    assert len(first.unique()) == 30
    assert not torch.equal(first, second)


def test_batches_hold_the_subsets_images_with_their_labels() -> None:
    task = Task.make(CONFIG)
    instances = task.instances([0, 1])
    images, labels = task.train_batch(instances, task.batch_positions(instances, 0, 1)[0])
    for i in range(2):
        for image, label in zip(images[i], labels[i], strict=True):
            same = (task.source.train.images == image).flatten(1).all(1).nonzero().flatten()
            assert set(same.tolist()) & set(instances.train_index[i].tolist())
            assert label in task.source.train.labels[same]


def test_label_noise_replaces_about_its_share_of_training_labels_and_no_validation_label() -> None:
    config = replace(CONFIG, train_images=1000, label_noise=0.5)
    task = Task.make(config)
    instances = task.instances([0])
    clean = task.source.train.labels[instances.train_index[0]]
    changed = (instances.train_labels[0] != clean).double().mean()
    assert 0.4 < float(changed) < 0.5  # a tenth of the replacements draws the same class
    _, labels = task.validation_batch(instances)
    assert torch.equal(labels[0], task.source.val.labels[instances.validation_index[0]])


def test_a_compensated_rescaling_changes_parameters_and_not_the_function() -> None:
    plain = Task.make(CONFIG, torch.float64)
    scaled = Task.make(replace(CONFIG, rescale=10.0), torch.float64)
    bare = Task.make(replace(CONFIG, rescale=10.0, compensate=False), torch.float64)
    images = plain.validation_batch(plain.instances([4]))[0][0]

    def outputs(task: Task) -> tuple[torch.Tensor, torch.Tensor]:
        instances = task.instances([4])
        params = copy_of(task.initial_parameters(instances), 0)
        return params["1.weight"], task.logits(params, copy_of(instances.divisor, 0), images)

    (w, y), (w_scaled, y_scaled), (w_bare, y_bare) = outputs(plain), outputs(scaled), outputs(bare)
    torch.testing.assert_close(y_scaled, y)
    assert torch.equal(w_scaled, w_bare)
    assert not torch.allclose(w_scaled, w)
    assert not torch.allclose(y_bare, y, rtol=1e-2)
    ratio = (w_scaled / w).flatten()
    assert torch.allclose(ratio, ratio[0])
    assert 0.1 <= float(ratio[0]) <= 10


def test_initial_parameters_have_torchs_distribution() -> None:
    task = Task.make(CONFIG)
    drawn = task.initial_parameters(task.instances(range(200)))["1.weight"]
    torch.manual_seed(0)
    theirs = torch.stack([MLP.build().get_parameter("1.weight").detach() for _ in range(200)])
    assert float(drawn.abs().max()) == pytest.approx(float(theirs.abs().max()), rel=1e-3)
    assert float(drawn.std()) == pytest.approx(float(theirs.std()), rel=1e-2)
    assert abs(float(drawn.mean())) < 1e-3


def test_the_network_reads_the_given_parameters_and_not_its_own() -> None:
    task = Task.make(CONFIG)
    params = copy_of(task.initial_parameters(task.instances([0])), 0)
    images = torch.randn(3, 1, 8, 8, generator=generator("images"))
    expected = functional_call(task.module, params, (images,))
    with torch.no_grad():
        for p in task.module.parameters():
            p.zero_()
    torch.testing.assert_close(task.logits(params, {}, images), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_images": 32}, "at most the training images"),
        ({"label_noise": 1.0}, "label_noise"),
        ({"horizon": 0}, "horizon"),
        ({"rescale": 0.5}, "rescale"),
    ],
)
def test_impossible_tasks_are_refused(change: dict[str, float], message: str) -> None:
    with pytest.raises(NfoptError, match=message):
        replace(CONFIG, **change)  # pyright: ignore[reportArgumentType]


def test_a_task_that_does_not_fit_its_source_is_refused() -> None:
    with pytest.raises(NfoptError, match="too many"):
        Task.make(replace(CONFIG, train_images=10_000))
    with pytest.raises(NfoptError, match="classes"):
        Task.make(replace(CONFIG, architecture=replace(MLP, classes=7)))
    with pytest.raises(UnknownNameError, match="digits"):
        Task.make(replace(CONFIG, source="digitz"))


@pytest.mark.parametrize(
    "change", [{"kind": "mpl"}, {"activation": "rleu"}, {"widths": ()}, {"kind": "cnn", "norm": "layer"}]
)
def test_impossible_architectures_are_refused(change: dict[str, str]) -> None:
    with pytest.raises(NfoptError):
        replace(MLP, **change)  # pyright: ignore[reportArgumentType]


def test_evaluations_data_are_refused_for_meta_training() -> None:
    for name in ("fashion_mnist", "cifar10"):
        with pytest.raises(DataError, match="held out"):
            require_trainable(name)
        with pytest.raises(DataError, match="held out"):
            TaskFamily(sources=("digits", name))


def test_the_teachers_classes_are_all_there_and_learnable_splits_are_disjoint() -> None:
    data = load_source("teacher", 8)
    counts = torch.bincount(data.train.labels, minlength=10)
    assert int(counts.min()) > 100
    assert not torch.isin(data.val.images[:, 0, 0, 0], data.train.images[:, 0, 0, 0]).all()
    assert abs(float(data.train.images.mean())) < 0.05


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_every_drawn_task_can_be_made_and_lies_in_the_familys_ranges(seed: int) -> None:
    family = TaskFamily(sources=("digits",))
    config = family.sample(generator(seed))
    assert config == family.sample(generator(seed))
    task = Task.make(config)
    assert 2 <= config.batch_images <= 256
    assert config.batch_images <= config.train_images <= 1500
    assert family.horizon[0] <= config.horizon <= family.horizon[1]
    assert task.instances([0]).train_index.shape == (1, config.train_images)


def test_a_family_draws_every_kind_and_both_parametrisations() -> None:
    configs = [TaskFamily(sources=("digits",)).sample(generator(i)) for i in range(150)]
    assert {c.architecture.kind for c in configs} == {"mlp", "cnn", "resnet", "depthwise"}
    assert {c.architecture.norm for c in configs} == {"none", "batch", "layer"}
    assert {(c.rescale > 1, c.compensate) for c in configs} == {(a, b) for a in (0, 1) for b in (0, 1)}


@pytest.mark.parametrize(
    "change",
    [
        {"sources": ("digitz",)},
        {"sources": ()},
        {"widths": (7, 5)},
        {"kinds": (("mpl", 1.0),)},
        {"source_weights": (1.0,)},
        {"source_weights": (0.0, 0.0)},
        {"most_epochs": 0.0},
    ],
)
def test_impossible_families_are_refused(change: dict[str, tuple]) -> None:
    with pytest.raises(NfoptError):
        TaskFamily(**change)


def test_tasks_with_an_epoch_limit_keep_to_it_and_use_more_data_before_they_are_cut_short() -> None:
    free = TaskFamily(sources=("teacher",), train_images=(100, 200), horizon=(200, 600))
    bound = replace(free, most_epochs=1.0)
    for seed in range(40):
        config, wide = bound.sample(generator(seed)), free.sample(generator(seed))
        batches_per_epoch = config.train_images // config.batch_images
        assert config.horizon <= batches_per_epoch
        assert config.batch_images == wide.batch_images
        cut = config.horizon < wide.horizon
        assert not cut or config.train_images == 8000
        longer = bound.sample(generator(seed), horizon_factor=2)
        assert config.horizon <= longer.horizon <= longer.train_images // longer.batch_images


def test_source_weights_decide_how_often_a_source_is_drawn() -> None:
    weighted = TaskFamily(sources=("digits", "teacher"), source_weights=(0.0, 1.0))
    assert {weighted.sample(generator(i)).source for i in range(20)} == {"teacher"}
    plain = TaskFamily(sources=("digits", "teacher"))
    assert {plain.sample(generator(i)).source for i in range(20)} == {"digits", "teacher"}


def test_a_mixture_draws_its_families_by_their_shares() -> None:
    small = TaskFamily(sources=("digits",), horizon=(7, 7))
    families = {"small": small, "long": replace(small, horizon=(11, 11)), "never": replace(small, sides=(3,))}
    mixture = TaskMixture(families, {"small": 3.0, "long": 1.0, "never": 0.0})
    horizons = [mixture.sample(generator(i)).horizon for i in range(200)]
    assert set(horizons) == {7, 11}
    assert 0.6 < horizons.count(7) / 200 < 0.9
    assert mixture.sample(generator(0), 5).horizon == 5 * horizons[0]


@pytest.mark.parametrize("shares", [{"a": 1.0}, {"a": 1.0, "b": -1.0}, {"a": 0.0, "b": 0.0}])
def test_impossible_mixtures_are_refused(shares: dict[str, float]) -> None:
    family = TaskFamily(sources=("digits",))
    with pytest.raises(NfoptError, match="share"):
        TaskMixture({"a": family, "b": family}, shares)


def test_seeds_tell_paths_apart() -> None:
    paths = [
        (0, "slot", 1),
        (0, "slot", 11),
        (1, "slot", 1),
        ("0", "slot", 1),
        (0, "slot"),
        (0, "slot", 1, 0),
    ]
    assert len({derive_seed(*path) for path in paths}) == len(paths)
    assert all(0 <= derive_seed(*path) < 2**63 for path in paths)
