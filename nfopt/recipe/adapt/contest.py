"""Job `adapt_contest`: editing methods, each tuned alike, on nets, images and domains that none has seen."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from functools import partial
from itertools import product
from typing import Annotated, Any

import torch
from pydantic import Field, JsonValue, field_validator
from torch import nn

from nfopt.data import Split
from nfopt.editing import Method
from nfopt.errors import RecipeError
from nfopt.meta.editor_contest import (
    ORACLE,
    UNEDITED,
    Arena,
    Stream,
    Trial,
    accuracy,
    contest,
    oracle_net,
    tuned,
)
from nfopt.meta.editor_tasks import CLEAN
from nfopt.progress import Progress
from nfopt.recipe.adapt.contest_report import contest_tables, plot_contest
from nfopt.recipe.adapt.options import DomainName, StepOptions
from nfopt.recipe.adapt.streams import StreamOptions, stream_table, stream_trials
from nfopt.recipe.adapt.train_editor_options import NetsOptions, Pictures, halves, single_nets, trained_nets
from nfopt.recipe.inputs import DataOptions, DeviceName, device_of
from nfopt.recipe.job import JobResult, Recipe, RunContext, job
from nfopt.recipe.strict import Count, Index
from nfopt.seeds import derive_seed


class EntrantOptions(StepOptions):
    """A method with its options, and for some of them the values to choose among.

    Attributes:
        tune: by option the values to try; every combination is tried on the tuning nets.
    """

    tune: dict[str, tuple[JsonValue, ...]] = Field(default={}, validate_default=True)

    @field_validator("tune")
    @classmethod
    def _are_options(cls, tune: dict[str, tuple[JsonValue, ...]], info: Any) -> Any:
        if "method" in info.data and "options" in info.data:
            for values in product(*tune.values()):
                options = {**info.data["options"], **dict(zip(tune, values, strict=True))}
                StepOptions(method=info.data["method"], options=options)
        return tune

    def settings(self) -> dict[str, Method]:
        """Return every setting by a name that says it."""
        found = {}
        for values in product(*self.tune.values()):
            chosen = dict(zip(self.tune, values, strict=True))
            name = ", ".join(f"{key} {value}" for key, value in chosen.items()) or "as given"
            found[name] = StepOptions(method=self.method, options={**self.options, **chosen}).build()
        return found


class AdaptContestRecipe(Recipe):
    """The keys of `kind: adapt_contest`.

    Attributes:
        data: the images. Nets learn from the training split, target images are validation images, and edits
            are judged on test images.
        nets: the nets; `train` of them are edited and judged, `val` others are for tuning.
        domains: the domains to test on.
        tuning_domains: the domains to tune on.
        images: numbers of target images.
        draws: how many sets of target images each net is edited for.
        methods: by key, in the order of the tables.
        shots: labels per class for methods that learn from labels.
        one_sided: classes of the target images in the test of one-sided streams; null leaves it out.
        stream: streams of target images, sorted by class and not; null leaves them out.
        test_images: test images to judge by, the first of them; null for all.
        oracle_steps: optimizer steps of the oracle, 64 images each.
        seed: of nets, images and edits.
        device: "auto", "cpu", "cuda" or "cuda:0".
    """

    data: DataOptions
    nets: NetsOptions
    domains: Annotated[tuple[DomainName, ...], Field(min_length=1)]
    tuning_domains: Annotated[tuple[DomainName, ...], Field(min_length=1)]
    images: Annotated[tuple[Count, ...], Field(min_length=1)] = (16, 64)
    draws: Count = 1
    methods: Annotated[dict[str, EntrantOptions], Field(min_length=1)]
    shots: Count = 5
    one_sided: Count | None = 2
    stream: StreamOptions | None = None
    test_images: Count | None = None
    oracle_steps: Count = 150
    seed: Index = 0
    device: DeviceName = "auto"

    @field_validator("methods")
    @classmethod
    def _names_are_free(cls, methods: dict[str, EntrantOptions]) -> dict[str, EntrantOptions]:
        taken = {UNEDITED, ORACLE} & methods.keys()
        if taken:
            raise ValueError(f"{', '.join(sorted(taken))} stands in every table; call the method otherwise.")
        return methods


def plan_adapt_contest(recipe: AdaptContestRecipe) -> list[str]:
    """Return what a run would do."""
    tries = {key: len(entrant.settings()) for key, entrant in recipe.methods.items()}
    return [
        f"train {recipe.nets.train} + {recipe.nets.val} nets {recipe.nets.model.name} on {recipe.data.name}, "
        f"{recipe.nets.total_steps} steps",
        f"tune on {recipe.nets.val} nets and {len(recipe.tuning_domains)} domains: "
        f"{', '.join(recipe.tuning_domains)}",
        *(f"  {key}: {count} settings" for key, count in tries.items()),
        f"edit {recipe.nets.train} nets in {len(recipe.domains)} domains: {', '.join(recipe.domains)}",
        f"with {', '.join(map(str, recipe.images))} target images each"
        + (f", {recipe.draws} sets of them" if recipe.draws > 1 else ""),
    ]


@job("adapt_contest", AdaptContestRecipe, plan=plan_adapt_contest)
def run_adapt_contest(recipe: AdaptContestRecipe, context: RunContext) -> JobResult:
    """Let methods of editing compete on unseen nets, images and domains, each tuned alike."""
    pictures = Pictures.of(recipe.data)
    context.note_data(pictures.data.name, pictures.data.content_hash)
    if max(recipe.images) > len(pictures.data.val) // 2:
        raise RecipeError(
            f"{max(recipe.images)} target images are asked for, and there are {len(pictures.data.val) // 2} "
            "to tune with. Ask for fewer, or give a larger data.n_val."
        )
    nets = _nets(recipe, context, pictures)
    chosen = _tuning(recipe, context, pictures, nets[recipe.nets.train :])
    arena = _arena(recipe, pictures, nets[: recipe.nets.train])
    found_oracle: Any = partial(_oracle, recipe, arena, context)
    oracle = context.piece("oracle", found_oracle)
    rows: dict[str, list[dict[str, Any]]] = {}
    for images in recipe.images:
        stream = Stream(images, shots=recipe.shots)
        rows[str(images)] = _contest(recipe, context, arena, stream, chosen[str(images)])
    one_sided = None
    if recipe.one_sided is not None:
        images = max(recipe.images)
        stream = Stream(images, recipe.one_sided, recipe.shots)
        one_sided = _contest(recipe, context, arena, stream, chosen[str(images)])
    labelled = [key for key, entrant in recipe.methods.items() if "labels" in entrant.build().needs]
    tables = contest_tables(rows, one_sided, oracle, labelled, chosen)
    streams: list[dict[str, Any]] = []
    if recipe.stream is not None:
        found = _chosen_methods(recipe, chosen[str(nearest_count(recipe.images, recipe.stream.batch))])
        able = {key: method for key, method in found.items() if key not in labelled}
        streams = stream_trials(recipe.stream, context, arena, able, recipe.domains, recipe.seed)
        tables += (stream_table(streams, recipe.stream),)
    figure = context.folder / "contest.png"
    plot_contest(figure, rows, oracle, labelled)
    plain = {n: [{k: v for k, v in t.items() if k != "seconds"} for t in r] for n, r in rows.items()}
    found_all: Any = {"tuned": chosen, "oracle": oracle, "trials": plain, "streams": streams}
    results: dict[str, JsonValue] = found_all
    return JobResult(results, tables, _seconds_per_edit(recipe.methods, rows), files=(figure,))


def _seconds_per_edit(
    methods: Iterable[str], rows: Mapping[str, list[dict[str, Any]]]
) -> dict[str, JsonValue]:
    seconds = {key: [t["seconds"] for r in rows.values() for t in r if t["method"] == key] for key in methods}
    return {f"{key}: seconds per edit": sum(each) / max(1, len(each)) for key, each in seconds.items()}


def _nets(recipe: AdaptContestRecipe, context: RunContext, pictures: Pictures) -> list[nn.Module]:
    """Return the nets that are edited and judged, and after them those for tuning."""
    count = recipe.nets.train + recipe.nets.val
    template, tensors = trained_nets(
        recipe.nets,
        pictures,
        pictures.data.train,
        count,
        derive_seed(recipe.seed, "contest"),
        context.state_file("nets"),
        device_of(recipe.device),
        context.progress,
    )
    fresh = [recipe.nets.model.build(pictures.data, index) for index in range(count)]
    return single_nets(template, fresh, tensors)


def _arena(recipe: AdaptContestRecipe, pictures: Pictures, nets: list[nn.Module]) -> Arena:
    """Return where the nets are judged: target images of every domain, and others to test on."""
    judging = pictures.data.test
    if recipe.test_images is not None:
        judging = judging[torch.arange(min(recipe.test_images, len(judging)))]
    seen = pictures.in_domains(pictures.data.val, recipe.domains, derive_seed(recipe.seed, "seen"))
    test = pictures.in_domains(judging, recipe.domains, derive_seed(recipe.seed, "test"))
    return _on(Arena(nets, seen, test), device_of(recipe.device))


def _on(arena: Arena, device: torch.device) -> Arena:
    def moved(splits: Mapping[str, Split]) -> dict[str, Split]:
        return {name: split.to(device) for name, split in splits.items()}

    return Arena(arena.nets, moved(arena.seen), moved(arena.test))


def _tuning(
    recipe: AdaptContestRecipe, context: RunContext, pictures: Pictures, nets: list[nn.Module]
) -> dict[str, dict[str, Any]]:
    """Return for each number of images and each method the setting that is best on the tuning domains."""
    seen, test = halves(pictures.data.val, 0.5, derive_seed(recipe.seed, "tuning"))
    device = device_of(recipe.device)
    splits = [
        pictures.in_domains(split, recipe.tuning_domains, derive_seed(recipe.seed, "tuning", number))
        for number, split in enumerate((seen, test))
    ]
    arena = _on(Arena(nets, *splits), device)
    total = sum(len(e.settings()) for e in recipe.methods.values() if len(e.settings()) > 1)
    total *= len(recipe.images) * len(nets) * len(recipe.tuning_domains)
    done = 0

    def step() -> None:
        nonlocal done
        done += 1
        context.progress(Progress("tune the methods", done, total))

    found: dict[str, dict[str, Any]] = {}
    for images in recipe.images:
        found[str(images)] = {}
        for number, (key, entrant) in enumerate(recipe.methods.items()):
            grid = entrant.settings()
            stream = Stream(images, shots=recipe.shots)
            if len(grid) == 1:
                found[str(images)][key] = {"setting": next(iter(grid)), "tried": {}}
                continue

            def search(grid: Any = grid, stream: Stream = stream) -> JsonValue:
                setting, means = tuned(arena, grid, recipe.tuning_domains, stream, recipe.seed, step)
                return {"setting": setting, "tried": means}  # pyright: ignore[reportReturnType]

            found[str(images)][key] = context.piece(f"tune-{images}-{number}", search)
    return found


def _chosen_methods(recipe: AdaptContestRecipe, chosen: Mapping[str, Any]) -> dict[str, Method | None]:
    methods: dict[str, Method | None] = {UNEDITED: None}
    for key, entrant in recipe.methods.items():
        methods[key] = entrant.settings()[chosen[key]["setting"]]
    return methods


def nearest_count(counts: tuple[int, ...], wanted: int) -> int:
    """Return the number of target images whose tuned settings serve batches of `wanted`."""
    return min(counts, key=lambda count: abs(count - wanted))


def _contest(
    recipe: AdaptContestRecipe, context: RunContext, arena: Arena, stream: Stream, chosen: Mapping[str, Any]
) -> list[dict[str, Any]]:
    methods = _chosen_methods(recipe, chosen)
    domains = [*recipe.domains, *([] if CLEAN in recipe.domains else [CLEAN])]
    sided = "" if stream.classes is None else f", {stream.classes} classes"
    task = f"edits from {stream.images} images{sided}"
    # Without an edit all sets of target images are alike.
    sets = {key: 1 if key == UNEDITED else recipe.draws for key in methods}
    total, done = len(domains) * len(arena.nets) * sum(sets.values()), 0

    def step() -> None:
        nonlocal done
        done += 1
        context.progress(Progress(task, done, total))

    def compute(domain: str, key: str, draw: int) -> JsonValue:
        seed = derive_seed(recipe.seed, "draw", draw) if draw else recipe.seed
        trials: list[Trial] = contest(arena, {key: methods[key]}, [domain], stream, seed, after_trial=step)
        return [{**asdict(trial), "draw": draw} for trial in trials]

    rows: list[dict[str, Any]] = []
    for domain in domains:
        place = domain.replace(":", "").replace("+", "-")
        for number, key in enumerate(methods):
            for draw in range(sets[key]):
                name = f"contest-{stream.images}-{stream.classes}-{place}-{number}-{draw}"
                rows += context.piece(name, partial(compute, domain, key, draw))
    return rows


def _oracle(recipe: AdaptContestRecipe, arena: Arena, context: RunContext) -> dict[str, list[float]]:
    """Return for each domain the accuracy of each net, fine-tuned on all validation images and labels."""
    found: dict[str, list[float]] = {}
    for number, domain in enumerate(recipe.domains):
        found[domain] = [
            accuracy(
                oracle_net(net, arena.seen[domain], derive_seed(recipe.seed, "oracle"), recipe.oracle_steps),
                arena.test[domain],
            )
            for net in arena.nets
        ]
        context.progress(Progress("fine-tune with all labels", number + 1, len(recipe.domains)))
    return found
