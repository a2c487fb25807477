"""What the nets of a zoo compute, as far as its card says it."""

from functools import partial

from torch import Tensor

from nfopt.experiments.question import ExperimentError, Forward, Tensors
from nfopt.zoo import Zoo
from nfopt.zoo.siren import siren


def omega_of(zoo: Zoo) -> float:
    """Return the frequency factor inside the sines of a zoo of SIRENs, from its card.

    Raises:
        ExperimentError: the card tells of no SIRENs.
    """
    found = _architecture(zoo).get("omega_0")
    if not isinstance(found, int | float):
        raise ExperimentError(
            "the zoo's card tells of no SIREN (an architecture with omega_0), so the nets can neither be "
            "rendered nor brought to canonical form. Make the zoo with a recipe of kind: zoo."
        )
    return float(found)


def forward_of(zoo: Zoo) -> tuple[Forward | None, int]:
    """Return what the nets compute and the number of their inputs; None and 0 where the card does not say."""
    architecture = _architecture(zoo)
    if "omega_0" not in architecture:
        return None, 0
    return partial(_siren, omega_of(zoo)), int(zoo.tensors["0.weight"].shape[-1])


def _siren(omega: float, tensors: Tensors, inputs: Tensor) -> Tensor:
    return siren(tensors, inputs, omega_0=omega)


def _architecture(zoo: Zoo) -> dict[str, object]:
    found = zoo.card.get("architecture", {})
    return found if isinstance(found, dict) else {}
