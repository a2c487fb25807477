"""Draw every corruption at every severity in one picture.

NFOPT_DATA=FOLDER python -m tests.benchmarks.corruption_sheet cifar10 sheet.png
"""

import argparse
from pathlib import Path

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from nfopt.data import load_data
from nfopt.editing.corruptions import CORRUPTIONS, corrupt


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("data", help="a data set of nfopt")
    parser.add_argument("file", type=Path, help="the PNG")
    parser.add_argument("--image", type=int, default=7, help="which of the test images")
    parser.add_argument("--side", type=int, default=None, help="resize to this side first")
    arguments = parser.parse_args()
    data = load_data(arguments.data, n_train=100, n_val=100, standardize=False, resize=arguments.side)
    image = data.test.images[arguments.image : arguments.image + 1].clamp(0, 1)
    figure = Figure(figsize=(6.5, 1.05 * len(CORRUPTIONS)), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(CORRUPTIONS), 6)
    for row, name in zip(grid, CORRUPTIONS, strict=True):
        for severity, axes in enumerate(row):
            shown = image
            if severity:
                shown = corrupt(image, name, severity, torch.Generator().manual_seed(severity))
            axes.imshow(shown[0].movedim(0, -1).squeeze(-1), cmap="gray", vmin=0, vmax=1)
            axes.set(xticks=[], yticks=[])
        row[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
    for severity, axes in enumerate(grid[0]):
        axes.set_title("clean" if severity == 0 else f"severity {severity}", fontsize=8)
    figure.savefig(arguments.file, dpi=110)


if __name__ == "__main__":
    main()
