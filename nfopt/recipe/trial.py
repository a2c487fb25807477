"""One training of a recipe: model, data, optimizer and seed, under a name that determines its curve."""

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from pathlib import Path

from pydantic import JsonValue

from nfopt.data import ImageData
from nfopt.progress import ProgressCallback, silent
from nfopt.recipe.inputs import DataOptions, DeviceName, ModelOptions, device_of
from nfopt.recipe.optimizers import OptimizerOptions
from nfopt.training import TrainingConfig, train


@dataclass(frozen=True)
class Trial:
    """One training.

    Attributes:
        task: how data, model and steps are called together; empty where all trainings share them.
        data: the data set.
        model: the model, initialised from the seed.
        options: the optimizer.
        config: steps, batch and seed.
        device: where it runs.
    """

    task: str
    data: DataOptions
    model: ModelOptions
    options: OptimizerOptions
    config: TrainingConfig
    device: DeviceName = "auto"

    @cached_property
    def name(self) -> str:
        """The name of its piece: task, optimizer, a digest of all that its numbers depend on, seed."""
        depends_on = {
            "options": self.options.model_dump(mode="json", exclude={"label", "tune"}),
            "fingerprint": self.options.fingerprint(),
            "data": self.data.model_dump(mode="json", exclude={"data_dir", "download"}),
            "model": self.model.model_dump(mode="json"),
            "steps": [self.config.total_steps, self.config.batch_size, self.config.evaluate_every],
        }
        digest = hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()[:12]
        task = f"{self.task}-" if self.task else ""
        return f"{task}{self.options.name}-{digest}-seed{self.config.seed}"

    @property
    def title(self) -> str:
        """The training in a few words, for progress."""
        lr = getattr(self.options, "lr", None)
        rate = "" if lr is None or self.options.name == "nfopt" else f" lr {lr:g}"
        method = self.options.label or self.options.name
        task = f"{self.task}: " if self.task else ""
        return f"{task}{method}{rate}, seed {self.config.seed}"

    def run(self, state_file: Path | None = None, progress: ProgressCallback = silent) -> JsonValue:
        """Train and return the curve as JSON values; goes on from `state_file` if that exists.

        Raises:
            DataError: the files of the data set are absent.
        """
        device = device_of(self.device)
        data = loaded(self.data)
        model = self.model.build(data, self.config.seed).to(device)
        example = (data.train.images[:2].to(device),)
        optimization = self.options.build(model, example, self.config.total_steps)
        return asdict(
            train(
                model,
                data,
                optimization,
                self.config,
                state_file=state_file,
                progress=progress,
                task=self.title,
            )
        )


def loaded(options: DataOptions) -> ImageData:
    """Return the data set; the last one is kept, since trainings of one task follow each other."""
    return _loaded(options.model_dump_json())


@lru_cache(maxsize=1)
def _loaded(options: str) -> ImageData:
    return DataOptions.model_validate_json(options).load()
