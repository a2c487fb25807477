"""What few target images do to BatchNorm nets, over many draws of them: D2 small, each net of its own seed.

NFOPT_DATA=... python -m tests.benchmarks.editing_few_images FOLDER 1:0 2:0 3:0

A net SEED:NUMBER is that of `recipes/adapt_d2_small.yaml seed=SEED`. Nets and trials are kept in FOLDER, so
that more can be added; a summary of all that lies there is printed at the end. No method is tuned here.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from torch import nn

from nfopt.editing import METHODS, Method
from nfopt.meta.editor_contest import UNEDITED, Arena, Stream, contest, oracle_net
from nfopt.meta.editor_contest import accuracy as accuracy_of
from nfopt.meta.editor_nets import train_in_turn
from nfopt.meta.editor_streams import ORDERS, batches_of, stream_accuracy
from nfopt.meta.editor_tasks import CLEAN
from nfopt.models import build_model
from nfopt.recipe.adapt.train_editor_options import Pictures
from nfopt.recipe.inputs import DataOptions
from nfopt.seeds import derive_seed
from nfopt.statefile import load_state, save_state

DATA = DataOptions(name="cifar10", resize=16, n_train=30000, n_val=2000)
DOMAINS = ("brightness:5", "impulse:5", "elastic:5")
ENTRANTS = (
    "bn-1=bn",
    "blended=bn source_count=4",
    "nf-bn=nf-bn checkpoint=statistics",
    "bn-eb=bn-eb",
)
ORACLE = "oracle"
STREAM_IMAGES = 320


def entrant(text: str) -> tuple[str, Method]:
    """Return the name and the method of "NAME=METHOD KEY=VALUE ..."."""
    name, _, rest = text.partition("=")
    method, *options = rest.split()
    values: dict[str, Any] = {}
    for option in options:
        key, _, value = option.partition("=")
        try:
            values[key] = json.loads(value)
        except json.JSONDecodeError:
            values[key] = value
    return name, METHODS[method](**values)


def net_of(pictures: Pictures, seed: int, number: int, folder: Path, total_steps: int) -> nn.Module:
    """Return net `number` of the contest of that seed, trained or read."""
    place, seed = folder / f"net-{seed}-{number}.safetensors", derive_seed(seed, "contest")
    module = build_model(
        "resnet20",
        pictures.data.in_shape,
        pictures.data.classes,
        options={"width": 8},
        seed=derive_seed(seed, "net", number),
    ).eval()
    if not place.exists():
        split = pictures.prepared(pictures.data.train)
        how = {"total_steps": total_steps, "batch_size": 96, "lr": 1e-2, "seed": seed, "first": number}
        save_state(place, train_in_turn([module], split, **how))
    module.load_state_dict({name: value[0] for name, value in load_state(place).items()}, strict=False)
    return module.requires_grad_(False)


def measured(
    pictures: Pictures, net: nn.Module, seed: int, number: int, options: argparse.Namespace, kept: list[Any]
) -> None:
    """Add the trials of one net to those that are kept."""
    known = {tuple(row[:6]) for row in kept}
    test = pictures.data.test[torch.arange(min(1000, len(pictures.data.test)))]
    seen = pictures.in_domains(pictures.data.val, options.domains, derive_seed(seed, "seen"))
    arena = Arena([net], seen, pictures.in_domains(test, options.domains, derive_seed(seed, "test")))
    methods: dict[str, Method | None] = {UNEDITED: None, **dict(map(entrant, options.methods))}
    for domain in options.domains:
        where = [f"{seed}:{number}", domain]
        if options.oracle and domain != CLEAN and (*where, 0, 0, ORACLE, "") not in known:
            best = oracle_net(net, arena.seen[domain], derive_seed(seed, "oracle"), 60)
            kept.append([*where, 0, 0, ORACLE, "", accuracy_of(best, arena.test[domain]), 0.0])
        for images in options.images:
            for draw in range(options.draws):
                for name, method in methods.items():
                    key = (*where, images, 0 if method is None else draw, name, repr(method))
                    if key in known:
                        continue
                    drawn = derive_seed(seed, "draw", number, draw)
                    (trial,) = contest(
                        arena, {name: method}, [domain], Stream(images), drawn, clean=options.clean
                    )
                    kept.append([*key, trial.target, trial.clean])
                    known.add(key)
        if options.stream:
            streamed(net, arena, [*where, options.stream], methods, kept)
        (options.folder / "trials.json").write_text(json.dumps(kept))


def streamed(
    net: nn.Module, arena: Arena, where: list[Any], methods: dict[str, Method | None], kept: list[Any]
) -> None:
    """Add the accuracy of one net along streams at random and sorted by class, edits reset and carried on."""
    known = {tuple(row[:6]) for row in kept}
    text, domain, images = where
    seed, number = map(int, text.split(":"))
    split = arena.seen[domain][torch.arange(STREAM_IMAGES)]
    for order in ORDERS:
        batches = batches_of(split, images, order, derive_seed(seed, "stream", number))
        for carried in (False, True):
            for name, method in methods.items():
                key = (*where, f"{order}, {'carried on' if carried else 'reset'}", name, repr(method))
                if key not in known and not (method is None and carried):
                    found = stream_accuracy(net, method, batches, seed, carried=carried)
                    kept.append([*key, found, 0.0])


def summary(rows: Sequence[Sequence[Any]]) -> str:
    """Return means over domains by method and number of images, and each before the others, paired by net."""
    lines = []
    nets = sorted({row[0] for row in rows})
    for title in dict.fromkeys(map(_title, rows)):
        chosen = [row for row in rows if _title(row) == title and row[4] != ORACLE]
        means: dict[str, dict[str, float]] = {}
        for name in dict.fromkeys(row[4] for row in chosen):
            for net in nets:
                mine = [r for r in chosen if r[4] == name and r[0] == net]
                by_domain = [
                    fmean(r[6] for r in mine if r[1] == d) for d in dict.fromkeys(r[1] for r in mine)
                ]
                if by_domain:
                    means.setdefault(name, {})[net] = 100 * fmean(by_domain)
        lines += [title, *(_line(name, found, means) for name, found in means.items())] if means else []
    return "\n".join(lines)


def _title(row: Sequence[Any]) -> str:
    stream = f", a stream, {row[3]}" if isinstance(row[3], str) else ""
    return f"{row[2]} images{', clean' if row[1] == CLEAN else ''}{stream}"


def _line(name: str, found: dict[str, float], means: dict[str, dict[str, float]]) -> str:
    before = []
    for other, theirs in means.items():
        gains = [found[net] - theirs[net] for net in found if net in theirs]
        if other != name and len(gains) > 1:
            before.append(f"{other} {fmean(gains):+.2f} ± {stdev(gains) / len(gains) ** 0.5:.2f}")
    gained = f"; before {', '.join(before)}" if before else ""
    return f"  {name:10s} {fmean(found.values()):5.1f} ({len(found)} nets){gained}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("nets", nargs="*", help="SEED:NUMBER")
    parser.add_argument("--methods", nargs="+", default=ENTRANTS, help="NAME=METHOD KEY=VALUE ...")
    parser.add_argument("--domains", nargs="+", default=DOMAINS)
    parser.add_argument("--images", nargs="+", type=int, default=(16, 64))
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--clean", action="store_true", help="test on clean images, too")
    parser.add_argument("--oracle", action="store_true")
    parser.add_argument("--stream", type=int, default=0, help="images in a batch of a stream; 0 for none")
    parser.add_argument("--total-steps", type=int, default=1200)
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.folder.mkdir(parents=True, exist_ok=True)
    place = options.folder / "trials.json"
    kept = json.loads(place.read_text()) if place.exists() else []
    pictures = Pictures.of(DATA) if options.nets else None
    for text in options.nets:
        assert pictures is not None
        seed, number = map(int, text.split(":"))
        net = net_of(pictures, seed, number, options.folder, options.total_steps)
        measured(pictures, net, seed, number, options, kept)
        print(f"net {text} done", flush=True)
    print(summary(kept))


if __name__ == "__main__":
    main()
