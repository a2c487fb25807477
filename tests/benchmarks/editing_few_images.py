"""What few target images do to BatchNorm nets of several seeds, over draws of them: D2 small in one table.

NFOPT_DATA=... python -m tests.benchmarks.editing_few_images FOLDER 0:0 1:0 2:0 --tuning-nets 0:4 1:4

Images, nets, domains and methods are those of `--recipe`; net SEED:NUMBER is net NUMBER of that recipe with
`seed=SEED`. Methods are tuned on the tuning nets and the recipe's tuning domains, once for each number of
images. Nets, settings and trials are kept in FOLDER, so that more can be added; a summary of all trials there
with these domains is printed at the end.
"""

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from torch import nn

from nfopt.editing import Gate, Method
from nfopt.meta.editor_contest import (
    ORACLE,
    UNEDITED,
    Arena,
    Stream,
    contest,
    gap_share,
    oracle_net,
    tuned,
)
from nfopt.meta.editor_contest import accuracy as accuracy_of
from nfopt.meta.editor_nets import train_in_turn
from nfopt.meta.editor_streams import ORDERS, batches_of, stream_accuracy
from nfopt.meta.editor_tasks import CLEAN
from nfopt.recipe import load_recipe
from nfopt.recipe.adapt.contest import AdaptContestRecipe, nearest_count
from nfopt.recipe.adapt.contest_report import plot_contest
from nfopt.recipe.adapt.train_editor_options import Pictures, halves
from nfopt.seeds import derive_seed
from nfopt.statefile import load_state, save_state

STREAM_IMAGES = 320


@dataclass(frozen=True)
class Row:
    """One trial: of a net in a domain, how (images and draw, or a kind of stream), by which method."""

    net: str
    domain: str
    images: int
    how: str
    method: str
    setting: str
    accuracy: float
    clean: float = 0.0
    seconds: float = 0.0
    refused: float = 0.0

    @property
    def key(self) -> tuple[Any, ...]:
        return self.net, self.domain, self.images, self.how, self.method, self.setting


@dataclass(frozen=True)
class Field:
    """The recipe, its images, and the folder of what is kept."""

    recipe: AdaptContestRecipe
    folder: Path

    @cached_property
    def pictures(self) -> Pictures:
        return Pictures.of(self.recipe.data)

    def net(self, text: str) -> nn.Module:
        """Return net SEED:NUMBER, trained or read."""
        seed, number = map(int, text.split(":"))
        place, seed = self.folder / f"net-{seed}-{number}.safetensors", derive_seed(seed, "contest")
        nets = self.recipe.nets
        module = nets.model.build(self.pictures.data, derive_seed(seed, "net", number)).eval()
        if not place.exists():
            split = self.pictures.prepared(self.pictures.data.train)
            how = {"total_steps": nets.total_steps, "batch_size": nets.batch_size, "lr": nets.lr}
            save_state(place, train_in_turn([module], split, **how, seed=seed, first=number))
        module.load_state_dict({name: value[0] for name, value in load_state(place).items()}, strict=False)
        return module.requires_grad_(False)

    def arena(self, text: str, domains: Sequence[str]) -> Arena:
        """Return the net with the images that methods see and those they are judged by."""
        seed = int(text.partition(":")[0])
        test = self.pictures.data.test
        test = test[torch.arange(min(self.recipe.test_images or len(test), len(test)))]
        seen = self.pictures.in_domains(self.pictures.data.val, domains, derive_seed(seed, "seen"))
        return Arena(
            [self.net(text)], seen, self.pictures.in_domains(test, domains, derive_seed(seed, "test"))
        )

    def settings(
        self, tuning_nets: Sequence[str], images: int, methods: Iterable[str]
    ) -> dict[str, Method | None]:
        """Return each method in the setting that is best on the tuning nets and domains; they are kept."""
        place = self.folder / "tuned.json"
        kept: dict[str, str] = json.loads(place.read_text()) if place.exists() else {}
        found: dict[str, Method | None] = {UNEDITED: None}
        arena = None
        for name in methods:
            grid, key = (
                self.recipe.methods[name].settings(),
                f"{name}, {images} images, nets {' '.join(tuning_nets)}",
            )
            if len(grid) > 1 and key not in kept:
                arena = arena or self._tuning_arena(tuning_nets)
                stream = Stream(images, shots=self.recipe.shots)
                seed = int(tuning_nets[0].partition(":")[0])
                kept[key], means = tuned(arena, grid, self.recipe.tuning_domains, stream, seed)
                print(f"{key}: {means}", flush=True)
                place.write_text(json.dumps(kept, indent=1))
            found[name] = grid[kept[key]] if len(grid) > 1 else next(iter(grid.values()))
        return found

    def _tuning_arena(self, nets: Sequence[str]) -> Arena:
        seed = int(nets[0].partition(":")[0])
        sides = halves(self.pictures.data.val, 0.5, derive_seed(seed, "tuning"))
        seen, test = (
            self.pictures.in_domains(split, self.recipe.tuning_domains, derive_seed(seed, "tuning", number))
            for number, split in enumerate(sides)
        )
        return Arena([self.net(text) for text in nets], seen, test)


def measured(field: Field, text: str, options: argparse.Namespace, kept: dict[tuple[Any, ...], Row]) -> None:
    """Add the trials of one net to those that are kept."""
    seed, number = map(int, text.split(":"))
    arena = field.arena(text, options.domains)
    for domain in options.domains:
        oracle = Row(text, domain, 0, "", ORACLE, "", 0.0)
        if options.oracle and domain != CLEAN and oracle.key not in kept:
            steps = field.recipe.oracle_steps
            best = oracle_net(arena.nets[0], arena.seen[domain], derive_seed(seed, "oracle"), steps)
            kept[oracle.key] = replace(oracle, accuracy=accuracy_of(best, arena.test[domain]))
        for images in options.images:
            for draw in range(options.draws):
                for name, method in field.settings(options.tuning_nets, images, options.only).items():
                    how = f"draw {0 if method is None else draw}"
                    row = Row(text, domain, images, how, name, repr(method), 0.0)
                    if row.key in kept:
                        continue
                    drawn = derive_seed(seed, "draw", number, draw)
                    stream = Stream(images, shots=field.recipe.shots)
                    (trial,) = contest(arena, {name: method}, [domain], stream, drawn, clean=options.clean)
                    scores = {"accuracy": trial.target, "clean": trial.clean, "seconds": trial.seconds}
                    kept[row.key] = replace(row, **scores)
        for images in options.streams:
            methods = field.settings(
                options.tuning_nets, nearest_count(field.recipe.images, images), options.only
            )
            for row in streamed(arena, text, domain, images, methods, kept, carried=not options.reset_only):
                kept[row.key] = row
        save(field.folder, kept)


def streamed(
    arena: Arena,
    text: str,
    domain: str,
    images: int,
    methods: Mapping[str, Method | None],
    kept: Mapping[tuple[Any, ...], Row],
    *,
    carried: bool,
) -> Iterable[Row]:
    """Yield trials along streams at random and sorted by class, reset and carried on, gated and not."""
    seed, number = map(int, text.split(":"))
    split = arena.seen[domain][torch.arange(STREAM_IMAGES)]
    for order in ORDERS:
        batches = batches_of(split, images, order, derive_seed(seed, "stream", number))
        for on in (False, True) if carried else (False,):
            for name, method in methods.items():
                for gate in (None, Gate()) if method is not None else (None,):
                    how = f"{order}, {'carried on' if on else 'reset'}{'' if gate is None else ', gated'}"
                    row = Row(text, domain, images, how, name, repr(method), 0.0)
                    if row.key not in kept and not (method is None and on):
                        net = arena.nets[0]
                        found, refused = stream_accuracy(net, method, batches, seed, carried=on, gate=gate)
                        yield replace(row, accuracy=found, refused=refused)


def summary(rows: Sequence[Row], before: Sequence[str]) -> str:
    """Return means over domains by method, and some methods before each other, paired by net."""
    lines = []
    oracle = [row for row in rows if row.method == ORACLE]
    trials = [row for row in rows if row.method != ORACLE]
    for title in dict.fromkeys(map(_title, trials)):
        chosen = [row for row in trials if _title(row) == title]
        by_method = {
            name: [r for r in chosen if r.method == name] for name in dict.fromkeys(r.method for r in chosen)
        }
        # Without an edit all draws are alike, and all kinds of streams but for the order.
        if "stream" in title and UNEDITED not in by_method:
            by_method = {UNEDITED: _unedited(trials, chosen), **by_method}
        means = {name: _net_means(own) for name, own in by_method.items()}
        best = {} if "clean" in title or "stream" in title else _net_means(oracle)
        lines.append(f"{title}: mean over {', '.join(dict.fromkeys(row.domain for row in chosen))}")
        for name, own in by_method.items():
            lines.append(_line(name, own, means, best, before))
        if best:
            lines.append(f"  {ORACLE:10s} {_mean(list(best.values()))}")
    return "\n".join(lines)


def _title(row: Row) -> str:
    stream = "" if row.how.startswith("draw") else f", a stream, {row.how}"
    return f"{row.images} images{', clean' if row.domain == CLEAN else ''}{stream}"


def _unedited(rows: Iterable[Row], like: Iterable[Row]) -> list[Row]:
    seen = {(row.net, row.domain, row.images) for row in like}
    return [
        row
        for row in rows
        if row.method == UNEDITED
        and not row.how.startswith("draw")
        and (row.net, row.domain, row.images) in seen
    ]


def _net_means(rows: Sequence[Row], value: str = "accuracy") -> dict[str, float]:
    """Return for each net the mean over domains of the mean over draws, in %."""
    found = {}
    for net in sorted({row.net for row in rows}):
        own = [row for row in rows if row.net == net]
        domains = dict.fromkeys(row.domain for row in own)
        found[net] = 100 * fmean(fmean(getattr(r, value) for r in own if r.domain == d) for d in domains)
    return found


def _mean(values: Sequence[float], sign: str = "") -> str:
    error = f" ± {stdev(values) / len(values) ** 0.5:.2f}" if len(values) > 1 else ""
    return f"{fmean(values):{sign}.2f}{error}"


def _line(
    name: str,
    own: Sequence[Row],
    means: Mapping[str, Mapping[str, float]],
    best: Mapping[str, float],
    before: Sequence[str],
) -> str:
    mine = means[name]
    parts = [f"  {name:10s} {_mean(list(mine.values()))} ({len(mine)} nets)"]
    by_domain = [
        _net_means([row for row in own if row.domain == domain])
        for domain in dict.fromkeys(row.domain for row in own)
    ]
    parts.append("/".join(f"{fmean(values.values()):.1f}" for values in by_domain))
    nets = [net for net in mine if net in best and net in means.get(UNEDITED, {})]
    if nets:
        sides = (mine, means[UNEDITED], best)
        share = gap_share(*(fmean(side[net] for net in nets) for side in sides))
        parts.append(f"share {share:.2f}" if share is not None else "")
    if any(row.clean for row in own):
        parts.append(f"on clean images {fmean(_net_means(own, 'clean').values()):.1f}")
    if any(row.seconds for row in own):
        parts.append(f"{fmean(row.seconds for row in own):.2f} s")
    if any(row.how.endswith("gated") for row in own):
        parts.append(f"refused {100 * fmean(row.refused for row in own):.0f} %")
    for other in before:
        gains = [means[other][net] - mine[net] for net in mine if net in means.get(other, {})]
        if other != name and gains:
            parts.append(f"{other} {_mean(gains, '+')} before it")
    return "; ".join(filter(None, parts))


def draw(rows: Sequence[Row], file: Path, labelled: Sequence[str]) -> None:
    """Draw the mean accuracy by method and number of images, without streams and clean images."""
    shown = [row for row in rows if row.domain != CLEAN]
    by_images: dict[str, list[dict[str, Any]]] = {}
    for row in shown:
        if row.how.startswith("draw"):
            trial = {"method": row.method, "net": row.net, "domain": row.domain, "target": row.accuracy}
            by_images.setdefault(str(row.images), []).append(trial)
    oracle: dict[str, list[float]] = {}
    for row in shown:
        if row.method == ORACLE:
            oracle.setdefault(row.domain, []).append(row.accuracy)
    plot_contest(file, dict(sorted(by_images.items(), key=lambda pair: int(pair[0]))), oracle, labelled)


def save(folder: Path, kept: Mapping[tuple[Any, ...], Row]) -> None:
    """Write the trials."""
    (folder / "trials.json").write_text(json.dumps([vars(row) for row in kept.values()]))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("nets", nargs="*", help="SEED:NUMBER")
    parser.add_argument("--recipe", type=Path, default=Path("recipes/adapt_d2_small.yaml"))
    parser.add_argument("--tuning-nets", nargs="+", default=["0:4"], help="SEED:NUMBER, not measured")
    parser.add_argument("--only", nargs="*", help="names of the recipe's methods; all of them by default")
    parser.add_argument("--domains", nargs="+", help="those of the recipe by default")
    parser.add_argument("--images", nargs="*", type=int, help="those of the recipe by default")
    parser.add_argument("--draws", type=int, default=1)
    parser.add_argument("--clean", action="store_true", help="test on clean images, too")
    parser.add_argument("--oracle", action="store_true")
    parser.add_argument("--streams", nargs="*", type=int, default=[], help="images in a batch of streams")
    parser.add_argument("--reset-only", action="store_true", help="no streams with edits carried on")
    parser.add_argument("--before", nargs="*", default=["bn-eb", "nf-bn"], help="compared in pairs of nets")
    parser.add_argument("--picture", type=Path, help="draw the means of --only to this PNG")
    options = parser.parse_args()
    torch.set_num_threads(1)
    recipe = load_recipe(options.recipe).recipe
    assert isinstance(recipe, AdaptContestRecipe)
    options.only = list(recipe.methods) if options.only is None else options.only
    options.domains = list(recipe.domains) if options.domains is None else options.domains
    options.images = list(recipe.images) if options.images is None else options.images
    assert not set(options.tuning_nets) & set(options.nets), "a tuning net cannot be measured"
    options.folder.mkdir(parents=True, exist_ok=True)
    place = options.folder / "trials.json"
    kept = {
        row.key: row for row in (Row(**r) for r in (json.loads(place.read_text()) if place.exists() else []))
    }
    field = Field(recipe, options.folder)
    for text in options.nets:
        measured(field, text, options, kept)
        print(f"net {text} done", flush=True)
    chosen = [row for row in kept.values() if row.domain in options.domains]
    print(summary(chosen, options.before))
    if options.picture:
        labelled = [name for name, found in recipe.methods.items() if "labels" in found.build().needs]
        order = [UNEDITED, *options.only, ORACLE]
        drawn = [row for row in chosen if row.method in order]
        draw(sorted(drawn, key=lambda row: order.index(row.method)), options.picture, labelled)


if __name__ == "__main__":
    main()
