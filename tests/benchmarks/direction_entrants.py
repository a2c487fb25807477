"""The directions that compete, in the order in which they run: what matters most comes first."""

from nfopt.meta.baselines import AdamWRule, MuonRule
from tests.benchmarks.direction_contest import Averaging, Contestant, Reference
from tests.benchmarks.direction_rules import (
    Adam,
    Direction,
    Mixed,
    Orthogonal,
    Preconditioned,
    Raw,
    RowNormalised,
    Sign,
    Soap,
)

ADAMW = "AdamW"
MUON = "Muon, momentum"
OURS = "orthogonalised (fast share .5)"


def shampoo() -> Direction:
    return Preconditioned(-0.25, -0.25, 0.01, of_signals=False)


def kfac(damping: float) -> Direction:
    return Preconditioned(-1, -1, damping, of_signals=True)


def whitened() -> Direction:
    return Preconditioned(0, -0.5, 0.1, of_signals=True, orthogonal=True)


def mixed(name: str, other: type[Direction], share: float) -> Contestant:
    """Return the orthogonalised momentum with a share of another direction."""
    return Contestant(f"orthogonalised + {share:g} {name}", lambda: Mixed(Orthogonal(), other(), share))


ENTRANTS: tuple[Contestant | Reference, ...] = (
    Reference(ADAMW, AdamWRule(), 0.004, 0.05, 0.9),
    *(Reference(f"{MUON} {momentum:g}", MuonRule(), 0.008, 0.1, momentum) for momentum in (0.8, 0.9)),
    Contestant(OURS, Orthogonal),
    Contestant("K-FAC, damping 1", lambda: kfac(1.0), signals=True),
    mixed("Adam", Adam, 0.25),
    Contestant("inputs whitened, then orthogonalised", whitened, signals=True),
    Contestant("SOAP", Soap),
    mixed("raw momentum", Raw, 0.15),
    Contestant("orthogonalised, rows normalised (NorMuon)", RowNormalised),
    Contestant("orthogonalised + 0.5 K-FAC", lambda: Mixed(Orthogonal(), kfac(1.0), 0.5), signals=True),
    Contestant("orthogonalised, averaged", Orthogonal, averaging=Averaging(at=0.2, power=5.0, decay=True)),
    Contestant("Adam", Adam),
    Contestant("Shampoo", shampoo),
    mixed("sign", Sign, 0.25),
    mixed("raw momentum", Raw, -0.15),
    mixed("Adam", Adam, -0.15),
    Contestant("orthogonalised, fast share 1", Orthogonal, fast_share=1.0),
    Contestant("orthogonalised, fast share 0", Orthogonal, fast_share=0.0),
    Contestant(
        "orthogonalised, schedule-free", Orthogonal, averaging=Averaging(at=0.1, power=0.0, decay=False)
    ),
    mixed("SOAP", Soap, 0.5),
    Contestant("SOAP, published scale", Soap, fast_share=None, own_step=0.005),
    Contestant("K-FAC, damping .3", lambda: kfac(0.3), signals=True),
    mixed("raw momentum", Raw, 0.3),
    mixed("Adam", Adam, 0.7),
    Contestant("orthogonalised, fast share .7", Orthogonal, fast_share=0.7),
    Contestant("orthogonalised + 0.5 Shampoo", lambda: Mixed(Orthogonal(), shampoo(), 0.5)),
    Contestant("orthogonalised + 0.5 whitened", lambda: Mixed(Orthogonal(), whitened(), 0.5), signals=True),
    Contestant("sign", Sign),
    Contestant("raw momentum", Raw),
    Reference(f"{MUON} 0.95", MuonRule(), 0.008, 0.1, 0.95),
)
