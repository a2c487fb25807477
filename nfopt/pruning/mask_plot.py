"""The picture of masks: what each keeps of every layer."""

from collections.abc import Mapping
from pathlib import Path

from nfopt.atomic import replacing
from nfopt.errors import PruningError
from nfopt.pruning.mask import PruningMask

MOST_LABELS = 40


def plot_masks(path: Path, masks: PruningMask | Mapping[str, PruningMask]) -> None:
    """Draw the kept percentage of each layer as a PNG, one group of bars for each layer.

    A layer of which nothing is kept has no bar and is marked "none"; one that a mask does not name has 100 %.

    Args:
        path: the file to write, whole or not at all.
        masks: one mask, or masks of one model by what the legend calls them.

    Raises:
        PruningError: there is no mask, or the masks are of different models.
    """
    # Here, so that whoever draws nothing does not wait for matplotlib.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    named = {"": masks} if isinstance(masks, PruningMask) else dict(masks)
    if not named:
        raise PruningError("there is no mask to draw.")
    first = next(iter(named.values()))
    for label, mask in named.items():
        if mask.model != first.model:
            raise PruningError(f"the mask {label!r} is of another model than the first; draw it by itself.")
    layers = list(dict.fromkeys(name for mask in named.values() for name in mask.kept))
    figure = Figure(figsize=(max(6.0, min(0.4 * len(layers) + 3, 16)), 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    width = 0.8 / len(named)
    shares = [100 * share for mask in named.values() for share in mask.densities.values() if share]
    floor = min([1.0, *(share / 2 for share in shares)])
    for index, (label, mask) in enumerate(named.items()):
        places = [place + (index - (len(named) - 1) / 2) * width for place in range(len(layers))]
        heights = [100 * mask.densities.get(layer, 1.0) for layer in layers]
        text = f"{label} ({100 * mask.density:.3g} % in all)".strip()
        axes.bar(places, [max(height, floor) for height in heights], width, label=text)
        for place, height in zip(places, heights, strict=True):
            if height == 0:
                axes.annotate(
                    "none", (place, 1.05 * floor), rotation=90, ha="center", va="bottom", fontsize=8
                )
    axes.set(ylabel="kept (%)", yscale="log", ylim=(floor, 130))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    every = -(-len(layers) // MOST_LABELS)
    axes.set_xticks(range(len(layers))[::every], layers[::every], rotation=60, ha="right", fontsize=8)
    axes.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, 1.15), ncols=3)
    with replacing(Path(path)) as partial:
        figure.savefig(partial, dpi=150, format="png")
