"""Method `bn`: BatchNorm statistics of the target images, in place of the source's or blended with them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from nfopt.editing.methods.method import Method, Task, edit_method
from nfopt.editing.norms import measure_statistics, put_statistics, statistics_of
from nfopt.errors import EditingError


@edit_method("bn")
@dataclass(frozen=True)
class BatchNormStatistics(Method):
    """Statistics of the target in the BatchNorm layers.

    Source: Nado et al. 2020, "Evaluating prediction-time batch normalization" (arXiv:2006.10963); blended:
    Schneider et al. 2020 (arXiv:2006.16971), equation 2.

    Attributes:
        source_count: how many target images the source's statistics weigh as much as; 0 replaces them.
        batch_size: images per forward pass.
    """

    source_count: float = 0.0
    batch_size: int = 256
    needs: ClassVar[frozenset[str]] = frozenset({"batchnorm"})

    def __post_init__(self) -> None:
        if self.source_count < 0 or self.batch_size < 1:
            raise EditingError(
                f"bn takes source_count of at least 0 and batch_size of at least 1, not {self.source_count} "
                f"and {self.batch_size}."
            )

    def touches(self, model: nn.Module, example: Tensor) -> list[str]:
        """Return the statistics."""
        return statistics_of(model)

    def fit(self, model: nn.Module, task: Task) -> Mapping[str, Any]:
        """Measure and put the statistics."""
        moments = measure_statistics(model, task.images, self.batch_size)
        put_statistics(model, moments, images=len(task.images), source_count=self.source_count)
        return {"layers": len(moments)}
