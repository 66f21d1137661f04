"""The network that corrects a solver: Um et al. (2020), and DeepZero, Sec. 6.2."""

from collections.abc import Sequence
from numbers import Integral
from typing import Literal

from torch import Tensor, nn

CONVOLUTIONS: dict[int, type[nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
RINGS: dict[int, type[nn.Module]] = {
    1: nn.CircularPad1d,
    2: nn.CircularPad2d,
    3: nn.CircularPad3d,
}


class CorrectorCNN(nn.Module):
    """Convolutional network from a state, and its conditions, to a correction of the state.

    One convolution and a ReLU for each hidden width, then a convolution to the channels of the
    state; nothing shrinks the grid. A new corrector corrects nothing: its last convolution is
    zero, so that training starts at the solver as it is.

    Parameters
    ----------
    n_channels : int
        Number of channels of a state, and of its correction.

    n_conditions : int, default=0
        Number of channels behind them, such as a Reynolds number at every place.

    hidden : int or tuple of int, default=(8,)
        Channels of each hidden convolution; an int is one layer, the empty tuple a linear model.

    kernel_size : int, default=5
        Width of every convolution, odd, along each dimension.

    n_dims : {1, 2, 3}, default=2
        Number of dimensions of the grid.

    padding : {"zeros", "circular"}, default="zeros"
        What is beyond the grid: zeros, or its other side, for periodic domains.

    zero_init : bool, default=True
        Whether the last convolution starts at zero, rather than as torch starts it.

    Raises
    ------
    ValueError
        If a parameter is none of the above.

    Notes
    -----
    Inputs are of shape (n, n_channels + n_conditions, *grid), outputs of shape
    (n, n_channels, *grid). For a flow in the plane with a Reynolds number,
    ``CorrectorCNN(2, 1)`` has 1,010 parameters and ``CorrectorCNN(2, 1, hidden=(32, 64))``
    56,898, the number of the paper. As the last convolution is zero, no other has a gradient in
    the very first step. With ``padding="circular"``, a side of the grid must not be shorter than
    half the kernel.

    References
    ----------
    K. Um, R. Brand, Y. Fei, P. Holl, N. Thuerey. "Solver-in-the-loop: learning from
    differentiable physics to interact with iterative PDE-solvers", NeurIPS 2020, Appendix B.1.

    A. Chen et al. "DeepZero: scaling up zeroth-order optimization for deep model training",
    ICLR 2024, Sec. 6.2 and Appendix H.

    Examples
    --------
    >>> import torch
    >>> from zoestim.models import CorrectorCNN
    >>> net = CorrectorCNN(2, 1)
    >>> sum(parameter.numel() for parameter in net.parameters())
    1010
    >>> net(torch.ones(4, 3, 32, 16)).shape
    torch.Size([4, 2, 32, 16])
    """

    def __init__(
        self,
        n_channels: int,
        n_conditions: int = 0,
        *,
        hidden: int | Sequence[int] = (8,),
        kernel_size: int = 5,
        n_dims: int = 2,
        padding: Literal["zeros", "circular"] = "zeros",
        zero_init: bool = True,
    ) -> None:
        super().__init__()
        widths = tuple(hidden) if isinstance(hidden, Sequence) else (hidden,)
        _check_counts(n_channels, n_conditions, widths)
        _check_convolution(kernel_size, n_dims, padding)
        channels = [int(n) for n in (n_channels + n_conditions, *widths, n_channels)]
        layers: list[nn.Module] = []
        for i in range(len(channels) - 1):
            if i > 0:
                layers.append(nn.ReLU())
            layers += _padded_convolution(channels[i : i + 2], int(kernel_size), n_dims, padding)
        if zero_init:
            for parameter in layers[-1].parameters():
                nn.init.zeros_(parameter)
        self.net = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Return the correction, of shape (n, n_channels, *grid)."""
        return self.net(x)


def _padded_convolution(
    channels: list[int], kernel_size: int, n_dims: int, padding: str
) -> list[nn.Module]:
    """Return what keeps the grid; a ring is closed by a module, for which queries have a rule."""
    edge, convolution = kernel_size // 2, CONVOLUTIONS[n_dims]
    if padding == "zeros":
        return [convolution(*channels, kernel_size, padding=edge)]
    return [RINGS[n_dims](edge), convolution(*channels, kernel_size)]


def _check_counts(n_channels: int, n_conditions: int, widths: tuple[int, ...]) -> None:
    """ValueError unless these are numbers of channels."""
    for name, value, least in (("n_channels", n_channels, 1), ("n_conditions", n_conditions, 0)):
        if not isinstance(value, Integral) or value < least:
            raise ValueError(
                f"CorrectorCNN needs {name} to be an integer of at least {least}; got {value!r}."
            )
    if not all(isinstance(width, Integral) and width > 0 for width in widths):
        raise ValueError(
            f"CorrectorCNN needs hidden to be a positive integer or a tuple of them; got "
            f"{widths!r}. Pass hidden=() for a linear model."
        )


def _check_convolution(kernel_size: int, n_dims: int, padding: str) -> None:
    """ValueError unless there is such a convolution, which keeps the grid as it is."""
    if not isinstance(kernel_size, Integral) or kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(
            "CorrectorCNN needs an odd kernel_size, of at least 1, for the correction to lie on "
            f"the grid of the state; got {kernel_size!r}."
        )
    if n_dims not in tuple(CONVOLUTIONS):
        raise ValueError(
            f"CorrectorCNN needs n_dims, the number of dimensions of the grid, to be 1, 2 or 3; "
            f"got {n_dims!r}."
        )
    if padding not in ("zeros", "circular"):
        raise ValueError(f"CorrectorCNN needs padding 'zeros' or 'circular'; got {padding!r}.")
