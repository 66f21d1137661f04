"""scikit-learn's own callbacks (1.9, experimental there) around a skorch loop."""

from __future__ import annotations

from typing import Any

from skorch.callbacks import Callback

from zoestim.training._net import ZONet

try:
    from sklearn.callback import CallbackSupportMixin
except ImportError:  # scikit-learn < 1.9

    class CallbackSupportMixin:  # type: ignore[no-redef]
        """Stands in where scikit-learn has no callbacks yet."""

        def set_callbacks(self, *callbacks: Any) -> Any:
            """Refuse callbacks that this scikit-learn cannot call."""
            raise NotImplementedError(
                "set_callbacks needs scikit-learn 1.9 or newer; pass skorch callbacks as "
                "callbacks=[...] instead."
            )

        def _init_callback_context(self, **kwargs: Any) -> None:
            return None


class SklearnBridge(Callback):
    """Passes skorch's epochs on to the scikit-learn callbacks set on an estimator.

    Parameters
    ----------
    estimator : estimator
        The one whose callbacks are called.
    context : CallbackContext
        The root context of its fit.
    X, y : ndarray
        The data of the fit.
    """

    def __init__(self, estimator: Any, context: Any, X: Any, y: Any):
        self.estimator = estimator
        self.context = context
        self.X = X
        self.y = y

    def on_epoch_begin(self, net: ZONet, **kwargs: Any) -> None:
        self._epoch = self.context.subcontext("epoch")
        self._epoch.call_on_fit_task_begin(estimator=self.estimator, X=self.X, y=self.y)

    def on_epoch_end(self, net: ZONet, **kwargs: Any) -> None:
        stop = self._epoch.call_on_fit_task_end(
            estimator=self.estimator,
            X=self.X,
            y=self.y,
            reconstruction_attributes=lambda: {"net_": net, "module_": net.module_},
        )
        if stop:
            raise KeyboardInterrupt

    def on_train_end(self, net: ZONet, **kwargs: Any) -> None:
        self.context.call_on_fit_task_end(estimator=self.estimator, X=self.X, y=self.y)
