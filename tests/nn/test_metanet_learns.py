"""What the role-tied network can learn: functions of the coupling, that hold at widths it never saw."""

import torch
from torch import Tensor
from torch.func import functional_call, stack_module_state, vmap
from torch.testing import assert_close

from nfopt.nn import RoleTiedConfig, RoleTiedNetwork
from nfopt.symmetry import PermutationSpec
from nfopt.weightspace import WeightSpaceFeatures
from tests.hand_specs import SPECS, random_tensors
from tests.nn.test_metanet import stacked_mlp

FEATURES = WeightSpaceFeatures(gradients=False)


def network(seed: int) -> RoleTiedNetwork:
    config = RoleTiedConfig.reading(FEATURES, channels=16)
    return RoleTiedNetwork(config, torch.Generator().manual_seed(seed))


def nets_and_incoming_scale(
    spec: PermutationSpec, count: int, generator: torch.Generator
) -> tuple[dict[str, Tensor], Tensor]:
    """Random nets, and for each weight of the second layer the log norm of its input neuron's own weights."""
    nets = {
        name: torch.randn((count, *entry.shape), generator=generator) for name, entry in spec.tensors.items()
    }
    scale = nets["0.weight"].square().mean(-1).log() / 2
    scale = scale - scale.mean(-1, keepdim=True)
    return nets, scale[:, None, :].expand_as(nets["1.weight"])


def unexplained(
    net: RoleTiedNetwork, spec: PermutationSpec, nets: dict[str, Tensor], target: Tensor
) -> Tensor:
    """Share of the target's variance that the network's output for the second layer leaves."""
    output = net(FEATURES(spec, nets)).elements["1.weight"].squeeze(-1)
    return (output - target).square().mean() / target.var()


def test_a_function_of_the_coupling_is_learned_and_holds_at_widths_never_seen():
    net, generator = network(1), torch.Generator().manual_seed(2)
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    for step in range(160):
        spec = stacked_mlp((3, 5, 11, 17)[step % 4])
        loss = unexplained(net, spec, *nets_and_incoming_scale(spec, 8, generator))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        for width in (7, 127, 307):
            spec = stacked_mlp(width)
            nets, target = nets_and_incoming_scale(spec, 2, generator)
            assert unexplained(net, spec, nets, target) < 0.4
            # Without the coupling the same network knows nothing: the neurons' order carries the answer.
            order = torch.randperm(width, generator=generator)
            uncoupled = {**nets, "0.weight": nets["0.weight"][:, order]}
            assert unexplained(net, spec, uncoupled, target) > 0.8


def test_many_perturbed_copies_of_the_weights_run_side_by_side():
    spec, networks = SPECS["rnn"], [network(seed) for seed in range(3)]
    features = FEATURES(spec, random_tensors(spec, 0, dtype=torch.float32))
    weights, _ = stack_module_state(list(networks))

    def elements(theta: dict[str, Tensor]) -> dict[str, Tensor]:
        return functional_call(networks[0], theta, (features,)).elements

    together = vmap(elements)(weights)
    for i, net in enumerate(networks):
        for name, output in net(features).elements.items():
            assert_close(together[name][i], output, rtol=1e-4, atol=1e-5)
