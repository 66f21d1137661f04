"""Reading a saved estimator back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from skorch.history import History
from torch import Tensor

from zoestim._classifier import ZOClassifier
from zoestim._persistence import (
    ARRAYS,
    FITTED,
    FORMAT,
    PLAIN,
    decode_array,
    decode_parameter,
    parse,
    read,
)
from zoestim._regressor import ZORegressor
from zoestim.backends import SerialBackend
from zoestim.evaluation import FeatureReuse
from zoestim.training import make_net

CLASSES = {"ZOClassifier": ZOClassifier, "ZORegressor": ZORegressor}


def load(path: str | Path, **params: Any) -> Any:
    """Read an estimator that `save` wrote; nothing in the file is ever executed.

    Parameters
    ----------
    path : str or path-like
        The file.
    **params
        Parameters that a file cannot hold, which are functions, classes and objects of the
        user's own: ``load(path, module=MyNet)``. The error names those that are missing.
        Others may be given too and replace the stored ones.

    Returns
    -------
    ZOClassifier or ZORegressor
        Fitted. The optimizer's state and the generators are not stored: `partial_fit` goes
        on from the weights with both anew.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is truncated, foreign or does not fit the module, or if a parameter that
        it cannot hold is missing.

    Examples
    --------
    >>> import tempfile, zoestim
    >>> from pathlib import Path
    >>> from sklearn.datasets import load_iris
    >>> X, y = load_iris(return_X_y=True)
    >>> model = zoestim.ZOClassifier(max_epochs=2, random_state=0).fit(X, y)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     model.save(Path(folder) / "iris.safetensors")
    ...     again = zoestim.load(Path(folder) / "iris.safetensors")
    >>> bool((again.predict_proba(X) == model.predict_proba(X)).all())
    True
    """
    content, tensors = _read(Path(path))
    try:
        return _restore(content, tensors, params, path)
    except (KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise ValueError(
            f"{path} does not hold what zoestim.load needs ({type(error).__name__}: {error}); "
            "expected a file written by save, and a module of the same shapes."
        ) from error


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}; expected one written by save.")
    header, tensors, _ = read(path, "save")
    return parse(header, path, FORMAT, "save"), tensors


def _restore(
    content: dict[str, Any], tensors: dict[str, Tensor], given: dict[str, Any], path: Any
) -> Any:
    stored = dict(content["params"])
    missing = {
        name: value["$ask"]
        for name, value in stored.items()
        if isinstance(value, dict) and "$ask" in value and name not in given
    }
    if missing:
        calls = ", ".join(f"{name}=..." for name in missing)
        raise ValueError(
            f"{path} cannot hold {missing}, which only you can bring back; call "
            f"load(path, {calls})."
        )
    params = {
        name: _initial_params(value, tensors)
        if name == "initial_params"
        else decode_parameter(value)
        for name, value in stored.items()
        if name not in given
    }
    estimator = CLASSES[content["class"]](**params | given)
    estimator._check_extras()
    arrays, plain = content["arrays"], content["plain"]
    estimator.__dict__.update({n: decode_array(arrays[n]) for n in ARRAYS if n in arrays})
    estimator.__dict__.update({n: plain[n] for n in PLAIN if n in plain})
    estimator.__dict__.update({n: content["fitted"][n] for n in FITTED})
    estimator.feature_reuse_ = FeatureReuse(**content["feature_reuse"])
    net = make_net(estimator, SerialBackend())
    prefix = "module."
    state = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
    net.module_.load_state_dict(state)
    net.zo_step.n_queries = estimator.n_queries_
    net.history_ = History([{**row, "batches": []} for row in content["history"]])
    estimator.net_, estimator.module_, estimator.history_ = net, net.module_, net.history
    return estimator


def _initial_params(stored: Any, tensors: dict[str, Tensor]) -> Any:
    if stored is None:
        return None
    named = {key: tensors[f"initial_params.{key}"] for key in stored["$initial_params"]}
    arrays = named if stored["torch"] else {key: value.numpy() for key, value in named.items()}
    return arrays[""] if list(arrays) == [""] else arrays
