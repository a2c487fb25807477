import pytest
import torch
from torch import nn

from nfopt.data import load_data
from nfopt.models import ModelError, build_model
from nfopt.zoo import HyperRanges, Machine, Members, ZooError, binary_classifiers, classifiers, small_cnn

RANGES = HyperRanges(steps=(11, 31), learning_rate=(1e-3, 1e-1))
MACHINE = Machine(lanes=3, workers=1)


@pytest.fixture(scope="module")
def digits():
    return load_data("digits", n_train=101, n_val=11)


def mlp(classes=10):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 7), nn.ReLU(), nn.Linear(7, classes))


def many(data, members, model=mlp, **options):
    options = {"seed": 0, "ranges": RANGES, "checkpoints": (0.0, 1.0), "batch_images": 13} | options
    return classifiers(data, members, model, machine=MACHINE, **options)


def test_every_run_is_kept_early_and_late_with_what_was_drawn_for_it(digits):
    zoo = many(digits, Members.counted(5, 2, 2))
    assert len(zoo) == 18
    facts = zoo.facts
    assert facts["run"].tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 0, 0, 1, 1, 0, 0, 1, 1]
    assert zoo.side.tolist() == [0] * 10 + [1] * 4 + [2] * 4
    assert (facts["steps"][0::2] == 0).all()
    assert torch.equal(facts["steps"][1::2], facts["run_steps"][1::2])
    for name, (low, high) in vars(RANGES).items():
        values = facts["run_steps" if name == "steps" else name]
        assert low <= values.min() < values.max() <= high
    assert facts["train_loss"][1::2].mean() < facts["train_loss"][0::2].mean()


def test_the_accuracy_is_that_of_the_net_in_the_zoo(digits):
    zoo = many(digits, Members.counted(3), test_images=360)
    model = mlp()
    for i in range(len(zoo)):
        model.load_state_dict(zoo.net(i))
        right = model(digits.test.images).argmax(1) == digits.test.labels
        assert zoo.facts["test_accuracy"][i] == pytest.approx(right.double().mean().item(), abs=0.004)


def test_a_net_is_a_function_of_the_seed_and_its_number_alone(digits):
    zoo = many(digits, Members.counted(4, 2, 1))
    more = many(digits, Members.counted(7, 3, 2))
    for side in ("train", "val", "test"):
        few, all_ = zoo.of(side), more.of(side)
        for name, tensor in few.tensors.items():
            torch.testing.assert_close(all_.tensors[name][: len(few)], tensor, rtol=0, atol=1e-5)
        for name in ("learning_rate", "train_share", "steps"):
            assert torch.equal(all_.facts[name][: len(few)], few.facts[name])
    other = many(digits, Members.counted(4, 2, 1), seed=1)
    assert not torch.equal(other.facts["learning_rate"], zoo.facts["learning_rate"])


def test_a_share_of_the_data_is_all_that_a_run_learns_from(digits):
    ranges = HyperRanges(steps=(61, 61), learning_rate=(1e-2, 1e-2), train_share=(0.03, 0.03))
    zoo = many(digits, Members.counted(3), ranges=ranges, checkpoints=(1.0,))
    assert zoo.facts["train_loss"].max() < 0.3
    assert zoo.facts["test_accuracy"].max() < 0.6


def test_convolutional_nets_have_a_group_for_each_layer_of_channels(digits):
    zoo = many(digits, Members.counted(2), lambda: small_cnn((1, 8, 8), 10, channels=(3, 5, 7)))
    assert [atom.size for atom in zoo.spec.groups.values()] == [3, 5, 7]
    assert zoo.tensors["2.weight"].shape == (4, 5, 3, 3, 3)


def test_building_a_zoo_leaves_the_global_generator_alone(digits):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    many(digits, Members.counted(1), ranges=HyperRanges(steps=(3, 3)))
    drawn = torch.rand(3)
    assert torch.equal(drawn, expected)


def two(data, members, **options):
    options = {"seed": 0, "steps": 31, "batch_images": 13, "learning_rate": 1e-2} | options
    return binary_classifiers(data, members, lambda: mlp(2), machine=MACHINE, **options)


def test_binary_classifiers_tell_their_two_classes_apart(digits):
    zoo = two(digits, Members.counted(5, 2, 2))
    classes = zoo.facts["classes"]
    assert classes.shape == (9, 2) and (classes[:, 0] != classes[:, 1]).all()
    model = mlp(2)
    for i in range(3):
        model.load_state_dict(zoo.net(i))
        a, b = classes[i].tolist()
        of_pair = torch.isin(digits.test.labels, torch.tensor([a, b]))
        right = model(digits.test.images[of_pair]).argmax(1) == (digits.test.labels[of_pair] == b).long()
        assert abs(zoo.facts["test_accuracy"][i] - right.double().mean()) < 0.06
    assert zoo.facts["test_accuracy"].mean() > 0.85
    again = two(digits, Members.counted(6, 2, 2))
    assert torch.equal(again.of("train").facts["classes"][:5], classes[:5])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"checkpoints": ()}, "ascending"),
        ({"checkpoints": (0.5, 0.2)}, "ascending"),
        ({"checkpoints": (0.5, 1.2)}, "from 0 to 1"),
        ({"checkpoints": (0.5, 0.501)}, "not different steps"),
    ],
)
def test_checkpoints_without_sense_are_refused(digits, options, message):
    with pytest.raises(ZooError, match=message):
        many(digits, Members.counted(1), **options)


@pytest.mark.parametrize(
    "ranges", [{"learning_rate": (0.0, 1.0)}, {"steps": (5, 3)}, {"train_share": (0.5, 2)}]
)
def test_ranges_without_sense_are_refused(ranges):
    with pytest.raises(ZooError, match=next(iter(ranges))):
        HyperRanges(**ranges)


def test_the_small_cnn_is_a_model_by_name_with_the_published_number_of_parameters():
    model = build_model("small-cnn", (1, 32, 32), 10)
    assert sum(p.numel() for p in model.parameters()) == 4970  # Unterthiner et al. 2020, grey images
    with pytest.raises(ModelError, match="relu, tanh"):
        small_cnn((1, 8, 8), 10, activation="sine")
