"""Each method against what its paper says, computed by hand on small cases."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from nfopt.data import Split
from nfopt.editing import (
    METHODS,
    BatchNormStatistics,
    Eata,
    EmpiricalBayesStatistics,
    Finetune,
    LearnedStatistics,
    MeanDelta,
    ShotIM,
    Task,
    Tent,
    adapt,
    edit_between,
)
from nfopt.editing.methods.descent import batches, entropies
from nfopt.editing.methods.eata import fisher_information, sample_weights
from nfopt.editing.methods.shot_im import information_maximisation, last_layer
from nfopt.errors import EditingError
from tests.editing.nets import bits_of, mlp, moved, normed


def images(count=11, seed=3):
    return torch.randn(count, 2, 7, 7, generator=torch.Generator().manual_seed(seed))


def fitted(method, model, target, labels=None, source=None):
    """Return a copy of the model, edited, and the notes."""
    copied = copy.deepcopy(model).requires_grad_(False)
    notes = method.fit(copied, Task(target, labels, source, torch.Generator().manual_seed(0)))
    return copied, notes


def in_batch_mode(model, parameter_names):
    """Return a copy whose BatchNorm normalises by the batch, and its named parameters, to descend by hand."""
    copied = copy.deepcopy(model)
    copied[1].train()
    return copied, [dict(copied.named_parameters())[name] for name in parameter_names]


def test_the_promised_methods_are_there():
    promised = {"bn", "bn-eb", "tent", "shot-im", "eata", "finetune", "mean-delta", "nf", "nf-bn"}
    assert promised <= set(METHODS)


def test_entropy_is_that_of_the_probabilities():
    logits = torch.tensor([[0.0, 0.0, 0.0], [math.log(2), math.log(1), math.log(1)], [50.0, 0.0, 0.0]])
    expected = [math.log(3), 1.5 * math.log(2), 0.0]
    assert entropies(logits).tolist() == pytest.approx(expected, abs=1e-6)


def test_the_batches_of_an_epoch_are_all_images_once():
    drawn = list(batches(7, 3, 6, torch.Generator().manual_seed(0)))
    for epoch in (drawn[:3], drawn[3:]):
        assert sorted(torch.cat(epoch).tolist()) == list(range(7))


def test_bn_puts_the_mean_and_variance_of_the_target_and_nothing_else():
    model = normed()
    edited, notes = fitted(BatchNormStatistics(), model, images())
    seen = model[0](images()).detach()
    torch.testing.assert_close(edited[1].running_mean, seen.mean((0, 2, 3)))
    torch.testing.assert_close(edited[1].running_var, seen.var((0, 2, 3)))
    assert edit_between(model, edited).changed == ("1.running_mean", "1.running_var")
    assert notes == {"layers": 1}


def test_one_step_of_tent_is_adam_on_the_mean_entropy_over_scales_and_shifts():
    model = normed()
    edited, notes = fitted(Tent(lr=0.01, steps=1, batch_size=11), model, images())
    by_hand, trained = in_batch_mode(model, ["1.weight", "1.bias"])
    logits = by_hand(images())
    probabilities = logits.softmax(1)
    loss = -(probabilities * probabilities.log()).sum(1).mean()
    gradients = torch.autograd.grad(loss, trained)
    for name, parameter, gradient in zip(("weight", "bias"), trained, gradients, strict=True):
        # The first step of Adam is lr times the sign of the gradient, but for its epsilon.
        expected = parameter - 0.01 * gradient / (gradient.abs() + 1e-8)
        torch.testing.assert_close(getattr(edited[1], name), expected.detach(), atol=1e-6, rtol=1e-4)
    assert notes["first_loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert set(edit_between(model, edited).changed) == {
        "1.weight", "1.bias", "1.running_mean", "1.running_var",
    }  # fmt: skip


def test_tent_lowers_the_entropy_of_what_the_edited_model_says():
    model = normed()
    before = entropies(fitted(BatchNormStatistics(), model, images())[0](images())).mean()
    after = entropies(fitted(Tent(lr=0.01, steps=15), model, images())[0](images())).mean()
    assert after < before


def test_information_maximisation_is_mean_entropy_less_the_entropy_of_the_mean():
    sure_of_two = torch.tensor([[60.0, 0.0], [0.0, 60.0]])
    assert information_maximisation(sure_of_two).item() == pytest.approx(-math.log(2), abs=1e-6)
    for worst in (torch.tensor([[60.0, 0.0], [60.0, 0.0]]), torch.zeros(2, 2)):
        assert information_maximisation(worst).item() == pytest.approx(0, abs=1e-6)


def test_one_step_of_shot_im_is_sgd_on_all_but_the_last_layer():
    model = normed()
    edited, _ = fitted(ShotIM(lr=0.1, steps=1, batch_size=11), model, images())
    names = ["0.weight", "0.bias", "1.weight", "1.bias"]
    by_hand, trained = in_batch_mode(model, names)
    gradients = torch.autograd.grad(information_maximisation(by_hand(images())), trained)
    for name, parameter, gradient in zip(names, trained, gradients, strict=True):
        # Nesterov's first step with momentum 0.9 is 1.9 times the gradient.
        expected = (parameter - 0.1 * 1.9 * gradient).detach()
        torch.testing.assert_close(dict(edited.named_parameters())[name], expected)
    assert torch.equal(edited[4].weight, model[4].weight) and torch.equal(edited[4].bias, model[4].bias)


def test_shot_im_works_without_batchnorm():
    edited, notes = fitted(ShotIM(steps=2), mlp(), torch.randn(5, 7))
    assert notes["trained_tensors"] == 2
    assert set(edit_between(mlp(), edited).changed) == {"1.weight", "1.bias"}


class HeadFirst(nn.Module):
    """The order of the attributes is not the order of the forward pass."""

    def __init__(self):
        super().__init__()
        self.head, self.body = nn.Linear(5, 3), nn.Linear(7, 5)

    def forward(self, x):
        return self.head(self.body(x).relu())


def test_the_last_layer_is_the_one_that_runs_last():
    assert last_layer(HeadFirst(), torch.zeros(2, 7)) == ["head.weight", "head.bias"]
    assert last_layer(nn.Linear(7, 3), torch.zeros(2, 7)) == ["weight", "bias"]
    assert last_layer(nn.Identity(), torch.zeros(2, 7)) == []


def test_eata_weighs_sure_and_new_predictions():
    sure, unsure = [math.log(98.0), 0.0, 0.0], [0.1, 0.0, 0.0]
    logits = torch.tensor([sure, unsure])
    limit = 0.4 * math.log(3)
    entropy = entropies(logits)[0].item()
    weights = sample_weights(logits, None, entropy_share=0.4, redundancy=0.4)
    assert weights.tolist() == pytest.approx([math.exp(limit - entropy), 0.0])
    alike, unlike = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 0.0, 1.0])
    for mean, kept in ((alike, False), (unlike, True)):
        weight = sample_weights(logits, mean, entropy_share=0.4, redundancy=0.4)[0]
        assert (weight > 0) == kept


def test_fisher_information_is_the_mean_squared_gradient_image_by_image():
    model = mlp().requires_grad_(False)
    values = torch.randn(3, 7, generator=torch.Generator().manual_seed(1))
    found = fisher_information(model, values, {"3.weight": model[3].weight})["3.weight"]
    expected = torch.zeros(3, 5)
    for value in values.split(1):
        hidden = model[2](model[1](value))[0]
        probabilities = model(value)[0].softmax(0)
        error = probabilities - functional.one_hot(probabilities.argmax(), 3)
        expected += torch.outer(error, hidden) ** 2 / 3
    torch.testing.assert_close(found, expected)


def test_a_heavy_fisher_weight_holds_what_matters_and_no_source_leaves_it_away():
    model = normed()
    source = Split(images(7, 5), torch.zeros(7, dtype=torch.long))
    options = {"lr": 0.05, "steps": 12, "entropy_share": 1.0, "redundancy": 1.1}
    free, notes = fitted(Eata(**options), model, images())
    held, held_notes = fitted(Eata(**options, fisher_weight=300.0), model, images(), source=source)
    assert notes["fisher"] is False and held_notes["fisher"] is True
    moves = [(edited[1].weight - model[1].weight).norm() for edited in (free, held)]
    assert moves[1] < 0.7 * moves[0]


def test_eata_without_a_reliable_image_only_puts_statistics():
    model = normed()
    edited, notes = fitted(Eata(entropy_share=0.0), model, images())
    assert notes["steps_taken"] == 0 and notes["images_used"] == 0
    assert bits_of(edited) == bits_of(fitted(BatchNormStatistics(), model, images())[0])


def test_finetune_is_adam_on_the_cross_entropy_of_the_labelled_images():
    model = normed()
    labels = torch.tensor([0, 1, 2, -1, -1, 1, 0, -1, 2, 1, 0])
    edited, notes = fitted(Finetune(lr=0.01, steps=1, statistics="keep"), model, images(), labels)
    by_hand = copy.deepcopy(model)
    known = labels >= 0
    functional.cross_entropy(by_hand(images()[known]), labels[known]).backward()
    for name, parameter in by_hand.named_parameters():
        expected = parameter - 0.01 * parameter.grad / (parameter.grad.abs() + 1e-8)
        found = dict(edited.named_parameters())[name]
        torch.testing.assert_close(found, expected.detach(), atol=2e-5, rtol=1e-3)
    assert notes["labelled_images"] == 8
    assert torch.equal(edited[1].running_mean, model[1].running_mean)


def test_finetune_learns_the_labels_and_reads_its_parameters_by_pattern():
    labels = torch.arange(11) % 3
    edited, notes = fitted(Finetune(lr=0.05, steps=60, include=("4.*",)), normed(), images(), labels)
    assert (edited(images()).argmax(1) == labels).all()
    assert notes["trained_tensors"] == 2
    changed = edit_between(normed(), edited).changed
    assert set(changed) == {"4.weight", "4.bias", "1.running_mean", "1.running_var"}


def test_mean_delta_adds_the_mean_of_what_other_nets_came_to():
    bases = [mlp(seed) for seed in range(3)]
    zoo = [(base, edit_between(base, moved(base, seed))) for seed, base in enumerate(bases)]
    target = mlp(7)
    edited, notes = fitted(MeanDelta.of_zoo(zoo, scale=0.5), target, torch.zeros(2, 7))
    for name, tensor in target.state_dict().items():
        deltas = [moved(b, s).state_dict()[name] - b.state_dict()[name] for s, b in enumerate(bases)]
        torch.testing.assert_close(edited.state_dict()[name], tensor + 0.5 * sum(deltas) / 3)
    assert notes == {"networks": 3, "tensors": 4}


def test_a_tensor_that_one_net_left_alone_counts_as_no_change_there():
    delta = {"1.weight": torch.ones(5, 7)}
    edited, _ = fitted(MeanDelta((delta, {})), mlp(), torch.zeros(2, 7))
    torch.testing.assert_close(edited[1].weight, mlp()[1].weight + 0.5)


@pytest.mark.parametrize(
    ("deltas", "says"),
    [
        ((), "needs deltas"),
        (({"9.weight": torch.ones(3)},), "9.weight is not in the model"),
        (({"1.weight": torch.ones(3, 7)},), r"shape \[3, 7\], not \[5, 7\]"),
    ],
)
def test_deltas_of_other_nets_are_refused(deltas, says):
    with pytest.raises(EditingError, match=says):
        adapt(mlp(), torch.zeros(2, 7), MeanDelta(deltas))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Tent(lr=0.0), "must be positive"),
        (lambda: Tent(lr=math.nan), "must be positive"),
        (lambda: ShotIM(steps=0), "steps of shot-im is 0"),
        (lambda: Finetune(batch_size=0), "batch_size of finetune is 0"),
        (lambda: Finetune(statistics="both"), "'target' or 'keep'"),  # pyright: ignore[reportArgumentType]
        (lambda: Eata(fisher_weight=-1.0), "fisher_weight of eata is -1"),
        (lambda: BatchNormStatistics(source_count=-1.0), "at least 0"),
    ],
)
def test_options_out_of_range_are_refused(make, says):
    with pytest.raises(EditingError, match=says):
        make()


def test_a_pattern_that_matches_nothing_is_refused():
    with pytest.raises(EditingError, match="'layer9' matches none of the 6 parameters"):
        fitted(Tent(include=("layer9",)), normed(), images())


def test_a_loss_that_is_not_finite_stops_the_descent():
    labels = torch.arange(11) % 3
    with pytest.raises(EditingError, match=r"finetune diverged.*smaller lr"):
        fitted(Finetune(lr=1e30, steps=9, statistics="keep"), normed(), images(), labels)


@pytest.mark.parametrize(
    "method",
    [
        BatchNormStatistics(),
        EmpiricalBayesStatistics(),
        LearnedStatistics(),
        Tent(lr=0.1, steps=3),
        ShotIM(steps=3),
        Eata(entropy_share=1.0, steps=3),
        Finetune(steps=3),
        Finetune(steps=3, statistics="keep", include=("4.*",)),
        MeanDelta(({"1.weight": torch.ones(5)},)),
    ],
)
def test_a_method_changes_what_it_says_it_touches_and_nothing_else(method):
    labels = torch.arange(11) % 3
    edited, _ = fitted(method, normed(), images(), labels)
    changed, touched = set(edit_between(normed(), edited).changed), set(method.touches(normed(), images(2)))
    # A bias before BatchNorm has no effect and no gradient, so that it may stay.
    assert changed <= touched <= changed | {"0.bias"}
