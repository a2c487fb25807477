"""Machine: where and how the nets of a zoo are trained."""

from dataclasses import dataclass

import torch

from nfopt.zoo.zoo import ZooError


@dataclass(frozen=True)
class Machine:
    """Where and how nets are trained; they do not depend on it, but for their last digits.

    Attributes:
        device: of torch.
        lanes: nets side by side; None for a number that suits the device.
        workers: threads on a CPU; None for as many as torch may use.
    """

    device: torch.device | str = "cpu"
    lanes: int | None = None
    workers: int | None = None

    def __post_init__(self) -> None:
        for name in ("lanes", "workers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ZooError(f"{name} is a number of at least 1, or None, not {value}.")

    @property
    def on_cpu(self) -> bool:
        """Whether the nets are trained on a CPU."""
        return torch.device(self.device).type == "cpu"

    def lanes_or(self, cpu: int, gpu: int) -> int:
        """Return the number of nets side by side, where none is given the one that suits the device."""
        return self.lanes or (cpu if self.on_cpu else gpu)

    @property
    def threads(self) -> int:
        """Number of threads that train; 1 on a GPU."""
        return (self.workers or torch.get_num_threads()) if self.on_cpu else 1
