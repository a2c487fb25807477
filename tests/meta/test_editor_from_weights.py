import pytest
import torch

from nfopt.data import ImageData, Split
from nfopt.editing.editor import EditorConfig
from nfopt.meta.editor_from_weights import (
    ProposerTraining,
    ShiftedPairs,
    accuracies,
    finetuned,
    permuted,
    train_proposer,
)
from nfopt.meta.editor_proposers import (
    ConstantProposer,
    EditorProposer,
    FlatProposer,
    NetworkProposer,
    input_atoms,
)
from nfopt.models import build_model
from nfopt.nn import NeuralFunctional, NeuralFunctionalConfig
from nfopt.zoo import Members, binary_classifiers

SHAPE = (1, 5, 7)
LAYERS = {"head": "equivariant", "channels": 3, "depth": 2, "output_scale": 0.5, "position": "sinusoidal"}


def split(count, seed):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    columns = torch.zeros(3, *SHAPE)
    for label in range(3):
        columns[label, :, :, label] = 2.0
    return Split(columns[labels] + 0.3 * torch.randn(count, *SHAPE, generator=generator), labels)


def model():
    return build_model("mlp", SHAPE, 2, options={"hidden": (5,)})


@pytest.fixture(scope="module")
def zoo():
    data = ImageData("columns", split(90, 0), split(30, 1), split(60, 2), classes=3)
    return binary_classifiers(
        data, Members.counted(9, 3, 4), model, seed=0, steps=60, learning_rate=3e-2, batch_images=16
    )


@pytest.fixture(scope="module")
def mirrored():
    """The shift: pictures from right to left."""
    found = split(90, 3)
    return ShiftedPairs.of(Split(found.images.flip(-1), found.labels), 3)


def proposers(zoo):
    draw = torch.Generator().manual_seed(0)
    atoms = input_atoms(zoo.spec)
    return {
        "constant": ConstantProposer(zoo),
        "flat": FlatProposer(zoo, 11, draw),
        "layers": NetworkProposer(
            zoo,
            NeuralFunctional(
                zoo.spec, NeuralFunctionalConfig(layer="dws", also_permuted=atoms, **LAYERS), generator=draw
            ),
        ),
        "editor": EditorProposer(
            zoo,
            model(),
            EditorConfig(rounds=1, channels=3, element_channels=3, layers=1, operators=1.0),
            SHAPE,
            draw,
        ),
    }


@pytest.mark.parametrize("kind", ["constant", "flat", "editor"])
def test_a_fresh_proposer_proposes_nothing(zoo, kind):
    changes = proposers(zoo)[kind](zoo.tensors)
    assert set(changes) == set(zoo.tensors)
    assert not any(bool(change.any()) for change in changes.values())


@pytest.mark.parametrize(("kind", "follows"), [("layers", True), ("editor", True), ("flat", False)])
def test_equivariant_proposers_follow_the_neurons_and_the_flat_one_does_not(zoo, kind, follows):
    proposer = proposers(zoo)[kind]
    with torch.no_grad():
        for name, weight in proposer.named_parameters():
            if kind != "layers" and name.endswith(("leave", "element_out.weight")):
                weight.normal_(generator=torch.Generator().manual_seed(1))
        permutation = zoo.spec.sample(torch.Generator().manual_seed(5))
        other = {n: t[None] for n, t in zoo.spec.act(permutation, zoo.net(0)).items()}
        moved = {n: t[0] for n, t in proposer(other).items()}
        own = proposer({n: t[:1] for n, t in zoo.tensors.items()})
    expected = zoo.spec.act(permutation, {n: t[0] for n, t in own.items()})
    same = all(torch.allclose(moved[n], expected[n], rtol=1e-3, atol=1e-5) for n in moved)
    assert same == follows


def test_the_editor_learns_to_mirror_the_pictures_of_nets_that_it_never_saw(zoo, mirrored):
    proposer = proposers(zoo)["editor"]
    config = ProposerTraining(total_steps=60, nets=4, images=12, lr=1e-2, check_every=20)
    train, val, test = (zoo.of(side) for side in ("train", "val", "test"))
    train_proposer("editor", proposer, model(), train, val, mirrored, config, 0)
    before = accuracies(model(), test, test.tensors, mirrored).mean()
    with torch.no_grad():
        changes = proposer(test.tensors)
    after = accuracies(model(), test, {n: t + changes[n] for n, t in test.tensors.items()}, mirrored).mean()
    assert after > before + 0.1


def test_renumbered_nets_compute_what_they_did(zoo, mirrored):
    chosen = torch.tensor([2, 0])
    other = permuted(zoo, chosen, torch.Generator().manual_seed(0))
    assert not torch.equal(other.tensors["1.weight"], zoo.tensors["1.weight"][chosen])
    part = zoo.subset(chosen)
    found, expected = (accuracies(model(), z, z.tensors, mirrored) for z in (other, part))
    assert torch.equal(found, expected)


def test_pairs_are_drawn_from_the_classes_of_each_net_half_and_half(mirrored):
    numbered = ShiftedPairs(torch.arange(90.0)[:, None, None, None], mirrored.by_class)
    pairs = torch.tensor([[2, 0], [1, 2]])
    images, labels = numbered.draw(pairs, 8, torch.Generator().manual_seed(0))
    for net in range(2):
        assert (images[net].flatten().long() % 3).tolist() == pairs[net][labels[net]].tolist()
        assert labels[net].sum() == 4


def test_fine_tuning_adapts_and_few_shots_see_few_images(zoo, mirrored):
    test = zoo.of("test")
    tuned = finetuned(model(), test, mirrored, total_steps=60, lr=1e-2, seed=0, images=16)
    before, after = (accuracies(model(), test, t, mirrored).mean() for t in (test.tensors, tuned))
    assert after > before + 0.1 and after > 0.9
    first = finetuned(model(), test, mirrored, total_steps=3, lr=1e-2, seed=0, shots=1, images=4)
    cut = ShiftedPairs(mirrored.images, tuple(index[:1] for index in mirrored.by_class))
    again = finetuned(model(), test, cut, total_steps=3, lr=1e-2, seed=0, shots=1, images=4)
    assert all(torch.equal(first[n], again[n]) for n in first)
