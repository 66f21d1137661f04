"""From votes to radii: the bound of Clopper and Pearson, and CERTIFY of Cohen et al."""

from __future__ import annotations

import contextlib
import math
import warnings
from typing import Any

import numpy as np
from scipy.stats import beta, norm
from sklearn.utils import Bunch

from zoestim.certification._checks import LARGEST, check_alpha, check_counts, check_noise_std

BELOW_ONE = float(np.nextafter(1, 0))  # a bound that rounding made 1 would certify every radius


def clopper_pearson_lower(k: Any, n: Any, alpha: float) -> Any:
    """Bound a probability from below: ``k`` of ``n`` independent draws were hits.

    The bound is exact and one-sided: whatever the probability, at most a share `alpha` of
    bounds lies above it.

    Parameters
    ----------
    k : int or array-like of int
        The number of hits.
    n : int or array-like of int
        The number of draws; `k` and `n` are broadcast.
    alpha : float
        The probability, above 0 and below 1, that the bound is wrong. A two-sided interval at
        the level ``1 - 2 * alpha`` has the same lower end.

    Returns
    -------
    float or ndarray of float64
        The bound, from 0 (where no draw was a hit) to just below 1.

    Raises
    ------
    TypeError, ValueError
        If counts are no whole numbers, `k` is above `n`, `n` is below 1, or `alpha` is not
        between 0 and 1.

    References
    ----------
    Clopper and Pearson, The use of confidence or fiducial limits illustrated in the case of
    the binomial, Biometrika 26 (1934).

    Examples
    --------
    >>> from zoestim import clopper_pearson_lower
    >>> round(clopper_pearson_lower(990, 1000, alpha=0.05), 6)
    0.983097
    >>> clopper_pearson_lower([0, 80, 100], 100, alpha=0.001).round(6)
    array([0.      , 0.653557, 0.933254])
    """
    alpha = check_alpha(alpha)
    hits, draws = check_counts(k, "k"), check_counts(n, "n", least=1)
    if np.any(hits > draws):
        raise ValueError(
            "k, the number of hits, must be at most n, the number of draws; got "
            f"k = {hits.max():g} and n = {draws.min():g}."
        )
    # The distribution does not exist for no hits: scipy would give NaN, which is not below 1/2.
    found = np.where(hits > 0, beta.ppf(alpha, np.maximum(hits, 1), draws - hits + 1), 0.0)
    found = np.minimum(found, BELOW_ONE)
    return float(found) if found.ndim == 0 else found


def certify_counts(
    counts0: Any, counts: Any, noise_std: float, alpha: float = 0.001, *, n: Any = None
) -> Bunch:
    """Certify radii from votes: CERTIFY of Cohen et al.

    Within the radius around a sample, in the Euclidean norm, the smoothed classifier keeps its
    label. The first votes choose the class, the second ones bound its probability from below;
    where the bound is not above one half, there is no label: it abstains.

    Parameters
    ----------
    counts0 : array-like of int of shape (n_samples, n_classes) or (n_classes,)
        The votes that choose the class.
    counts : array-like of int of the same shape
        Votes of other, independent draws. With the votes of `counts0` again, or with the same
        seed, radii are wrong far more often than `alpha` says.
    noise_std : float
        The standard deviation of the noise, in the units of X.
    alpha : float, default=0.001
        The probability, for each sample, that its radius is wrong.
    n : int or array-like of int of shape (n_samples,), optional
        The number of draws behind `counts`. Draws that gave no vote, because a query failed,
        count against the class; without `n` they would be left out and radii be too large.
        By default every draw gave a vote.

    Returns
    -------
    Bunch
        With one entry for each sample, or scalars for `counts` of shape (n_classes,):

        - ``label``, int64: the index of the class, -1 where it abstains;
        - ``radius``, float64: in the units of X, above 0, and 0.0 where it abstains;
        - ``abstained``, bool;
        - ``p_lower``, float64: the bound of the probability of the chosen class, also where
          it abstains.

    Raises
    ------
    TypeError, ValueError
        If counts are no whole numbers or their shapes differ, `n` is less than the votes, or
        `noise_std` or `alpha` is out of range.

    Notes
    -----
    The radius is ``noise_std * Phi^-1(p_lower)``. Each sample's holds with the probability
    ``1 - alpha``; that all of a set hold together has a smaller one. Noise is added to the
    input as the classifier is given it: what follows, such as clipping, denoising or scaling,
    belongs to the classifier. The theorem is one of real numbers and ignores that ``x + noise``
    is rounded.

    References
    ----------
    Cohen, Rosenfeld and Kolter, Certified adversarial robustness via randomized smoothing,
    ICML 2019.

    Examples
    --------
    >>> from zoestim import certify_counts
    >>> found = certify_counts([[60, 40], [2, 98]], [[549, 451], [10, 990]], noise_std=0.5)
    >>> found.label, found.radius.round(3)
    (array([-1,  1]), array([0.   , 0.989]))

    Ten draws that failed make the second radius smaller:

    >>> failed = certify_counts([2, 98], [0, 990], noise_std=0.5, n=1000)
    >>> bool(failed.radius < certify_counts([2, 98], [0, 990], noise_std=0.5).radius)
    True
    """
    noise_std = check_noise_std(noise_std)
    first, second = check_counts(counts0, "counts0"), check_counts(counts, "counts")
    if first.shape != second.shape or first.ndim not in (1, 2) or not first.shape[-1]:
        raise ValueError(
            "counts0 and counts must both have the shape (n_samples, n_classes) or (n_classes,); "
            f"got {first.shape} and {second.shape}."
        )
    votes = second.sum(axis=-1)
    draws = np.maximum(votes, 1) if n is None else check_counts(n, "n", least=1)
    if draws.shape not in ((), votes.shape) or np.any(draws < votes):
        raise ValueError(
            "n must be the number of draws behind counts, for all samples or each of them, at "
            f"least the sum of the votes; got n = {n!r} for up to {votes.max(initial=0):g} votes "
            f"of samples of shape {votes.shape}."
        )
    top = np.argmax(first, axis=-1)
    hits = np.take_along_axis(second, top[..., None], axis=-1)[..., 0]
    # Where no first draw gave a vote, the class of the first column was not chosen by any.
    p_lower = np.where(first.any(axis=-1), clopper_pearson_lower(hits, draws, alpha), 0.0)
    abstained = ~(p_lower > 0.5)
    return Bunch(
        label=np.where(abstained, -1, top)[()],
        radius=np.where(abstained, 0.0, noise_std * norm.ppf(p_lower))[()],
        abstained=abstained[()],
        p_lower=p_lower[()],
    )


def max_certifiable_radius(n: Any, alpha: float, noise_std: float) -> Any:
    """Return the largest radius that `n` draws can certify: that of `n` votes for one class.

    Parameters
    ----------
    n : int or array-like of int
        The number of draws behind the bound.
    alpha : float
        The probability that a radius is wrong.
    noise_std : float
        The standard deviation of the noise, in the units of X.

    Returns
    -------
    float or ndarray of float64
        ``noise_std * Phi^-1(alpha**(1/n))``, or 0.0 where so few draws certify nothing.

    Raises
    ------
    TypeError, ValueError
        If `n` is no whole number of at least 1, or `alpha` or `noise_std` is out of range.

    Examples
    --------
    >>> from zoestim import max_certifiable_radius
    >>> max_certifiable_radius([9, 100, 1000, 10_000], alpha=0.001, noise_std=0.25).round(3)
    array([0.   , 0.375, 0.616, 0.8  ])
    """
    p_lower = np.asarray(clopper_pearson_lower(n, n, alpha))
    found = check_noise_std(noise_std) * np.where(p_lower > 0.5, norm.ppf(p_lower), 0.0)
    return float(found) if found.ndim == 0 else found


def min_draws(radius: float, noise_std: float, alpha: float = 0.001) -> int:
    """Return the least number of draws by which a radius can be certified, were all votes one.

    Parameters
    ----------
    radius : float
        In the units of X, at least 0.
    noise_std : float
        The standard deviation of the noise, in the units of X.
    alpha : float, default=0.001
        The probability that the radius is wrong.

    Returns
    -------
    int

    Raises
    ------
    ValueError
        If that is more than 2**53, as for radii of more than 8 times `noise_std`, or an
        argument is out of range.

    Examples
    --------
    >>> from zoestim.certification import min_draws
    >>> min_draws(0.75, noise_std=0.25), min_draws(0.75, noise_std=0.5)
    (5114, 100)
    """
    noise_std, alpha = check_noise_std(noise_std), check_alpha(alpha)
    if not 0 <= radius < math.inf:
        raise ValueError(f"radius must be a finite number of at least 0; got {radius!r}.")
    # log(alpha) / n <= log(Phi(radius / noise_std)) < 0
    about = math.log(alpha) / min(float(norm.logcdf(radius / noise_std)), -math.ulp(0.0))
    if not about < LARGEST - 1:
        raise ValueError(
            f"radius = {radius:g} is {radius / noise_std:.3g} times noise_std = {noise_std:g}, "
            "beyond what 2**53 draws certify. Pass a larger noise_std."
        )
    # Rounding may be off by one, and the radius 0 asks for a bound above one half, not at it.
    for n in range(max(1, math.ceil(about) - 1), math.ceil(about) + 1):
        if (most := max_certifiable_radius(n, alpha, noise_std)) >= radius and most > 0:
            return n
    return math.ceil(about) + 1


def warn_unreachable(radii: Any, n: int, alpha: float, noise_std: float) -> None:
    """Warn if one of the radii is beyond what `n` draws can certify.

    It is meant to be called by what the user calls: the warning points at the caller's caller.

    Parameters
    ----------
    radii : float or array-like of float
        The radii that are asked about, in the units of X.
    n : int
        The number of draws behind the bound.
    alpha : float
        The probability that a radius is wrong.
    noise_std : float
        The standard deviation of the noise, in the units of X.

    Warns
    -----
    UserWarning
        With the largest radius that can be reached, and the number of draws that it would
        take.

    Examples
    --------
    >>> import warnings
    >>> from zoestim.certification import warn_unreachable
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     warnings.simplefilter("always")
    ...     warn_unreachable([0.25, 0.75], n=1000, alpha=0.001, noise_std=0.25)
    >>> print(caught[0].message)
    The radius 0.75 cannot be certified: 1000 draws reach at most 0.616, even if all vote alike.
    Pass n of at least 5114, or a larger noise_std.
    """
    largest = float(np.max(radii, initial=0.0))
    most = max_certifiable_radius(n, alpha, noise_std)
    if largest <= most:
        return
    advice = "a larger noise_std."
    with contextlib.suppress(ValueError):  # no number of draws may reach it
        advice = f"n of at least {min_draws(largest, noise_std, alpha)}, or {advice}"
    warnings.warn(
        f"The radius {largest:g} cannot be certified: {n} draws reach at most {most:.3g}, even if "
        f"all vote alike. Pass {advice}",
        UserWarning,
        stacklevel=3,
    )
