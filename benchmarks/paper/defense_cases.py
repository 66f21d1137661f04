"""The data, the black boxes and the rows of ``python -m benchmarks.paper.defense``.

Whatever decides a result is written down here, so that other defaults of the package change no
row. Budgets are in black-box images; the clean images that are asked about first are part of them.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from torch import nn

from benchmarks.paper.boxes import box_for
from zoestim.datasets import load_cifar10

DEPTH, WIDTH = 5, 32  # of the DnCNN on digits
WIDTH_OF_COLOURS = 16  # on CIFAR-10, where each pixel costs as much and there are 16 times as many
ENDLESS = 1_000_000  # epochs: a budget ends the fit
# Of ZODenoiserDefense, in all rows.
COMMON: dict[str, Any] = {
    "denoiser": "dncnn",
    "depth": DEPTH,
    "width": WIDTH,
    "input_range": None,
    "quantize": False,
    "query_batch_size": 1024,
    "pretrain_lr": 2e-3,
    "batch_size": 32,
    "lr_schedule": "cosine",
    "target": "black_box",
    "mse_weight": 0.0,
    "n_repeats": 1,
    "pruning": None,
    "feature_reuse": True,
}


@dataclass(frozen=True)
class Row:
    """One way to defend.

    Parameters
    ----------
    label : str
        What the table calls it.
    settings : dict
        Parameters of ZODenoiserDefense, beside those of the case.
    per_image : int
        How many queries one image takes in one step; 0 where nothing is finetuned.
    by : {"queries", "backprop"}
        How it is finetuned. By backprop it takes as many steps as queries would have allowed.
    paper : tuple of float
        Certified accuracy at 0, 0.25, 0.5 and 0.75 in Table 2 (%, ImageNet-10): its ranking can
        be compared, its figures cannot.
    """

    label: str
    settings: dict[str, Any] = field(default_factory=dict)
    per_image: int = 0
    by: str = "queries"
    paper: tuple[float, ...] = ()


@dataclass(frozen=True)
class Case:
    """A black box, its data, and the rows that are measured on it.

    Parameters
    ----------
    train, test : tuple of ndarray
        Samples and classes; the defense sees none of the training classes.
    make_box : callable
        Gives the black box, an nn.Module or a FrozenEstimator: it takes a while to train.
    image : tuple of int
        Channels, height and width of a sample.
    settings : dict
        Parameters of ZODenoiserDefense, in all rows.
    budget : int
        Queries of each row that asks any.
    rows : dict of Row
        By name.
    """

    train: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]
    make_box: Callable[[], Any]
    image: tuple[int, int, int]
    settings: dict[str, Any]
    budget: int
    rows: dict[str, Row]

    @cached_property
    def box(self) -> Any:
        """The black box."""
        return self.make_box()

    def probabilities(self, X: np.ndarray) -> np.ndarray:
        """Return what the black box says of samples: one query each."""
        if not isinstance(self.box, nn.Module):
            return self.box.predict_proba(X)
        with torch.no_grad():
            return self.box(torch.as_tensor(X, dtype=torch.float32)).softmax(1).double().numpy()


# --- Rows

FIRST_ORDER = (89.33, 81.67, 68.87, 49.80)  # FO-DS
AUTOENCODER = (63.60, 52.80, 43.13, 32.73)  # ZO-AE-DS
DEEPZERO = (86.02, 76.61, 61.80, 43.05)
UNTRAINED = {
    "undefended": Row("undefended", {"denoiser": None}),
    "mse": Row("MSE only"),
}


def by_weights(n_weights: int, **settings: Any) -> Row:
    """Return the paper's defense: differences along the weights of the last layer."""
    given = {"space": "params", "trainable": "last", "gradient": "cge", "lr": 3e-3, **settings}
    return _with_steps(Row("ZO last layer, CGE", given, n_weights, paper=DEEPZERO))


def by_input(width: int, **settings: Any) -> Row:
    """Return ZO-DS: differences along the input of the black box, the chain rule behind them."""
    given = {"space": "input", "trainable": "all", "gradient": "cge", "lr": 1e-3, **settings}
    return _with_steps(Row("ZO input, CGE", given, width))


def by_code(latent_dim: int, **settings: Any) -> Row:
    """Return ZO-AE-DS: differences along a code, the decoder of which belongs to the box."""
    found = by_input(latent_dim, latent_dim=latent_dim, **settings)
    return replace(found, label=f"ZO-AE-DS, {latent_dim} numbers", paper=AUTOENCODER)


def by_backprop(twin: Row, label: str, paper: tuple[float, ...] = ()) -> Row:
    """Return the row that takes the steps of another one with exact gradients."""
    return replace(twin, label=label, by="backprop", paper=paper)


def _with_steps(row: Row) -> Row:
    """Fill in the step of the differences, and what one image costs with it."""
    steps = {"smoothing": 5e-3, "scheme": "forward", **row.settings}
    sides = 2 if steps["scheme"] == "central" else 1
    return replace(row, settings=steps, per_image=sides * row.per_image + 1)


def rows_of_digits() -> dict[str, Row]:
    """Return the rows of a black box that is a torch module, on 8 x 8 pixels."""
    last, whole = by_weights(9 * WIDTH), by_input(64)
    rge = _with_steps(Row("", {**whole.settings, "gradient": "rge", "n_directions": 16}, 16))
    return {
        **UNTRAINED,
        "last": last,
        "input": whole,
        "input-rge": replace(rge, label="ZO input, RGE of 16"),
        "ae4": by_code(4),
        "ae16": by_code(16),
        "fo-last": by_backprop(last, "FO last layer"),
        "fo": by_backprop(whole, "FO-DS", FIRST_ORDER),
        # ZO-AE-DS takes more steps of its budget than ZO-DS does: what do steps alone give?
        "fo-long": by_backprop(by_input(16), "FO-DS, steps of 16 numbers"),
    }


def rows_of_sklearn(scores: dict[str, Any]) -> dict[str, Row]:
    """Return the rows of a scikit-learn classifier, which answers in scores or in labels.

    Labels need large steps to both sides, and batches in which the noise smooths their jumps.
    """
    scores = {"response_method": "predict_proba", **scores}
    large = {"smoothing": 0.1, "scheme": "central", "batch_size": 64}
    labels = {"response_method": "predict", **large}
    rows = dict(UNTRAINED)
    for kind, settings in (("scores", scores), ("labels", labels)):
        both = {"last": by_weights(9 * WIDTH, **settings), "input": by_input(64, **settings)}
        for name, row in both.items():
            rows[f"{name}-{kind}"] = replace(row, label=f"{row.label}, {kind}")
    return rows


def rows_of_cifar10() -> dict[str, Row]:
    """Return the rows on 32 x 32 pixels: differences along 3,072 inputs would be too dear.

    The few steps are small ones: at the rates of digits, backprop too leaves a worse denoiser
    than it was given.
    """
    rate = {"lr": 3e-4}
    return {
        **UNTRAINED,
        "last": by_weights(9 * 3 * WIDTH_OF_COLOURS, lr=1e-3),
        "ae192": by_code(192, **rate),  # Zhang et al. (2022): a sixteenth of the image
        "fo": by_backprop(by_input(192, **rate), "FO-DS", FIRST_ORDER),
    }


def row_names() -> set[str]:
    """Return the names of all rows, of whatever case."""
    return {*rows_of_digits(), *rows_of_sklearn({}), *rows_of_cifar10()}


# --- Cases


def digits_data(options: argparse.Namespace) -> tuple[Any, Any]:
    """Return 1,078 digits to train on and 719 to test, or the first of them."""
    X, y = load_digits(return_X_y=True)
    X_train, X_test, y_train, y_test = train_test_split(
        X / 16, y, test_size=0.4, stratify=y, random_state=0
    )
    train, test = slice(options.n_train), slice(options.n_test)
    return (X_train[train], y_train[train]), (X_test[test], y_test[test])


def sized(options: argparse.Namespace, pretrain_epochs: int) -> dict[str, Any]:
    """Return the parameters of all rows, with so many epochs unless the options say otherwise."""
    given = options.pretrain_epochs
    return {**COMMON, "pretrain_epochs": pretrain_epochs if given is None else given}


def on_digits(kind: str, options: argparse.Namespace, seed: int) -> Case:
    """Return a case on scikit-learn's digits, in [0, 1]."""
    train, test = digits_data(options)
    rows = rows_of_digits()
    if kind == "digits":
        epochs = options.box_epochs or 30
        make_box = partial(box_for, "digits", *train, epochs=epochs, seed=seed)
    elif kind == "forest":
        # Its probabilities move in jumps, as labels do.
        rows = rows_of_sklearn({"smoothing": 0.05, "scheme": "central"})
        forest = RandomForestClassifier(100, random_state=seed)
        make_box = partial(_frozen, forest, *train)
    else:
        rows = rows_of_sklearn({})
        network = MLPClassifier(64, max_iter=options.box_epochs or 500, random_state=seed)
        make_box = partial(_frozen, network, *train)
    settings = {**sized(options, pretrain_epochs=90), "noise_std": 0.5, "image_shape": (8, 8)}
    budget = options.budget or 1_400_000
    return Case(train, test, make_box, (1, 8, 8), settings, budget, rows)


def _frozen(classifier: Any, X: np.ndarray, y: np.ndarray) -> FrozenEstimator:
    return FrozenEstimator(classifier.fit(X, y))


def on_cifar10(options: argparse.Namespace, seed: int) -> Case:
    """Return the case on CIFAR-10. The box's owner has more images than the defense."""
    if options.data is None:
        raise SystemExit("--cases cifar10 needs --data, the path of CIFAR-10: see load_cifar10")
    n_train, n_test = options.n_train or 2_000, options.n_test or 100
    load = partial(load_cifar10, options.data, return_X_y=True)
    X, y = load(n_samples=max(options.n_box or 10_000, n_train), shuffle=True, random_state=0)
    make_box = partial(box_for, "cifar10", X, y, epochs=options.box_epochs or 12, seed=seed)
    test = load(split="test", n_samples=n_test)
    # In larger batches the maps of the denoiser do not fit into a CPU's caches.
    smaller = {"width": WIDTH_OF_COLOURS, "query_batch_size": 256, "noise_std": 0.25}
    settings = {**sized(options, pretrain_epochs=20), **smaller}
    train, budget = (X[:n_train], y[:n_train]), options.budget or 400_000
    return Case(train, test, make_box, (3, 32, 32), settings, budget, rows_of_cifar10())


CASES: dict[str, Callable[[argparse.Namespace, int], Case]] = {
    "digits": partial(on_digits, "digits"),
    "forest": partial(on_digits, "forest"),
    "mlp": partial(on_digits, "mlp"),
    "cifar10": on_cifar10,
}


def add_sizes(parser: argparse.ArgumentParser) -> None:
    """Add the options that make cases smaller; without them each case has its own sizes."""
    parser.add_argument("--data", help="CIFAR-10, see load_cifar10")
    parser.add_argument("--n-train", type=int, help="1078, of CIFAR-10 2000")
    parser.add_argument("--n-test", type=int, help="719, of CIFAR-10 100")
    parser.add_argument("--n-box", type=int, help="images of CIFAR-10 that train the box: 10000")
    parser.add_argument("--box-epochs", type=int, help="30, MLP 500, of CIFAR-10 12")
    parser.add_argument("--pretrain-epochs", type=int, help="90, of CIFAR-10 20")
    parser.add_argument("--budget", type=int, help="queries a row: 1400000, of CIFAR-10 400000")
