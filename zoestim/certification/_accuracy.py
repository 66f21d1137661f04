"""What certificates are worth where the truth is known: accuracy at a radius, mean radius."""

from __future__ import annotations

from typing import Any

import numpy as np


def certified_accuracy(y_true: Any, labels: Any, radii_found: Any, radii: Any) -> Any:
    """Return the share of all samples whose label is right and certified at a radius.

    Parameters
    ----------
    y_true : array-like of shape (n_samples,)
        The true labels.
    labels : array-like of shape (n_samples,)
        The certified labels, of the same kind. Where the classifier abstained, whatever is
        there counts as wrong: its radius, 0, tells.
    radii_found : array-like of shape (n_samples,)
        The certified radii: above 0, and 0 where the classifier abstained.
    radii : float or array-like of float
        Where to look at the accuracy. A radius that was found counts at itself.

    Returns
    -------
    float or ndarray of float64, of the shape of `radii`

    Raises
    ------
    ValueError
        If there is no sample, or lengths differ.

    Examples
    --------
    >>> from zoestim.certification import certified_accuracy
    >>> y, label, radius = [0, 1, 1, 1], [0, 1, 0, -1], [0.5, 0.25, 0.75, 0.0]
    >>> certified_accuracy(y, label, radius, [0, 0.25, 0.5, 0.75])
    array([0.5 , 0.5 , 0.25, 0.  ])
    """
    worth = right_radii(y_true, labels, radii_found)
    asked = np.asarray(radii, dtype=np.float64)
    # How many are at least as large, without a table of samples by radii.
    below = np.searchsorted(np.sort(worth), asked, side="left")
    found = (len(worth) - np.maximum(below, np.count_nonzero(worth <= 0))) / len(worth)
    return float(found) if found.ndim == 0 else found


def average_certified_radius(y_true: Any, labels: Any, radii_found: Any) -> float:
    """Return the mean over all samples of the radius, which is 0 where the label is wrong.

    Parameters
    ----------
    y_true : array-like of shape (n_samples,)
        The true labels.
    labels : array-like of shape (n_samples,)
        The certified labels.
    radii_found : array-like of shape (n_samples,)
        The certified radii, 0 where the classifier abstained.

    Returns
    -------
    float
        In the units of X. It is the area below the curve of certified accuracy.

    Raises
    ------
    ValueError
        If there is no sample, or lengths differ.

    References
    ----------
    Zhai et al., MACER: attack-free and scalable robust training via maximizing certified
    radius, ICLR 2020.

    Examples
    --------
    >>> from zoestim.certification import average_certified_radius
    >>> average_certified_radius([0, 1, 1, 1], [0, 1, 0, -1], [0.5, 0.25, 0.75, 0.0])
    0.1875
    """
    return float(right_radii(y_true, labels, radii_found).mean())


def right_radii(y_true: Any, labels: Any, radii_found: Any) -> np.ndarray:
    """Return the radii, with 0 where the label is wrong or the radius is no number.

    Raises
    ------
    ValueError
        If there is no sample, or lengths differ.
    """
    truth, found = np.asarray(y_true), np.asarray(labels)
    radii = np.asarray(radii_found, dtype=np.float64)
    if not truth.shape == found.shape == radii.shape or truth.ndim != 1 or not len(truth):
        raise ValueError(
            "The true labels, the certified ones and their radii must have the shape "
            f"(n_samples,), with at least one sample; got {truth.shape}, {found.shape} and "
            f"{radii.shape}."
        )
    return np.where((found == truth) & (radii > 0), radii, 0.0)
