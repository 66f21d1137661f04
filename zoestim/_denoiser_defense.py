"""ZODenoiserDefense, Sec. 6.2 and App. G: robustify a classifier that can only be queried."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from sklearn.base import ClassifierMixin, MetaEstimatorMixin, TransformerMixin, _fit_context
from sklearn.utils.validation import check_is_fitted, validate_data

from zoestim._certified import CertifiedPrediction
from zoestim._defense_fit import fit
from zoestim._defense_parameters import DefenseParameters
from zoestim.defense import Defended
from zoestim.evaluation import Patience


class ZODenoiserDefense(
    MetaEstimatorMixin, CertifiedPrediction, ClassifierMixin, TransformerMixin, DefenseParameters
):
    """Denoiser in front of a black-box classifier, with predictions that are certified.

    The classifier is asked about noisy samples that a denoiser has cleaned, and the majority
    decides: such a vote cannot be changed by a perturbation within a radius that
    :meth:`certify` gives. The denoiser first learns to remove noise, by backprop; then what the
    classifier makes of its outputs, by queries alone, to answer on noisy samples what it answers
    on clean ones: ``min E l(f(D(x + noise)), f(x))``, Eq. (A2).

    Parameters
    ----------
    estimator : scikit-learn classifier, nn.Module or callable
        The black box f, which is only ever asked. A classifier is cloned and fitted to X and y,
        as scikit-learn's meta-estimators do; one that is fitted already stays as it is within
        :class:`sklearn.frozen.FrozenEstimator`. A callable takes samples as a numpy array, laid
        out as X is, and returns scores (n, n_classes) or labels (n,); wrap one that cannot be
        copied, such as the client of an API, in ``BlackBox(function)``.
    response_method : str, default="auto"
        ``"predict_proba"``, ``"decision_function"`` or ``"predict"`` of a classifier, by default
        the first that it has; ``"proba"``, ``"logits"`` or ``"labels"`` of what a module or
        callable returns, by default told from its first answer.
    classes : array-like of shape (n_classes,), default=None
        The classes in the order of the black box's columns; by default its `classes_`, or
        0, 1, ..., or the labels that it gives.
    query_batch_size : int, default=1024
        The most samples it is asked about in a call.
    max_queries : int or None, default=None
        The budget of `fit`, counted in samples: never one more.
    input_range : (float, float) or None, default=None
        The ends to which samples are clipped before the black box gets them, as (0, 1).
    quantize : bool, default=False
        Whether they are also rounded to 256 levels of that range, as images of 8 bits are.
    on_error : {"raise", "penalize"}, default="raise"
        What an answer of NaN or an exception does once `max_retries` are used up: end the fit,
        with what was learned kept; or count as a wrong answer.
    max_retries, query_timeout
        See :class:`ZOClassifier`.
    noise_std : float, default=0.25
        The standard deviation of the noise, in the units of X, as radii are.
    n_samples : int, default=100
        Noisy copies that `predict` and `predict_proba` ask about.
    denoiser : {"auto", "dncnn", "mlp"}, nn.Module, its class, callable or None, default="auto"
        ``"dncnn"`` is :class:`zoestim.models.DnCNN`, for images; ``"mlp"`` a network for the rows
        of a table that subtracts the noise it finds; ``"auto"`` one of them by the shape of X. A
        module is copied and takes samples of shape (n, channels, height, width) or
        (n, n_features). Another callable is used as it is, not trained, on samples as X has them.
        None leaves the black box undefended.
    depth, width : int or None, default=None
        Layers and channels of the two by name: 17 and 64 of ``"dncnn"``, 3 and 64 of ``"mlp"``.
    image_shape : tuple of int or None, default=None
        (height, width), or three numbers in the order of `data_format`, of images that X holds as
        rows; the black box gets rows all the same.
    data_format : {"channels_first", "channels_last"}, default="channels_first"
        Where images have their channels.
    init_denoiser : nn.Module, dict of tensors or None, default=None
        Weights of a denoiser that is trained already, as the `white_[0]` of another defense.
    pretrain_epochs : int, default=90
        Epochs in which the denoiser learns to denoise, by backprop and without queries, unless
        there is an `init_denoiser`; and the encoder and decoder of `latent_dim` too.
    pretrain_lr : float, default=1e-3
        The learning rate there, of Adam; it falls tenfold after each third.
    max_epochs : int, default=20
        Epochs in which it is trained by queries; 0 leaves it at denoising.
    optimizer : torch.optim.Optimizer class, default=torch.optim.Adam
        The optimizer there.
    lr : float, default=1e-3
        Its learning rate. The paper's 1e-5 hardly moves the weights in a few hundred steps.
    lr_schedule : {"cosine", "constant", "step"} or callable, default="cosine"
        As in :class:`ZOClassifier`; ``"step"`` multiplies the rate by `lr_decay` every
        `lr_decay_epochs`, as in the paper.
    lr_decay : float, default=0.1
        See `lr_schedule`.
    lr_decay_epochs : int, default=4
        See `lr_schedule`.
    batch_size : int, default=32
        Samples a step, in both stages.
    target : {"black_box", "labels"}, default="black_box"
        What noisy samples are to be taken for: what the black box says of the clean ones, or y.
    mse_weight : float, default=0
        The weight of the mean squared error beside the loss of the queries; its gradient is exact.
    space : {"auto", "params", "input"}, default="auto"
        What queries perturb: weights of the denoiser, as in the paper, one query each; or the
        input of the black box, whose gradient autograd carries on to all weights (ZO-DS).
        ``"auto"`` is whichever takes fewer queries: the input where a sample has fewer numbers
        than the last layer has weights; the weights where `trainable` or `pruning` choose some.
    trainable : {"auto", "last", "all", "zo-grasp"} or list of str, default="auto"
        Which weights of the denoiser queries train: its last layer, all of them, those in the
        ratios that ZO-GraSP finds, or some by name. ``"auto"`` is ``"last"`` where queries perturb
        weights, and ``"all"`` where they perturb the input.
    gradient, n_directions, update, n_repeats
        See :class:`ZOClassifier`.
    smoothing : float or "auto", default="auto"
        The finite-difference step; in units of X with ``space="input"``. ``"auto"`` is 5e-3, 0.05
        for scikit-learn's trees, forests and neighbors, whose probabilities move in jumps, and 0.1
        for labels.
    scheme : {"forward", "central", "auto"}, default="auto"
        ``"auto"`` is central where the black box moves in jumps, else forward.
    sparsity : float in [0, 1), default=0.95
        The fraction of the trainable weights that an estimate leaves out, where `pruning` chooses.
    pruning : default=None
        As in :class:`ZOClassifier`; None queries all trainable weights, but
        ``trainable="zo-grasp"`` is ``pruning="zo-grasp"``.
    mask_interval, n_pruning_queries
        See :class:`ZOClassifier`.
    latent_dim : int or None, default=None
        How many numbers an encoder leaves of a sample, which a decoder before the black box makes
        a sample again: queries then perturb these (ZO-AE-DS), as the black box's input. The two are
        trained first, by backprop on clean samples.
    journal_queries, n_jobs, backend, device, feature_reuse, memory_budget, checkpoint, callbacks
        See :class:`ZOClassifier`. A checkpoint keeps the training by queries; what comes before
        it is done again, the questions about clean samples among it.
    warm_start : bool, default=False
        Whether `fit` goes on training the denoiser of the last fit.
    random_state : int, RandomState instance or None, default=None
        Determines initialisation, batches, noise and directions.
    verbose : int, default=0
        As in :class:`ZOClassifier`.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        The classes.
    estimator_ : object
        The black box that is asked.
    white_ : nn.Sequential
        The denoiser, and the encoder if there is one.
    space_ : {"params", "input"}
        What queries perturbed.
    trainer_ : estimator or None
        What trained it by queries.
    n_features_in_ : int
        The size of the second axis of X.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        The names of the features, where X has string names.
    n_queries_ : int
        Samples that the black box was asked about in `fit`.
    n_iter_ : int
        Epochs of the training by queries.
    termination_condition_ : {"max_epochs", "max_queries", "callback", "error"}
        Why it ended.
    net_, history_, loss_curve_, query_log_, layer_ratios_, feature_reuse_
        As of :class:`ZOClassifier`; of the training by queries, where there was one.

    See Also
    --------
    CertifiedAccuracyDisplay : Plots certified accuracy against the radius.

    Notes
    -----
    A vote of n copies certifies no radius above :func:`max_certifiable_radius`. Votes are of
    samples as X has them: put a scaler before the defense into a pipeline, and radii are in its
    units; clipping and rounding are part of the black box. BatchNorm keeps its statistics while
    queries train.

    References
    ----------
    .. [1] Chen et al., DeepZero, ICLR 2024, https://arxiv.org/abs/2310.02025, Sec. 6.2, Eq. (A2).
    .. [2] Zhang et al., How to robustify black-box ML models? A zeroth-order optimization
       perspective, ICLR 2022 (ZO-DS, ZO-AE-DS).
    .. [3] Salman et al., Denoised smoothing, NeurIPS 2020.
    .. [4] Cohen, Rosenfeld, Kolter, Certified adversarial robustness via randomized smoothing,
       ICML 2019.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklearn.ensemble import RandomForestClassifier
    >>> from sklearn.frozen import FrozenEstimator
    >>> from zoestim import ZODenoiserDefense
    >>> X, y = load_digits(return_X_y=True)
    >>> X = X / 16
    >>> forest = RandomForestClassifier(20, random_state=0).fit(X[:500], y[:500])
    >>> defense = ZODenoiserDefense(
    ...     FrozenEstimator(forest),
    ...     noise_std=0.5,
    ...     image_shape=(8, 8),
    ...     depth=3,
    ...     width=8,
    ...     pretrain_epochs=10,
    ...     max_queries=20_000,
    ...     random_state=0,
    ... )
    >>> found = defense.fit(X[:500]).certify(X[500:510], n=200, random_state=0)
    >>> found.radius.shape, bool((found.radius <= 0.5 * 2.5).all())
    ((10,), True)
    """

    @_fit_context(prefer_skip_nested_validation=False)
    def fit(self, X: Any, y: Any = None) -> Self:
        """Train the denoiser: by backprop to denoise, then by queries to be understood.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, ...)
            Clean samples, laid out as the black box takes them.
        y : array-like of shape (n_samples,), default=None
            The classes; needed where `estimator` is to be fitted too, and for
            ``target="labels"``.

        Returns
        -------
        self : ZODenoiserDefense
            After an error in the queries too, the denoiser is kept as far as it was trained.

        Raises
        ------
        QueryError
            If the black box fails, with ``on_error="raise"``.
        ValueError, TypeError
            If a parameter or the data cannot be used; the message says what to pass.
        """
        fit(self, *self._validate(X, y))
        return self

    def denoise(self, X: Any) -> np.ndarray:
        """Return what the black box is given for samples.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            Samples, noisy or not, laid out as in `fit`.

        Returns
        -------
        ndarray of the shape of X
            Denoised, clipped to `input_range` and rounded where `quantize` says so.
        """
        check_is_fitted(self)
        X = self._as_samples(X)
        starts = range(self.query_batch_size, len(X), self.query_batch_size)
        denoise = self._noisy_classifier(Patience()).denoise
        return np.concatenate([denoise(part) for part in np.array_split(X, starts)])

    def transform(self, X: Any) -> np.ndarray:
        """Return what the black box is given for samples, as :meth:`denoise`.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            Samples, laid out as in `fit`.

        Returns
        -------
        ndarray of the shape of X
        """
        return self.denoise(X)

    def _noisy_classifier(self, patience: Patience, defended: bool = True) -> Defended:
        return Defended(self.white_ if defended else None, self._classifier, patience)

    def _validate(self, X: Any, y: Any) -> tuple[np.ndarray, Any]:
        checks: dict[str, Any] = {"dtype": [np.float64, np.float32], "allow_nd": True}
        if y is None:
            return validate_data(self, X, **checks), None
        return validate_data(self, X, y, **checks)

    def _as_samples(self, X: Any) -> np.ndarray:
        dtype = [np.float64, np.float32]
        X = validate_data(self, X, reset=False, dtype=dtype, allow_nd=True)
        if X.shape[1:] != (expected := self._classifier.layout.shape):
            raise ValueError(
                f"X has samples of shape {X.shape[1:]}; expected {expected}, as in fit."
            )
        return X

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "white_")
