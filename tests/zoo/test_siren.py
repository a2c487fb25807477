import pytest
import torch

from nfopt.symmetry import verify
from nfopt.zoo import Siren, SirenConfig, ZooError, render, siren
from nfopt.zoo.siren import grid

CONFIG = SirenConfig(2, (5, 3), 1, omega_0=7.0)


def starts(config, nets, dtype=torch.float64):
    flat = torch.stack([config.start(torch.Generator().manual_seed(i)) for i in range(nets)])
    return config.named(flat.to(dtype))


def test_many_nets_at_once_compute_what_each_module_computes():
    tensors = starts(CONFIG, 3)
    coordinates = torch.rand(11, 2, dtype=torch.float64) * 2 - 1
    together = siren(tensors, coordinates, omega_0=7.0)
    for i in range(3):
        alone = Siren(CONFIG, seed=i).double()
        assert all(torch.equal(p, tensors[name][i]) for name, p in alone.named_parameters())
        torch.testing.assert_close(together[i], alone(coordinates), rtol=0, atol=1e-12)


def test_the_symmetry_is_one_permutation_of_each_hidden_layer_and_is_proved():
    spec = CONFIG.spec()
    assert sorted(atom.size for atom in spec.groups.values()) == [3, 5]
    assert {name: entry.shape for name, entry in spec.tensors.items()} == CONFIG.shapes
    report = verify(Siren(CONFIG), spec, torch.zeros(7, 2))
    assert report.passed


def test_initial_parameters_fill_their_bounds_and_no_more():
    config = SirenConfig(2, (32, 32))
    for name, tensor in starts(config, 200).items():
        assert tensor.abs().max() <= config.bounds[name]
        assert tensor.abs().max() > 0.95 * config.bounds[name]
        assert abs(tensor.mean()) < 0.1 * config.bounds[name]
    assert config.bounds["0.weight"] == 0.5
    assert config.bounds["2.weight"] == pytest.approx((6 / 32) ** 0.5 / 30)


def test_activations_keep_their_scale_whatever_the_width():
    for width in (32, 128):
        config = SirenConfig(2, (width, width, width))
        inner = {n: t * n.endswith("weight") for n, t in starts(config, 20).items() if n[0] != "6"}
        phases = siren(inner, torch.rand(101, 2) * 2 - 1)
        assert 0.7 < (30 * phases).std() < 1.5


def test_a_pixel_is_the_net_at_its_row_and_column():
    tensors = starts(CONFIG, 3)
    images = render(tensors, (5, 7), omega_0=7.0)
    assert images.shape == (3, 1, 5, 7)
    row, column = 2 * 1 / 4 - 1, 2 * 5 / 6 - 1
    value = siren(tensors, torch.tensor([[row, column]], dtype=torch.float64), omega_0=7.0)
    torch.testing.assert_close(images[:, 0, 1, 5], value[:, 0, 0])
    assert grid(1, 3).tolist() == [[0, -1], [0, 0], [0, 1]]


def test_rendering_is_differentiable():
    tensors = {name: t[:, ...].requires_grad_() for name, t in starts(CONFIG, 2).items()}
    assert torch.autograd.gradcheck(
        lambda *values: render(dict(zip(tensors, values, strict=True)), (2, 3), omega_0=7.0),
        tuple(tensors.values()),
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: {k: v for k, v in t.items() if k != "2.bias"}, "weights and biases 0, 2, 4"),
        (lambda t: {k.replace("2.", "3."): v for k, v in t.items()}, "weights and biases 0, 2, 4"),
        (lambda t: {}, "weights and biases 0, 2, 4"),
        (lambda t: {**t, "0.weight": t["0.weight"][0]}, "must be"),
        (lambda t: starts(SirenConfig(3, (5, 3)), 2), "with 2 coordinates"),
    ],
)
def test_tensors_of_other_nets_are_refused(change, message):
    with pytest.raises(ZooError, match=message):
        render(change(starts(CONFIG, 2)))


@pytest.mark.parametrize("arguments", [{"hidden": ()}, {"hidden": (0,)}, {"inputs": 0}, {"omega_0": 0.0}])
def test_an_architecture_without_sense_is_refused(arguments):
    with pytest.raises(ZooError, match="a SIREN needs"):
        SirenConfig(**arguments)
