"""GraSP scores, Eq. (2), and their form from function values, ZO-GraSP, Eq. (3)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def grasp_scores(theta: Tensor, gradient: Callable[[Tensor], Tensor], smoothing: float) -> Tensor:
    """Return ZO-GraSP scores, Eq. (3): ``-theta * (g(theta + mu g) - g(theta)) / mu``.

    Parameters
    ----------
    theta : Tensor of shape (d,)
        The parameters.
    gradient : callable
        ``theta -> g`` of shape (d,), an estimate or exact. It is called twice. A
        randomised estimate must use the same directions both times: the difference of
        two independent ones is mostly noise.
    smoothing : float
        The step mu of the Hessian-gradient product.

    Returns
    -------
    Tensor of shape (d,)
        A large magnitude marks a weight whose removal changes the gradient flow much.

    References
    ----------
    Chen et al., DeepZero, ICLR 2024, Eq. (3).

    Examples
    --------
    The loss ``sum(theta**2)`` has gradient 2 theta and Hessian 2 I:

    >>> import torch
    >>> from zoestim.sparsity import grasp_scores
    >>> theta = torch.tensor([1.0, -3.0], dtype=torch.float64)
    >>> grasp_scores(theta, lambda t: 2 * t, smoothing=0.5)
    tensor([ -4., -36.], dtype=torch.float64)
    """
    base = gradient(theta)
    moved = gradient(theta + smoothing * base)
    return -theta * (moved - base) / smoothing


def first_order_grasp_scores(theta: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
    """Return GraSP scores by automatic differentiation, Eq. (2): ``-theta * (H g)``.

    For comparison with :func:`grasp_scores` where the loss can be differentiated.

    Parameters
    ----------
    theta : Tensor of shape (d,)
        The parameters.
    loss : callable
        ``theta -> scalar Tensor``, twice differentiable by torch.

    Returns
    -------
    Tensor of shape (d,)

    References
    ----------
    Wang, Zhang and Grosse, GraSP, ICLR 2020; DeepZero, Eq. (2).

    Examples
    --------
    >>> import torch
    >>> from zoestim.sparsity import first_order_grasp_scores
    >>> theta = torch.tensor([1.0, -3.0], dtype=torch.float64)
    >>> first_order_grasp_scores(theta, lambda t: (t**2).sum())
    tensor([ -4., -36.], dtype=torch.float64)
    """
    gradient = torch.func.grad(loss)
    with torch.enable_grad():
        value = gradient(theta)
        # Reverse over reverse: forward mode has no rule for some pooling layers.
        product = torch.func.grad(lambda t: (gradient(t) * value).sum())(theta)
    return -theta * product
