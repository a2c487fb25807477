import pytest
import torch

from nfopt.data import Split
from nfopt.errors import NfoptError
from nfopt.meta.editor_nets import stacked_state
from nfopt.meta.editor_tasks import EditingNets, TaskShape, draw_batch, few_of_each
from tests.meta.test_editor_nets import nets


def numbered(count=61):
    """Images that show their own number, so that it can be read which were drawn."""
    labels = torch.arange(count) % 3
    images = torch.arange(count).float()[:, None, None, None].expand(-1, 1, 7, 7)
    return Split(images, labels)


@pytest.fixture
def some():
    modules, clean = nets(), numbered()
    negative = Split(-clean.images, clean.labels)
    return EditingNets.of(modules[0], stacked_state(modules), {"clean": clean, "negative": negative})


def test_target_and_test_images_of_a_task_are_of_its_domain_and_never_the_same(some):
    shape = TaskShape(("negative",), images=(11,), test_images=17, one_sided=0.0)
    batch = draw_batch(some, shape, 5, torch.Generator().manual_seed(0))
    for net in range(5):
        seen, test = (x[net, :, 0, 0, 0] for x in (batch.targets.images, batch.test_images))
        assert (seen <= 0).all() and len(set(seen.tolist()) | set(test.tolist())) == 28
        assert torch.equal(batch.clean_images[net, :, 0, 0, 0], -test)
        assert torch.equal(batch.test_labels[net], (-test).long() % 3)
        few = batch.targets.labels[net]
        known = few >= 0
        assert torch.equal(few[known], (-seen[known]).long() % 3)
        assert max(few[known].bincount()) <= shape.shots


def test_one_sided_targets_show_few_classes_and_are_tested_on_all(some):
    shape = TaskShape(("clean",), images=(11,), test_images=17, one_sided=1.0, few_classes=1)
    batch = draw_batch(some, shape, 4, torch.Generator().manual_seed(0))
    for net in range(4):
        assert len({int(v) % 3 for v in batch.targets.images[net, :, 0, 0, 0]}) == 1
        assert len(batch.test_labels[net].unique()) == 3


def test_few_of_each_names_the_first_of_every_class():
    assert few_of_each(torch.tensor([0, 0, 1, 0, 1]), 1).tolist() == [0, -1, 1, -1, -1]
    assert few_of_each(torch.tensor([0, 0, 1, 0, 1]), 2).tolist() == [0, 0, 1, -1, 1]


def test_nets_without_clean_images_are_refused():
    modules = nets(1)
    with pytest.raises(NfoptError, match="clean"):
        EditingNets(modules[0], None, stacked_state(modules), {"noisy": numbered()})
