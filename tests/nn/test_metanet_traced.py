"""The role-tied network on specs that were traced from small models of each family."""

from functools import cache

import pytest
import torch
from timm.models._efficientnet_blocks import InvertedResidual, SqueezeExcite
from timm.models.convnext import ConvNeXt
from timm.models.densenet import DenseNet
from timm.models.mlp_mixer import MlpMixer
from timm.models.resnet import BasicBlock, ResNet
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from nfopt.nn import RoleTiedConfig, RoleTiedNetwork
from nfopt.symmetry import PermutationSpec, trace_permutation_spec
from nfopt.testing import assert_equivariant, wrong_coupling_error
from nfopt.weightspace import WeightSpaceFeatures, block_plan
from tests.hand_specs import random_tensors
from tests.nn.spec_bound import Recurrent

FEATURES = WeightSpaceFeatures()


def mobilenet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 5, 3, stride=2),
        InvertedResidual(5, 7, exp_ratio=3.0, se_layer=SqueezeExcite),
        InvertedResidual(7, 7, exp_ratio=3.0, se_layer=SqueezeExcite),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(7, 5),
    )


IMAGES = torch.zeros(2, 3, 32, 32)
MODELS = {
    "mlp": (lambda: nn.Sequential(nn.Linear(3, 7), nn.ReLU(), nn.Linear(7, 5)), torch.zeros(2, 3)),
    "resnet": (lambda: ResNet(BasicBlock, (1, 1, 1, 1), num_classes=5, channels=(6, 10, 14, 22)), IMAGES),
    "densenet": (lambda: DenseNet(growth_rate=3, block_config=(2, 2), num_classes=5), IMAGES),
    "mobilenet": (mobilenet, IMAGES),
    "convnext": (lambda: ConvNeXt(depths=(1, 1, 1, 1), dims=(6, 10, 14, 22), num_classes=5), IMAGES),
    "mixer": (
        lambda: MlpMixer(img_size=32, patch_size=16, num_blocks=2, embed_dim=10, num_classes=5),
        IMAGES,
    ),
    "vit": (
        lambda: VisionTransformer(
            img_size=32, patch_size=16, embed_dim=12, depth=2, num_heads=3, num_classes=5
        ),
        IMAGES,
    ),
    "recurrent": (Recurrent, torch.zeros(2, 2, 3)),
}


@cache
def traced(name: str) -> PermutationSpec:
    factory, example = MODELS[name]
    return trace_permutation_spec(factory(), example)


@cache
def network() -> RoleTiedNetwork:
    config = RoleTiedConfig.reading(FEATURES, readouts=5)
    return RoleTiedNetwork(config, torch.Generator().manual_seed(0)).double()


@pytest.mark.parametrize("name", MODELS)
def test_the_network_follows_the_permutations_of_a_traced_model(name):
    spec = traced(name)
    arguments = random_tensors(spec, 0), random_tensors(spec, 1)
    generator = torch.Generator().manual_seed(0)

    def elements(w, g):
        return network()(FEATURES(spec, w, g)).elements

    def readout(w, g):
        return network()(FEATURES(spec, w, g)).readout

    assert_equivariant(elements, spec, arguments, generator, samples=1)
    assert_equivariant(readout, spec, arguments, generator, samples=1)
    assert wrong_coupling_error(elements, spec, arguments, generator) > 0.1


@pytest.mark.parametrize("name", MODELS)
def test_blocks_of_a_traced_model_round_trip_exactly(name):
    spec = traced(name)
    plan, tensors = block_plan(spec), random_tensors(spec, 0)
    back = plan.from_blocks(plan.to_blocks(tensors))
    assert all(torch.equal(back[n], tensors[n]) for n in tensors)


def test_the_recurrent_matrix_has_a_diagonal():
    blocks = block_plan(traced("recurrent")).blocks
    assert [block.repeats for block in blocks if block.tensor == "recur.weight"] == [((0, 1),)]


def test_every_tensor_of_a_real_model_fits_its_plan():
    factory, _ = MODELS["resnet"]
    model = factory()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    spec = traced("resnet")
    weights = {n: t for n, t in model.state_dict().items() if n in spec.tensors}
    gradients = {n: p.grad for n, p in model.named_parameters()}
    output = network()(FEATURES(spec, weights, gradients))
    assert {n: t.shape[:-1] for n, t in output.elements.items()} == {n: t.shape for n, t in weights.items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "densenet121", "mobilenetv2_100", "convnext_atto", "vit_tiny"])
def test_the_network_follows_the_permutations_of_a_full_size_model(name):
    import timm

    model = {"vit_tiny": "vit_tiny_patch16_224"}.get(name, name)
    spec = trace_permutation_spec(timm.create_model(model), torch.zeros(2, 3, 224, 224))
    arguments = random_tensors(spec, 0), random_tensors(spec, 1)

    def elements(w, g):
        return network()(FEATURES(spec, w, g)).elements

    with torch.no_grad():
        assert_equivariant(elements, spec, arguments, torch.Generator().manual_seed(0), samples=1)
