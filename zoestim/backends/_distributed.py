"""The ranks of a torch.distributed process group, as torchrun starts them."""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Callable, Generator, Sequence
from datetime import timedelta
from functools import cache
from typing import Any, NamedTuple, TypeVar

from zoestim.backends._serial import Answer
from zoestim.backends._shares import equal_shares

Shared = TypeVar("Shared")
Result = TypeVar("Result")
# How long a rank waits for the others, whose share may be a day of simulations. A process that
# ends is noticed at once; who wants another limit makes a gloo group of one's own.
PATIENCE = timedelta(days=7)


class Message(NamedTuple):
    """What a rank tells all others.

    Parameters
    ----------
    kind : str
        What it is doing: all ranks have to do the same.
    about : Any
        What it does it with: all ranks have to have the same.
    value : Any
        What it found out.
    error : Exception or None
        What it could not do.
    """

    kind: str
    about: Any = None
    value: Any = None
    error: Exception | None = None


class DistributedBackend:
    """Each rank runs the same program and answers its share; all of them know all answers.

    Start it with ``torchrun``. Where no process group is there, one is made from the
    environment that ``torchrun`` sets. What is gathered are scalars, which go by gloo also where
    ranks compute on GPUs; every rank then takes the same step. A rank that computes on a GPU
    names its own, as ``device=f"cuda:{os.environ['LOCAL_RANK']}"``.

    Examples
    --------
    >>> from zoestim.backends import DistributedBackend
    >>> backend = DistributedBackend()  # nothing is started before the first query
    """

    own_memory = True

    def map(
        self, function: Answer[Shared, Result], shared: Shared, work: Sequence[float]
    ) -> Generator[tuple[list[int], Result], None, None]:
        """Give the share of each rank, Eq. (5), the same to all of them.

        What is shared may have a method `digest`: ranks for which it differs refuse to go on.

        Raises
        ------
        RuntimeError
            If a rank was lost, or ranks ask different things.
        """
        _, _, rank, size = _group()
        shares = equal_shares(work, size)
        digest = getattr(shared, "digest", str)()
        told = Message("answers queries", (digest, len(work)))
        if shares[rank]:
            told = _outcome(told, lambda: function(shared, shares[rank]))
        for tasks, message in zip(shares, _gathered(told), strict=True):
            if tasks:
                yield tasks, message.value

    def once(self, function: Callable[[], Result]) -> Result:
        """Call the function on the first rank, and tell the others what it returned or raised."""
        distributed, group, rank, _ = _group()
        told = Message("waits for what the first rank alone does")
        _gathered(told)
        held: list[Any] = [_outcome(told, function) if rank == 0 else None]
        with _Loss():
            distributed.broadcast_object_list(held, group=group)
        if held[0].error is not None:
            raise held[0].error
        return held[0].value

    def same(self, value: Any) -> list[Any]:
        """Return the value that each rank has."""
        return [message.value for message in _gathered(Message("compares states", None, value))]

    @property
    def rank(self) -> int:
        """The number of this process."""
        return _group()[2]

    def close(self) -> None:
        """Keep the process group, which belongs to the whole program."""


def _gathered(told: Message) -> list[Message]:
    """Return what each rank tells, and raise what one of them could not do."""
    distributed, group, _, size = _group()
    messages: list[Any] = [None] * size
    with _Loss():
        distributed.all_gather_object(messages, told, group=group)
    kinds = [message.kind for message in messages]
    if len(set(kinds)) > 1:
        raise RuntimeError(
            "The ranks do different things: "
            f"{', '.join(f'rank {rank} {kind}' for rank, kind in enumerate(kinds))}; expected all "
            "of them to run the same program. Give every rank the same calls and the same data."
        )
    abouts = [message.about for message in messages]
    if any(about != abouts[0] for about in abouts):
        wrong = [rank for rank, about in enumerate(abouts) if about != abouts[0]]
        raise RuntimeError(
            f"The ranks {wrong} do not ask what rank 0 asks: their data, parameters, queries or "
            "loss differ from its own. Give every rank the same data, parameters, libraries and "
            "kind of processor."
        )
    for message in messages:
        if message.error is not None:
            raise message.error
    return messages


def _outcome(told: Message, function: Callable[[], Any]) -> Message:
    """Return a message with what a function returned or raised, such that it can be sent."""
    try:
        value = function()
        pickle.loads(pickle.dumps(value))
        return told._replace(value=value)
    except Exception as error:
        return told._replace(error=_sendable(error))


def _sendable(error: Exception) -> Exception:
    """Return an error that survives the way: itself, or without what it holds."""
    for make in (lambda: error, lambda: type(error)(str(error))):
        with contextlib.suppress(Exception):
            found = make()
            pickle.loads(pickle.dumps(found))
            return found
    return RuntimeError(f"{type(error).__name__}: {error}")


class _Loss:
    """Says what happened when a rank is gone, of which gloo tells its connection alone."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, RuntimeError):
            _, _, rank, size = _group()
            raise RuntimeError(
                f"Rank {rank} of {size} waited for the others, of which one is gone or took too "
                f"long ({str(error).splitlines()[0]}). Look at what ended it, and start all ranks "
                "again: a fit with checkpoint= goes on."
            ) from error


def _group() -> tuple[Any, Any, int, int]:
    """Return torch.distributed, the group that messages go by, this rank and the number of all."""
    import torch.distributed as distributed

    if not distributed.is_available():
        raise RuntimeError(
            'backend="distributed" needs torch.distributed, which this torch was built without.'
        )
    if not distributed.is_initialized():
        if not distributed.is_torchelastic_launched():
            raise RuntimeError(
                'backend="distributed" found no process group; expected a program started by '
                "torchrun, as in: torchrun --nproc-per-node 4 train.py. Or call "
                "torch.distributed.init_process_group first."
            )
        distributed.init_process_group("gloo", timeout=PATIENCE)
    group = _messenger(distributed.group.WORLD)
    return distributed, group, distributed.get_rank(), distributed.get_world_size()


@cache
def _messenger(world: Any) -> Any:
    """Return a group that carries objects between processes without a GPU: gloo."""
    import torch.distributed as distributed

    if distributed.get_backend(world) == "gloo":
        return world
    return distributed.new_group(backend="gloo", timeout=PATIENCE)
