"""What a training of `kind: train` came to, as a table and a picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from nfopt.atomic import replacing
from nfopt.recipe.job import Table
from nfopt.recipe.plots import COLOURS

COLUMNS = ("weights", "epoch", "train\nloss", "val\nloss", "val\nacc. %", "test\nloss", "test\nacc. %")


def table_of(result: Mapping[str, Any], title: str) -> Table:
    """Return a table with a row for the last and one for the best weights."""
    epochs: Sequence[Mapping[str, float]] = result["epochs"]
    rows = []
    if epochs:
        for name, record in (("last", epochs[-1]), ("best", epochs[result["best_epoch"] - 1])):
            test = result["test"].get(name)
            rows.append(
                (
                    name,
                    f"{record['epoch']}",
                    f"{record['train_loss']:.3f}",
                    f"{record['val_loss']:.3f}",
                    f"{100 * record['val_accuracy']:.1f}",
                    f"{test['test_loss']:.3f}" if test else "-",
                    f"{100 * test['test_accuracy']:.1f}" if test else "-",
                )
            )
    images = result["images"]
    notes = [f"{images['train']} images to train, {images['val']} to validate, {images['test']} to test"]
    notes.append("train loss: mean over the epoch's batches, on varied images and weights that still change")
    notes.append("best: the highest validation accuracy")
    if result["diverged_at_step"] is not None:
        notes.append(f"diverged: a loss was not finite after step {result['diverged_at_step']}")
    return Table(title, COLUMNS, tuple(rows), tuple(notes))


def plot_epochs(path: Path, epochs: Sequence[Mapping[str, float]], *, title: str) -> None:
    """Draw training and validation loss, and validation accuracy, against epochs.

    Args:
        path: the PNG.
        epochs: the records of the epochs.
        title: above the picture.
    """
    figure = Figure(figsize=(9, 4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    numbers = [record["epoch"] for record in epochs]
    markers = {"marker": "o", "markersize": 4} if len(epochs) < 30 else {}
    for key, label, colour in (
        ("train_loss", "training", COLOURS[1]),
        ("val_loss", "validation", COLOURS[0]),
    ):
        left.plot(numbers, [record[key] for record in epochs], label=label, color=colour, **markers)
    right.plot(numbers, [100 * record["val_accuracy"] for record in epochs], color=COLOURS[0], **markers)
    left.set(xlabel="epoch", ylabel="loss (nats)", yscale="log")
    right.set(xlabel="epoch", ylabel="validation accuracy (%)")
    for axis in (left.yaxis.set_major_formatter, left.yaxis.set_minor_formatter):
        axis(FuncFormatter(lambda value, _: f"{value:g}"))
    left.legend(frameon=False)
    for axes in (left, right):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(visible=True, which="major", alpha=0.3)
    figure.suptitle(title)
    with replacing(path) as partial:
        figure.savefig(partial, dpi=150, format="png")
