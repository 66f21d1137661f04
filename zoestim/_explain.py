"""What a query costs, layer by layer: the cut, the live set, what is reused and how, Eq. (4)."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx, nn

from zoestim.evaluation import (
    Batch,
    Cost,
    FeatureReuse,
    Objective,
    Propagation,
    Visit,
    as_input,
    assumed,
    counted,
    first_parameter,
    in_brief,
    measure,
    out_of_memory,
    unchanged_attributes,
    unchanged_generators,
)
from zoestim.propagation import Entry, RankOne

_HEADINGS = (
    *("parameter", "shape", "ratio", "cut", "live set", "nodes"),
    *("MFLOP", "MB", "of a forward", "how"),
)


@dataclass(frozen=True)
class LayerCost:
    """One row of :class:`Explanation`: the queries of one parameter.

    Attributes
    ----------
    name : str
        The parameter.
    shape : tuple of int
        Its shape.
    ratio : float
        Which fraction of its coordinates is left out, as in `layer_ratios_`.
    cut : str
        The first module or operation whose result changes; all before it is reused.
    live_set : tuple of str
        What of the unperturbed pass the nodes from the cut on read.
    nodes : int
        How many nodes of the graph a query runs.
    flops : int
        Floating-point operations of matrix products and convolutions, for one coordinate.
    bytes : int
        Bytes read and written, for one coordinate.
    share : float
        Its operations and bytes, as a part of those of a whole forward pass.
    path : str
        What of the values changes on the way to the outputs.
    """

    name: str
    shape: tuple[int, ...]
    ratio: float
    cut: str
    live_set: tuple[str, ...]
    nodes: int
    flops: int
    bytes: int
    share: float
    path: str

    def cells(self) -> tuple[str, ...]:
        """Return the row as text."""
        return (
            self.name,
            "x".join(map(str, self.shape)) or "1",
            f"{self.ratio:.3g}",
            self.cut,
            ", ".join(self.live_set),
            str(self.nodes),
            f"{self.flops / 1e6:.3g}",
            f"{self.bytes / 1e6:.3g}",
            f"{self.share:.1%}",
            self.path,
        )


@dataclass(frozen=True)
class Explanation:
    """What :func:`explain` returns: a table as text, and as HTML in notebooks.

    Attributes
    ----------
    layers : tuple of LayerCost
        One a trainable parameter, in `named_parameters` order.
    reuse : FeatureReuse
        What could not be traced or folded, and why.

    Examples
    --------
    >>> import torch
    >>> from zoestim import explain
    >>> table = explain(torch.nn.Linear(3, 2), torch.zeros(8, 3))
    >>> [layer.name for layer in table.layers], bool(table.reuse)
    (['weight', 'bias'], True)
    """

    layers: tuple[LayerCost, ...]
    reuse: FeatureReuse

    def __str__(self) -> str:
        rows = [_HEADINGS, *(layer.cells() for layer in self.layers)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        return "\n".join([*lines, *self._notes()])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        def line(tag: str, cells: tuple[str, ...]) -> str:
            return f"<tr>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in cells)}</tr>"

        body = "".join(line("td", layer.cells()) for layer in self.layers)
        notes = "".join(f"<p>{html.escape(note)}</p>" for note in self._notes())
        head = line("th", _HEADINGS)
        return f"<table><thead>{head}</thead><tbody>{body}</tbody></table>{notes}"

    def _notes(self) -> list[str]:
        reuse = self.reuse
        notes = [] if reuse else [f"Every query runs the whole forward pass: {reuse.reason}."]
        notes += [f"{name} is one node: {why}." for name, why in reuse.opaque.items()]
        return notes + [f"{name} runs one by one: {why}." for name, why in reuse.unfolded.items()]


def explain(
    module: nn.Module, X: Any, *, layer_ratios: Mapping[str, float] | None = None
) -> Explanation:
    """Return, layer by layer, what the query of one coordinate reuses and what it costs.

    One query of each parameter is run on `X` and counted; a black box is never asked for it,
    so that behind one the cost is that of running the rest of the graph. The module comes
    back bitwise equal.

    Parameters
    ----------
    module : nn.Module
        The model, in the mode (train or eval) in which it is to be queried.
    X : Tensor or array-like of shape (n, ...)
        One batch, of the size that is to be used: the cost is that of the whole batch.
    layer_ratios : dict of str to float, optional
        The fraction of each parameter that estimates leave out, as `layer_ratios_` of a fitted
        estimator; 0 for those that are not named.

    Returns
    -------
    Explanation
        With ``.layers``; it prints as a table and shows as one in notebooks.

    Raises
    ------
    ValueError
        If `layer_ratios` names what is no trainable parameter, or a ratio is not in [0, 1].

    References
    ----------
    Chen et al., DeepZero, ICLR 2024, Sec. 5, Eq. (4).

    Examples
    --------
    >>> import torch
    >>> from zoestim import explain
    >>> module = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    >>> table = explain(module, torch.zeros(16, 4))
    >>> [(layer.name, layer.cut, layer.nodes) for layer in table.layers]
    [('0.weight', '0', 4), ('0.bias', '0', 4), ('2.weight', '2', 2), ('2.bias', '2', 2)]
    >>> table.layers[0].path
    '0: 1 of 8 features > 2: all, rank one'
    """
    objective = Objective(module, nn.MSELoss())
    ratios = _checked(layer_ratios or {}, objective.parameters.names)
    inputs = as_input(X, module).to(first_parameter(module).device)
    with (
        torch.no_grad(),
        unchanged_generators(inputs.device),
        unchanged_attributes(module),
    ):
        program, done = objective.base(Batch(inputs, inputs))
        propagation = Propagation(program, done, objective.ways)
        forward = _of_forward(propagation, inputs)
        layers = tuple(
            _layer(propagation, name, value, ratios.get(name, 0.0), forward, objective.reuse)
            for name, value in objective.theta().items()
        )
    return Explanation(layers, objective.reuse)


def _checked(layer_ratios: Mapping[str, float], names: Sequence[str]) -> Mapping[str, float]:
    unknown = [name for name in layer_ratios if name not in names]
    if unknown:
        raise ValueError(
            f"layer_ratios names {unknown}, which are no trainable parameters of the module. "
            f"Those are {list(names)}."
        )
    for name, ratio in layer_ratios.items():
        if not 0 <= ratio <= 1:
            raise ValueError(
                f"layer_ratios must be fractions in [0, 1]; got {ratio!r} for {name!r}. "
                "1 leaves the whole parameter out."
            )
    return layer_ratios


def _of_forward(propagation: Propagation, inputs: torch.Tensor) -> Cost:
    program = propagation.program
    cost = assumed(list(propagation.done.values.values()))
    if program.boxes(program.nodes):  # asking them once more would be paid for
        return cost
    return replace(cost, flops=counted(lambda: program.run(inputs.clone())))


def _layer(
    propagation: Propagation,
    name: str,
    value: torch.Tensor,
    ratio: float,
    forward: Cost,
    reuse: FeatureReuse,
) -> LayerCost:
    program, done = propagation.program, propagation.done
    nodes = program.dependents((name,))
    if program.boxes(nodes):
        cost = assumed([done.values[node] for node in nodes])
    else:
        first = Entry(torch.zeros(1, dtype=torch.int64), value.new_full((1,), 1e-3))
        try:
            cost = measure(propagation, {name: first})
        except Exception as error:  # an estimate would run these queries one by one
            if out_of_memory(error):
                raise
            reuse.unfolded[name] = in_brief(error)
            cost = assumed([done.values[node] for node in nodes])
    live = {source for node in nodes for source in node.all_input_nodes} - set(nodes)
    return LayerCost(
        name,
        tuple(value.shape),
        ratio,
        _name(nodes[0]) if nodes else "never read",
        tuple(_name(node) for node in program.nodes if node in live),
        len(nodes),
        cost.flops,
        cost.bytes,
        cost.work / max(forward.work, 1),
        _path(cost),
    )


def _name(node: fx.Node) -> str:
    return str(node.target) if node.op == "call_module" else node.name


def _path(cost: Cost) -> str:
    """Return where the form of the change changes, node by node."""
    steps, last = [], ""
    for visit in cost.visits:
        form = _form(visit)
        if form and form != last:
            steps.append(f"{visit.name}: {form}")
            last = form
    return " > ".join(steps) or "the values themselves"


def _form(visit: Visit) -> str:
    """Return how much of a value changes, in words."""
    if visit.name == "output" or visit.kind is None or not visit.shape:
        return ""
    if visit.dim is not None and visit.width != visit.shape[visit.dim]:
        what = "features" if visit.dim == len(visit.shape) - 1 else "channels"
        form = f"{visit.width} of {visit.shape[visit.dim]} {what}"
    else:
        form = "all, rank one" if visit.kind is RankOne else "all"
    return form if visit.by_rule else f"{form}, run itself"
