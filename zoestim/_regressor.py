"""ZORegressor: continuous targets, squared error."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import torch
from sklearn.base import RegressorMixin, _fit_context
from sklearn.utils import Tags
from torch import Tensor

from zoestim._base import BaseZOEstimator
from zoestim.evaluation import Batch


def squared_error(outputs: Tensor, y: Tensor) -> Tensor:
    """Return the squared error of each target; outputs (n, 1) stand for targets (n,)."""
    return (outputs.reshape(y.shape) - y) ** 2


class ZORegressor(RegressorMixin, BaseZOEstimator):
    """Regressor trained from function values: DeepZero as a scikit-learn estimator.

    Parameters
    ----------
    module : None, nn.Module class, factory, instance or callable, default=None
        The model.

        - None: a small multilayer perceptron (:class:`zoestim.models.MLP`) in float64, sized
          from the data; ``module__hidden=64`` sets its width.
        - A class or a factory function such as :func:`zoestim.models.resnet20`: called with
          the ``module__`` parameters and, where its signature names them, ``n_features_in``
          and ``n_outputs``.
        - An instance: copied, never trained in place.
        - A black-box callable ``f(params, X) -> outputs`` with `initial_params`, or a
          :class:`BlackBox`, alone or as a layer of a torch network.
    initial_params : array or dict of str to array, default=None
        The starting values of a black-box callable's parameters; marks `module` as one.
    criterion : torch criterion (class or instance) or callable, default=None
        ``(outputs, y) -> scalar or per-sample losses``; need not be differentiable. None is
        the squared error. Outputs (n, 1) reach it as (n,) where y is so.
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
        The initial learning rate. None is 0.03 for ``"cge"`` and other strategies and
        0.01 for ``"rge"``, with any optimizer; the best value depends on the task.
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
    ZOClassifier : The same for class labels.
    estimate_gradient : One gradient estimate, for training loops of your own.

    Notes
    -----
    With ``module=None`` the targets are standardised within the fit, and predictions are
    scaled back. A module of your own sees the targets as they are, since its outputs may be
    physical; wrap the regressor in :class:`sklearn.compose.TransformedTargetRegressor` to
    scale them.

    References
    ----------
    Chen et al., DeepZero: Scaling up Zeroth-Order Optimization for Deep Model Training,
    ICLR 2024, https://arxiv.org/abs/2310.02025, Alg. 1 and 2.

    Examples
    --------
    >>> import numpy as np
    >>> from zoestim import ZORegressor
    >>> X = np.linspace(-1, 1, 50).reshape(-1, 1)
    >>> y = np.sin(3 * X[:, 0])
    >>> model = ZORegressor(sparsity=0, lr=0.1, max_epochs=300, random_state=0).fit(X, y)
    >>> bool(model.score(X, y) > 0.9)
    True
    """

    # Of diabetes with the default network; a saturated layer diverges from 0.06 on.
    _default_lr = {"cge": 0.03, "rge": 0.01}

    def _encode_target(self, y: Any, weight: Any, *, reset: bool) -> np.ndarray:
        y = np.asarray(y, dtype=np.float64)
        if reset:
            self._target_ndim = y.ndim
            self._n_targets = 1 if y.ndim == 1 else y.shape[1]
            self._center, self._scale = self._standardisation(y, weight)
        elif y.ndim != self._target_ndim or (y.ndim > 1 and y.shape[1] != self._n_targets):
            raise ValueError(
                f"y has shape {y.shape}; expected {self._n_targets} target(s) in "
                f"{self._target_ndim} dimension(s), as in the first fit."
            )
        return (y - self._center) / self._scale

    def _standardisation(self, y: np.ndarray, weight: Any) -> tuple[Any, Any]:
        """Return mean and deviation of the targets for the network that is sized from them."""
        if self.module is not None:
            return 0.0, 1.0
        center = np.average(y, axis=0, weights=weight)
        scale = np.sqrt(np.average((y - center) ** 2, axis=0, weights=weight))
        return center, np.where(scale > 0, scale, 1.0)

    def _output_sizes(self) -> dict[str, int]:
        return {"n_outputs": self._n_targets}

    def _default_criterion(self) -> Any:
        return squared_error

    def _check_outputs(self, outputs: Any, batch: Batch) -> None:
        super()._check_outputs(outputs, batch)
        if self.criterion is None and outputs.numel() != batch.y.numel():
            raise ValueError(
                f"module returned outputs of shape {tuple(outputs.shape)} for targets of shape "
                f"{tuple(batch.y.shape)}; expected one output a target. Return that, or pass a "
                "criterion that takes what module returns."
            )

    @_fit_context(prefer_skip_nested_validation=True)
    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Train for one epoch at a constant learning rate, going on where the last call ended.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, ...)
            The inputs.
        y : array-like of shape (n_samples,) or (n_samples, n_outputs)
            The targets.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the samples in the loss.

        Returns
        -------
        self : ZORegressor
        """
        return self._fit(X, y, sample_weight, hasattr(self, "net_"), None)

    def predict(self, X: Any) -> np.ndarray:
        """Predict targets.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, ...)
            The inputs.

        Returns
        -------
        ndarray of shape (n_samples,) or (n_samples, n_outputs)
            In the shape of the targets of `fit`, in their units, float64.
        """
        outputs = self._outputs(X).to(torch.float64)
        if outputs.numel() == len(outputs) * self._n_targets:
            shape = (-1,) if self._target_ndim == 1 else (-1, self._n_targets)
            outputs = outputs.reshape(shape)
        return outputs.numpy() * self._scale + self._center

    def __sklearn_tags__(self) -> Tags:
        """Say that several targets are welcome."""
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags
