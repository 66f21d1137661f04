"""A function of which only the values are known, as a module."""

from __future__ import annotations

import contextlib
import copy
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

Arrays = np.ndarray | Tensor
Parameters = Arrays | dict[str, Arrays] | None


class Spent(NamedTuple):
    """What a black box took: seconds in its function, and rows that it was asked about."""

    seconds: float = 0.0
    n_rows: int = 0


class Meter:
    """Counts what a black box takes; its copies in this process count together."""

    def __init__(self, seconds: float = 0.0, n_rows: int = 0):
        self._spent = Spent(seconds, n_rows)
        self._lock = threading.Lock()

    def read(self) -> Spent:
        """Return what was taken so far."""
        return self._spent

    def add(self, spent: Spent) -> None:
        """Count what was taken."""
        with self._lock:
            before = self._spent
            self._spent = Spent(before.seconds + spent.seconds, before.n_rows + spent.n_rows)

    @contextlib.contextmanager
    def running(self, n_rows: int) -> Iterator[None]:
        """Count a call."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.add(Spent(time.perf_counter() - started, n_rows))

    def since(self, before: Spent) -> Spent:
        """Return what was taken since a reading."""
        return Spent(self._spent.seconds - before.seconds, self._spent.n_rows - before.n_rows)

    def __deepcopy__(self, memo: dict[int, Any]) -> Meter:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return Meter, tuple(self._spent)


class BlackBox(nn.Module):
    """A callable ``f(params, X) -> outputs`` as a torch module, known by its values alone.

    It stands on its own as an estimator's `module`, or as one layer inside a torch
    network: ``nn.Sequential(encoder, BlackBox(f, p0), head)``.

    Parameters
    ----------
    function : callable
        ``f(params, X) -> outputs``. It gets `params` in the form of `initial_params` (one
        array, or a dict of arrays) and the batch `X` of shape (n, ...); it returns an array
        of shape (n, ...). It gets and returns torch tensors where `initial_params` are
        tensors, numpy arrays otherwise. Its arguments are copies: it may write to them.
    initial_params : array, dict of str to array, or None, default=None
        The starting values. Each named array is a layer to the sparsity rules. Integers
        become float64. None: there is nothing to train in it, `function` is ``f(X) ->
        outputs`` on numpy arrays, and what can be trained are the layers before it.
    vectorized : bool or int, default=False
        Whether `function` takes K parameter sets in one call: each array of `params` then
        has a leading axis of length K, and so have the outputs, (K, n, ...). With a batch
        that differs between the sets (a layer behind a trained one), `X` has it too, and
        without parameters always. A number is the most sets a call may hold, which several
        workers need to have calls to share; True leaves it to the memory.

    Examples
    --------
    >>> import numpy as np, torch
    >>> from zoestim import BlackBox
    >>> box = BlackBox(lambda params, X: X @ params["w"], {"w": np.ones((3, 2))})
    >>> box(torch.ones(4, 3)).shape
    torch.Size([4, 2])
    >>> [name for name, _ in box.named_parameters()]
    ['w']

    A simulator without parameters, behind a network that learns its input:

    >>> network = torch.nn.Sequential(torch.nn.Linear(3, 2), BlackBox(np.sin))
    >>> network(torch.zeros(4, 3)).shape
    torch.Size([4, 2])
    """

    def __init__(
        self,
        function: Callable[..., Any],
        initial_params: Parameters = None,
        vectorized: bool | int = False,
    ):
        super().__init__()
        if not isinstance(vectorized, bool) and (type(vectorized) is not int or vectorized < 1):
            raise ValueError(
                f"vectorized must be True, False or the most sets a call may hold; got "
                f"{vectorized!r}."
            )
        self.function = function
        self.vectorized = vectorized
        self.meter = Meter()
        self._single = not isinstance(initial_params, Mapping)
        items: dict[str, Any] = {} if initial_params is None else {"params": initial_params}
        if isinstance(initial_params, Mapping):
            items = dict(initial_params)
        self._torch = any(isinstance(value, Tensor) for value in items.values())
        if not items and initial_params is not None:
            raise ValueError(
                "initial_params is empty; expected at least one named array, or None for a "
                "function of the data alone."
            )
        for name, value in items.items():
            self._register(str(name), value)

    def _register(self, name: str, value: Arrays) -> None:
        given = value if isinstance(value, Tensor) else np.array(value)  # it may be read-only
        tensor = torch.as_tensor(given).detach().clone()
        if tensor.is_complex() or tensor.dtype == torch.bool:
            raise TypeError(
                f"initial_params[{name!r}] holds {tensor.dtype}; expected real numbers. "
                "Pass real and imaginary parts as two arrays."
            )
        if not name or "." in name or hasattr(self, name):
            raise ValueError(
                f"initial_params has an array named {name!r}, which a torch module cannot "
                "hold as a parameter. Rename it: no dot, and no name of a module attribute."
            )
        tensor = tensor if tensor.is_floating_point() else tensor.to(torch.float64)
        self.register_parameter(name, nn.Parameter(tensor))

    def __deepcopy__(self, memo: dict[int, Any]) -> BlackBox:
        # The function is not the model's: it may be a connection, of which there is one.
        memo[id(self.function)] = self.function
        other = memo[id(self)] = self.__new__(type(self))
        other.__dict__.update(copy.deepcopy(vars(self), memo))
        return other

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs of one call of the function, shape (n, ...)."""
        named = dict(self.named_parameters(recurse=False))
        return _Call.apply(self, tuple(named), x, *named.values())

    def call(self, names: tuple[str, ...], x: Tensor, values: tuple[Tensor, ...]) -> Tensor:
        """Ask the function once and return its outputs as a tensor beside the input."""
        given = {name: self._hand_over(value) for name, value in zip(names, values, strict=True)}
        arguments = [given["params"] if self._single else given] if given else []
        with self.meter.running(x.shape[: 2 if self.vectorized else 1].numel()):
            outputs = self.function(*arguments, self._hand_over(x))
        tensor = self._take(outputs).to(x.device)
        # Inside a network the layers around the box set the type; alone its parameters do.
        if x.is_floating_point():
            return tensor.to(x.dtype)
        return tensor.to(values[0].dtype) if values else tensor

    def _take(self, outputs: Any) -> Tensor:
        if isinstance(outputs, Tensor):
            tensor = outputs.detach()
        else:
            array = np.array(outputs, order="C")
            if array.dtype.kind not in "biuf":
                raise TypeError(
                    f"The black box returned {type(outputs).__name__} of {array.dtype}; expected "
                    "an array of real numbers with one row a sample."
                )
            tensor = torch.as_tensor(array)
        if tensor.is_complex():
            raise TypeError(
                f"The black box returned {tensor.dtype}; expected real numbers. Return real and "
                "imaginary parts as columns."
            )
        return tensor

    def _hand_over(self, value: Tensor) -> Arrays:
        copy = value.detach().clone()
        return copy if self._torch else copy.cpu().numpy()

    def extra_repr(self) -> str:
        """Return what torch prints of the box: the function's name."""
        name = getattr(self.function, "__name__", type(self.function).__name__)
        return f"{name}, vectorized={self.vectorized}"


def boxes_of(module: nn.Module) -> list[BlackBox]:
    """Return the black boxes in a module."""
    return [part for part in module.modules() if isinstance(part, BlackBox)]


class _Call(torch.autograd.Function):
    """The call as one torch operation, so that ``torch.func.vmap`` knows its batch rule."""

    @staticmethod
    def forward(box: BlackBox, names: tuple[str, ...], x: Tensor, *values: Tensor) -> Tensor:
        if box.vectorized:  # one set is a stack of one
            data = x if values else x[None]
            return box.call(names, data, tuple(value[None] for value in values))[0]
        return box.call(names, x, values)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def vmap(
        info: Any, in_dims: Any, box: BlackBox, names: tuple[str, ...], x: Tensor, *values: Tensor
    ) -> tuple[Tensor, int]:
        """Give a vectorized function K parameter sets at once; ask another one K times."""
        size = info.batch_size
        stacked = [
            value.expand(size, *value.shape) if dim is None else value.movedim(dim, 0)
            for value, dim in zip(values, in_dims[3:], strict=True)
        ]
        batches = x if in_dims[2] is None else x.movedim(in_dims[2], 0)
        if box.vectorized:
            return box.call(names, batches, tuple(stacked)), 0
        lanes = [batches] * size if in_dims[2] is None else batches
        calls = zip(lanes, *stacked, strict=True)
        return torch.stack([box.call(names, lane, tuple(sets)) for lane, *sets in calls]), 0
