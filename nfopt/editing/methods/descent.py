"""What methods that descend a loss share: which parameters, which batches, and the loop."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nfopt.editing.bits import SHOWN
from nfopt.editing.methods.method import Task
from nfopt.editing.norms import batch_statistics, measure_statistics, put_statistics
from nfopt.errors import EditingError
from nfopt.progress import Progress

Objective = Callable[[Tensor, Tensor], Tensor | None]


def chosen_parameters(
    model: nn.Module, include: Sequence[str] | None, default: Mapping[str, nn.Parameter]
) -> dict[str, nn.Parameter]:
    """Return the parameters that are trained: those that a shell pattern matches, else the method's own.

    Raises:
        EditingError: a pattern matches nothing.
    """
    if include is None:
        return dict(default)
    parameters = {name: p for name, p in model.named_parameters() if p.is_floating_point()}
    chosen: dict[str, nn.Parameter] = {}
    for pattern in include:
        matched = {name: p for name, p in parameters.items() if fnmatchcase(name, pattern)}
        if not matched:
            shown = ", ".join(list(parameters)[:SHOWN])
            raise EditingError(
                f"the pattern {pattern!r} matches none of the {len(parameters)} parameters ({shown}, ...). "
                "Patterns are those of the shell: 'layer1.*', '*.bn1.weight'."
            )
        chosen |= matched
    return {name: p for name, p in parameters.items() if name in chosen}


def batches(count: int, batch_size: int, steps: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield the image numbers of each step: permutations cut into parts of nearly equal size."""
    left: list[Tensor] = []
    for _ in range(steps):
        if not left:
            order = torch.randperm(count, generator=generator)
            left = list(order.tensor_split(-(-count // batch_size)))
        yield left.pop(0)


def descend(
    name: str,
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer],
    objective: Objective,
    task: Task,
    *,
    steps: int,
    batch_size: int,
) -> list[float]:
    """Descend an objective of (logits, image numbers) over `parameters`; return its value at each step.

    An objective of None takes no step. Everything else about the model stays as it is.

    Raises:
        EditingError: the loss is not finite.
    """
    trained = list(parameters.values())
    for parameter in trained:
        parameter.requires_grad_(True)
    stepper = optimizer(trained)
    losses: list[float] = []
    for step, index in enumerate(batches(len(task.images), batch_size, steps, task.generator)):
        loss = objective(model(task.images[index.to(task.images.device)]), index)
        if loss is not None:
            if not torch.isfinite(loss):
                raise EditingError(
                    f"{name} diverged: its loss is {loss.item()} at step {step}. Give a smaller lr."
                )
            stepper.zero_grad()
            loss.backward()
            stepper.step()
            losses.append(loss.item())
        task.progress(Progress(f"edit by {name}", step + 1, steps))
    for parameter in trained:
        parameter.requires_grad_(False)
        parameter.grad = None
    return losses


def descend_by_batch(
    name: str,
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer],
    objective: Objective,
    task: Task,
    *,
    steps: int,
    batch_size: int,
    source_count: float,
) -> list[float]:
    """Descend with each batch normalised by itself, then put the statistics of all images, as `bn` does.

    Returns and raises what `descend` does.
    """
    with batch_statistics(model):
        losses = descend(
            name, model, parameters, optimizer, objective, task, steps=steps, batch_size=batch_size
        )
    moments = measure_statistics(model, task.images)
    put_statistics(model, moments, images=len(task.images), source_count=source_count)
    return losses


def entropies(logits: Float[Tensor, "images classes"]) -> Float[Tensor, " images"]:
    """Return the entropy of each prediction in nats."""
    logs = logits.log_softmax(1)
    return -(logs.exp() * logs).sum(1)


def notes_of(parameters: Mapping[str, nn.Parameter], losses: Sequence[float]) -> dict[str, object]:
    """Return what a descent tells of itself."""
    return {
        "trained_tensors": len(parameters),
        "trained_parameters": sum(p.numel() for p in parameters.values()),
        "steps_taken": len(losses),
        "first_loss": losses[0] if losses else None,
        "last_loss": losses[-1] if losses else None,
    }
