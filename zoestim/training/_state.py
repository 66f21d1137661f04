"""All that decides how a fit goes on, out of a net and back into one, bit for bit."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from skorch.callbacks import Callback, EarlyStopping, LRScheduler, PassthroughScoring
from skorch.callbacks.scoring import ScoringBase
from torch import Tensor, nn

from zoestim._nested import decode, encode
from zoestim.evaluation import FeatureReuse
from zoestim.sparsity import CoordinateSchedule
from zoestim.training._net import ZONet
from zoestim.training._step import TrainingStep, make_schedule, prunable

# What skorch's callbacks keep between calls; its other ones keep nothing, or tell of it themselves.
KEPT: dict[type, tuple[str, ...]] = {
    EarlyStopping: ("misses_", "dynamic_threshold_", "best_epoch_", "best_model_weights_"),
    PassthroughScoring: ("best_score_",),
    ScoringBase: ("best_score_",),
    LRScheduler: ("batch_idx_", "lr_scheduler_"),
}


@dataclass(frozen=True)
class Snapshot:
    """A fit at the end of a step or of an epoch; it shares no memory with the net.

    Parameters
    ----------
    content : dict
        Everything but the history, as JSON that names tensors.
    tensors : dict of str to Tensor
        The tensors, on the CPU.
    rows : list of dict
        The history of the epochs that ended.
    row : dict or None
        That of the epoch under way, with a row a batch that is done.
    n_steps, n_rounds : int
        Training steps done, and batches of queries that were asked for them.
    """

    content: Any
    tensors: dict[str, Tensor]
    rows: list[dict[str, Any]]
    row: dict[str, Any] | None
    n_steps: int
    n_rounds: int


def capture(
    net: ZONet, shuffler: Tensor, *, under_way: bool = False, callbacks: bool = True
) -> Snapshot:
    """Return the state of a fit.

    Parameters
    ----------
    net : ZONet
        The net, with the callbacks of the fit.
    shuffler : Tensor
        The state of the generator that orders the batches, as the epoch began.
    under_way : bool, default=False
        Whether the last row of the history is of an epoch that has not ended.
    callbacks : bool, default=True
        Whether to ask the callbacks for their state; they may have none before they are told
        that the training begins.
    """
    step = net.zo_step
    state = {
        "module": _module_state(net.module_),
        "criterion": _module_state(net.criterion_),
        "optimizer": net.optimizer_.state_dict(),
        "step": _step_state(step),
        "shuffler": shuffler,
        "callbacks": {n: _callback_state(c) for n, c in _named(net)} if callbacks else {},
        "reuse": asdict(step.objective.reuse),
    }
    tensors: dict[str, Tensor] = {}
    content = encode(state, storing(tensors))
    rows, row = list(net.history), None
    if under_way:
        last = rows.pop()
        row = {**last, "batches": list(last["batches"])}
    return Snapshot(content, tensors, rows, row, step.n_steps, step.n_rounds)


def restore(
    net: ZONet, snapshot: Snapshot, *, under_way: bool = False, callbacks: bool = True
) -> None:
    """Put a net and its history into a state that was captured.

    What does not fit raises an error of some built-in type.

    Parameters
    ----------
    net : ZONet
        The net.
    snapshot : Snapshot
        The state.
    under_way : bool, default=False
        Whether to add the row of the epoch that has not ended.
    callbacks : bool, default=True
        Whether to restore the callbacks that the net has now too.
    """
    state = decode(snapshot.content, stored_in(snapshot.tensors))
    _restore_module(net.module_, state["module"])
    _restore_module(net.criterion_, state["criterion"])
    _restore_optimizer(net.optimizer_, state["optimizer"])
    _restore_step(net.zo_step, state["step"])
    net.zo_step.objective.reuse = FeatureReuse(**state["reuse"])
    shuffling(net).set_state(state["shuffler"])
    kept = dict(state["callbacks"].items())
    for name, callback in _named(net) if callbacks else ():
        if name in kept:
            _restore_callback(callback, kept[name])
    rows = [dict(row) for row in snapshot.rows]
    if under_way and snapshot.row is not None:
        rows.append({**snapshot.row, "batches": list(snapshot.row["batches"])})
    net.history[:] = rows


def shuffling(net: ZONet) -> torch.Generator:
    """Return the generator that orders a net's batches."""
    return net.iterator_train__generator


# --- Tensors


def storing(tensors: dict[str, Tensor]) -> Callable[[Any, tuple[str, ...]], Any]:
    """Return what moves the tensors among nested values to a dict, and leaves their names."""

    def leaf(value: Any, path: tuple[str, ...]) -> Any:
        stored, kind = value, "$tensor"
        if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
            stored, kind = torch.from_numpy(np.array(value)), "$array"
        if not isinstance(stored, Tensor) or stored.layout != torch.strided:
            raise TypeError(
                f"A checkpoint cannot hold {type(value).__name__}, which stands at "
                f"{'.'.join(path)}; expected numbers, strings, dense tensors, arrays of numbers, "
                "and lists, tuples and dicts of them. Change what the state or history of that "
                "part holds, or set checkpoint=None."
            )
        name = ".".join(path)
        while name in tensors:
            name += "_"
        is_complex = stored.is_complex()
        plain = torch.view_as_real(stored.resolve_conj()) if is_complex else stored
        tensors[name] = plain.detach().to("cpu", copy=True).contiguous()
        return {kind: name, "complex": is_complex}

    return leaf


def stored_in(tensors: dict[str, Tensor]) -> Callable[[dict[str, Any]], Any]:
    """Return what brings back copies of what `storing` moved there."""

    def leaf(stored: dict[str, Any]) -> Any:
        kind = "$array" if "$array" in stored else "$tensor"
        value = tensors[stored[kind]].clone()
        value = torch.view_as_complex(value) if stored["complex"] else value
        return value.numpy() if kind == "$array" else value

    return leaf


def _expect(condition: bool, what: str) -> None:
    if not condition:
        raise ValueError(what)


# --- Modules


def _module_state(module: nn.Module) -> dict[str, Any]:
    """Return parameters and buffers, those too that `state_dict` leaves out, and what is frozen."""
    state = dict(module.state_dict())
    more = {name: buffer for name, buffer in module.named_buffers() if name not in state}
    frozen = [name for name, value in module.named_parameters() if not value.requires_grad]
    return {"state": state, "more": more, "frozen": frozen}


@torch.no_grad()
def _restore_module(module: nn.Module, stored: dict[str, Any]) -> None:
    own = _module_state(module)
    for part in ("state", "more"):
        _expect(_kinds(own[part]) == _kinds(stored[part]), "its tensors are not the module's")
    state = OrderedDict(stored["state"])
    state._metadata = getattr(module.state_dict(), "_metadata", None)  # type: ignore[attr-defined]
    module.load_state_dict(state)
    buffers = dict(module.named_buffers())
    for name, value in stored["more"].items():
        buffers[name].copy_(value)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name not in stored["frozen"])


def _kinds(named: dict[str, Any]) -> dict[str, Any]:
    return {
        name: (value.dtype, value.shape) if isinstance(value, Tensor) else type(value)
        for name, value in named.items()
    }


# --- Optimizer


def _restore_optimizer(optimizer: torch.optim.Optimizer, stored: dict[str, Any]) -> None:
    optimizer.load_state_dict(copy.deepcopy(stored))
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    # All of torch's keep numbers and tensors like the parameter, but these two.
    factored = {"Adafactor", "LBFGS"}
    regular = type(optimizer).__module__.startswith("torch.optim")
    for number, entries in stored["state"].items():
        parameter = parameters[number]
        for key, value in entries.items():
            if not isinstance(value, Tensor):
                continue
            if regular and type(optimizer).__name__ not in factored and value.ndim:
                _expect(value.shape == parameter.shape, f"{key} has the shape {value.shape}")
            loaded = optimizer.state[parameter][key]
            if loaded.dtype != value.dtype:  # torch casts to the type of the parameter
                optimizer.state[parameter][key] = value.to(loaded.device)


# --- The training step


def _step_state(step: TrainingStep) -> dict[str, Any]:
    return {
        "generator": step.generator.get_state(),
        "n_queries": step.n_queries,
        "n_steps": step.n_steps,
        "n_rounds": step.n_rounds,
        "n_failed": step.n_failed,
        "responded": step.responded,
        "epoch": step.epoch,
        "active": step.active,
        "schedule": None if step.schedule is None else step.schedule.state_dict(),
    }


def _restore_step(step: TrainingStep, stored: dict[str, Any]) -> None:
    for name in ("n_queries", "n_steps", "n_rounds", "n_failed", "epoch"):
        value = stored[name]
        _expect(type(value) is int and value >= 0, f"{name} is {value!r}")
        setattr(step, name, value)
    step.generator.set_state(stored["generator"])
    step.responded = bool(stored["responded"])
    step.schedule = None
    step.affordable()  # which looks what is frozen now
    _check_indices(stored["active"], step.objective.parameters.size)
    step.active = stored["active"]
    if stored["schedule"] is not None:
        step.schedule = _schedule(step, stored["schedule"])


def _schedule(step: TrainingStep, stored: dict[str, Any]) -> CoordinateSchedule:
    sizes, current, since = prunable(step.objective), stored["current"], stored["renewed_at"]
    _expect(stored["ratios"].keys() == sizes.keys(), "its coordinate sets are of other layers")
    _expect(since is None or type(since) is int, f"renewed_at is {since!r}")
    for ratio in stored["ratios"].values():
        _expect(0 <= ratio <= 1, f"a layer has the ratio {ratio!r}")
    if current is not None:
        _expect(current.keys() == sizes.keys(), "its coordinate sets are of other layers")
        for name, indices in current.items():
            _check_indices(indices, sizes[name])
    return make_schedule(step, stored)


def _check_indices(indices: Tensor, size: int) -> None:
    fine = indices.dtype == torch.int64 and indices.ndim == 1
    fine = fine and (not len(indices) or 0 <= int(indices.min()) <= int(indices.max()) < size)
    _expect(fine and bool((indices.diff() > 0).all()), f"a set is no set of {size} coordinates")


# --- Callbacks


def _named(net: ZONet) -> Iterator[tuple[str, Callback]]:
    """Give the callbacks by names that are unique: ours and the user's may have the same."""
    seen: dict[str, int] = {}
    for name, callback in net.callbacks_:
        number = seen[name] = seen.get(name, 0) + 1
        yield (name if number == 1 else f"{name} {number}"), callback


def _keeps_itself(callback: Any) -> bool:
    return hasattr(callback, "state_dict") and hasattr(callback, "load_state_dict")


def _callback_state(callback: Callback) -> dict[str, Any]:
    if _keeps_itself(callback):
        return callback.state_dict()
    kept = (name for kind, names in KEPT.items() if isinstance(callback, kind) for name in names)
    values = {name: getattr(callback, name) for name in kept}
    return {n: v.state_dict() if _keeps_itself(v) else v for n, v in values.items()}


def _restore_callback(callback: Callback, stored: dict[str, Any]) -> None:
    if _keeps_itself(callback):
        callback.load_state_dict(stored)
        return
    kept = [name for kind, names in KEPT.items() if isinstance(callback, kind) for name in names]
    for name in kept:
        held: Any = getattr(callback, name, None)
        if _keeps_itself(held):
            held.load_state_dict(stored[name])
            held.optimizer._opt_called = True  # in the process before; torch warns without
        elif name != "lr_scheduler_":  # which is made when the training begins
            setattr(callback, name, stored[name])
