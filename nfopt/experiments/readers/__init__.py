"""Readers: every network of the field that reads weights, behind one interface."""

# The readers enter themselves.
from nfopt.experiments.readers import (
    functional,
    inr2vec,
    mlp,
    neuron_statistics,
    neuron_tokens,
    probed_tokens,
    probes,
    role_tied,
    statnn,
    transformer,
)
from nfopt.experiments.readers.reader import (
    READERS,
    Preparation,
    Reader,
    WeightReader,
    check_readers,
    parameter_count,
    reader,
)

__all__ = [
    "READERS",
    "Preparation",
    "Reader",
    "WeightReader",
    "check_readers",
    "functional",
    "inr2vec",
    "mlp",
    "neuron_statistics",
    "neuron_tokens",
    "parameter_count",
    "probed_tokens",
    "probes",
    "reader",
    "role_tied",
    "statnn",
    "transformer",
]
