"""The multilayer perceptron, started as in Glorot and Bengio (2010): the default for tables."""

from collections.abc import Callable, Sequence
from numbers import Integral

from torch import Tensor, nn


class MLP(nn.Module):
    """Multilayer perceptron: linear layers with an activation between each two.

    Parameters
    ----------
    n_features_in : int
        Number of features of a sample, flattened.

    n_outputs : int
        Number of outputs.

    hidden : int or tuple of int, default=(32,)
        Width of each hidden layer; an int is one layer. The empty tuple makes a linear model.

    activation : class of torch.nn.Module, default=torch.nn.Tanh
        Called without arguments, once for each hidden layer.

    Raises
    ------
    ValueError
        If a width in `hidden` is not a positive integer.

    TypeError
        If `activation` is a module rather than a class.

    Notes
    -----
    Weights start from Glorot's uniform distribution, biases at zero. Inputs are of shape
    (n_samples, ...), with n_features_in values in each sample; outputs are of shape
    (n_samples, n_outputs).

    References
    ----------
    X. Glorot, Y. Bengio. "Understanding the difficulty of training deep feedforward neural
    networks", AISTATS 2010, Eq. (16).

    Examples
    --------
    >>> import torch
    >>> from zoestim.models import MLP
    >>> net = MLP(64, 10, hidden=(32, 16))
    >>> net(torch.zeros(5, 8, 8)).shape
    torch.Size([5, 10])
    """

    def __init__(
        self,
        n_features_in: int,
        n_outputs: int,
        hidden: int | Sequence[int] = (32,),
        activation: Callable[[], nn.Module] = nn.Tanh,
    ) -> None:
        super().__init__()
        if isinstance(activation, nn.Module):
            raise TypeError(
                f"MLP needs activation to be a class, such as torch.nn.Tanh; got the module "
                f"{activation}. Pass its class, or functools.partial(class, ...) for arguments."
            )
        widths = (n_features_in, *_hidden_widths(hidden), n_outputs)
        layers: list[nn.Module] = [nn.Flatten()]
        for i in range(len(widths) - 1):
            if i > 0:
                layers.append(activation())
            linear = nn.Linear(widths[i], widths[i + 1])
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)
            layers.append(linear)
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs, of shape (n_samples, n_outputs)."""
        return self.layers(x)


def _hidden_widths(hidden: int | Sequence[int]) -> tuple[int, ...]:
    """Return `hidden` as a tuple, once every width in it is known to be a positive integer."""
    widths = tuple(hidden) if isinstance(hidden, Sequence) else (hidden,)
    if not all(isinstance(width, Integral) and width > 0 for width in widths):
        raise ValueError(
            f"MLP needs hidden to be a positive integer or a tuple of them; got {hidden!r}. "
            "Pass hidden=() for a linear model."
        )
    return widths
