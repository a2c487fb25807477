import torch
from torch.nn import functional

from nfopt.editing.editor import NetForward, Targets, observe
from nfopt.editing.editor.evidence import CONTEXT, information_loss, labelled_loss
from nfopt.editing.methods.shot_im import information_maximisation
from tests.editing.editor.editor_nets import deep_normed, images, plain, traced

LABELS = torch.tensor([0, 2, -1, 1, -1, -1, 2, 0, -1, 1, 1, -1, 0])


def test_each_net_has_its_own_information_loss():
    logits = torch.randn(3, 7, 5, dtype=torch.float64)
    expected = torch.stack([information_maximisation(each) for each in logits])
    torch.testing.assert_close(information_loss(logits), expected)


def test_labels_that_are_not_known_count_for_nothing():
    logits = torch.randn(2, 13, 3)
    labels = torch.stack([LABELS, torch.full_like(LABELS, -1)])
    known = LABELS >= 0
    found = labelled_loss(logits, labels)
    torch.testing.assert_close(found[0], functional.cross_entropy(logits[0, known], LABELS[known]))
    assert found[1] == 0


def test_gradients_are_those_of_the_losses():
    model = plain()
    _, tensors = traced(model, images())
    seen = observe(NetForward(model), tensors, {}, Targets(images(), LABELS), 0.5)
    known = LABELS >= 0
    for loss, found in (
        (information_maximisation(model(images())), seen.unsupervised),
        (functional.cross_entropy(model(images())[known], LABELS[known]), seen.labelled),
    ):
        expected = torch.autograd.grad(loss, list(model.parameters()))
        for (name, _), gradient in zip(model.named_parameters(), expected, strict=True):
            torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)
    assert seen.context.shape == (CONTEXT,) and seen.norms == {}
    assert observe(NetForward(model), tensors, {}, Targets(images()), 0.5).labelled == {}


def test_a_layers_shift_and_scale_are_measured_in_its_own_deviations():
    model = deep_normed()
    _, tensors = traced(model, images())
    inputs = model[0](images())
    tensors["1.running_mean"] = inputs.mean((0, 2, 3)) - 3 * inputs.std((0, 2, 3))
    tensors["1.running_var"] = inputs.var((0, 2, 3))
    zero = {"1": torch.zeros(1), "4": torch.zeros(1)}
    seen = observe(NetForward(model), tensors, zero, Targets(images()), 0.0)
    shift, ratio = seen.norms["1.weight"].unbind(-1)
    torch.testing.assert_close(shift.sinh(), torch.full((5,), 3.0, dtype=torch.float64), rtol=1e-3, atol=0)
    torch.testing.assert_close(ratio, torch.zeros(5, dtype=torch.float64), rtol=0, atol=1e-3)
    assert set(seen.norms) == {
        f"{n}.{k}" for n in "14" for k in ("weight", "bias", "running_mean", "running_var")
    }
