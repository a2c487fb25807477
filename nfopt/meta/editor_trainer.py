"""Training of an editor: the target's loss is propagated back through the edited nets, batch by batch."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from math import cos, pi
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from nfopt.checkpoints import digest_of
from nfopt.editing.editor import (
    EditorConfig,
    StatisticsConfig,
    StatisticsEditor,
    Targets,
    WeightEditor,
    edited_tensors,
)
from nfopt.errors import NfoptError
from nfopt.meta.editor_tasks import EditingBatch, EditingNets, TaskShape, draw_batch
from nfopt.progress import Progress, ProgressCallback, silent
from nfopt.seeds import generator
from nfopt.statefile import load_state, save_state

Uses = Literal["weights", "images", "labels"]
Editor = WeightEditor | StatisticsEditor
SHARPNESS = 4.0
"""RMS of the centred logits from which the expected error is taken."""


@dataclass(frozen=True)
class EditorTrainerConfig:
    """How an editor is trained.

    Attributes:
        total_steps: optimizer steps.
        nets: nets per step, side by side.
        lr: learning rate of AdamW at its highest; a warm-up of a twentieth, then cosine decay.
        weight_decay: of AdamW.
        max_norm: gradients are shortened to that norm.
        source_weight: weight of the edited nets' loss on clean images, against forgetting.
        objective: what is minimised on test images: "cross-entropy", or "error", the expected error at a
            fixed RMS of the logits, which does not reward a net for being less sure.
        uses: what the editor is shown, one drawn for each step.
        average: decay of the average of the editor's weights, which is what is kept.
        check_every: steps between looks at the validation nets.
        check_batches: batches of the validation nets.
        checkpoint_every: steps between saved states.
        seed: of the editor's initial weights and of all tasks.
    """

    total_steps: int = 1000
    nets: int = 8
    lr: float = 3e-3
    weight_decay: float = 1e-4
    max_norm: float = 1.0
    source_weight: float = 0.1
    objective: Literal["cross-entropy", "error"] = "cross-entropy"
    uses: tuple[Uses, ...] = ("images",)
    average: float = 0.99
    check_every: int = 100
    check_batches: int = 8
    checkpoint_every: int = 50
    seed: int = 0

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if isinstance(value, int) and each.name != "seed" and value < 1:
                raise NfoptError(f"{each.name} of an editor's training is {value}; it must be 1 or more.")
        for name in ("lr", "max_norm"):
            if not getattr(self, name) > 0:
                raise NfoptError(
                    f"{name} of an editor's training is {getattr(self, name)}; give a positive one."
                )
        for name in ("weight_decay", "source_weight"):
            if not getattr(self, name) >= 0:
                raise NfoptError(f"{name} of an editor's training is {getattr(self, name)}; give 0 or more.")
        if self.objective not in ("cross-entropy", "error"):
            raise NfoptError(f"objective is 'cross-entropy' or 'error', not {self.objective!r}.")
        if not self.uses or set(self.uses) - {"weights", "images", "labels"}:
            raise NfoptError(f"uses are 'weights', 'images' and 'labels', at least one, not {self.uses}.")
        if not 0 <= self.average < 1:
            raise NfoptError(f"average is a decay from 0 to below 1, not {self.average}.")


@dataclass(frozen=True)
class TrainedEditor:
    """What a training came to.

    Attributes:
        editor: the best average, or the fresh editor if none was better on the validation nets.
        step: the step that it is from; 0 for the fresh one.
        history: (step, validation loss) in order; step 0 is the fresh editor.
    """

    editor: Editor
    step: int
    history: tuple[tuple[int, float], ...]


def fresh_editor(config: EditorConfig | StatisticsConfig, generator: torch.Generator | None = None) -> Editor:
    """Return the editor of a configuration, which has learned nothing."""
    if isinstance(config, StatisticsConfig):
        return StatisticsEditor(config, generator)
    return WeightEditor(config, generator)


def editing_loss(
    editor: Editor,
    nets: EditingNets,
    batch: EditingBatch,
    uses: Uses,
    source_weight: float = 0.0,
    objective: Literal["cross-entropy", "error"] = "cross-entropy",
) -> tuple[Float[Tensor, " nets"], Float[Tensor, " nets"]]:
    """Return each edited net's loss on test images of its domain, with the clean term, and its accuracy."""
    forward = nets.forward
    if isinstance(editor, StatisticsEditor):
        edited = editor.edited(forward, batch.tensors, batch.targets.images)
    else:
        targets = None
        if uses != "weights":
            targets = Targets(batch.targets.images, batch.targets.labels if uses == "labels" else None)
        edited = edited_tensors(editor, forward, nets.spec, batch.tensors, targets, nets.image_shape)
    logits, _ = forward(edited, batch.test_images)
    score = _cross_entropy if objective == "cross-entropy" else _expected_error
    losses = score(logits, batch.test_labels)
    hits = (logits.detach().argmax(-1) == batch.test_labels).float().mean(-1)
    if source_weight > 0:
        clean, _ = forward(edited, batch.clean_images)
        losses = losses + source_weight * score(clean, batch.test_labels)
    return losses, hits


class EditorTrainer:
    """Trains one editor over sets of nets, each of another architecture or width, in turn.

    Every draw is a function of the seed and the step, so that a training that was stopped goes on to the
    same numbers.

    Args:
        config: how it is trained.
        editor: what the editor is.
        train: sets of nets to train on.
        val: sets of nets that choose among the averages; of the same domains.
        shape: what tasks are drawn from.
        state: file of the unfinished training; None keeps none.
        progress: hears of the steps.
    """

    def __init__(
        self,
        config: EditorTrainerConfig,
        editor: EditorConfig | StatisticsConfig,
        train: Sequence[EditingNets],
        val: Sequence[EditingNets],
        shape: TaskShape,
        *,
        state: Path | None = None,
        progress: ProgressCallback = silent,
    ) -> None:
        if not train or not val:
            raise NfoptError("training an editor needs nets to train on and others to choose by.")
        if isinstance(editor, StatisticsConfig) and set(config.uses) != {"images"}:
            raise NfoptError(
                f"a statistics editor looks at images alone; give uses: [images], not {list(config.uses)}."
            )
        if isinstance(editor, StatisticsConfig) and not all(nets.forward.norms for nets in (*train, *val)):
            raise NfoptError("a statistics editor learns on nets with BatchNorm; some of these have none.")
        self.config, self.train, self.val, self.shape = config, train, val, shape
        self.state, self.progress = state, progress
        device = next(iter(train[0].tensors.values())).device
        self.editor = fresh_editor(editor, generator(config.seed, "editor")).to(device)
        self.average = {name: value.detach().clone() for name, value in self.editor.state_dict().items()}
        self.optimizer = torch.optim.AdamW(
            self.editor.parameters(), config.lr, weight_decay=config.weight_decay
        )
        self.best = {name: value.clone() for name, value in self.average.items()}
        self.history: list[tuple[int, float]] = []
        self.identity = digest_of(
            {f"{i} {n}": t for i, nets in enumerate((*train, *val)) for n, t in nets.tensors.items()}
        ) + repr((asdict(config), asdict(editor), asdict(shape)))

    def run(self) -> TrainedEditor:
        """Train, from the saved state if there is one, and return the best editor."""
        step = self._resume()
        if not self.history:
            self.history.append((0, self._validation_loss()))
        while step < self.config.total_steps:
            loss = self._step(step)
            step += 1
            if step % self.config.check_every == 0 or step == self.config.total_steps:
                self._check(step)
            if step % self.config.checkpoint_every == 0:
                self._save(step)
            nominal, best = self.history[0][1], min(value for _, value in self.history)
            note = f"loss {loss:.3f}, validation {best:.4f} (unlearned {nominal:.4f})"
            self.progress(Progress("train the editor", step, self.config.total_steps, note))
        self.editor.load_state_dict(self.best)
        chosen = min(self.history, key=lambda pair: pair[1])[0]
        return TrainedEditor(self.editor.eval().requires_grad_(False), chosen, tuple(self.history))

    def _step(self, step: int) -> float:
        config = self.config
        draw = generator(config.seed, "step", step)
        nets = self.train[step % len(self.train)]
        uses = config.uses[int(torch.randint(0, len(config.uses), (), generator=draw))]
        batch = draw_batch(nets, self.shape, config.nets, draw)
        warm = min(1.0, 20 * (step + 1) / config.total_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = config.lr * warm * (1 + cos(pi * step / config.total_steps)) / 2
        losses, _ = editing_loss(self.editor, nets, batch, uses, config.source_weight, config.objective)
        loss = losses.mean()
        self.optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.editor.parameters(), config.max_norm)
        if bool(torch.isfinite(norm)):
            self.optimizer.step()
        keep = min(config.average, (1 + step) / (10 + step))
        with torch.no_grad():
            for name, value in self.editor.state_dict().items():
                self.average[name].lerp_(value, 1 - keep)
        return float(loss.detach())

    def _check(self, step: int) -> None:
        loss = self._validation_loss()
        if loss < min(value for _, value in self.history):
            self.best = {name: value.clone() for name, value in self.average.items()}
        self.history.append((step, loss))

    @torch.no_grad()
    def _validation_loss(self) -> float:
        """Return the mean loss of the average over fixed tasks of the validation nets."""
        probe = fresh_editor(self.editor.config).to(next(iter(self.average.values())).device)
        probe.load_state_dict(self.average)
        losses = []
        for number in range(self.config.check_batches):
            nets = self.val[number % len(self.val)]
            uses = self.config.uses[number % len(self.config.uses)]
            draw = generator(self.config.seed, "validation", number)
            batch = draw_batch(nets, self.shape, self.config.nets, draw)
            found, _ = editing_loss(
                probe, nets, batch, uses, self.config.source_weight, self.config.objective
            )
            losses.append(found.mean())
        return float(torch.stack(losses).mean())

    def _save(self, step: int) -> None:
        if self.state is None:
            return
        save_state(
            self.state,
            {
                "identity": self.identity,
                "step": step,
                "editor": dict(self.editor.state_dict()),
                "average": self.average,
                "best": self.best,
                "optimizer": self.optimizer.state_dict(),
                "history": self.history,
            },
        )

    def _resume(self) -> int:
        if self.state is None or not self.state.exists():
            return 0
        device = next(iter(self.average.values())).device
        saved: Mapping[str, Any] = load_state(self.state, device)
        if saved["identity"] != self.identity:
            raise NfoptError(
                f"{self.state} belongs to another training (other nets or options). Remove it to start again."
            )
        self.editor.load_state_dict(saved["editor"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.average, self.best = dict(saved["average"]), dict(saved["best"])
        self.history = [tuple(pair) for pair in saved["history"]]  # pyright: ignore[reportAttributeAccessIssue]
        return int(saved["step"])


def _cross_entropy(logits: Tensor, labels: Tensor) -> Float[Tensor, " nets"]:
    losses = functional.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), reduction="none")
    return losses.view_as(labels).mean(-1)


def _expected_error(logits: Tensor, labels: Tensor) -> Float[Tensor, " nets"]:
    """Return the mean probability of a wrong class, with each net's logits brought to one RMS."""
    centred = logits.float() - logits.float().mean(-1, keepdim=True)
    size = centred.square().mean((-2, -1), keepdim=True).sqrt()
    shares = (SHARPNESS * centred / size.clamp_min(1e-6)).softmax(-1)
    return 1 - shares.gather(-1, labels.unsqueeze(-1)).squeeze(-1).mean(-1)
