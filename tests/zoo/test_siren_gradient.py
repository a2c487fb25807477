import pytest
import torch

from nfopt.zoo.siren import SirenConfig, grid, siren
from nfopt.zoo.siren_gradient import SirenGradient


def case(hidden, inputs):
    config = SirenConfig(inputs, hidden, 1, omega_0=7.0)
    generator = torch.Generator().manual_seed(len(hidden))
    flat = torch.stack([config.start(generator) for _ in range(3)]).double()
    coordinates = grid(5, 7).double() if inputs == 2 else torch.linspace(-1, 1, 13).double().unsqueeze(1)
    return config, flat, coordinates, torch.rand(3, len(coordinates), generator=generator).double()


@pytest.mark.parametrize("hidden", [(5,), (5, 3), (3, 7, 5)])
@pytest.mark.parametrize(("inputs", "grid_shape"), [(2, (5, 7)), (2, None), (1, None)])
def test_error_and_gradient_in_closed_form_are_those_of_autograd(hidden, inputs, grid_shape):
    config, flat, coordinates, targets = case(hidden, inputs)
    engine = SirenGradient(config, coordinates, 3, grid_shape)
    gradient = torch.full_like(flat, torch.nan)
    for _ in range(2):  # a second call finds the buffers used
        error = engine(flat, targets, gradient)
    leaf = flat.clone().requires_grad_()
    values = siren(config.named(leaf), coordinates, omega_0=7.0)
    expected = (values.squeeze(2) - targets).square().mean(1)
    expected.sum().backward()
    torch.testing.assert_close(error, expected.detach(), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(gradient, leaf.grad, rtol=1e-10, atol=1e-12)
