import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from nfopt.editing import Check, Edit, EditStep, compose, edit_between
from nfopt.errors import EditingError
from tests.editing.nets import bits_of, mlp, moved, normed

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.complex64,
    torch.complex128,
    torch.int64,
    torch.int8,
    torch.uint8,
    torch.bool,
]


def random_bits(dtype, shape, seed):
    """Return a tensor of any bits: not-a-numbers with payloads, infinities, denormals, negative zeros."""
    generator = torch.Generator().manual_seed(seed)
    width = torch.empty((), dtype=dtype).element_size()
    count = int(torch.Size(shape).numel())
    high = 2 if dtype == torch.bool else 256
    raw = torch.randint(0, high, (count * width,), dtype=torch.uint8, generator=generator)
    return raw.view(dtype).reshape(shape)


class Holder(nn.Module):
    def __init__(self, tensor, scalar):
        super().__init__()
        self.register_buffer("tensor", tensor.clone())
        self.register_buffer("scalar", scalar.clone())


def step(**changes):
    return EditStep(**{"method": "by-hand", "options": {}, "base": "", "result": ""} | changes)


REFUSED = step(checks=(Check("collapse", False, "predictions spread over 1.0 classes"),))


@settings(deadline=None)  # the first call of a kernel is slow
@given(st.sampled_from(DTYPES), st.integers(0, 999))
def test_apply_and_revert_are_exact_for_any_bits_of_any_type(dtype, seed):
    one, two = (Holder(random_bits(dtype, (3, 5), s), random_bits(dtype, (), s)) for s in (seed, seed + 1))
    edit = edit_between(one, two)
    model = copy.deepcopy(one)
    edit.apply(model)
    assert bits_of(model) == bits_of(two)
    edit.revert(model)
    assert bits_of(model) == bits_of(one)


def test_statistics_and_counters_of_batchnorm_are_edited_and_come_back():
    base = normed()
    other = moved(base)
    other[1].num_batches_tracked += 7
    edit = edit_between(base, other)
    assert {"1.running_mean", "1.running_var", "1.num_batches_tracked"} <= set(edit.changed)
    model = copy.deepcopy(base)
    edit.apply(model)
    assert bits_of(model) == bits_of(other)
    edit.revert(model)
    assert bits_of(model) == bits_of(base)


def test_the_tensors_of_the_model_stay_the_same_objects_in_the_same_memory_order():
    base = normed().to(memory_format=torch.channels_last)
    edit = edit_between(base, moved(base))
    held = list(base.parameters())
    strides = [p.stride() for p in held]
    edit.apply(base)
    assert all(a is b for a, b in zip(held, base.parameters(), strict=True))
    assert [p.stride() for p in base.parameters()] == strides


def test_tied_weights_are_turned_over_once():
    def tied():
        model = nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 5))
        model[1].weight = model[0].weight
        return model

    base = tied()
    other = copy.deepcopy(base)
    with torch.no_grad():
        other[0].weight.add_(1)
    model = copy.deepcopy(base)
    edit_between(base, other).apply(model)
    assert torch.equal(model[1].weight, other[0].weight) and model[1].weight is model[0].weight


def test_tensors_that_share_memory_otherwise_are_refused_and_left_alone():
    whole = torch.arange(15.0)
    views = Holder(whole, whole)
    views.tensor, views.scalar = whole[:10], whole[5:]
    apart = Holder(whole[:10], whole[5:])
    edit = edit_between(apart, moved(apart))
    before = whole.clone()
    with pytest.raises(EditingError, match="writing one tensor of the model changes another"):
        edit.apply(views)
    assert torch.equal(whole, before)


def test_an_edit_goes_through_the_wrapper_of_a_compiled_model():
    base = normed()
    other = moved(base)
    edit = edit_between(base, other)
    edit.apply(torch.compile(base))
    assert bits_of(base) == bits_of(other)


def test_applying_twice_and_reverting_what_is_not_applied_are_errors_that_change_nothing():
    base = normed()
    other = moved(base)
    edit = edit_between(base, other)
    with pytest.raises(EditingError, match="is reverted to this model already; apply it first"):
        edit.revert(base)
    edit.apply(base)
    with pytest.raises(EditingError, match="is applied to this model already; revert it first"):
        edit.apply(base)
    assert bits_of(base) == bits_of(other)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: normed(1), r"0\.weight has other values; 0\.bias has other values"),
        (lambda: normed(classes=7), r"4\.weight is float32 \[7, 125\], not float32 \[3, 125\]"),
        (lambda: normed().double(), r"0\.weight is float64 \[5, 2, 3, 3\], not float32"),
        (lambda: nn.Sequential(*list(normed())[:2]), r"4\.weight is absent"),
        (lambda: nn.Sequential(*normed(), nn.Linear(3, 2)), r"5\.weight is unknown"),
    ],
)
def test_another_base_is_refused_and_the_difference_named(make, says):
    base = normed()
    edit, other = edit_between(base, moved(base)), make()
    before = bits_of(other)
    with pytest.raises(EditingError, match=says):
        edit.apply(other)
    assert bits_of(other) == before


def test_a_model_whose_statistics_moved_since_is_another_base():
    base = normed()
    edit = edit_between(base, moved(base))
    base.train()(torch.randn(11, 2, 7, 7))
    with pytest.raises(EditingError, match=r"1\.running_mean has other values"):
        edit.apply(base)


@settings(deadline=None)  # the first call of a kernel is slow
@given(st.integers(0, 99), st.integers(0, 99))
def test_composing_does_what_the_edits_do_in_turn_and_an_edit_undoes_its_inverse(first, second):
    a = mlp()
    b = moved(a, first)
    c = moved(b, second + 100)
    ab, bc = edit_between(a, b, [step(method="one")]), edit_between(b, c, [step(method="two")])
    whole = compose(ab, bc)
    model = copy.deepcopy(a)
    whole.apply(model)
    assert bits_of(model) == bits_of(c)
    assert whole.method == "one + two" and whole == ab.then(bc)
    whole.revert(model)
    assert bits_of(model) == bits_of(a)
    back = compose(whole, bc.inverse(), ab.inverse())
    assert not back.changed and back.base == back.result


def test_edits_that_do_not_follow_each_other_are_not_composed():
    a, b = mlp(), moved(mlp())
    with pytest.raises(EditingError, match="was not made for the result of"):
        compose(edit_between(a, b), edit_between(a, b))
    with pytest.raises(EditingError, match="at least one"):
        compose()


def test_a_refused_edit_says_why_and_is_applied_only_by_force():
    a, b = mlp(), moved(mlp())
    edit = edit_between(a, b, [REFUSED])
    assert not edit.accepted and edit.reasons == ("predictions spread over 1.0 classes",)
    with pytest.raises(EditingError, match=r"refused this edit: predictions spread over 1\.0 classes"):
        edit.apply(a)
    edit.apply(a, force=True)
    assert bits_of(a) == bits_of(b)
    assert not compose(edit, edit_between(b, mlp(5))).accepted


def test_the_delta_is_the_difference_in_numbers():
    a, b = mlp(), moved(mlp())
    delta = edit_between(a, b).delta(a)
    for name, value in delta.items():
        expected = b.state_dict()[name].double() - a.state_dict()[name].double()
        assert torch.equal(value, expected)
    assert set(delta) == set(a.state_dict())


def test_states_by_name_are_edited_without_touching_what_was_given():
    a, b = normed(), moved(normed())
    edit = edit_between(a, b)
    state = a.state_dict()
    before = bits_of(a)
    edited = edit.edited_state(state)
    assert bits_of(a) == before
    assert all(torch.equal(edited[name], value) for name, value in b.state_dict().items())
    again = edit.reverted_state(edited)
    assert all(torch.equal(again[name], value) for name, value in state.items())


def test_two_models_of_other_shapes_have_no_edit_between_them():
    with pytest.raises(EditingError, match=r"not two states of one model: .*is absent"):
        edit_between(mlp(), normed())


def test_an_edit_is_a_value_that_nothing_outside_changes():
    a, b = mlp(), moved(mlp())
    edit = edit_between(a, b)
    assert edit == edit_between(a, b) and hash(edit) == hash(edit_between(a, b))
    assert edit != edit_between(a, moved(mlp(), 9)) and edit != edit.inverse()
    with pytest.raises(TypeError):
        edit.bits["1.weight"] = torch.zeros(1)
    digest = edit.result_digest
    with torch.no_grad():
        b[1].weight.zero_()
    assert edit.result_digest == digest


def test_tensors_without_values_are_refused():
    with pytest.raises(EditingError, match="no shape yet"):
        edit_between(nn.LazyLinear(3), nn.LazyLinear(3))
    with pytest.raises(EditingError, match="no plain values"):
        edit_between(nn.Linear(3, 5, device="meta"), nn.Linear(3, 5, device="meta"))


def test_bits_of_tensors_that_the_base_does_not_have_are_no_edit():
    edit = edit_between(mlp(), moved(mlp()))
    with pytest.raises(EditingError, match="it has others: strange"):
        Edit({"strange": torch.zeros(3, dtype=torch.uint8)}, edit.base, edit.result)


def test_bits_that_do_not_lead_to_the_result_are_damaged():
    edit = edit_between(mlp(), moved(mlp()))
    wrong = {name: bits ^ 1 for name, bits in edit.bits.items()}
    model = mlp()
    with pytest.raises(EditingError, match="is damaged"):
        Edit(wrong, edit.base, edit.result).apply(model)
    assert bits_of(model) == bits_of(mlp())
