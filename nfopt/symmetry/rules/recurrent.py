"""Recurrent networks: gates x hidden, the recurrent weight carries the hidden units twice."""

from nfopt.symmetry.calls import Axes, Call, UnruledError, Value, rule
from nfopt.symmetry.unify import Term, concat_terms

GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}


@rule("lstm", "gru", "rnn_tanh", "rnn_relu")
def recurrent(call: Call) -> list[Axes]:
    """A stack of layers, each in one or two directions; returns (output, last hidden state[, cell state])."""
    if "batch_sizes" in call.args:
        raise UnruledError("packed sequences")
    kind = call.name.removeprefix("aten.")
    value, params = call.tensor("input"), call.args["params"]
    layers, directions = call.args["num_layers"], 2 if call.args["bidirectional"] else 1
    per_cell = len(params) // (layers * directions)
    has_biases = call.args["has_biases"]
    projected = kind == "lstm" and per_cell == (5 if has_biases else 3)
    features = value.axes[-1]
    hidden: list[Term] = []
    cells: list[Term] = []
    for layer in range(layers):
        outs: list[Term] = []
        for direction in range(directions):
            start = (layer * directions + direction) * per_cell
            out, cell = _tie_cell(call, features, params[start : start + per_cell], GATES[kind], projected)
            outs.append(out)
            cells.append(cell)
        hidden.extend(outs)
        features = concat_terms(outs)
    states = call.args["hx"]
    states = [states] if isinstance(states, Value) else list(states)
    units = [hidden, cells][: len(states)]
    for state, own in zip(states, units, strict=True):
        if not state.constant or call.ledger.wrote_in_place:
            _tie_states(call, state.axes[-1], own)
            call.fix_dim(state, 0, "layers and directions")
    last = (_last_states(call, value, own, which) for which, own in enumerate(units))
    return [(*value.axes[:-1], features), *last]


def _tie_cell(
    call: Call, features: Term, params: list[Value], gates: int, projected: bool
) -> tuple[Term, Term]:
    """Tie the weights of one layer in one direction; return what it puts out and what it keeps."""
    weight_ih, weight_hh, *others = params
    projection = others.pop() if projected else None
    call.unifier.unify(features, weight_ih.axes[1])
    gate, cell = call.unifier.factor(weight_ih.axes[0], [gates, weight_ih.shape[0] // gates])
    call.unifier.fix(gate, f"gates {call.where}")
    out = cell
    if projection is not None:
        out = projection.axes[0]
        call.unifier.unify(cell, projection.axes[1])
        call.note(projection, "linear", "out", "in")
    call.unifier.unify(out, weight_hh.axes[1])
    for tensor in (weight_hh, *others):
        call.unifier.unify(weight_ih.axes[0], tensor.axes[0])
    for weight in (weight_ih, weight_hh):
        call.note(weight, "recurrent", "out", "in")
    for bias in others:
        call.note(bias, "bias", "out")
    return out, cell


def _last_states(call: Call, value: Value, hidden: list[Term], which: int) -> Axes:
    """Return the axes of a stacked final state, tying all layers only when something reads it."""
    shape = call.out_shapes[1 + which]
    if call.used is not None and (1 + which) not in call.used:
        return tuple(call.fixed(size, "a final state that nothing reads") for size in shape)
    _tie_states(call, hidden[0], hidden[1:])
    layers = call.fixed(shape[0], "layers and directions")
    batch = [value.axes[0 if call.args["batch_first"] else 1]] if len(shape) == 3 else []
    return (layers, *batch, hidden[0])


def _tie_states(call: Call, units: Term, hidden: list[Term]) -> None:
    for other in hidden:
        call.unifier.unify(units, other)
