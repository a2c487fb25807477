import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call, vmap

from nfopt.symmetry import trace_permutation_spec
from nfopt.zoo import (
    Compose,
    FlipSigns,
    Mask,
    Noise,
    Permute,
    ScaleNeurons,
    ShiftPhases,
    Siren,
    SirenConfig,
    ZooError,
    small_cnn,
    views,
)

NETS = 4


class Residual(nn.Module):
    """A skip connection: one group of neurons that two layers write and two read."""

    def __init__(self):
        super().__init__()
        self.stem, self.inner, self.outer, self.head = (
            nn.Linear(*sizes) for sizes in ((3, 7), (7, 5), (5, 7), (7, 2))
        )

    def forward(self, x):
        x = torch.relu(self.stem(x))
        x = torch.relu(x + self.outer(torch.relu(self.inner(x))))
        return self.head(x)


def flattened_cnn():
    """A flatten between convolution and linear layer: an axis that is channels x positions."""
    return nn.Sequential(
        nn.Conv2d(2, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 9, 3), nn.ReLU(), nn.Linear(3, 2)
    )


def concatenated():
    class Concatenated(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right, self.head = nn.Linear(3, 5), nn.Linear(3, 7), nn.Linear(12, 2)

        def forward(self, x):
            return self.head(torch.cat([torch.relu(self.left(x)), torch.relu(self.right(x))], 1))

    return Concatenated()


MODELS = {
    "mlp": (
        lambda: nn.Sequential(nn.Linear(3, 7), nn.ReLU(), nn.Linear(7, 5), nn.ReLU(), nn.Linear(5, 2)),
        (3,),
    ),
    "residual": (Residual, (3,)),
    "cnn": (lambda: small_cnn((2, 5, 5), 3, channels=(5, 7)), (2, 5, 5)),
    "flattened": (flattened_cnn, (2, 5, 5)),
    "concatenated": (concatenated, (3,)),
    "siren": (lambda: Siren(SirenConfig(3, (7, 5))), (3,)),
}
RELU = ("mlp", "residual", "cnn", "flattened", "concatenated")


def case(name):
    make, shape = MODELS[name]
    model = make().double()
    x = torch.randn(11, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    spec = trace_permutation_spec(model, x)
    generator = torch.Generator().manual_seed(2)
    nets = {
        n: 0.5 * torch.randn(NETS, *p.shape, generator=generator, dtype=torch.float64)
        for n, p in model.named_parameters()
    }
    return spec, nets, lambda tensors: vmap(lambda t: functional_call(model, t, (x,)))(tensors)


def assert_function_unchanged(transform, nets, outputs):
    changed = transform(nets, torch.Generator().manual_seed(0))
    assert set(changed) == set(nets)
    for name, tensor in nets.items():
        assert changed[name].shape == tensor.shape and changed[name].dtype == tensor.dtype
    moved = [name for name in nets if not torch.equal(changed[name], nets[name])]
    assert any(name.endswith("weight") for name in moved)
    before, after = outputs(nets), outputs(changed)
    assert (after - before).abs().max() <= 1e-11 * before.abs().max()


@pytest.mark.parametrize("name", MODELS)
def test_permuting_leaves_the_function_unchanged(name):
    spec, nets, outputs = case(name)
    assert_function_unchanged(Permute(spec), nets, outputs)


@pytest.mark.parametrize("name", RELU)
def test_positive_scaling_leaves_nets_of_relus_unchanged(name):
    spec, nets, outputs = case(name)
    assert_function_unchanged(ScaleNeurons(spec, 0.7), nets, outputs)


def test_flipping_signs_leaves_nets_of_sines_unchanged_and_those_of_relus_not():
    spec, nets, outputs = case("siren")
    assert_function_unchanged(FlipSigns(spec), nets, outputs)
    spec, nets, outputs = case("mlp")
    with pytest.raises(AssertionError):
        assert_function_unchanged(FlipSigns(spec), nets, outputs)


def test_shifting_phases_leaves_nets_of_sines_unchanged_for_their_omega_only():
    spec, nets, outputs = case("siren")
    assert_function_unchanged(ShiftPhases(spec, 30.0), nets, outputs)
    with pytest.raises(AssertionError):
        assert_function_unchanged(ShiftPhases(spec, 29.0), nets, outputs)


def test_all_symmetries_of_a_siren_compose():
    spec, nets, outputs = case("siren")
    together = Compose((Permute(spec), FlipSigns(spec), ShiftPhases(spec), Permute(spec)))
    assert_function_unchanged(together, nets, outputs)


ALL = {
    "permute": Permute,
    "scale": ScaleNeurons,
    "flip": FlipSigns,
    "shift": ShiftPhases,
    "noise": lambda spec: Noise(0.2),
    "mask": lambda spec: Mask(0.5),
}


@pytest.mark.parametrize("name", ALL)
def test_equal_generators_give_equal_results_and_every_call_draws_anew(name):
    spec, nets, _ = case("siren")
    transform = ALL[name](spec)
    generator = torch.Generator().manual_seed(7)
    first, second = views(transform, nets, generator)
    again = transform(nets, torch.Generator().manual_seed(7))
    assert all(torch.equal(first[n], again[n]) for n in nets)
    assert not torch.equal(first["2.weight"], second["2.weight"])


@pytest.mark.parametrize("name", ALL)
def test_no_two_nets_share_a_draw(name):
    spec, nets, _ = case("siren")
    equal = {n: t[:1].expand(NETS, *t.shape[1:]) for n, t in nets.items()}
    weight = ALL[name](spec)(equal, torch.Generator().manual_seed(0))["2.weight"]
    assert len({tuple(w.flatten().tolist()) for w in weight}) == NETS


@pytest.mark.parametrize("name", ALL)
def test_the_nets_that_are_given_are_not_changed(name):
    spec, nets, _ = case("siren")
    copy = {n: t.clone() for n, t in nets.items()}
    ALL[name](spec)(nets, torch.Generator().manual_seed(0))
    assert all(torch.equal(nets[n], copy[n]) for n in nets)


@settings(max_examples=10, deadline=None)
@given(scale=st.floats(1e-3, 1e3), relative_std=st.floats(0.01, 2))
def test_noise_is_relative_to_the_spread_of_each_net_and_tensor(scale, relative_std):
    tensor = torch.randn(2, 53, 59, generator=torch.Generator().manual_seed(0)) + 5
    tensor = tensor * torch.tensor([1.0, scale]).view(2, 1, 1)
    noise = Noise(relative_std)({"weight": tensor}, torch.Generator().manual_seed(1))["weight"] - tensor
    for i, spread in enumerate((1.0, scale)):
        assert noise[i].std().item() == pytest.approx(relative_std * spread, rel=0.1)
        assert abs(noise[i].mean().item()) < 0.1 * relative_std * spread


def test_noise_of_two_views_and_of_two_nets_is_uncorrelated():
    nets = {"weight": torch.ones(2, 53, 59).cumsum(1)}
    first, second = views(Noise(0.2), nets, torch.Generator().manual_seed(0))
    rows = torch.cat([(view["weight"] - nets["weight"]).flatten(1) for view in (first, second)])
    correlation = torch.corrcoef(rows) - torch.eye(4)
    assert correlation.abs().max() < 0.08


def test_a_tensor_of_one_element_gets_noise_by_its_magnitude():
    bias = torch.full((997, 1), 3.0)
    noise = Noise(0.2)({"bias": bias}, torch.Generator().manual_seed(0))["bias"] - bias
    assert noise.std().item() == pytest.approx(0.6, rel=0.1)


@given(zeroed=st.floats(0, 1))
@settings(max_examples=10, deadline=None)
def test_a_mask_zeroes_its_share_and_leaves_the_rest(zeroed):
    tensor = torch.ones(3, 53, 59)
    masked = Mask(zeroed)({"weight": tensor}, torch.Generator().manual_seed(0))["weight"]
    assert set(masked.unique().tolist()) <= {0.0, 1.0}
    assert (masked == 0).float().mean().item() == pytest.approx(zeroed, abs=0.03)


def test_permutations_are_uniform():
    spec, nets, _ = case("mlp")
    marked = {n: t[:1].expand(2000, *t.shape[1:]).clone() for n, t in nets.items()}
    marked["2.bias"] = torch.arange(5.0).expand(2000, 5).double()
    where = Permute(spec)(marked, torch.Generator().manual_seed(0))["2.bias"]
    for place in range(5):
        counts = where[:, place].long().bincount(minlength=5)
        assert (counts - 400).abs().max() < 90  # five standard deviations


def normalised():
    return nn.Sequential(nn.Linear(3, 5), nn.LayerNorm(5), nn.ReLU(), nn.Linear(5, 2))


@pytest.mark.parametrize("transform", [ScaleNeurons, FlipSigns, ShiftPhases])
def test_nets_with_a_normalisation_are_refused(transform):
    spec = trace_permutation_spec(normalised(), torch.zeros(2, 3))
    with pytest.raises(ZooError, match=r"cannot be scaled: 1\.weight .* norm_scale"):
        transform(spec)


def test_phases_of_neurons_without_a_bias_are_refused():
    model = nn.Sequential(nn.Linear(3, 5, bias=False), nn.ReLU(), nn.Linear(5, 2))
    with pytest.raises(ZooError, match="no bias"):
        ShiftPhases(trace_permutation_spec(model, torch.zeros(2, 3)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda n: {k: v for k, v in n.items() if k != "2.bias"}, r"lack the tensors \['2.bias'\]"),
        (lambda n: {**n, "2.bias": n["2.bias"][:, :3]}, "2.bias has shape"),
        (lambda n: {**n, "2.bias": n["2.bias"][:3]}, "different numbers of nets"),
        (lambda n: {k: v[0] for k, v in n.items()}, "has shape"),
    ],
)
def test_what_are_no_nets_of_the_spec_is_refused(change, message):
    spec, nets, _ = case("siren")
    for transform in (Permute(spec), ScaleNeurons(spec), FlipSigns(spec), ShiftPhases(spec)):
        with pytest.raises(ZooError, match=message):
            transform(change(nets), torch.Generator())


@pytest.mark.parametrize("zeroed", [-0.1, 1.1])
def test_a_mask_of_no_share_is_refused(zeroed):
    with pytest.raises(ZooError, match="between 0 and 1"):
        Mask(zeroed)
