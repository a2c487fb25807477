"""Job `zoo`: thousands of small nets of one architecture, made in chunks and kept in one file."""

import hashlib
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from nfopt.progress import Progress
from nfopt.recipe.inputs import DeviceName, device_of
from nfopt.recipe.job import JobResult, Recipe, RunContext, job
from nfopt.recipe.strict import Count, Index
from nfopt.recipe.zoo.families import Counts, Family
from nfopt.recipe.zoo.report import draw, summary, table_of
from nfopt.zoo import Machine, Members, Zoo, join_zoos, load_zoo, save_zoo

ZOO_FILE = "zoo.safetensors"


class ZooRecipe(Recipe):
    """The keys of `kind: zoo`.

    Attributes:
        nets: what the nets are, by `family`: inr_images, inr_sines, classifiers or binary_classifiers.
        counts: numbers of images, waves or runs for the sides train, val and test. The first ones of each are
            the same whatever the counts are.
        seed: of everything random.
        chunk: nets (runs of classifiers) that are made and kept at once; a killed run goes on after the last.
        device: "auto", "cpu", "cuda" or "cuda:0".
        lanes: nets side by side; None for a number that suits the device.
        workers: threads on a CPU; None for as many as torch may use.
    """

    nets: Family
    counts: Counts
    seed: Index = 0
    chunk: Count = 256
    device: DeviceName = "auto"
    lanes: Count | None = None
    workers: Count | None = None

    @property
    def members(self) -> Members:
        """The nets, or runs, to be made."""
        return self.nets.members(self.counts)


def plan_zoo(recipe: ZooRecipe) -> list[str]:
    """Return what a run would do."""
    count = len(recipe.members)
    sides = ", ".join(f"{n} {side}" for side, n in recipe.counts.model_dump().items() if n)
    return [
        f"{recipe.nets.what}: {sides}",
        f"make {count} in {-(-count // recipe.chunk)} chunks, keep them in {ZOO_FILE}",
    ]


@job("zoo", ZooRecipe, plan=plan_zoo)
def run_zoo(recipe: ZooRecipe, context: RunContext) -> JobResult:
    """Make a zoo: thousands of small nets (INRs, classifiers) side by side, in one file."""
    data = recipe.nets.images()
    if data is not None:
        context.note_data(data.name, data.content_hash)
    file, picture = context.folder / ZOO_FILE, context.folder / "zoo.png"
    found = context.piece(f"zoo-{_digest(recipe)}", lambda: _made(recipe, context, file, picture))
    seconds = found["seconds"]
    rate = found["nets"] / seconds if seconds else 0.0
    notes = (
        f"{found['parameters']} parameters a net; {found['nets']} nets in {seconds:.0f} s of training and "
        f"testing, {rate:.1f} nets a second",
        f"in {ZOO_FILE}, read by nfopt.zoo.load_zoo",
    )
    table = table_of(found, f"A zoo of {recipe.nets.what}", notes)
    results = {key: value for key, value in found.items() if key != "seconds"}
    timing = {"seconds": seconds, "nets_per_second": rate}
    return JobResult(results=results, tables=(table,), timing=timing, files=(file, picture))


def _digest(recipe: ZooRecipe) -> str:
    values = recipe.model_dump(mode="json", include={"nets", "counts", "seed", "lanes"})
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


def _made(recipe: ZooRecipe, context: RunContext, file: Path, picture: Path) -> JsonValue:
    members, machine = recipe.members, _machine(recipe)
    chunks = []
    for start in range(0, len(members), recipe.chunk):
        kept = context.state_file(f"nets-{start}.safetensors")
        if not kept.exists():
            save_zoo(kept, _chunk(recipe, members, start, machine, context))
        chunks.append(load_zoo(kept))
        done = min(start + recipe.chunk, len(members))
        context.progress(Progress("make nets", done, len(members)))
    zoo = join_zoos(chunks)
    card: dict[str, Any] = {key: value for key, value in zoo.card.items() if key != "seconds"}
    card["recipe"] = recipe.model_dump(mode="json", exclude={"output", "provenance"})
    card["provenance"] = context.output.resolved().get("provenance", {})
    card["counts"] = recipe.counts.model_dump()
    zoo = replace(zoo, card=card)
    # Without a finished piece, what stands there is of a run that was killed between the two.
    save_zoo(file, zoo, overwrite=True)
    draw(picture, zoo, f"A zoo of {recipe.nets.what}")
    return {**summary(zoo), "seconds": round(sum(chunk.card["seconds"] for chunk in chunks), 3)}


def _machine(recipe: ZooRecipe) -> Machine:
    return Machine(device_of(recipe.device), recipe.lanes, recipe.workers)


def _chunk(recipe: ZooRecipe, members: Members, start: int, machine: Machine, context: RunContext) -> Zoo:
    part = members[start : start + recipe.chunk]

    def report(done: int) -> None:
        context.progress(Progress("make nets", start + done, len(members)))

    report(0)
    began = time.perf_counter()
    zoo = recipe.nets.build(part, recipe.seed, machine, report)
    return replace(zoo, card={**zoo.card, "seconds": time.perf_counter() - began})
