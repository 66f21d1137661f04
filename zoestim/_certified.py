"""Predictions of a smoothed classifier: by majority under noise, with radii that are certain."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.utils import Bunch
from sklearn.utils.validation import check_consistent_length, check_is_fitted

from zoestim.certification import (
    average_certified_radius,
    certified_accuracy,
    certify_counts,
    check_alpha,
    check_integer,
    count_votes,
    warn_unreachable,
)
from zoestim.evaluation import Asking, Patience, QueryError, draw_seed, shared_generator
from zoestim.training import asking_of

ALPHA = 1e-3  # Cohen et al., 2019, Sec. 4
N_SELECTION = 100  # draws that choose the class, ibid.
N_ESTIMATION = 1000


class CertifiedPrediction:
    """What a smoothed classifier predicts and certifies.

    A subclass gives `_noisy_classifier` and `_as_samples`, and has `classes_`, `noise_std`,
    `n_samples`, `query_batch_size` and `_vote_seed`.
    """

    classes_: np.ndarray
    noise_std: float
    n_samples: int
    query_batch_size: int
    backend: Any
    _vote_seed: int

    def _noisy_classifier(self, patience: Patience, defended: bool = True) -> Any:
        """Return what classifies noisy samples: from an array to indices of classes."""
        raise NotImplementedError

    def _as_samples(self, X: Any) -> np.ndarray:
        """Return samples as an array of floats, if they are like those of `fit`."""
        raise NotImplementedError

    def predict(self, X: Any) -> np.ndarray:
        """Predict by majority vote of `n_samples` noisy copies; it never abstains.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            Samples, laid out as in `fit`.

        Returns
        -------
        ndarray of shape (n_samples,)
            Class labels.
        """
        shares = self.predict_proba(X)
        return self.classes_[shares.argmax(1)]

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return the shares of the votes of `n_samples` noisy copies.

        All samples see the same noise, drawn once a fit: predictions do not depend on the order
        of the samples. It is known to who knows `random_state`; :meth:`certify` draws its own.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            Samples, laid out as in `fit`.

        Returns
        -------
        ndarray of shape (n_samples, n_classes)
            In the order of `classes_`.

        Raises
        ------
        QueryError
            If the black box failed on all copies of a sample.
        """
        check_is_fitted(self)
        X = self._as_samples(X)
        with asking_of(self) as asking:
            votes = self._votes(asking, X, self.n_samples, self._vote_seed, shared=True)
        total = votes.sum(1, keepdims=True)
        if not total.all():
            raise QueryError(
                f"The black box failed on all {self.n_samples} noisy copies of sample "
                f"{int((total == 0).argmax())}; expected scores or labels of at least one. Look at "
                "what it returns for X as it is."
            )
        return votes / total

    def certify(
        self,
        X: Any,
        n0: int = N_SELECTION,
        n: int = N_ESTIMATION,
        alpha: float = ALPHA,
        random_state: Any = None,
        defended: bool = True,
    ) -> Bunch:
        """Certify an L2 radius around each sample in which the prediction cannot change.

        Each certificate holds with probability of at least ``1 - alpha``, each for itself, for
        the classifier that votes over all noise; what `predict` says may differ where the vote is
        close.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            Samples, laid out as in `fit`.
        n0 : int, default=100
            Noisy copies that choose the class.
        n : int, default=1000
            Other noisy copies, which bound its probability. It bounds the radius too, see
            :func:`max_certifiable_radius`.
        alpha : float, default=0.001
            The probability with which a certificate may fail.
        random_state : int, RandomState instance or None, default=None
            Draws the noise; None draws it anew each time.
        defended : bool, default=True
            Whether the denoiser is used; False certifies the black box alone.

        Returns
        -------
        Bunch
            - label : ndarray of shape (n_samples,), the class of the most votes;
            - radius : ndarray of float64, in the units of X; 0 where it abstained;
            - abstained : ndarray of bool, where no class could be shown to have the majority;
            - p_lower : ndarray, the lower bound of the class's probability;
            - counts : ndarray of shape (n_samples, n_classes), the votes of the `n` copies;
            - n_queries : int, how many samples the black box was asked about.

        Notes
        -----
        A copy on which the black box fails counts against the class. The sum of a sample and noise
        is rounded, which the theorem does not know of [2]_.

        References
        ----------
        .. [1] Cohen, Rosenfeld, Kolter, Certified adversarial robustness via randomized
           smoothing, ICML 2019, Sec. 3.2, CERTIFY.
        .. [2] Voracek, Hein, Sound randomized smoothing in floating-point arithmetic, ICLR 2023.
        """
        check_is_fitted(self)
        X = self._as_samples(X)
        n0, n, alpha = check_integer(n0, "n0", 1), check_integer(n, "n", 1), check_alpha(alpha)
        with asking_of(self) as asking:
            generator = shared_generator(random_state, asking.backend)
            seeds = draw_seed(generator), draw_seed(generator)
            counts0 = self._votes(asking, X, n0, seeds[0], defended=defended)
            counts = self._votes(asking, X, n, seeds[1], defended=defended)
        found = certify_counts(counts0, counts, self.noise_std, alpha, n=n)
        return Bunch(
            label=self.classes_[counts0.argmax(1)],
            radius=found.radius,
            abstained=found.abstained,
            p_lower=found.p_lower,
            counts=counts,
            n_queries=len(X) * (n0 + n),
        )

    def predict_certified(
        self,
        X: Any,
        n0: int = N_SELECTION,
        n: int = N_ESTIMATION,
        alpha: float = ALPHA,
        random_state: Any = None,
        abstain_label: Any = -1,
    ) -> np.ndarray:
        """Predict what can be certified, and say so where nothing can.

        Parameters
        ----------
        X, n0, n, alpha, random_state
            See :meth:`certify`.
        abstain_label : default=-1
            Stands for no prediction; any value that is no class, such as None.

        Returns
        -------
        ndarray of shape (n_samples,)
            Class labels and `abstain_label`; of dtype object where the two have no common type.

        Raises
        ------
        ValueError
            If `abstain_label` is a class.
        """
        check_is_fitted(self)
        if np.ndim(abstain_label):
            raise ValueError(
                f"abstain_label={abstain_label!r} is several; expected one value for all samples, "
                "such as None."
            )
        if abstain_label in self.classes_.tolist():
            raise ValueError(
                f"abstain_label={abstain_label!r} is one of the classes; expected a value that is "
                f"none of {self.classes_.tolist()}, such as None."
            )
        found = self.certify(X, n0, n, alpha, random_state)
        kind, abstain = found.label.dtype, np.asarray(abstain_label).dtype
        common = np.result_type(kind, abstain) if kind.kind == abstain.kind else np.dtype(object)
        labels = found.label.astype(common)
        labels[found.abstained] = abstain_label
        return labels

    def certified_accuracy(
        self,
        X: Any,
        y: Any,
        radii: Any,
        n0: int = N_SELECTION,
        n: int = N_ESTIMATION,
        alpha: float = ALPHA,
        random_state: Any = None,
    ) -> np.ndarray:
        """Return the share of samples that are certified as their class, at each radius.

        Parameters
        ----------
        X, n0, n, alpha, random_state
            See :meth:`certify`.
        y : array-like of shape (n_samples,)
            The true classes.
        radii : array-like of shape (n_radii,)
            The least radii, in the units of X. At 0 it is no plain accuracy: where
            :meth:`certify` abstains is wrong too.

        Returns
        -------
        ndarray of shape (n_radii,)
            Of all samples; one that is abstained on counts as wrong.

        Warns
        -----
        UserWarning
            If `n`, `alpha` and `noise_std` can certify no radius that large.
        """
        check_is_fitted(self)
        check_consistent_length(X, y)
        warn_unreachable(radii, n, alpha, self.noise_std)
        found = self.certify(X, n0, n, alpha, random_state)
        return certified_accuracy(y, found.label, found.radius, radii)

    def average_certified_radius(
        self,
        X: Any,
        y: Any,
        n0: int = N_SELECTION,
        n: int = N_ESTIMATION,
        alpha: float = ALPHA,
        random_state: Any = None,
    ) -> float:
        """Return the mean of the certified radii, of wrong predictions zero.

        Parameters
        ----------
        X, n0, n, alpha, random_state
            See :meth:`certify`.
        y : array-like of shape (n_samples,)
            The true classes.

        Returns
        -------
        float
            In the units of X (ACR of Zhai et al., MACER, ICLR 2020).
        """
        check_is_fitted(self)
        check_consistent_length(X, y)
        found = self.certify(X, n0, n, alpha, random_state)
        return average_certified_radius(y, found.label, found.radius)

    def _votes(
        self,
        asking: Asking,
        X: np.ndarray,
        n: int,
        seed: int,
        *,
        shared: bool = False,
        defended: bool = True,
    ) -> np.ndarray:
        return count_votes(
            self._noisy_classifier(asking.patience, defended),
            X,
            n,
            self.noise_std,
            len(self.classes_),
            rng_seed=seed,
            batch_size=self.query_batch_size,
            backend=asking.backend,
            shared=shared,
        )
