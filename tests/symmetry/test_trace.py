"""Tracing whole modules: uses, names, reasons, ties, unknown operations and both tracers."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nfopt.errors import TraceError
from nfopt.symmetry import Atom, PermutationSpec, trace_permutation_spec, verify
from nfopt.symmetry.axes import atoms_of

X = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))


def sizes(spec: PermutationSpec) -> list[int]:
    return sorted(atom.size for atom in spec.groups.values())


def reason(spec: PermutationSpec, tensor: str, dim: int) -> str:
    return "; ".join(spec.fixed[atom.name] for atom in atoms_of(spec.tensors[tensor].axes[dim]))


class Attention(nn.Module):
    def __init__(self, *, weights: bool) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 14)
        self.attention = nn.MultiheadAttention(14, 2, batch_first=True)
        self.head = nn.Linear(14, 2)
        self.weights = weights

    def forward(self, x: Tensor) -> Tensor:
        y = self.embed(x)
        return self.head(y + self.attention(y, y, y, need_weights=self.weights)[0])


@pytest.mark.parametrize("weights", [False, True])
def test_multi_head_attention_has_heads_channels_and_the_residual_stream(
    prove: Any, tracer: str, weights: bool
) -> None:
    # Queries, keys and values share one projection, so that their channels within a head are one set.
    spec = prove(Attention(weights=weights), torch.randn(2, 5, 3), tracer=tracer)
    assert sizes(spec) == [2, 7, 14]


def test_a_transformer_layer_has_heads_channels_hidden_units_and_the_stream(prove: Any) -> None:
    layer = nn.TransformerEncoderLayer(14, 2, 11, batch_first=True)
    module = nn.Sequential(nn.Linear(3, 14), layer, nn.Linear(14, 2))
    assert sizes(prove(module, torch.randn(2, 5, 3))) == [2, 7, 11, 14]


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_layers_and_directions_of_a_recurrent_network_are_groups_of_their_own(prove: Any, kind: Any) -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = kind(3, 5, num_layers=2, bidirectional=True, batch_first=True)
            self.head = nn.Linear(10, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.rnn(x)[0].mean(1))

    spec = prove(Last(), torch.randn(2, 4, 3))
    assert sizes(spec) == [5, 5, 5, 5]
    entry = spec.tensors["rnn.weight_hh_l0"]
    assert entry.role == "recurrent"
    assert entry.dims == ("out", "in")
    hidden = entry.axes[1]
    assert isinstance(hidden, Atom)
    assert hidden in list(atoms_of(entry.axes[0]))


def test_reading_the_last_states_of_all_layers_ties_them(prove: Any) -> None:
    class States(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.GRU(3, 5, num_layers=2)
            self.head = nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.rnn(x)[1])

    assert sizes(prove(States(), torch.randn(4, 2, 3))) == [5]


def test_roles_dims_and_depth_are_read_off_the_first_use() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(11, 5)
            self.position = nn.Parameter(torch.zeros(1, 4, 5))
            self.conv = nn.Conv1d(5, 7, 3)
            self.norm = nn.BatchNorm1d(7)
            self.up = nn.ConvTranspose1d(7, 13, 2)
            self.scale = nn.Parameter(torch.ones(13, 1))
            self.head = nn.Linear(13, 2)

        def forward(self, tokens: Tensor) -> Tensor:
            y = self.norm(self.conv((self.table(tokens) + self.position).mT))
            return self.head((self.up(y) * self.scale).mean(-1))

    spec = trace_permutation_spec(Mixed(), torch.zeros(2, 4, dtype=torch.long))
    found = {name: (entry.role, entry.dims) for name, entry in spec.tensors.items()}
    assert found == {
        "table.weight": ("embedding", ("in", "out")),
        "position": ("embedding", ("other", "other", "out")),
        "conv.weight": ("conv", ("out", "in", "kernel")),
        "conv.bias": ("bias", ("out",)),
        "norm.weight": ("norm_scale", ("out",)),
        "norm.bias": ("norm_shift", ("out",)),
        "norm.running_mean": ("statistic", ("out",)),
        "norm.running_var": ("statistic", ("out",)),
        "up.weight": ("conv", ("in", "out", "kernel")),
        "up.bias": ("bias", ("out",)),
        "scale": ("norm_scale", ("out", "other")),
        "head.weight": ("linear", ("out", "in")),
        "head.bias": ("bias", ("out",)),
    }
    depths = [
        spec.tensors[n].depth for n in ("table.weight", "position", "conv.weight", "up.weight", "head.weight")
    ]
    assert depths == sorted(set(depths))
    assert depths[0] == 0.0
    assert depths[-1] == 1.0


def test_groups_are_named_after_the_module_that_first_puts_them_out(tracer: Any) -> None:
    module = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 7), nn.Linear(7, 2))
    assert list(trace_permutation_spec(module, X, tracer=tracer).groups) == ["0", "3"]


def test_every_fixed_axis_says_why() -> None:
    class Reasons(nn.Module):
        table: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(3, 5, 3)
            self.register_buffer("table", torch.arange(5.0))
            self.tokens = nn.Embedding(11, 2)

        def forward(self, x: Tensor) -> Tensor:
            y = self.first(x).mean((2, 3)) * self.table
            return torch.cat([y, self.tokens(torch.tensor([1, 2]))], 1)

    spec = trace_permutation_spec(Reasons(), torch.zeros(2, 3, 4, 4))
    assert "model input" in reason(spec, "first.weight", 1)
    assert "kernel positions (conv2d at first)" in reason(spec, "first.weight", 2)
    assert "values differ along the axis of buffer table" in reason(spec, "first.weight", 0)
    assert "indices along this axis are data (embedding at tokens)" in reason(spec, "tokens.weight", 0)
    assert "model output" in reason(spec, "tokens.weight", 1)
    assert not spec.groups


def test_a_buffer_that_does_not_vary_leaves_the_axis_free(prove: Any, tracer: str) -> None:
    class Buffered(nn.Module):
        ones: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(3, 5), nn.Linear(5, 2)
            self.register_buffer("ones", torch.full((5,), 0.5))

        def forward(self, x: Tensor) -> Tensor:
            return self.last((self.first(x) * self.ones).tanh())

    spec = prove(Buffered(), X, tracer=tracer)
    assert sizes(spec) == [5]
    assert "ones" not in spec.tensors


def test_the_statistics_of_a_frozen_normalisation_are_permuted_with_its_channels(
    prove: Any, tracer: str
) -> None:
    class Frozen(nn.Module):
        running_mean: Tensor
        running_var: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(3, 5), nn.Linear(5, 2)
            self.register_buffer("running_mean", torch.randn(5))
            self.register_buffer("running_var", torch.rand(5) + 0.5)

        def forward(self, x: Tensor) -> Tensor:
            y = (self.first(x) - self.running_mean) * self.running_var.rsqrt()
            return self.last(y.relu())

    spec = prove(Frozen(), X, tracer=tracer)
    assert sizes(spec) == [5]
    assert spec.tensors["running_var"].role == "statistic"


def test_tied_weights_are_one_tensor_with_an_alias(prove: Any, tracer: str) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encode, self.decode = nn.Linear(11, 5, bias=False), nn.Linear(5, 11, bias=False)
            self.table = nn.Embedding(11, 5)
            self.decode.weight = self.table.weight

        def forward(self, tokens: Tensor) -> Tensor:
            return self.decode(self.table(tokens).tanh())

    spec = prove(Tied(), torch.tensor([[1, 2, 3]]), tracer=tracer)
    assert dict(spec.aliases) == {"table.weight": "decode.weight"}
    assert sizes(spec) == [5]
    assert spec.unused == ("encode.weight",)


def test_unused_parameters_are_flagged_and_fixed(tracer: Any) -> None:
    module = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2))
    module.register_parameter("spare", nn.Parameter(torch.zeros(7)))
    spec = trace_permutation_spec(module, X, tracer=tracer)
    assert spec.unused == ("spare",)
    assert "never reads" in reason(spec, "spare", 0)


def test_an_operation_without_a_rule_fixes_what_it_touches_and_is_reported(prove: Any, tracer: str) -> None:
    class Inverse(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.square, self.last = nn.Linear(3, 5), nn.Linear(5, 5, bias=False), nn.Linear(5, 2)
            self.other = nn.Sequential(nn.Linear(3, 7), nn.Tanh(), nn.Linear(7, 2))

        def forward(self, x: Tensor) -> Tensor:
            y = self.first(x) @ torch.linalg.matrix_exp(self.square.weight)
            return self.last(y) + self.other(x)

    spec = prove(Inverse(), X, tracer=tracer)
    assert sizes(spec) == [7]
    assert spec.unruled == ("aten.linalg_matrix_exp (at the top level)",)
    assert "no rule for aten.linalg_matrix_exp" in reason(spec, "square.weight", 0)


class Halved(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x / 2

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0] / 2


def test_custom_autograd_functions_and_grad_modes_are_seen_through(prove: Any, tracer: str) -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 5), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            y: Any = Halved.apply(self.a(x))
            with torch.no_grad():
                scale = y.tanh()
            with torch.autocast("cpu", enabled=False):
                y = y * scale
            return self.b(torch.utils.checkpoint.checkpoint(torch.sigmoid, y, use_reentrant=False))

    spec = prove(Wrapped(), X, tracer=tracer)
    assert sizes(spec) == [5]
    assert not spec.unruled


def test_control_flow_on_data_falls_back_to_a_real_run(prove: Any) -> None:
    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 5), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            return self.b(y.relu() if float(y.detach().abs().sum()) >= 0 else y)

    assert sizes(prove(Branch(), X)) == [5]
    with pytest.raises(TraceError):
        trace_permutation_spec(Branch(), X, tracer="export")


def test_a_mask_selects_in_order_and_fixes_the_axis(net: Any, prove: Any) -> None:
    mask = torch.ones(5, dtype=torch.bool)
    module = net(lambda p, x: (x @ p.a)[:, mask] @ p.b, a=(3, 5), b=(5, 2))
    spec = prove(module, X)
    assert not spec.groups
    assert any("index" in op for op in spec.unruled)
    with pytest.raises(TraceError, match="a shape inside Net depends on data"):
        trace_permutation_spec(module, X, tracer="export")


def test_random_numbers_in_the_forward_pass_fix_the_axis(net: Any) -> None:
    dropped = net(lambda p, x: F.dropout(x @ p.a, 0.5, training=True) @ p.b, a=(3, 5), b=(5, 2))
    noisy = net(lambda p, x: (x @ p.a + torch.randn(5)) @ p.b, a=(3, 5), b=(5, 2))
    for module in (dropped, noisy):
        for tracer in ("export", "run"):
            assert not trace_permutation_spec(module, X, tracer=tracer).groups


def test_a_cond_ties_what_its_branches_return(prove: Any) -> None:
    class Cond(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 5), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            return self.b(torch.cond(x.sum() > 0, lambda y: y.sin(), lambda y: y.cos(), (y,)))

    spec = trace_permutation_spec(Cond(), X, tracer="export")
    assert sizes(spec) == [5]


def test_arguments_are_positional_in_a_tuple_and_named_in_a_dict() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 5), nn.Linear(5, 2)

        def forward(self, x: Tensor, mask: Tensor | None = None, *, double: bool = False) -> dict[str, Any]:
            y = self.a(x) if mask is None else self.a(x) * mask
            return {"out": [self.b(y) * (2 if double else 1)]}

    ones = torch.ones(2, 1)
    for inputs in (X, (X,), (X, ones), {"x": X, "mask": ones, "double": True}, (X, None)):
        assert sizes(trace_permutation_spec(Two(), inputs)) == [5]
        assert verify(Two(), trace_permutation_spec(Two(), inputs), inputs).passed


SMALL: dict[str, Any] = {
    "mlp": lambda: (nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 7), nn.Linear(7, 2)), (2, 3)),
    "conv": lambda: (
        nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(6, 6, 3, groups=2), nn.Flatten()),
        (2, 3, 6, 6),
    ),
    "attention": lambda: (Attention(weights=False), (2, 5, 3)),
}


@pytest.mark.parametrize("name", SMALL)
def test_both_tracers_find_the_same_axes(name: str) -> None:
    module, shape = SMALL[name]()
    x = torch.randn(shape)
    exported = trace_permutation_spec(module, x, tracer="export")
    run = trace_permutation_spec(module, x, tracer="run")
    assert {name: entry.axes for name, entry in exported.tensors.items()} == {
        name: entry.axes for name, entry in run.tensors.items()
    }
    assert {name: entry.dims for name, entry in exported.tensors.items()} == {
        name: entry.dims for name, entry in run.tensors.items()
    }


def test_wrong_example_inputs_are_refused_with_what_was_given() -> None:
    module = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2))
    with pytest.raises(
        TraceError, match=r"Sequential failed on example inputs \(float32\[2, 7\]\).*Give example_inputs"
    ):
        trace_permutation_spec(module, torch.zeros(2, 7))
    with pytest.raises(TraceError, match=r"failed on example inputs \(\)"):
        trace_permutation_spec(module, ())
    with pytest.raises(TraceError, match="example_inputs is a list"):
        trace_permutation_spec(module, [torch.zeros(2, 3)])
    with pytest.raises(TraceError, match=r"nonsense=float32\[2, 3\]"):
        trace_permutation_spec(module, {"nonsense": X})


def test_a_failed_trace_writes_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(TraceError):
        trace_permutation_spec(nn.Linear(3, 2), torch.zeros(2, 7))
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""


def test_what_is_no_module_is_refused() -> None:
    with pytest.raises(TraceError, match=r"a torch.nn.Module is needed, not a function"):
        trace_permutation_spec(F.relu, X)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TraceError, match="tracer is 'magic'"):
        trace_permutation_spec(nn.Linear(3, 2), X, tracer="magic")  # pyright: ignore[reportArgumentType]


def test_a_lazy_module_is_refused_until_it_has_shapes() -> None:
    with pytest.raises(TraceError, match=r"parameter '0.weight' has no shape yet"):
        trace_permutation_spec(nn.Sequential(nn.LazyLinear(5)), X)


def test_a_forward_that_raises_is_a_trace_error_that_says_so() -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise KeyError("missing part")

    with pytest.raises(TraceError, match="KeyError: 'missing part'"):
        trace_permutation_spec(Broken(), X)


def test_a_forward_that_holds_on_to_another_module_is_refused() -> None:
    class Closure(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(3, 5)
            self.step = lambda x: self.a(x)

        def forward(self, x: Tensor) -> Tensor:
            return self.step(x)

    with pytest.raises(TraceError, match="reads none of its parameters"):
        trace_permutation_spec(Closure(), X)
