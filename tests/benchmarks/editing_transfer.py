"""Does a learned editor serve nets of pictures that it did not learn on? Beside methods at their defaults.

NFOPT_DATA=... python -m tests.benchmarks.editing_transfer fashion_mnist 14
"""

import argparse
from statistics import fmean, stdev

import torch

from nfopt.data import Split, load_data
from nfopt.editing import BatchNormStatistics, Domain, Method, NeuralFunctionalEdit, ShotIM, Tent
from nfopt.meta.editor_contest import Arena, Stream, contest
from nfopt.meta.editor_nets import stacked_state, train_side_by_side
from nfopt.models import build_model

DOMAINS = ("clean", "brightness:4", "pixelate:3", "jpeg:5", "elastic:3", "gaussian:5", "contrast:4")


def entrants(editor: str) -> dict[str, Method | None]:
    return {
        "source": None,
        "bn": BatchNormStatistics(),
        "tent": Tent(),
        "shot-im": ShotIM(),
        "nf, learned": NeuralFunctionalEdit(checkpoint=editor),
        "nf, half": NeuralFunctionalEdit(checkpoint=editor, scale=0.5),
        "nf, nominal": NeuralFunctionalEdit(checkpoint="nominal"),
    }


def arena(name: str, side: int, nets: int) -> Arena:
    data = load_data(name, standardize=False, resize=side, n_train=6000, n_val=600)
    mean = data.train.images.mean((0, 2, 3), keepdim=True)
    deviation = data.train.images.std((0, 2, 3), keepdim=True)

    def shown(split: Split, domain: str) -> Split:
        images = Domain.parse(domain)(split.images.clamp(0, 1), torch.Generator().manual_seed(0))
        return Split((images - mean) / deviation, split.labels)

    models = [
        build_model("cnn", data.in_shape, 10, seed=seed, options={"channels": (12, 24, 32)}).eval()
        for seed in range(nets)
    ]
    tensors = train_side_by_side(
        models[0],
        stacked_state(models),
        shown(data.train, "clean"),
        total_steps=250,
        batch_size=64,
        lr=1e-2,
        seed=0,
    )
    for index, model in enumerate(models):
        model.load_state_dict({key: value[index] for key, value in tensors.items()}, strict=False)
        model.requires_grad_(False)
    seen = {domain: shown(data.val[torch.arange(300)], domain) for domain in DOMAINS}
    test = {domain: shown(data.test[torch.arange(1000)], domain) for domain in DOMAINS}
    return Arena(models, seen, test)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("side", type=int)
    parser.add_argument("--nets", type=int, default=2)
    parser.add_argument("--editor", default="editor", help="a bundled editor's name, or the path of one")
    arguments = parser.parse_args()
    field = arena(arguments.data, arguments.side, arguments.nets)
    methods = entrants(arguments.editor)
    for images in (16, 64):
        trials = contest(field, methods, DOMAINS, Stream(images), 0, clean=False)
        print(f"\n{images} target images", *(f"{name:>11}" for name in methods))
        for domain in (*DOMAINS, "mean"):
            cells = [
                fmean(t.target for t in trials if t.method == name and domain in (t.domain, "mean"))
                for name in methods
            ]
            print(f"{domain:16}", *(f"{100 * cell:11.1f}" for cell in cells))
        nominal, learned = (
            [
                fmean(t.target for t in trials if t.method == name and t.net == net)
                for net in range(len(field.nets))
            ]
            for name in ("nf, nominal", "nf, learned")
        )
        gains = [100 * (after - before) for before, after in zip(nominal, learned, strict=True)]
        spread = (
            f" +- {stdev(gains) / len(gains) ** 0.5:.2f} over {len(gains)} nets" if len(gains) > 1 else ""
        )
        print(f"learned before nominal: {fmean(gains):+.2f}{spread}")


if __name__ == "__main__":
    main()
