"""Random programs of many operations: whatever the tracer makes of them, the spec is a symmetry."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from nfopt.symmetry import trace_permutation_spec, verify
from nfopt.symmetry.calls import RULES

TOKENS = 4
WIDTHS = (4, 6, 8, 12)
Step = Callable[[Any, Tensor], Tensor]


class Program(nn.Module):
    """Steps on a tensor of shape (2, TOKENS, width), each chosen by name and two numbers.

    A step is given the module, so that it reads the parameters of the copy that runs it.
    """

    def __init__(self, choices: list[tuple[str, int, int]]) -> None:
        super().__init__()
        self.weights = nn.ParameterList()
        self.steps: list[Step] = []
        self.width = 3
        for name, i, j in [("linear", 0, 0), *choices, ("linear", 1, 0)]:
            self.steps.append(getattr(self, f"_{name}")(i, j))
        head = self._weight(self.width, 5)
        self.steps.append(lambda m, x: x.tanh() @ head(m))

    def forward(self, x: Tensor) -> Tensor:
        for step in self.steps:
            x = step(self, x)
        return x

    def _weight(self, *shape: int) -> Callable[[Any], Tensor]:
        self.weights.append(nn.Parameter(torch.ones(shape)))
        index = len(self.weights) - 1
        return lambda m: m.weights[index]

    def _linear(self, i: int, j: int) -> Step:
        out = WIDTHS[(i + j) % len(WIDTHS)]
        w, b = self._weight(out, self.width), self._weight(out)
        self.width = out
        return lambda m, x: F.linear(x, w(m), b(m))

    def _activation(self, i: int, j: int) -> Step:
        function = [torch.relu, torch.tanh, F.gelu, torch.sigmoid][i % 4]
        return lambda m, x: function(x)

    def _residual(self, i: int, j: int) -> Step:
        a, b = self._weight(self.width, 7), self._weight(7, self.width)
        return lambda m, x: x + torch.sin(x @ a(m)) @ b(m)

    def _norm(self, i: int, j: int) -> Step:
        width, w, b = self.width, self._weight(self.width), self._weight(self.width)
        if i % 2:
            return lambda m, x: F.layer_norm(x, (width,), w(m), b(m))
        return lambda m, x: F.group_norm(x.mT, 2, w(m), b(m)).mT

    def _glu(self, i: int, j: int) -> Step:
        self.width //= 2
        return lambda m, x: F.glu(x)

    def _swap(self, i: int, j: int) -> Step:
        cut = 1 + i % (self.width - 1)
        return lambda m, x: torch.cat([x[..., cut:], x[..., :cut].cos()], -1)

    def _shuffle(self, i: int, j: int) -> Step:
        width = self.width
        return lambda m, x: x.view(2, TOKENS, 2, width // 2).transpose(-1, -2).reshape(2, TOKENS, width)

    def _conv(self, i: int, j: int) -> Step:
        w = self._weight(self.width, self.width // 2, 1 + 2 * (i % 2))
        return lambda m, x: F.conv1d(x.mT, w(m), padding=i % 2, groups=2).mT

    def _ordered(self, i: int, j: int) -> Step:
        kinds: list[Step] = [
            lambda m, x: x.cumsum(-1),
            lambda m, x: x.roll(1, -1),
            lambda m, x: x.flip(-1),
            lambda m, x: x.sort(-1)[0],
        ]
        return kinds[i % 4]

    def _append(self, i: int, j: int) -> Step:
        p = self._weight(1, 1, 2)
        self.width += 2
        return lambda m, x: torch.cat([x, p(m).expand(2, TOKENS, 2)], -1)

    def _write(self, i: int, j: int) -> Step:
        cut = 1 + i % (self.width - 1)
        p = self._weight(cut)

        def step(m: Any, x: Tensor) -> Tensor:
            y = x.clone()
            y[..., :cut] *= p(m)
            return y

        return step

    def _fill(self, i: int, j: int) -> Step:
        start, width = i % 3, self.width
        self.width += 2

        def step(m: Any, x: Tensor) -> Tensor:
            y = x.new_zeros(2, TOKENS, width + 2)
            y[..., start : start + width] = x
            return y

        return step

    def _repeat(self, i: int, j: int) -> Step:
        self.width *= 2
        if i % 2:
            return lambda m, x: x.repeat(1, 1, 2)
        return lambda m, x: x.repeat_interleave(2, dim=-1)

    def _stride(self, i: int, j: int) -> Step:
        self.width //= 2
        return lambda m, x: x[..., i % 2 :: 2]

    def _look_up(self, i: int, j: int) -> Step:
        positions = torch.arange(self.width).roll(i)
        return lambda m, x: x[..., positions]

    def _mix(self, i: int, j: int) -> Step:
        a, b = self._weight(TOKENS, 5), self._weight(5, TOKENS)
        return lambda m, x: ((x.mT @ a(m)).tanh() @ b(m)).mT

    def _attend(self, i: int, j: int) -> Step:
        width = self.width
        q, k, o = (self._weight(width, width) for _ in range(3))

        def step(m: Any, x: Tensor) -> Tensor:
            heads = [(x @ w(m)).view(2, TOKENS, 2, width // 2).transpose(1, 2) for w in (q, k)]
            y = F.scaled_dot_product_attention(heads[0], heads[1], heads[1])
            return x + y.transpose(1, 2).flatten(2) @ o(m)

        return step

    def _pool(self, i: int, j: int) -> Step:
        if i % 2:
            return lambda m, x: x + x.amax(-1, keepdim=True)
        return lambda m, x: x * x.softmax(-1) + x.mean(1, keepdim=True)

    def _reshape(self, i: int, j: int) -> Step:
        # Regroups tokens and channels, so that boundaries of different kinds meet.
        width = self.width
        w = self._weight(2 * width, 2 * width)
        return lambda m, x: (x.reshape(2, TOKENS // 2, 2 * width) @ w(m)).reshape(2, TOKENS, width)

    def _scale(self, i: int, j: int) -> Step:
        w = self._weight(2, self.width // 2)
        return lambda m, x: x * w(m).flatten()


STEPS = [name[1:] for name in vars(Program) if name[0] == "_" and name[1] != "_" and name != "_weight"]
EVEN = ("norm", "glu", "shuffle", "conv", "stride", "attend", "scale")


@st.composite
def programs(draw: st.DrawFn) -> list[tuple[str, int, int]]:
    """Choices whose widths work out: steps that halve or group get an even width first."""
    choices: list[tuple[str, int, int]] = []
    for name in draw(st.lists(st.sampled_from(STEPS), min_size=1, max_size=8)):
        if name in EVEN:
            choices.append(
                ("linear", draw(st.integers(0, 3)), 0) if draw(st.booleans()) else ("append", 0, 0)
            )
        choices.append((name, draw(st.integers(0, 7)), draw(st.integers(0, 7))))
    return choices


def check(choices: list[tuple[str, int, int]], tracer: Any) -> None:
    try:
        module = Program(choices)
        x = torch.randn(2, TOKENS, 3, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            module(x)
    except (RuntimeError, ZeroDivisionError):
        return  # The widths do not work out: no program.
    spec = trace_permutation_spec(module, x, tracer=tracer)
    assert not spec.unruled
    report = verify(module, spec, x, trials=2, controls=0)
    assert report.passed, str(report)


@given(programs())
@settings(max_examples=100, deadline=None, derandomize=True)
def test_the_spec_of_a_random_program_is_a_symmetry(choices: list[tuple[str, int, int]]) -> None:
    check(choices, "run")


@given(programs())
@settings(max_examples=25, deadline=None, derandomize=True)
def test_the_exported_spec_of_a_random_program_is_a_symmetry(choices: list[tuple[str, int, int]]) -> None:
    check(choices, "export")


@pytest.mark.slow
@given(programs())
@settings(max_examples=2000, deadline=None)
def test_the_specs_of_many_random_programs_are_symmetries(choices: list[tuple[str, int, int]]) -> None:
    check(choices, "run")


def test_a_rule_that_forgets_the_order_of_an_axis_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RULES._entries, "aten.cumsum", RULES["aten.softmax"])
    with pytest.raises(AssertionError, match="not a symmetry"):
        check([("ordered", 0, 0)], "run")


def test_most_random_programs_work_out_and_every_step_occurs() -> None:
    for name in STEPS:
        module = Program([("linear", 3, 0), (name, 1, 1)])
        assert module(torch.zeros(2, TOKENS, 3)).shape == (2, TOKENS, 5)
