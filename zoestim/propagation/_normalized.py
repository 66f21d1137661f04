"""What a batch normalisation gave, for a pooling that asks for its largest elements alone."""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

from torch import Tensor

from zoestim.propagation._change import Value
from zoestim.propagation._made import Made
from zoestim.propagation._normalization import Normal, moved_by
from zoestim.propagation._pending import Pending, Step
from zoestim.propagation._product import Product
from zoestim.propagation._statistics import normal_places, normal_planes, normalized_rows


class Origin(NamedTuple):
    """What a normalisation was given, and what it does: ``scale * d + slope * z + shift``.

    Parameters
    ----------
    x : Value
        What is normalised, to z.
    normal : Normal
        z, with channels first and the batch last in memory.
    gain : Tensor of shape (n_channels,) or None
        What the normalised value is multiplied by.
    made : Made
        The change d, lane by lane.
    moved : Tensor of shape (3, k, width, 1, ..., 1)
        Scale, slope and shift of each lane's channels.
    """

    x: Value
    normal: Normal
    gain: Tensor | None
    made: Made
    moved: Tensor


class NormalizedSlabs(Made):
    """Slabs that are normalised as they are made.

    Parameters
    ----------
    out : Tensor
        What the normalisation gave in the unperturbed pass.
    made : Made
        What makes them.
    origin : Origin
        What they are made of.
    """

    out: Tensor
    origin: Origin

    def __init__(self, out: Tensor, made: Made, origin: Origin):
        super().__init__(made.starts, made.dim, made.rest, made.like, made.make, made.offsets)
        object.__setattr__(self, "origin", origin)
        object.__setattr__(self, "out", out)


class Normalized(Pending):
    """A product that is normalised when it is asked for, as a whole or lane by lane.

    Parameters
    ----------
    out : Tensor
        What the normalisation gave in the unperturbed pass.
    x : Value
        What is normalised; its change is a :class:`Product`.
    eps : float
        What is added to the variance.
    gain : Tensor of shape (n_channels,) or None
        What the normalised value is multiplied by.
    """

    out: Tensor
    x: Value
    product: Product
    eps: float
    gain: Tensor | None

    def __init__(self, out: Tensor, x: Value, eps: float, gain: Tensor | None):
        given = {"out": out, "x": x, "product": x.change, "eps": eps, "gain": gain}
        for name, value in given.items():
            object.__setattr__(self, name, value)

    @property
    def nbytes(self) -> int:
        """How many bytes the values take."""
        return self.product.nbytes

    @cached_property
    def origin(self) -> Origin:
        """What the lanes are made of."""
        z, inverse = self.x.derived(normal_places, self.eps)
        made, moments = self.product.made, self.product.moments(z)
        moved = moved_by(moments[0], moments[1], moments[2], inverse[0])
        moved = moved if self.gain is None else moved.mul_(self.gain)
        normal = self.x.derived(normal_planes, made.order, self.eps)
        moved = moved.to(z.dtype).view(*moved.shape, *[1] * len(made.rest))
        return Origin(self.x, normal, self.gain, made, moved)

    @cached_property
    def whole(self) -> Pending:
        """The product taken as a whole, to be normalised."""
        return normalized_rows(self.x, self.product.values, True, self.eps, self.gain)

    @property
    def source(self) -> Tensor:  # type: ignore[override]
        """The product."""
        return self.whole.source

    @property
    def n_columns(self) -> int:  # type: ignore[override]
        """How many elements of a lane are in a row."""
        return self.whole.n_columns

    @property
    def owned(self) -> bool:  # type: ignore[override]
        """Whether the source may be overwritten."""
        return self.whole.owned

    @property
    def steps(self) -> tuple[Step, ...]:  # type: ignore[override]
        """The one that normalises."""
        return self.whole.steps
