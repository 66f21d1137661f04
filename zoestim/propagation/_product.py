"""One changed channel behind a convolution: its shifts times a row of weights each."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from zoestim.propagation._change import Dense
from zoestim.propagation._made import Made
from zoestim.propagation._window import Window


class Product(Dense):
    """Shifts of one channel of the input times their weights; multiplied when asked.

    As a whole it lies in memory with the channels last, for the next convolution; lane by lane,
    with the batch last, in rows long enough to be worked on.

    Parameters
    ----------
    slab : Tensor of shape (k, n, *size)
        The change of one channel of the input.
    window : Window
        How the convolution moves over it.
    rows : Tensor of shape (1 or k, n_taps, n_outputs)
        The weights of that channel.
    multiply : callable
        ``multiply(product, a, b)`` returns the product of two tensors.
    """

    slab: Tensor
    window: Window
    rows: Tensor
    multiply: Callable[..., Tensor]

    def __init__(self, slab: Tensor, window: Window, rows: Tensor, multiply: Callable[..., Tensor]):
        given = {"slab": slab, "window": window, "rows": rows, "multiply": multiply}
        for name, value in given.items():
            object.__setattr__(self, name, value)

    @property
    def nbytes(self) -> int:
        """How many bytes the values take, or the shifts where there are more of them."""
        n_planes = len(self.slab) * max(self.rows.shape[1:])
        return n_planes * math.prod(self.rest) * self.slab.element_size()

    @cached_property
    def values(self) -> Tensor:  # type: ignore[override]
        """What is added, (k, n, n_outputs, *size)."""
        taps = self.window.patches(self.window.pad(self.slab.contiguous())).flatten(2)
        rows = self.rows.expand(len(self.slab), -1, -1)
        product = self.multiply(torch.bmm, taps.mT, rows)
        return product.unflatten(1, self.rest).movedim(-1, 2)

    @property
    def rest(self) -> tuple[int, ...]:
        """The shape of a plane, the batch first."""
        return (self.slab.shape[1], *self.window.size)

    @property
    def taken(self) -> bool:
        """Whether the values were asked for."""
        return "values" in vars(self)

    @property
    def made(self) -> Made:
        """The same, lane by lane."""
        starts = torch.zeros(len(self.slab), dtype=torch.int64)
        return Made(starts, 1, self.rest, self.slab, self._make, width=self.rows.shape[-1])

    def _make(self, k: int, out: Tensor, onto: Tensor | None) -> None:
        flat = out[0].movedim(1, -1).flatten(1)
        torch.mm(self.rows[k if len(self.rows) > 1 else 0].mT, self._shifts[k], out=flat)
        if onto is not None:
            flat.add_(onto[0].movedim(1, -1).flatten(1))

    def moments(self, z: Tensor) -> Tensor:
        """Return the means of d, d z and d^2 for each lane, (3, k, n_outputs), in float64.

        Parameters
        ----------
        z : Tensor of shape (n_pixels, n_outputs)
            Its pixels in the order (*size, n).
        """
        shifts, (k, n_taps, _) = self._shifts, self._shifts.shape
        gram = torch.bmm(shifts, shifts.mT).double()
        cross = (shifts.flatten(0, 1) @ z).view(k, n_taps, -1).double()
        total = shifts.sum(2, keepdim=True).double()
        rows = self.rows.double()
        square = (rows * (gram @ rows)).sum(1)
        return torch.stack([(rows * total).sum(1), (rows * cross).sum(1), square]) / len(z)

    @cached_property
    def _shifts(self) -> Tensor:
        """The shifts of each lane, (k, n_taps, n_pixels), place by place."""
        places = self.slab.movedim(1, -1).contiguous()
        padded = F.pad(places, [0, 0, *self.window.edges(self.slab.shape[2:])])
        return self.window.shifts(padded.movedim(-1, 1))
