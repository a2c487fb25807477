import numpy as np
import pytest
from matplotlib.image import imread

from nfopt.errors import PruningError
from nfopt.pruning import plot_masks, prune
from tests.pruning.nets import cnn, mlp


def ink(path):
    return float((imread(path)[..., :3].min(-1) < 0.99).mean())


def test_more_is_drawn_where_more_is_kept(tmp_path):
    sparse, dense = tmp_path / "sparse.png", tmp_path / "dense.png"
    plot_masks(sparse, prune(mlp(), 0.1, scope="layer"))
    plot_masks(dense, prune(mlp(), 0.9, scope="layer"))
    assert sparse.read_bytes().startswith(b"\x89PNG")
    assert ink(sparse) < ink(dense)


def test_a_layer_of_which_nothing_is_kept_can_be_drawn_and_several_masks_have_a_legend(tmp_path):
    model = mlp()
    masks = {name: prune(model, d, on_empty_layer="allow") for name, d in (("half", 0.5), ("none", 0.0))}
    plot_masks(tmp_path / "both.png", masks)
    plot_masks(tmp_path / "one.png", masks["half"])
    both, one = (imread(tmp_path / f"{name}.png") for name in ("both", "one"))
    assert both.shape != one.shape or not np.array_equal(both, one)


def test_no_mask_and_masks_of_different_models_are_refused(tmp_path):
    with pytest.raises(PruningError, match="no mask to draw"):
        plot_masks(tmp_path / "none.png", {})
    with pytest.raises(PruningError, match="'other' is of another model"):
        plot_masks(tmp_path / "none.png", {"one": prune(mlp(), 0.5), "other": prune(cnn(), 0.5)})
    assert not list(tmp_path.iterdir())
