from dataclasses import replace

import pytest
import torch

from nfopt.data import load_data
from nfopt.zoo import FitConfig, Machine, Members, ZooError, image_inrs, psnr_db, render, sine_inrs, siren

FIT = FitConfig(learning_rate=2e-3, max_steps=150, stop_psnr_db=20.0)
MACHINE = Machine(lanes=3, workers=1)


@pytest.fixture(scope="module")
def digits():
    return load_data("digits", standardize=False, n_train=53, n_val=11)


def images(data, members, **options):
    options = {"seed": 0, "hidden": (7, 5), "fit": FIT, "machine": MACHINE} | options
    return image_inrs(data, members, **options)


@pytest.fixture(scope="module")
def zoo(digits):
    return images(digits, Members.counted(5, 3, 2))


def test_each_net_holds_its_image_of_its_side(digits, zoo):
    splits = (digits.train, digits.val, digits.test)
    for i in range(len(zoo)):
        split = splits[zoo.side[i]]
        number = zoo.facts["image_number"][i]
        assert torch.equal(zoo.facts["image"][i], split.images[number])
        assert zoo.facts["label"][i] == split.labels[number]
    error = (render(zoo.tensors, 8) - zoo.facts["image"]).square().mean((1, 2, 3))
    torch.testing.assert_close(error, zoo.facts["train_loss"], rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(psnr_db(error), zoo.facts["psnr_db"], rtol=1e-3, atol=1e-2)
    assert zoo.facts["psnr_db"].median() > 15


def test_no_image_is_held_twice_on_a_side(digits):
    zoo = images(digits, Members.counted(53, 11), fit=replace(FIT, max_steps=1))
    for side in ("train", "val"):
        numbers = zoo.of(side).facts["image_number"]
        assert len(numbers.unique()) == len(numbers)


def test_a_net_is_a_function_of_the_seed_and_its_number_alone(digits, zoo):
    more = images(digits, Members.counted(7, 4, 2))
    for side, count in (("train", 5), ("val", 3), ("test", 2)):
        part = more.of(side).subset(slice(0, count))
        assert part.digest == zoo.of(side).digest
    in_parts = [images(digits, Members.counted(5, 3, 2)[part]) for part in (slice(0, 4), slice(4, 10))]
    for name, tensor in zoo.tensors.items():
        assert torch.equal(torch.cat([part.tensors[name] for part in in_parts]), tensor)
    assert images(digits, Members.counted(5, 3, 2), seed=1).digest != zoo.digest


def test_members_in_any_order_keep_their_images(digits, zoo):
    order = torch.tensor([9, 0, 6, 2, 8, 1])
    members = Members.counted(5, 3, 2)
    shuffled = images(digits, Members(members.side[order], members.number[order]))
    assert shuffled.digest == zoo.subset(order).digest


def test_views_of_one_image_are_different_nets_on_one_side(digits):
    zoo = images(digits, Members.counted(6, 3), views=3)
    assert zoo.facts["view"].tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 2]
    train = zoo.of("train").facts["image_number"]
    assert train[0] == train[1] == train[2] != train[3]
    weights = zoo.tensors["0.weight"]
    assert not torch.equal(weights[0], weights[1])


def test_the_spec_and_the_card_tell_the_architecture(digits, zoo):
    assert sorted(atom.size for atom in zoo.spec.groups.values()) == [5, 7]
    assert zoo.card["architecture"]["omega_0"] == 30.0
    assert zoo.card["data"] == "digits"


def test_more_nets_than_images_and_images_of_other_values_are_refused(digits):
    with pytest.raises(ZooError, match="has 11 images on the side 'val', but 12 are asked for"):
        images(digits, Members.counted(1, 12))
    with pytest.raises(ZooError, match="not standardised"):
        images(load_data("digits", n_train=53, n_val=11), Members.counted(1))
    with pytest.raises(ZooError, match="views is 0"):
        images(digits, Members.counted(1), views=0)


def test_waves_have_their_frequency_and_amplitude():
    zoo = sine_inrs(Members.counted(5, 2, 2), seed=3, amplitude=(1.0, 3.0), frequency=(0.5, 4.0), points=53,
                    hidden=(13, 11), fit=FIT, machine=MACHINE)  # fmt: skip
    b, a = zoo.facts["frequency"], zoo.facts["amplitude"]
    assert 0.5 <= b.min() < b.max() <= 4 and 1 <= a.min() < a.max() <= 3
    x = torch.linspace(-1, 1, 53).unsqueeze(1)
    target = a[:, None] * torch.sin(b[:, None] * torch.pi * x.T)
    error = (siren(zoo.tensors, x).squeeze(2) - target).square().mean(1)
    torch.testing.assert_close(error, zoo.facts["train_loss"], rtol=1e-3, atol=1e-6)
    assert ((zoo.facts["psnr_db"] >= 20) == (zoo.facts["steps"] < 150)).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frequency": (3.0, 1.0)}, "frequency is a range"),
        ({"amplitude": (0.0, 0.0)}, "amplitude is a range"),
        ({"points": 1}, "two points"),
    ],
)
def test_waves_without_sense_are_refused(options, message):
    with pytest.raises(ZooError, match=message):
        sine_inrs(Members.counted(1), seed=0, **options)


def test_a_zoo_without_nets_is_refused():
    with pytest.raises(ZooError, match="at least one net"):
        Members.counted(0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_nets_fitted_on_a_gpu_are_those_of_the_cpu(digits):
    fit = replace(FIT, max_steps=11)
    on_cpu = images(digits, Members.counted(5, 3, 2), fit=fit)
    on_gpu = images(digits, Members.counted(5, 3, 2), fit=fit, machine=Machine("cuda", lanes=4))
    for name, tensor in on_cpu.tensors.items():
        assert on_gpu.tensors[name].device.type == "cpu"
        torch.testing.assert_close(on_gpu.tensors[name], tensor, rtol=0, atol=1e-3)
