"""The command line: run, validate, inspect, list, edit. The only file that knows rich and typer."""

# Everything that imports torch is imported inside the commands: --help and --version answer at once.

import shlex
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any

import rich.progress
import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from nfopt.errors import NfoptError, RecipeError
from nfopt.progress import Progress, ProgressCallback, silent

if TYPE_CHECKING:
    from nfopt.models import NamedModel
    from nfopt.recipe import Table as ResultTable
    from nfopt.symmetry import PermutationSpec

BAD_RECIPE, BAD_INPUT, INTERRUPTED = 1, 2, 130
SHOWN_ROWS = 20

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
_OUT = Console(highlight=False)
_ERR = Console(highlight=False, stderr=True)

RecipeFile = Annotated[
    Path, typer.Argument(metavar="RECIPE", help="A recipe, a YAML file.", show_default=False)
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Settings on top, such as total_steps=500 or data.seed=3."),
]


def main() -> None:
    """Run the command line."""
    sys.path.append("")  # so that package.module:factory finds a model in the current folder
    warnings.showwarning = _show_warning
    app()


def _show_warning(message: Warning | str, category: type[Warning], *where: Any, **_: Any) -> None:
    """Show a warning as one line for people: who warns and what, without the place in the code."""
    _ERR.print(Text(f"{category.__name__}: {message}", style="yellow"), soft_wrap=True)


@contextmanager
def _errors_for_people() -> Iterator[None]:
    """Turn an error on bad input into its message and exit code 2; any other error is our bug."""
    try:
        yield
    except NfoptError as error:
        _say_error(str(error))
        raise typer.Exit(BAD_INPUT) from error


def _say_error(message: str) -> None:
    _ERR.print(Text.assemble(("error: ", "bold red"), message), soft_wrap=not _ERR.is_terminal)


@app.callback(invoke_without_command=True)
def _root(
    show_version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    """Train PyTorch models with networks that know the symmetry of their weights."""
    if show_version:
        _OUT.print(f"nfopt {version('nfopt')}")
        raise typer.Exit


@app.command()
def run(
    recipe: RecipeFile,
    overrides: Overrides = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue a run that was stopped or killed.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the recipe and the plan; do nothing.")
    ] = False,
) -> None:
    """Run a recipe; the results go to its output folder, runs/<name of the recipe> by default."""
    with _errors_for_people():
        from nfopt.recipe import load_recipe, run_recipe
        from nfopt.recipe.processes import is_first

        _OUT.quiet = not is_first()  # of several processes one speaks
        loaded = load_recipe(recipe, overrides or [])
        if dry_run:
            _OUT.print(loaded.resolved_yaml(), markup=False, soft_wrap=True)
            _OUT.print("plan:", style="bold")
            for line in loaded.plan():
                _OUT.print(f"  {line}", markup=False, soft_wrap=True)
            return
        try:
            with _shown_progress(is_first()) as progress:
                outcome = run_recipe(loaded, resume=resume, progress=progress)
        except KeyboardInterrupt:
            if not is_first():
                raise typer.Exit(INTERRUPTED) from None
            command = shlex.join(["nfopt", "run", str(recipe), *(overrides or []), "--resume"])
            _ERR.print(
                f"\nstopped; nothing that is finished is lost. Continue with\n  {command}",
                markup=False,
                soft_wrap=True,
            )
            raise typer.Exit(INTERRUPTED) from None
        for table in outcome.result.tables:
            _OUT.print(_rendered(table))
        if outcome.was_complete:
            _OUT.print("this run was complete already; these are its results.")
        names = ["results.json", "resolved.yaml", *(file.name for file in outcome.result.files)]
        _OUT.print(f"in {outcome.folder}/: {', '.join(names)}", markup=False, soft_wrap=True)


@app.command()
def validate(recipes: Annotated[list[Path], typer.Argument(metavar="RECIPE", show_default=False)]) -> None:
    """Say every fault of recipes at once; exit code 1 if there is any."""
    with _errors_for_people():
        from nfopt.recipe import recipe_faults

        faulty = False
        for recipe in recipes:
            faults = recipe_faults(recipe)
            faulty = faulty or bool(faults)
            for fault in faults:
                _OUT.print(str(fault), markup=False, soft_wrap=not _OUT.is_terminal)
            if not faults:
                _OUT.print(f"{recipe}: no faults", markup=False, soft_wrap=True)
        if faulty:
            raise typer.Exit(BAD_RECIPE)


@app.command()
def inspect(
    model: Annotated[str, typer.Argument(help="A model of nfopt or timm, or package.module:factory.")],
    input_shape: Annotated[
        str | None, typer.Option("--input", metavar="C,H,W", help="Shape of one input, as in 3,64,64.")
    ] = None,
    prove: Annotated[bool, typer.Option("--verify", help="Prove the symmetry in float64.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the spec to a file.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Show every row of the tables.")] = False,
) -> None:
    """Show which neurons of a model may be renumbered together, and why the other axes are fixed."""
    with _errors_for_people():
        from nfopt.atomic import write_text
        from nfopt.models import named_model
        from nfopt.symmetry import trace_permutation_spec, verify

        named = named_model(model, _shape(input_shape))
        spec = trace_permutation_spec(named.module, named.example_inputs)
        _show_spec(named, spec, SHOWN_ROWS if not every else sys.maxsize)
        if json_file is not None:
            write_text(json_file, spec.to_json() + "\n")
            _OUT.print(f"written to {json_file}", markup=False, soft_wrap=True)
        if prove:
            report = verify(named.module, spec, named.example_inputs)
            style = "green" if report.passed else "red"
            _OUT.print(Text(str(report), style=style))
            if not report.passed:
                raise typer.Exit(BAD_RECIPE)


@app.command("list")
def list_plugins() -> None:
    """List what recipes can name: jobs, data sets, models, optimizers, checkpoints."""
    with _errors_for_people():
        import timm

        from nfopt.checkpoints import bundled_names
        from nfopt.data import DATA_SETS
        from nfopt.models import MODELS
        from nfopt.recipe import JOBS
        from nfopt.recipe.optimizers import OPTIMIZERS

        _show_list("jobs (kind:)", [(name, JOBS[name].summary) for name in JOBS])
        _show_list("data sets (data.name:)", [(name, _first_line(DATA_SETS[name])) for name in DATA_SETS])
        models = [(name, _first_line(MODELS[name])) for name in MODELS]
        models.append(("...", f"any of timm's {len(timm.list_models())} models, by its name"))
        models.append(("package.module:factory", "a function of your own that returns a module"))
        _show_list("models (model.name:)", models)
        _show_list(
            "optimizers (optimizers.*.name:)", [(name, _first_line(OPTIMIZERS[name])) for name in OPTIMIZERS]
        )
        checkpoints = [("nominal", "no learned part: the hand-made point that learning starts from")]
        checkpoints += [(name, "weights that come with the package") for name in bundled_names()]
        _show_list("checkpoints of nfopt (checkpoint:)", checkpoints)


edits = typer.Typer(no_args_is_help=True, help="Show, apply and take back saved edits of trained weights.")
app.add_typer(edits, name="edit")
EditFile = Annotated[Path, typer.Argument(metavar="EDIT", help="A saved edit.", show_default=False)]
WeightsFile = Annotated[
    Path, typer.Argument(metavar="WEIGHTS", help="A safetensors file of weights.", show_default=False)
]
OutFile = Annotated[
    Path, typer.Option("--out", metavar="FILE", help="Where the result goes; a file that is not there yet.")
]


@edits.command("show")
def edit_show(edit: EditFile) -> None:
    """Show how an edit was made, what its gate said, and what it belongs to."""
    with _errors_for_people():
        from nfopt.editing import Edit

        _OUT.print(Edit.load(edit).card(), markup=False, soft_wrap=True)


@edits.command("apply")
def edit_apply(
    edit: EditFile,
    weights: WeightsFile,
    out: OutFile,
    force: Annotated[bool, typer.Option("--force", help="Apply it though its gate refused it.")] = False,
) -> None:
    """Write edited weights into a new file; the edit must have been made for these very weights."""
    with _errors_for_people():
        from nfopt.editing import Edit
        from nfopt.editing.weights_file import apply_to_file

        apply_to_file(Edit.load(edit), weights, out, force=force)
        _OUT.print(f"edited weights written to {out}", markup=False, soft_wrap=True)


@edits.command("revert")
def edit_revert(edit: EditFile, weights: WeightsFile, out: OutFile) -> None:
    """Write the weights before an edit into a new file, every bit as it was."""
    with _errors_for_people():
        from nfopt.editing import Edit
        from nfopt.editing.weights_file import revert_file

        revert_file(Edit.load(edit), weights, out)
        _OUT.print(f"weights without the edit written to {out}", markup=False, soft_wrap=True)


def _first_line(entry: Any) -> str:
    return (entry.__doc__ or "").strip().partition("\n")[0]


def _show_list(title: str, entries: Iterable[tuple[str, str]]) -> None:
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True, min_width=14)
    table.add_column(overflow="fold")
    for name, text in entries:
        table.add_row(Text(name, style="cyan"), Text(text))
    _OUT.print(Text(title, style="bold"))
    _OUT.print(Padding(table, (0, 0, 1, 2)))


def _shape(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise RecipeError(f"--input is the shape of one input as in 3,64,64, not {text!r}.")
    return tuple(int(part) for part in parts)


def _show_spec(named: "NamedModel", spec: "PermutationSpec", limit: int) -> None:
    from nfopt.symmetry import fixed_rows, group_rows

    shapes = ", ".join("x".join(map(str, tensor.shape)) for tensor in named.example_inputs)
    parameters = sum(parameter.numel() for parameter in named.module.parameters())
    groups, fixed = group_rows(spec), fixed_rows(spec)
    _OUT.print(Text(f"{named.name}, {parameters:,} parameters, traced on {shapes}", style="bold"))
    rows = [(row.name, f"{row.size}", f"{row.tensors}", ", ".join(row.places)) for row in groups[:limit]]
    heads = ("group", "neurons", "tensors", "on the axes")
    _OUT.print(_table(f"{len(groups)} groups of neurons that may be renumbered together", heads, rows))
    _say_rest(len(groups), limit, "groups")
    _OUT.print(f"{100 * spec.coverage:.2f} % of the parameters have an axis that may be permuted")
    if fixed:
        rows = [(row.reason, f"{row.axes}", ", ".join(row.places)) for row in fixed[:limit]]
        _OUT.print(_table("axes that are fixed", ("because", "axes", "which"), rows))
        _say_rest(len(fixed), limit, "reasons")
    for operation in spec.unruled:
        _OUT.print(Text(f"no rule for {operation}: its axes are fixed", style="yellow"))
    if spec.unused:
        _OUT.print(Text(f"never read by the forward pass: {', '.join(spec.unused)}", style="yellow"))


def _say_rest(count: int, limit: int, what: str) -> None:
    if count > limit:
        _OUT.print(
            f"... and {count - limit} more {what}; --all shows them, --json FILE writes them", markup=False
        )


def _table(title: str, heads: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """Return a table whose number columns stand at the right; its text is never read as markup."""
    rows = list(rows)
    table = Table(title=Text(title), title_justify="left", title_style="", box=SIMPLE_HEAD, pad_edge=False)
    for index, head in enumerate(heads):
        numbers = index > 0 and all(len(row[index]) < 14 and " " not in row[index].strip() for row in rows)
        table.add_column(Text(head), justify="right" if numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def _rendered(result: "ResultTable") -> Table:
    table = _table(result.title, result.columns, result.rows)
    table.padding = (0, 1, 0, 0)
    table.columns[0].no_wrap = True
    table.caption = Text("\n".join(result.notes))
    table.caption_justify = "left"
    return table


@contextmanager
def _shown_progress(visible: bool = True) -> Iterator[ProgressCallback]:
    if not visible:
        yield silent
        return
    if not _ERR.is_terminal:
        yield _Lines()
        return
    with _Bars() as bars:
        yield bars


class _Lines:
    """Progress as lines, when nobody watches: the whole work at every tenth, each part when it ends."""

    def __init__(self) -> None:
        self._first: str | None = None
        self._tenth = -1

    def __call__(self, progress: Progress) -> None:
        self._first = self._first or progress.task
        tenth = 10 * progress.done // max(progress.total, 1)
        if progress.task == self._first:
            if tenth == self._tenth:
                return
            self._tenth = tenth
        elif progress.done < progress.total:
            return
        line = f"{progress.task}: {progress.done}/{progress.total} {progress.note}"
        _ERR.print(line.rstrip(), markup=False, soft_wrap=True)


class _Bars:
    """Progress as bars with the time left; the first task is the whole work and stays, parts go when done."""

    def __init__(self) -> None:
        self._display = rich.progress.Progress(
            rich.progress.TextColumn("{task.description}", markup=False),
            rich.progress.BarColumn(bar_width=20),
            rich.progress.TaskProgressColumn(),
            rich.progress.TimeRemainingColumn(compact=True),
            rich.progress.TextColumn("{task.fields[note]}", markup=False),
            console=_ERR,
            transient=True,
        )
        self._ids: dict[str, rich.progress.TaskID] = {}
        self._first: str | None = None

    def __enter__(self) -> "_Bars":
        self._display.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._display.stop()

    def __call__(self, progress: Progress) -> None:
        self._first = self._first or progress.task
        if progress.task not in self._ids:
            self._ids[progress.task] = self._display.add_task(progress.task, total=progress.total, note="")
        task = self._ids[progress.task]
        self._display.update(task, completed=progress.done, total=progress.total, note=progress.note)
        if progress.done >= progress.total and progress.task != self._first:
            self._display.remove_task(self._ids.pop(progress.task))
