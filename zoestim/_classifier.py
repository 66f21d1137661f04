"""ZOClassifier: class labels, cross-entropy, probabilities."""

from __future__ import annotations

from collections.abc import Callable
from os import PathLike
from typing import Any, Self

import numpy as np
import torch
from sklearn.base import ClassifierMixin, _fit_context
from sklearn.utils._param_validation import StrOptions
from sklearn.utils.class_weight import compute_sample_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import column_or_1d
from torch import Tensor, nn

from zoestim._base import BaseZOEstimator
from zoestim._parameters import ZOParameters
from zoestim.evaluation import MAX_RETRIES, Batch
from zoestim.gradients import N_DIRECTIONS, SMOOTHING


class ZOClassifier(ClassifierMixin, BaseZOEstimator):
    """Classifier trained from function values: DeepZero as a scikit-learn estimator.

    Parameters
    ----------
    module : None, nn.Module class, factory, instance or callable, default=None
        The model.

        - None: a small multilayer perceptron (:class:`zoestim.models.MLP`) in float64, sized
          from the data; ``module__hidden=64`` sets its width.
        - A class or a factory function such as :func:`zoestim.models.resnet20`: called with
          the ``module__`` parameters and, where its signature names them, ``n_features_in``
          and ``n_outputs``, ``num_classes`` or ``n_classes``.
        - An instance: copied, never trained in place.
        - A black-box callable ``f(params, X) -> outputs`` with `initial_params`, or a
          :class:`BlackBox`, alone or as a layer of a torch network.
    initial_params : array or dict of str to array, default=None
        The starting values of a black-box callable's parameters; marks `module` as one.
    criterion : torch criterion (class or instance) or callable, default=None
        ``(outputs, y) -> scalar or per-sample losses``; need not be differentiable. None is
        cross-entropy; y is then encoded as 0, ..., n_classes - 1, and so it is for others.
    gradient : {"cge", "rge"} or strategy object, default="cge"
        Coordinate-wise or randomised estimates, Eq. (1). An object such as
        ``RandomizedEstimator(distribution="sphere")`` brings its own step and scheme.
    smoothing : float, default=5e-3
        The finite-difference step mu, in units of the parameters (Sec. 6.1).
    scheme : {"forward", "central"}, default="forward"
        One query a difference, or two and a smaller error.
    n_directions : int, default=192
        Directions of ``gradient="rge"``.
    sparsity : float in [0, 1), default=0.9
        The fraction of the weights that each estimate leaves out. Biases, scales and other
        parameters of fewer than two dimensions are always estimated; of a black box, every
        array is pruned.
    pruning : str, Pruning object, dict of layer to ratio, or None, default="zo-grasp"
        How the coordinates are chosen: ``"zo-grasp"``, ``"random"``, ``"uniform"``,
        ``"magnitude"``, ``"fo-grasp"`` (needs autograd), layer-wise ratios by parameter name
        (unnamed layers get `sparsity`), or None for all coordinates. See
        :class:`zoestim.sparsity.Pruning`.
    mask_interval : int or "batch", default=1
        Epochs between renewals of the random coordinate set, K_sparse in Alg. 2 (the
        authors' code: 5), or ``"batch"`` for a new set each batch.
    n_pruning_queries : int, default=192
        Directions of each of the two estimates of ZO-GraSP, Eq. (3).
    optimizer : torch.optim.Optimizer class, default=torch.optim.SGD
        Any optimizer that takes one gradient a step; SGD has momentum 0.9 (Sec. 6.1) unless
        ``optimizer__momentum`` says otherwise.
    lr : float or None, default=None
        The initial learning rate. None is 0.3 for ``"cge"`` and other strategies and
        0.03 for ``"rge"``, with any optimizer; the best value depends on the task.
    max_epochs : int, default=100
        Passes over the data.
    batch_size : int or "auto", default="auto"
        Samples a batch; ``"auto"`` is ``min(200, n_samples)``. One sample left over joins
        the last batch, since BatchNorm cannot train on one.
    lr_schedule : {"cosine", "constant"} or callable, default="cosine"
        A callable maps progress in [0, 1] to a factor of `lr`. Progress is that of the epochs
        or of the query budget, whichever is further. Choose ``"constant"`` beside a scheduler
        among the callbacks.
    warmup_epochs : int, default=0
        Epochs over which the learning rate rises linearly (the authors' code: 3).
    update : {"active", "all"}, default="active"
        Which coordinates a step may move: those it queried, or, as plain torch does and the
        authors' code with it, all that momentum and weight decay move.
    max_queries : int or None, default=None
        The budget: never one query more, those of pruning and validation included. It counts
        from the first fit on when fits are continued.
    early_stopping : bool, default=False
        Whether to hold out `validation_fraction`, stop when its loss no longer falls, and
        return to the best epoch. Each validation batch is a query.
    validation_fraction : float, default=0.1
        The fraction held out by early stopping.
    n_iter_no_change : int, default=10
        Epochs without improvement that early stopping waits for.
    tol : float, default=1e-4
        The least fall of the validation loss that counts as improvement.
    n_repeats : int, default=1
        How often each query is asked, to average what a noisy loss gives; each counts.
    journal_queries : bool, default=False
        Whether answers of the steps since the last write of `checkpoint` are kept beside it,
        in a file of that name and ``.journal``, so that no query is paid for twice.
    n_jobs : int or None, default=None
        How many workers answer queries; -1 as many as there are cores. None means one, or what
        a ``joblib.parallel_config`` around `fit` says. The fit is the same to the last bit.
    backend : str, object or None, default=None
        ``"loky"`` (processes), ``"threading"``, ``"dask"``, ``"ray"`` or another that joblib
        knows, ``"distributed"`` for the ranks of ``torchrun``, or an object with the methods
        of :class:`zoestim.backends.Backend`.
    query_timeout : float or None, default=None
        Seconds after which a query counts as failed.
    max_retries : int, default=2
        How often a query that fails, or gives no finite loss, is asked again. A query counts
        once, however often it was asked.
    device : str, torch.device or list of them, default="cpu"
        Where the module runs; several devices share the queries.
    feature_reuse : bool, default=True
        Whether a query runs only what its parameter changes, Eq. (4).
    precision : {"auto", "float64", "float32", "bfloat16"}, default="auto"
        The floating type of module and data; ``"auto"`` keeps that of the module.
        ``"bfloat16"`` is float32 in which convolutions and linear layers multiply the
        changes of queries in bfloat16: faster on a GPU, with estimates within some percent.
    memory_budget : int, default=None
        Bytes that queries in flight may take on the device; by default a quarter of what
        is free. A fold that does not fit is halved.
    class_weight : dict, "balanced" or None, default=None
        Weights of the classes in the loss, as in scikit-learn.
    checkpoint : str, path-like or None, default=None
        A file that keeps the fit as it goes. Where it exists, `fit` goes on from it and ends
        bit for bit as if never interrupted; where its fit has ended, `fit` returns at once.
        Each fit needs a path of its own, so each candidate of a grid search too, and
        `partial_fit` takes none. See the user guide.
    callbacks : list of skorch callbacks, default=None
        As in skorch. scikit-learn's own are set by `set_callbacks`.
    warm_start : bool, default=False
        Whether `fit` goes on from the last fit rather than starting anew. What the net was
        built from (module, criterion, optimizer, precision, device) has to stay.
    random_state : int, RandomState instance or None, default=None
        Determines initialisation, batches, coordinate sets and directions: the same seed
        gives the same fit, bit for bit. The global generators are never touched.
    verbose : int, default=0
        1 shows a progress bar with queries, loss and time left; 2 a table of epochs too.
    **kwargs
        ``module__x``, ``criterion__x``, ``optimizer__x``, ``iterator_train__x``,
        ``iterator_valid__x``, ``callbacks__x``: passed on, as in skorch.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        The labels.
    module_ : nn.Module
        The trained module.
    net_ : skorch.NeuralNet
        The skorch net that trained it.
    n_features_in_ : int
        The size of the second axis of X.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        The names of the features, where X has string names.
    n_iter_ : int
        Epochs run.
    n_queries_ : int
        Losses asked for: one query is one loss on one mini-batch. Each step asks for the
        loss at the current parameters beside the perturbed ones.
    history_ : skorch.history.History
        A row an epoch: losses, queries, seconds.
    loss_curve_ : list of float
        The mean training loss of each epoch.
    layer_ratios_ : dict of str to float
        The fraction of each parameter tensor that an estimate leaves out.
    termination_condition_ : {"max_epochs", "max_queries", "early_stopping", "callback", "error"}
        Why the fit ended. ``"callback"``: a callback or the user interrupted it;
        ``"error"``: an exception did.
    feature_reuse_ : FeatureReuse
        What was reused between queries, or why nothing was; its truth value says whether.
    query_log_ : QueryLog
        When queries were asked, how long they took and who answered; ``to_frame()`` for pandas.

    See Also
    --------
    ZORegressor : The same for continuous targets.
    estimate_gradient : One gradient estimate, for training loops of your own.

    References
    ----------
    Chen et al., DeepZero: Scaling up Zeroth-Order Optimization for Deep Model Training,
    ICLR 2024, https://arxiv.org/abs/2310.02025, Alg. 1 and 2.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn.preprocessing import StandardScaler
    >>> from zoestim import ZOClassifier
    >>> X, y = load_iris(return_X_y=True)
    >>> model = make_pipeline(StandardScaler(), ZOClassifier(random_state=0))
    >>> bool(model.fit(X, y).score(X, y) > 0.9)
    True

    A black box in numpy, which no autograd could see through:

    >>> import numpy as np
    >>> def scores(params, X):
    ...     return np.round(X @ params["w"] + params["b"], 2)
    >>> start = {"w": np.zeros((4, 3)), "b": np.zeros(3)}
    >>> black_box = ZOClassifier(
    ...     scores, initial_params=start, sparsity=0, smoothing=0.1, random_state=0
    ... )
    >>> bool(black_box.fit(X, y).score(X, y) > 0.9)
    True
    """

    _parameter_constraints: dict = {
        **ZOParameters._parameter_constraints,
        "class_weight": [dict, StrOptions({"balanced"}), None],
    }
    # Of iris, wine, breast cancer and digits with the default network, see the user guide.
    _default_lr = {"cge": 0.3, "rge": 0.03}

    def __init__(
        self,
        module: Any = None,
        *,
        initial_params: Any = None,
        criterion: Any = None,
        gradient: Any = "cge",
        smoothing: float = SMOOTHING,
        scheme: str = "forward",
        n_directions: int = N_DIRECTIONS,
        sparsity: float = 0.9,
        pruning: Any = "zo-grasp",
        mask_interval: int | str = 1,
        n_pruning_queries: int = N_DIRECTIONS,
        optimizer: type = torch.optim.SGD,
        lr: float | None = None,
        max_epochs: int = 100,
        batch_size: int | str = "auto",
        lr_schedule: str | Callable[[float], float] = "cosine",
        warmup_epochs: int = 0,
        update: str = "active",
        max_queries: int | None = None,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 10,
        tol: float = 1e-4,
        n_repeats: int = 1,
        journal_queries: bool = False,
        n_jobs: int | None = None,
        backend: Any = None,
        query_timeout: float | None = None,
        max_retries: int = MAX_RETRIES,
        device: str | torch.device | list = "cpu",
        feature_reuse: bool = True,
        precision: str = "auto",
        memory_budget: int | None = None,
        class_weight: Any = None,
        checkpoint: str | PathLike | None = None,
        callbacks: list | None = None,
        warm_start: bool = False,
        random_state: Any = None,
        verbose: int = 0,
        **kwargs: Any,
    ):
        given = dict(locals())  # all but one are those of every estimator
        for own in ("self", "class_weight", "kwargs", "__class__"):
            del given[own]
        super().__init__(**given, **kwargs)
        self.class_weight = class_weight

    def _encode_target(self, y: Any, weight: Any, *, reset: bool) -> np.ndarray:
        check_classification_targets(y)
        y = column_or_1d(y, warn=True)
        if reset:
            announced = getattr(self, "_announced", None)
            self.classes_ = np.unique(y) if announced is None else announced
        unknown = np.setdiff1d(y, self.classes_)
        if len(unknown):
            raise ValueError(
                f"y holds the labels {unknown.tolist()}, which the first fit did not see; "
                f"expected some of {self.classes_.tolist()}."
            )
        return np.searchsorted(self.classes_, y)

    def _weights(self, X: Any, y: Any, sample_weight: Any) -> np.ndarray | None:
        weight = super()._weights(X, y, sample_weight)
        if self.class_weight is None:
            return weight
        by_class = compute_sample_weight(self.class_weight, y)
        if by_class.min() < 0:
            raise ValueError(
                f"class_weight={self.class_weight!r} has negative weights; expected none: the "
                "loss of such a class would be raised."
            )
        return by_class if weight is None else by_class * weight

    def _output_sizes(self) -> dict[str, int]:
        n_classes = len(self.classes_)
        return {"n_outputs": n_classes, "num_classes": n_classes, "n_classes": n_classes}

    def _default_criterion(self) -> nn.Module:
        return nn.CrossEntropyLoss(reduction="none")

    def _check_outputs(self, outputs: Any, batch: Batch) -> None:
        super()._check_outputs(outputs, batch)
        n_classes = len(self.classes_)
        columns = outputs.shape[1:]
        if self.criterion is not None or (len(columns) == 1 and columns[0] >= n_classes):
            return
        raise ValueError(
            f"module returned outputs of shape {tuple(outputs.shape)} for {n_classes} classes; "
            f"expected ({len(batch.X)}, {n_classes}), one logit a class. Return that, or pass "
            "a criterion that takes what module returns."
        )

    @_fit_context(prefer_skip_nested_validation=True)
    def partial_fit(self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None) -> Self:
        """Train for one epoch at a constant learning rate, going on where the last call ended.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, ...)
            The inputs.
        y : array-like of shape (n_samples,)
            The labels.
        classes : array-like of shape (n_classes,), default=None
            All labels that will ever come; needed in the first call if `y` lacks some.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the samples in the loss.

        Returns
        -------
        self : ZOClassifier
        """
        self._announced = None if classes is None else np.unique(classes)
        try:
            return self._fit(X, y, sample_weight, hasattr(self, "net_"), None)
        finally:
            del self._announced

    def predict(self, X: Any) -> np.ndarray:
        """Predict class labels.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, ...)
            The inputs.

        Returns
        -------
        ndarray of shape (n_samples,)
            The most probable label of each sample.
        """
        best = self._scores(X).argmax(1).numpy()
        return self.classes_[best]

    def predict_proba(self, X: Any) -> np.ndarray:
        """Predict class probabilities.

        Outputs are taken as logits, or as log-probabilities where `criterion` is NLLLoss.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, ...)
            The inputs.

        Returns
        -------
        ndarray of shape (n_samples, n_classes)
            Probabilities in the order of `classes_`.
        """
        return torch.softmax(self._scores(X).to(torch.float64), 1).numpy()

    def _scores(self, X: Any) -> Tensor:
        """Return one logit a class, shape (n_samples, n_classes)."""
        outputs = self._outputs(X)
        n_classes = len(self.classes_)
        if n_classes == 2 and outputs.numel() == len(outputs):
            logit = outputs.reshape(-1, 1)  # of the second class, as BCEWithLogitsLoss has it
            return torch.cat([torch.zeros_like(logit), logit], 1)
        if outputs.ndim != 2 or outputs.shape[1] < n_classes:
            raise ValueError(
                f"module returned outputs of shape {tuple(outputs.shape)}; prediction needs "
                f"({len(outputs)}, {n_classes}), one logit a class."
            )
        return outputs[:, :n_classes]
