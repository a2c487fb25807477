import pytest
import torch

from nfopt.editing.editor.image_operators import OPERATORS, image_operators
from nfopt.symmetry import trace_permutation_spec
from tests.editing.editor.editor_nets import deep_normed, images, plain


def pictured(name, pictures):
    """Return what an operator does to images, written anew."""
    if name == "mirror":
        return pictures[..., torch.arange(pictures.shape[-1] - 1, -1, -1)]
    if name == "level":
        return torch.ones_like(pictures) * pictures.mean((-2, -1), keepdim=True)
    return torch.ones_like(pictures) * pictures.mean(-3, keepdim=True)


@pytest.mark.parametrize("name", ["mirror", "level", "grey"])
def test_an_operated_matrix_reads_operated_images(name):
    model = plain()
    spec = trace_permutation_spec(model, images(2))
    weight = model[1].weight.detach()
    found = image_operators(spec, "1.weight", weight, (2, 7, 7))[OPERATORS.index(name)]
    torch.testing.assert_close(images().flatten(1) @ found.T, pictured(name, images()).flatten(1) @ weight.T)


def test_smoothing_keeps_what_is_flat_and_flattens_what_is_not():
    model = plain()
    spec = trace_permutation_spec(model, images(2))
    weight = torch.randn(3, 5, 98, dtype=torch.float64)
    found = image_operators(spec, "1.weight", weight, (2, 7, 7))
    spread = [float(w.unflatten(-1, (2, 7, 7)).std((-2, -1)).mean()) for w in (weight, found[1], found[2])]
    assert spread[0] > spread[1] > spread[2] > 0
    flat = torch.full((5, 98), 3.0)
    assert all(torch.allclose(w, flat) for w in image_operators(spec, "1.weight", flat, (2, 7, 7)).values())


def test_only_tensors_that_face_pixels_have_operators():
    model = plain()
    spec = trace_permutation_spec(model, images(2))
    state = model.state_dict()
    assert len(image_operators(spec, "1.weight", state["1.weight"], (2, 7, 7))) == len(OPERATORS)
    assert image_operators(spec, "3.weight", state["3.weight"], (2, 7, 7)) == {}
    assert image_operators(spec, "1.weight", state["1.weight"], ()) == {}
    conv = deep_normed()
    spec = trace_permutation_spec(conv, images(2))
    grey = OPERATORS.index("grey")
    assert grey in image_operators(spec, "0.weight", conv[0].weight, (2, 7, 7))
    assert grey not in image_operators(spec, "3.weight", conv[3].weight, (2, 7, 7))
    assert image_operators(spec, "8.weight", conv[8].weight, (2, 7, 7)) == {}
