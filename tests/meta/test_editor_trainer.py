from dataclasses import replace

import pytest
import torch

from nfopt.data import Split
from nfopt.editing.editor import EditorConfig, StatisticsConfig, StatisticsEditor
from nfopt.errors import NfoptError
from nfopt.meta.editor_nets import stacked_state, train_side_by_side
from nfopt.meta.editor_tasks import EditingNets, TaskShape, draw_batch
from nfopt.meta.editor_trainer import EditorTrainer, EditorTrainerConfig, _expected_error, editing_loss
from tests.meta.test_editor_nets import nets, pictures

SMALL = EditorConfig(rounds=1, channels=3, element_channels=2, layers=1, step=0.1)


@pytest.fixture(scope="module")
def dark():
    """Nets, and a domain that shows their images at a fifth of their contrast and shifted."""
    modules, split = nets(6), pictures(97)
    tensors = train_side_by_side(
        modules[0], stacked_state(modules), split, total_steps=40, batch_size=23, lr=3e-2, seed=0
    )
    domains = {"clean": split, "dark": Split(split.images / 5 - 1, split.labels)}
    whole = EditingNets.of(modules[0], tensors, domains)
    return [
        EditingNets(whole.module, whole.spec, {n: t[part] for n, t in whole.tensors.items()}, domains)
        for part in (slice(0, 4), slice(4, 6))
    ]


def test_an_editor_learns_what_lowers_the_loss_of_other_nets(dark):
    config = EditorTrainerConfig(
        total_steps=30, nets=3, lr=1e-2, check_every=10, check_batches=2, source_weight=0.0
    )
    shape = TaskShape(("dark",), images=(11,), test_images=23)
    trained = EditorTrainer(config, SMALL, dark[:1], dark[1:], shape).run()
    losses = dict(trained.history)
    assert trained.step > 0 and losses[trained.step] < losses[0] - 0.05
    batch = draw_batch(dark[1], shape, 4, torch.Generator().manual_seed(77))
    fresh = EditorTrainer(config, SMALL, dark[:1], dark[1:], shape).editor
    with torch.no_grad():
        after, _ = editing_loss(trained.editor, dark[1], batch, "images")
        before, _ = editing_loss(fresh, dark[1], batch, "images")
    assert after.mean() < before.mean()


def test_a_statistics_editor_learns_to_take_more_of_the_target_than_its_nominal_share(dark):
    config = EditorTrainerConfig(
        total_steps=30, nets=3, lr=3e-2, check_every=10, check_batches=2, source_weight=0.0, objective="error"
    )
    small = StatisticsConfig(source_count=99.0, width=5, memory=2)
    shape = TaskShape(("dark",), images=(11,), test_images=23, one_sided=0.0)
    trained = EditorTrainer(config, small, dark[:1], dark[1:], shape).run()
    losses = dict(trained.history)
    assert trained.step > 0 and losses[trained.step] < losses[0] - 0.05
    batch = draw_batch(dark[1], shape, 2, torch.Generator().manual_seed(7))
    editor = trained.editor
    assert isinstance(editor, StatisticsEditor)
    forward, means = dark[1].forward, "1.running_mean"
    seen = forward(batch.tensors, batch.targets.images, {"1": torch.ones(2, 1)})[1].measured[means]
    found = editor.edited(forward, batch.tensors, batch.targets.images)[means]
    nominal = torch.lerp(batch.tensors[means], seen, 0.1)
    assert (found - seen).abs().mean() < (nominal - seen).abs().mean()


def test_the_expected_error_does_not_reward_a_net_for_being_less_sure():
    logits = torch.randn(3, 11, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(0, 5, (3, 11), generator=torch.Generator().manual_seed(1))
    found = _expected_error(logits, labels)
    assert found.shape == (3,)
    torch.testing.assert_close(_expected_error(0.1 * logits + 3, labels), found)
    right = torch.nn.functional.one_hot(labels, 5).float()
    assert (_expected_error(right, labels) < 0.01).all() and (_expected_error(-right, labels) > 0.9).all()


def test_a_statistics_editor_is_refused_labels_and_nets_without_batchnorm(dark):
    shape, small = TaskShape(("dark",), images=(5,)), StatisticsConfig(width=3, memory=2)
    with pytest.raises(NfoptError, match="images alone"):
        EditorTrainer(EditorTrainerConfig(uses=("labels",)), small, dark[:1], dark[1:], shape)
    plain = nets(1, "mlp", {"hidden": (5,)})
    without = EditingNets.of(plain[0], stacked_state(plain), dark[0].domains)
    with pytest.raises(NfoptError, match="none"):
        EditorTrainer(EditorTrainerConfig(), small, [without], [without], shape)


def test_an_editor_that_learns_nothing_good_is_left_as_fresh(dark):
    config = EditorTrainerConfig(total_steps=3, nets=2, lr=50.0, max_norm=1e9, check_every=1, check_batches=1)
    shape = TaskShape(("dark",), images=(11,), test_images=23)
    ruinous = replace(SMALL, free=50.0, step=50.0, blend=50.0)
    trained = EditorTrainer(config, ruinous, dark[:1], dark[1:], shape).run()
    assert trained.step == 0 and len(trained.history) == 4
    assert not trained.editor.network.element_out.weight.any()


def test_a_state_of_another_training_is_refused(dark, tmp_path):
    shape = TaskShape(("dark",), images=(5,), test_images=7)
    common = {"total_steps": 1, "nets": 2, "check_batches": 1, "checkpoint_every": 1}
    EditorTrainer(
        EditorTrainerConfig(**common), SMALL, dark[:1], dark[1:], shape, state=tmp_path / "state"
    ).run()
    other = EditorTrainerConfig(**common, seed=1)
    with pytest.raises(NfoptError, match="another training"):
        EditorTrainer(other, SMALL, dark[:1], dark[1:], shape, state=tmp_path / "state").run()


@pytest.mark.parametrize(
    "options",
    [{"nets": 0}, {"lr": 0.0}, {"uses": ()}, {"uses": ("sight",)}, {"average": 1.0}, {"objective": "x"}],
)
def test_a_training_that_makes_no_sense_is_refused(options):
    with pytest.raises(NfoptError):
        EditorTrainerConfig(**options)
