import copy
import io

import pytest
import torch
from safetensors.torch import load, save
from torch import nn

from nfopt.errors import PruningError, UnknownNameError
from nfopt.pruning import prune_channels
from nfopt.symmetry import trace_permutation_spec, verify
from tests.pruning.channels.nets import CASES, Hard, MeanOverChannels, build

# The stream and the heads' channels; the channels within a group; the stream that two norms look at.
HELD = {"attention": 2, "group norm": 1, "torch's attention": 1}
QUICK = {"grouped, depthwise, transposed", "torch's attention"}


def by_hand(model, x, plan):
    """The original in float64 with every removed slice at zero, one position of one axis at a time."""
    model = copy.deepcopy(model).double().eval()
    tensors = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers())}
    with torch.no_grad():
        for name, entry in plan.spec.tensors.items():
            for dim, axis in enumerate(entry.axes):
                size = axis.size
                marks = {g: torch.zeros(a.size, dtype=torch.long) for g, a in plan.spec.atoms.items()}
                for group, kept in plan.kept.items():
                    marks[group] += 1
                    marks[group][kept] = 0
                gone = _gone(axis, marks)
                assert len(gone) == size
                for position in [i for i, mark in enumerate(gone) if mark]:
                    tensors[name].select(dim, position).zero_()
        return model(x.double())


def _gone(axis, marks):
    """For each position of an axis whether any group index in it is removed."""
    parts = getattr(axis, "factors", None)
    if parts is not None:
        gone = [0]
        for factor in parts:
            gone = [a or b for a in gone for b in _gone(factor, marks)]
        return gone
    blocks = getattr(axis, "blocks", None)
    if blocks is not None:
        return [mark for block in blocks for mark in _gone(block, marks)]
    return marks[axis.name].tolist()


@pytest.mark.parametrize("case", CASES)
def test_the_smaller_model_computes_what_the_original_does_with_zeros(case):
    model, x = build(case)
    pruning = prune_channels(model, x, 0.5)
    assert pruning.proof.passed and pruning.proof.error <= 1e-9
    assert len(pruning.held) == HELD.get(case, 0)
    assert pruning.after.parameters < pruning.before.parameters
    assert pruning.after.macs < pruning.before.macs
    assert pruning.after.parameters == sum(p.numel() for p in pruning.model.parameters())
    with torch.no_grad():
        smaller = pruning.model.double().eval()(x.double())
    torch.testing.assert_close(smaller, by_hand(model, x, pruning.plan), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("case", CASES)
def test_the_smaller_model_is_a_plain_one_that_is_traced_trained_and_pruned_again(case):
    model, x = build(case)
    pruning = prune_channels(model, x, 0.6)
    again = trace_permutation_spec(pruning.model, x)
    assert verify(pruning.model, again, x, trials=1, controls=0).passed
    shapes = {name: entry.shape for name, entry in pruning.plan.smaller_spec.tensors.items()}
    assert shapes == {name: entry.shape for name, entry in again.tensors.items()}
    pruning.model.train()(x).sum().backward()
    assert all(p.grad is not None for p in pruning.model.parameters())
    twice = prune_channels(pruning.model, x, 0.6)
    assert twice.after.parameters <= twice.before.parameters == pruning.after.parameters


@pytest.mark.parametrize("case", CASES)
def test_a_saved_model_comes_back_through_its_plan(case, tmp_path):
    model, x = build(case)
    pruning = prune_channels(model, x, 0.5)
    pruning.plan.save(tmp_path / "plan.safetensors")
    state = save({k: v.clone() for k, v in pruning.model.state_dict().items()})
    plan = type(pruning.plan).load(tmp_path / "plan.safetensors")
    assert plan == pruning.plan and hash(plan) == hash(pruning.plan)
    fresh, _ = build(case, seed=1)
    smaller = plan.apply(fresh)
    smaller.load_state_dict(load(state))
    assert torch.equal(smaller.eval()(x), pruning.model.eval()(x))


def test_size_attributes_follow():
    model, x = build("grouped, depthwise, transposed")
    smaller = prune_channels(model, x, 0.5).model
    channels = [(p.in_channels, p.out_channels, p.groups) for p in smaller.children() if hasattr(p, "groups")]
    # 5 groups of 3 to 2 become 2 of 2 to 1; each depthwise channel keeps one of its two outputs.
    assert channels == [(3, 4, 1), (4, 2, 2), (2, 2, 2), (2, 4, 1)]
    assert smaller.norm.num_features == 2
    assert smaller.head.in_features == 4
    model, x = build("attention")
    smaller = prune_channels(model, x, 0.5).model
    assert (smaller.num_heads, smaller.head_dim, smaller.qkv.out_features) == (2, 3, 18)
    model, x = build("concat and split")
    assert prune_channels(model, x, 0.5).model.sizes == (2, 4)


def test_recurrent_layers_and_directions_keep_one_width_whatever_the_scope():
    model, x = build("recurrent")
    with torch.no_grad():
        model.lstm.weight_ih_l1.mul_(100)
    for scope in ("layer", "global"):
        smaller = prune_channels(model, x, 0.5, scope=scope).model
        assert smaller.lstm.hidden_size == smaller.lstm.weight_hh_l1.shape[1] < 7
        assert smaller.gru.input_size == 2 * smaller.lstm.hidden_size


def test_one_layer_of_a_recurrent_stack_alone_is_refused_by_name():
    model, x = build("recurrent")
    with pytest.raises(PruningError, match=r"the LSTM lstm has layers or directions of which \[4, 7, 7, 7\]"):
        prune_channels(model, x, 0.5, include=["lstm.weight_ih_l0"])


def test_what_is_kept_in_one_number_goes_together_even_where_something_else_is_held():
    model, x = build("one head size")
    norm = nn.LayerNorm(13)
    model.embed = nn.Sequential(model.embed, norm)
    pruning = prune_channels(model, x, 0.5)
    assert list(pruning.held) == ["embed.0"]
    assert (pruning.model.num_heads, pruning.model.dim_head, pruning.model.bias_shape) == (2, 6, (7, 7, 2))


def test_a_stream_as_wide_as_its_heads_can_go_without_them():
    model, x = build("gated")
    smaller = prune_channels(model, x, 0.5, include=["second"]).model
    assert (smaller.attn_dim, smaller.num_heads, smaller.qkv.in_features) == (12, 3, 6)


def test_the_original_is_not_changed():
    model, x = build("residual")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    output = model.eval()(x)
    prune_channels(model, x, 0.5)
    assert torch.equal(model(x), output)
    assert not model.training
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_the_channels_of_the_largest_filters_stay():
    model, x = build("flatten")
    with torch.no_grad():
        model.conv.weight[[1, 4]] *= 100
        model.head.weight.view(2, 7, 25)[:, [2]] *= 100
    plan = prune_channels(model, x, 3 / 7).plan
    assert plan.kept["conv"].tolist() == [1, 2, 4]


def test_scope_global_takes_from_the_groups_of_little_worth_and_empties_none():
    model, x = build("concat and split")
    with torch.no_grad():
        model.a.weight.mul_(torch.tensor([1.0, 1.0, 1.0, 1.0, 100.0])[:, None, None, None])
    pruning = prune_channels(model, x, 0.4, scope="global")
    rows = {row.group: row for row in pruning.plan.rows()}
    assert all(row.kept >= 1 for row in rows.values())
    assert abs(sum(row.kept for row in rows.values()) - round(0.4 * 23)) <= 1
    assert len({row.kept / row.size for row in rows.values()}) > 1


def test_counts_are_rounded_up_to_a_multiple():
    model, x = build("residual")
    rows = {r.group: r.kept for r in prune_channels(model, x, 0.5, multiple_of=4).plan.rows()}
    assert rows == {"stem": 8, "inner": 4}


def test_scores_with_data_choose_channels_too():
    model, x = build("residual")
    batches = [(x, torch.tensor([0, 1]))]
    plans = {name: prune_channels(model, x, 0.5, name, batches=batches).plan for name in ("taylor", "random")}
    assert plans["taylor"] != plans["random"]
    assert plans["taylor"].origin["score"] == "taylor"
    with pytest.raises(PruningError, match="needs batches"):
        prune_channels(model, x, 0.5, "snip")


def test_a_channel_that_the_code_holds_is_named_with_its_place():
    with pytest.raises(
        PruningError, match=r"conv: the top level \(Hard\) does not take fewer channels: shape"
    ):
        prune_channels(Hard(), torch.randn(2, 3, 5, 5), 0.5)


def test_a_mean_over_channels_holds_them_and_is_named():
    pruning = prune_channels(MeanOverChannels(), torch.randn(2, 3, 5, 5), 0.5)
    assert list(pruning.plan.kept) == ["other"]
    assert "other (Conv2d) computes other values" in pruning.held["conv"]
    assert "held conv: other (Conv2d)" in str(pruning)
    with pytest.raises(PruningError, match=r"cannot be removed.*\n  conv: other \(Conv2d\)"):
        prune_channels(MeanOverChannels(), torch.randn(2, 3, 5, 5), 0.5, include=["conv"])


def test_a_layer_norm_that_holds_the_stream_is_named():
    model, x = build("attention")
    held = prune_channels(model, x, 0.5).held
    assert "norm (LayerNorm) computes other values" in held["embed"]


def test_inexact_pruning_removes_what_a_norm_looks_at_and_says_that_it_computes_something_else():
    model, x = build("attention")
    pruning = prune_channels(model, x, 0.5, exact=False)
    rows = {row.group: row for row in pruning.plan.rows()}
    assert rows["embed"].kept == 6
    assert not pruning.proof.passed and pruning.proof.error < float("inf")
    assert "NOT what zeros would give" in str(pruning)
    assert pruning.model(x).shape == model(x).shape
    with pytest.raises(PruningError, match="does not take fewer channels"):
        prune_channels(Hard(), torch.randn(2, 3, 5, 5), 0.5, exact=False)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"density": 1.2}, PruningError, "between 0 and 1"),
        ({"density": 0.0}, PruningError, "lose all its channels"),
        ({"scope": "glob"}, UnknownNameError, "Did you mean 'global'"),
        ({"multiple_of": 0}, PruningError, "give 1 or more"),
        ({"include": ["conv9"]}, PruningError, r"matches no group\. The groups are: stem, inner"),
        ({"exclude": ["conv9"]}, PruningError, "matches no group"),
        ({"include": "conv9"}, PruningError, "pattern 'conv9' matches no group"),
        ({"exclude": ["*"]}, PruningError, "every group that include names is excluded"),
        ({"score": "magnitud"}, UnknownNameError, "Did you mean 'magnitude'"),
    ],
)
def test_bad_input_is_refused(arguments, error, message):
    model, x = build("residual")
    with pytest.raises(error, match=message):
        prune_channels(model, x, **arguments)


def test_a_model_without_interchangeable_channels_says_why():
    with pytest.raises(PruningError, match=r"no group of interchangeable channels to remove: .*model output"):
        prune_channels(nn.Linear(3, 2), torch.randn(5, 3))


def test_a_smaller_model_can_be_exported():
    model, x = build("residual")
    smaller = prune_channels(model, x, 0.5).model.eval()
    program = torch.export.export(smaller, (x,))
    torch.testing.assert_close(program.module()(x), smaller(x))


# torch says this of its own recurrent layers, pruned or not.
@pytest.mark.filterwarnings("ignore:The tensor attributes self:UserWarning")
@pytest.mark.parametrize(
    "case", [case if case in QUICK else pytest.param(case, marks=pytest.mark.slow) for case in CASES]
)
def test_a_smaller_model_goes_through_onnx(case):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    model, x = build(case)
    smaller = prune_channels(model, x, 0.5).model.eval()
    file = io.BytesIO()
    torch.onnx.export(smaller, (x,), file, dynamo=True)
    session = runtime.InferenceSession(file.getvalue())
    (output,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(output), smaller(x).detach(), rtol=1e-4, atol=1e-5)
