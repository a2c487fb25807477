import pytest
import torch

from nfopt.editing import adapt
from nfopt.editing.editor import (
    EditorConfig,
    NetForward,
    Observed,
    Targets,
    WeightEditor,
    edited_tensors,
    observe,
)
from nfopt.editing.editor.evidence import information_loss
from nfopt.editing.editor.weight_editor import GRADIENT_CUT, SCALE_FLOOR
from nfopt.editing.model_state import state_of
from nfopt.errors import EditingError
from tests.editing.editor.editor_nets import awake, deep_normed, images, plain, traced

SMALL = EditorConfig(rounds=2, channels=5, element_channels=3, source_count=7.0, operators=0.3)
LABELS = torch.tensor([0, 2, -1, 1, -1, -1, 2, 0, -1, 1, 1, -1, 0])


@pytest.mark.parametrize("net", [deep_normed, plain])
@pytest.mark.parametrize("targets", [None, Targets(images()), Targets(images(), LABELS)])
def test_the_edit_of_a_permuted_net_is_the_permuted_edit(net, targets):
    model = net()
    spec, tensors = traced(model, images())
    editor, forward = awake(SMALL), NetForward(model)
    permutation = spec.sample(torch.Generator().manual_seed(0))
    with torch.no_grad():
        edited = edited_tensors(editor, forward, spec, tensors, targets, (2, 7, 7))
        other = edited_tensors(editor, forward, spec, spec.act(permutation, tensors), targets, (2, 7, 7))
    expected = spec.act(permutation, edited)
    assert any(not torch.allclose(edited[name], tensors[name]) for name in tensors)
    for name in tensors:
        torch.testing.assert_close(other[name], expected[name], rtol=1e-6, atol=1e-7)


def test_a_fresh_editor_puts_the_targets_statistics_and_no_more():
    model = deep_normed().float()
    pictures = images().float()
    spec, tensors = traced(model, pictures)
    editor = WeightEditor(EditorConfig(source_count=0.0))
    with torch.no_grad():
        edited = edited_tensors(editor, NetForward(model), spec, tensors, Targets(pictures))
    expected = adapt(model, pictures, "bn", gate=None).edited_state(state_of(model))
    for name in tensors:
        torch.testing.assert_close(edited[name], expected[name], rtol=1e-3, atol=1e-3)
        if not name.endswith(("mean", "var")):
            assert torch.equal(edited[name], tensors[name])


def test_a_fresh_editor_descends_the_unsupervised_loss_of_a_net_without_batchnorm():
    model = plain()
    spec, tensors = traced(model, images())
    editor = WeightEditor(EditorConfig(rounds=3, step=0.01)).double()
    with torch.no_grad():
        edited = edited_tensors(editor, NetForward(model), spec, tensors, Targets(images()))
        before, after = (information_loss(NetForward(model)(each, images())[0]) for each in (tensors, edited))
    assert after < before


def test_from_weights_alone_statistics_stay():
    model = deep_normed()
    spec, tensors = traced(model, images())
    with torch.no_grad():
        edited = edited_tensors(awake(SMALL), NetForward(model), spec, tensors, None, (2, 7, 7))
    for name in tensors:
        assert torch.equal(edited[name], tensors[name]) == name.endswith(("mean", "var"))


@pytest.mark.parametrize("net", [deep_normed, plain])
def test_no_change_exceeds_its_bounds_however_loud_the_editor(net):
    model = net()
    spec, tensors = traced(model, images())
    editor, forward = awake(SMALL), NetForward(model)
    with torch.no_grad():
        editor.network.element_out.weight.mul_(1e3)
    shares = {name: torch.full((1,), 0.5, dtype=torch.float64) for name in forward.norms}
    seen = observe(forward, tensors, shares, Targets(images(), LABELS), 0.0)
    with torch.no_grad():
        proposal = editor(spec, tensors, seen, (2, 7, 7))
    c = SMALL
    for name, change in proposal.changes.items():
        weight = tensors[name]
        scale = weight.square().mean().sqrt().clamp_min(SCALE_FLOOR)
        gradients = c.step * (c.nominal_step + 2 * c.reach) * GRADIENT_CUT
        bound = (c.free + gradients) * scale + (c.rescale + 10 * c.operators) * weight.abs().max()
        assert float(change.abs().max()) <= bound
        assert float(change.abs().max()) > 0
    assert all(float(s.abs().max()) <= c.blend for s in proposal.shares.values())


def test_one_editor_reads_nets_of_any_family_and_width():
    editor = awake(SMALL)
    for model in (deep_normed(), plain()):
        spec, tensors = traced(model, images())
        proposal = editor(spec, tensors, Observed(), (2, 7, 7))
        assert {n for n in tensors if not n.endswith(("mean", "var"))} == set(proposal.changes)


def test_nets_side_by_side_are_edited_as_each_of_them_alone():
    nets = [plain(seed) for seed in (1, 2)]
    spec, _ = traced(nets[0], images())
    states = [traced(net, images())[1] for net in nets]
    stacked = {name: torch.stack([state[name] for state in states]) for name in states[0]}
    pictures = torch.stack([images(seed=4), images(seed=5)])
    editor = awake(SMALL)
    with torch.no_grad():
        together = edited_tensors(editor, NetForward(nets[0], many=True), spec, stacked, Targets(pictures))
        for i, state in enumerate(states):
            alone = edited_tensors(editor, NetForward(nets[0]), spec, state, Targets(pictures[i]))
            for name, value in alone.items():
                torch.testing.assert_close(together[name][i], value, rtol=1e-6, atol=1e-8)


def test_the_targets_loss_has_a_gradient_in_the_editors_weights():
    model = deep_normed()
    spec, tensors = traced(model, images())
    editor, forward = awake(SMALL), NetForward(model)
    edited = edited_tensors(editor, forward, spec, tensors, Targets(images()), (2, 7, 7))
    forward(edited, images(seed=9))[0].square().mean().backward()
    silent = [name for name, weight in editor.named_parameters() if weight.grad is None]
    assert all("diagonal" in name for name in silent)  # no tensor here has an axis twice
    assert editor.network.element_out.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("options", [{"rounds": 0}, {"rounds": 1.5}, {"step": -0.1}, {"free": float("nan")}])
def test_a_configuration_that_makes_no_sense_is_refused(options):
    with pytest.raises(EditingError, match="of the editor"):
        EditorConfig(**options)
