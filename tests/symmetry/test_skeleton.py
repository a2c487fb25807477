"""Copies for tracing: the user's module stays as it is, whatever was hung onto it."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from nfopt.symmetry import trace_permutation_spec, verify

X = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 2))


class Cached(nn.Module):
    """Fills a cache in eval mode, as attention with relative positions does, and drops it in training."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 5), nn.Linear(5, 2)
        self.gain = nn.Parameter(torch.ones(5))
        self.cache: dict[str, Tensor] = {}

    def train(self, mode: bool = True) -> "Cached":
        super().train(mode)
        if mode:
            self.cache = {}
        return self

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return self.b(self.a(x) * self.gain)
        if "gain" not in self.cache:
            self.cache["gain"] = self.gain * 1.0
        return self.b(self.a(x) * self.cache["gain"])


@pytest.mark.parametrize("tracer", ["export", "run"])
def test_tracing_touches_nothing_of_the_module(tracer: Any) -> None:
    module = mlp()
    calls: list[str] = []
    module[0].register_forward_hook(lambda *_: calls.append("hook"))
    before = copy.deepcopy(module.state_dict())
    versions = [p._version for p in module.parameters()]
    module.train()
    module[2].eval()
    trace_permutation_spec(module, X, tracer=tracer)
    assert not calls
    assert len(module[0]._forward_hooks) == 1
    assert [part.training for part in module] == [True, True, False, True]
    assert all(p.requires_grad and p.grad is None for p in module.parameters())
    assert versions == [p._version for p in module.parameters()]
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())


@pytest.mark.parametrize("filled", [False, True])
def test_a_cache_filled_in_eval_does_not_hide_its_parameter(filled: bool) -> None:
    module = Cached().eval()
    if filled:
        with torch.no_grad():
            module(X)
    spec = trace_permutation_spec(module, X)
    assert list(module.cache) == (["gain"] if filled else [])
    assert not spec.unused
    assert len(spec.groups) == 1
    assert verify(module, spec, X, controls=None).passed


def test_a_hook_that_holds_much_is_not_copied() -> None:
    class Holder:
        def __deepcopy__(self, memo: Any) -> Any:
            raise AssertionError("copied")

        def hook(self, *_: Any) -> None: ...

    module = mlp()
    module.register_forward_hook(Holder().hook)
    module[0].register_full_backward_hook(Holder().hook)
    assert len(trace_permutation_spec(module, X).groups) == 1


def test_a_patched_forward_is_replaced_by_that_of_the_class() -> None:
    module = mlp()

    def patched(*_: Any, **__: Any) -> Tensor:
        raise AssertionError("ran")

    module.forward = patched
    assert len(trace_permutation_spec(module, X).groups) == 1
    assert module.forward is patched


def test_wrappers_are_looked_through() -> None:
    module = mlp()
    plain = trace_permutation_spec(module, X)
    assert trace_permutation_spec(torch.compile(module), X) == plain  # pyright: ignore[reportArgumentType]
    assert trace_permutation_spec(nn.DataParallel(module), X) == plain
    inner = nn.Sequential(torch.compile(module[0]), *module[1:])  # pyright: ignore[reportArgumentType]
    spec = trace_permutation_spec(inner, X)
    assert set(spec.tensors) == {*dict(inner.named_parameters()), "1.running_mean", "1.running_var"}
    assert len(spec.groups) == 1


def test_accelerate_prepared_models_are_traced_without_their_casts() -> None:
    accelerate = pytest.importorskip("accelerate")
    module = mlp()
    plain = trace_permutation_spec(module, X)
    state = accelerate.state.AcceleratorState
    state._reset_state(reset_partial_state=True)  # another test's precision would be kept in this process
    try:
        prepared = accelerate.Accelerator(cpu=True, mixed_precision="bf16").prepare(module)
        assert trace_permutation_spec(prepared, X) == plain
    finally:
        state._reset_state(reset_partial_state=True)


def test_weights_computed_by_hooks_of_torch_are_traced_to_their_parameters() -> None:
    module = mlp()
    nn.utils.spectral_norm(module[3])
    spec = trace_permutation_spec(module, X)
    assert "3.weight_orig" in spec.tensors
    assert not spec.unused
    report = verify(module, spec, X)
    assert report.passed


def test_masks_of_pruned_weights_are_permuted_with_their_neurons() -> None:
    module = mlp()
    prune.random_unstructured(module[0], "weight", 0.5)
    prune.l1_unstructured(module[3], "weight", 0.5)
    spec = trace_permutation_spec(module, X)
    assert {name for name, entry in spec.tensors.items() if entry.role == "statistic"} >= {
        "0.weight_mask",
        "3.weight_mask",
    }
    assert len(spec.groups) == 1
    assert spec.tensors["0.weight_mask"].axes == spec.tensors["0.weight_orig"].axes
    assert verify(module, spec, X, controls=None).passed


def test_half_precision_and_meta_parameters_are_traced_like_others() -> None:
    plain = trace_permutation_spec(mlp(), X)
    assert trace_permutation_spec(mlp().to(torch.bfloat16), X.to(torch.bfloat16)) == plain
    with torch.device("meta"):
        empty = mlp()
    assert trace_permutation_spec(empty, X) == plain


def test_inputs_may_be_fake_or_meta_tensors() -> None:
    plain = trace_permutation_spec(mlp(), X)
    assert trace_permutation_spec(mlp(), X.to("meta")) == plain
    with torch._subclasses.FakeTensorMode() as mode:
        fake = mode.from_tensor(X)
    assert trace_permutation_spec(mlp(), fake) == plain


def test_ambient_modes_do_not_change_the_spec() -> None:
    plain = trace_permutation_spec(mlp(), X)
    module = mlp()
    with torch.inference_mode():
        assert trace_permutation_spec(module, X) == plain
    with torch.device("meta"):
        assert trace_permutation_spec(module, X) == plain
        assert verify(module, plain, X).passed


def test_tracing_leaves_the_random_state_alone() -> None:
    state = torch.get_rng_state()
    module = nn.Sequential(nn.Linear(3, 5), nn.Dropout(), nn.Linear(5, 2))
    torch.set_rng_state(state)
    for tracer in ("export", "run"):
        trace_permutation_spec(module, X, tracer=tracer)
    assert torch.equal(torch.get_rng_state(), state)
