"""What the scripts of the paper's figures share: sizes, images, fits, and a grid of results.

Each figure is a grid of cells, a method at a place of the axis, measured for some seeds. A scale is
the same grid in another size: ``paper`` as the paper has it, ``cpu`` for minutes on two cores,
``smoke`` to see that it runs.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from skorch.callbacks import Callback
from torch import nn

from benchmarks.baselines.training import accuracy
from benchmarks.records import Result, once
from benchmarks.speed.measure import numbers, print_table
from benchmarks.speed.problems import built, n_parameters
from zoestim import ZOClassifier
from zoestim.datasets import load_cifar10

SCALES = ("smoke", "cpu", "paper")
RESULTS = Path(__file__).parents[1] / "results"
# Sec. 6.1 of the paper, for whatever is trained by a gradient.
RECIPE: dict[str, Any] = {
    "lr": 0.1,
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "batch_size": 128,
}


class Sizes(NamedTuple):
    """How much of CIFAR-10 there is: images to train on, to test on, and pixels across."""

    n_train: int
    n_test: int
    pixels: int


class Images(NamedTuple):
    """Images of shape (n, 3, pixels, pixels), standardised by channel, and their classes."""

    X: np.ndarray
    y: np.ndarray
    X_test: np.ndarray
    y_test: np.ndarray
    about: str

    def first(self, n: int) -> "Images":
        """Return these with the first `n` to train on."""
        return self._replace(X=self.X[:n], y=self.y[:n], about=f"{self.about}, the first {n}")

    def held_out(self) -> "Images":
        """Return the training images alone, a fifth of them to test on."""
        X, X_test, y, y_test = train_test_split(
            self.X, self.y, test_size=0.2, stratify=self.y, random_state=0
        )
        return Images(X, y, X_test, y_test, f"{self.about}, a fifth of the training ones held out")


class Method(Protocol):
    """How a module is trained."""

    def about(self) -> dict[str, Any]:
        """Return all that decides a fit but module, images and seed."""
        ...

    def fit(self, module: nn.Module, images: Images, seed: int, device: str) -> dict[str, Any]:
        """Train the module, in place or a copy of it, and return figures, ``accuracy`` of them."""
        ...


class Tested(Callback):
    """Tests the module after each epoch, into the history, which a checkpoint keeps.

    Parameters
    ----------
    images : Images
        What it is tested on.
    """

    def __init__(self, images: Images):
        self.images = images

    def on_epoch_end(self, net: Any, **kwargs: Any) -> None:
        """Test it."""
        images = self.images
        net.history.record("accuracy", accuracy(net.module_, images.X_test, images.y_test))


@dataclass(frozen=True)
class ByQueries:
    """A fit of ZOClassifier.

    Parameters
    ----------
    settings : mapping
        Parameters of ZOClassifier; ``momentum`` and ``weight_decay`` are the optimizer's.
    """

    settings: Mapping[str, Any]

    def about(self) -> dict[str, Any]:
        """Return the parameters."""
        decisive = {n: value for n, value in self.settings.items() if n != "checkpoint"}
        return {"by": "queries", **RECIPE, **decisive}

    def fit(self, module: nn.Module, images: Images, seed: int, device: str) -> dict[str, Any]:
        """Train a copy of the module by queries."""
        given = {**RECIPE, "max_epochs": 1, **self.settings}
        given |= {f"optimizer__{name}": given.pop(name) for name in ("momentum", "weight_decay")}
        start = time.perf_counter()
        callbacks = [Tested(images)]
        model = ZOClassifier(
            module, **given, device=device, random_state=seed, callbacks=callbacks
        ).fit(images.X, images.y)
        seconds = time.perf_counter() - start
        return {
            "accuracy": model.score(images.X_test, images.y_test),
            "train_loss": model.loss_curve_[-1],
            "accuracies": model.history_[:, "accuracy"],
            "losses": model.loss_curve_,
            "queries": model.n_queries_,
            "steps": model.net_.zo_step.n_steps,
            "seconds": round(seconds, 2),
        }


@dataclass(frozen=True)
class Cell:
    """A method at a place of the axis.

    Parameters
    ----------
    row : str
        The method's name.
    at : str or number
        The place.
    make : callable
        Gives a fresh module.
    method : Method
        How it is trained.
    n_train : int, optional
        How many images it is trained on; by default all there are.
    paper : float, optional
        What the paper has there.
    """

    row: str
    at: Any
    make: Callable[[], nn.Module]
    method: Method
    n_train: int | None = None
    paper: float | None = None


@dataclass(frozen=True)
class Figure:
    """A figure or a table of the paper.

    Parameters
    ----------
    name : str
        As the script is called.
    title : str
        What it shows.
    axis : str
        What its columns are.
    cells : callable
        Gives the cells of a scale.
    sizes : mapping from str to Sizes
        The images of each scale.
    value : str, default="accuracy"
        Which of the figures is shown, and what the paper's numbers are.
    unit : float, default=100
        By what it is multiplied where it is shown.
    notes : mapping from str to tuple of str
        By scale, how it differs from the paper, and what it says.
    by_epoch : bool, default=False
        Whether the report draws accuracy and loss of each epoch, not the value at each place.
    """

    name: str
    title: str
    axis: str
    cells: Callable[[str], Sequence[Cell]]
    sizes: Mapping[str, Sizes]
    value: str = "accuracy"
    unit: float = 100.0
    notes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    by_epoch: bool = False

    @property
    def label(self) -> str:
        """What the paper calls it, by the name of the script."""
        kind = "table" if self.name.startswith("table") else "fig"
        number = self.name.removeprefix(kind).strip("_").upper()
        return f"{'Table' if kind == 'table' else 'Fig.'} {number}"

    @property
    def path(self) -> Path:
        """The file of its results."""
        return RESULTS / f"{self.name}.json"


# --- Images


def load_images(data: Path | None, sizes: Sizes) -> Images:
    """Return images of CIFAR-10 from its files, or the digits of scikit-learn without any.

    Parameters
    ----------
    data : Path or None
        See `load_cifar10`.
    sizes : Sizes
        How many, and how large: blocks of pixels are averaged.
    """
    if data is None:
        X, y = load_digits(return_X_y=True)
        X = np.repeat(X.reshape(-1, 1, 8, 8), 3, axis=1).astype(np.float32)
        X, X_test, y, y_test = train_test_split(X, y, test_size=0.25, random_state=0)
        X, y, about = X[: sizes.n_train], y[: sizes.n_train], "digits"
    else:
        load = partial(load_cifar10, data, shuffle=True, random_state=0, return_X_y=True)
        X, y = load(split="train", n_samples=sizes.n_train)
        X_test, y_test = load(split="test", n_samples=sizes.n_test)
        X, X_test = (_smaller(each, sizes.pixels) for each in (X, X_test))
        about = f"CIFAR-10, {sizes.pixels} pixels across"
    # In units of the deviation of the training images from their mean, by channel.
    mean, deviation = (f(X, axis=(0, 2, 3), keepdims=True) for f in (np.mean, np.std))
    about = f"{len(X):,} + {len(X_test):,} images of {about}"
    return Images((X - mean) / deviation, y, (X_test - mean) / deviation, y_test, about)


def _smaller(X: np.ndarray, pixels: int) -> np.ndarray:
    """Return images of fewer pixels, each the mean of a block."""
    block = X.shape[-1] // pixels
    return X.reshape(*X.shape[:-2], pixels, block, pixels, block).mean((-3, -1))


# --- Measuring


def measure(cell: Cell, images: Images, seed: int, device: str) -> dict[str, Any]:
    """Return the figures of a cell for a seed."""
    module = built(cell.make, seed)
    some = images if cell.n_train is None else images.first(cell.n_train)
    return {"n_parameters": n_parameters(module), **cell.method.fit(module, some, seed, device)}


def measured(figure: Figure, options: argparse.Namespace) -> list[Result]:
    """Return the results of all cells and seeds; those in the file are not measured again."""
    images = load_images(options.data, figure.sizes[options.scale])
    images = images.held_out() if options.held_out else images
    found = []
    for cell in asked(figure, options):
        for seed in options.seeds:
            key = {"case": figure.name, "scale": options.scale, "row": cell.row, "at": cell.at}
            key |= {"seed": seed, "images": images.about, "n_train": cell.n_train}
            key["method"] = cell.method.about()
            own = in_file(cell, options.checkpoints, figure, seed)
            run = partial(measure, own, images, seed, options.device)
            found.append(once(options.out, key, run, options.device))
    return found


def asked(figure: Figure, options: argparse.Namespace) -> Iterator[Cell]:
    """Give the cells that are asked for, as they are asked for."""
    for cell in figure.cells(options.scale):
        if options.rows is not None and cell.row not in options.rows:
            continue
        if options.at is not None and str(cell.at) not in options.at:
            continue
        yield cell if options.lr is None else at_rate(cell, options.lr)


def at_rate(cell: Cell, lr: float) -> Cell:
    """Return a cell with another learning rate, if its method has one."""
    method: Any = cell.method
    if RECIPE.keys() - method.about().keys():
        return cell
    return replace(cell, method=replace(method, settings={**method.settings, "lr": lr}))


def in_file(cell: Cell, folder: Path | None, figure: Figure, seed: int) -> Cell:
    """Return a cell whose fit, if it is one by queries, goes on from a checkpoint in a folder."""
    if folder is None or not isinstance(cell.method, ByQueries):
        return cell
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{figure.name}_{cell.row}_{cell.at}_{seed}.ckpt".replace(" ", "-")
    settings = {**cell.method.settings, "checkpoint": path}
    return replace(cell, method=replace(cell.method, settings=settings))


# --- The table


def table(figure: Figure, scale: str, results: Sequence[Result]) -> list[dict[str, str]]:
    """Return a line for each row of the grid: at each place the mean, and what the paper has."""
    cells = figure.cells(scale)
    lines = []
    for row in dict.fromkeys(cell.row for cell in cells):
        line = {"row": row}
        for at in dict.fromkeys(cell.at for cell in cells):
            papers = [cell.paper for cell in cells if (cell.row, cell.at) == (row, at)]
            own = [r for r in results if (r["row"], r["at"]) == (row, at)]
            line[str(at)] = entry(figure, own, papers[0]) if papers else ""
        lines.append(line)
    return lines


def entry(figure: Figure, own: Sequence[Result], paper: float | None) -> str:
    """Return the mean over seeds ± their standard deviation, and the paper's number."""
    values = [figure.unit * each[figure.value] for each in own]
    text = "missing" if not values else f"{statistics.mean(values):.4g}"
    if len(values) > 1:
        spread = statistics.stdev(values)
        text += f" ± {spread:.2g}" if spread < 10 else f" ± {spread:.0f}"
    return text if paper is None else f"{text} ({paper:g})"


# --- The command


def parse(figure: Figure, arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=f"{figure.name}: {figure.title}")
    parser.add_argument("--scale", choices=SCALES, default="cpu")
    parser.add_argument("--data", type=Path, help="CIFAR-10, see load_cifar10; else digits")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    parser.add_argument("--seeds", type=numbers, default=[0, 1, 2])
    parser.add_argument("--rows", type=lambda text: text.split(","), help="some rows only")
    parser.add_argument(
        "--held-out", action="store_true", help="test on a fifth of the training images, to tune"
    )
    parser.add_argument("--at", type=lambda text: text.split(","), help="some columns only")
    parser.add_argument("--lr", type=float, help="another learning rate, to tune")
    parser.add_argument("--checkpoints", type=Path, help="folder from which killed fits go on")
    parser.add_argument("--out", type=Path, help="JSON file, to which each result is added")
    return parser.parse_args(arguments)


def main(figure: Figure, arguments: Sequence[str] | None = None) -> list[Result]:
    """Print the grid of a figure, and return all results."""
    options = parse(figure, arguments)
    torch.set_num_threads(options.threads)
    results = measured(figure, options)
    if not results:
        cells = figure.cells(options.scale)
        rows, columns = ({str(getattr(cell, n)) for cell in cells} for n in ("row", "at"))
        raise SystemExit(f"there is no such cell: rows are {rows}, columns are {columns}")
    print(f"{figure.label}, {options.scale}: {figure.title}; {results[0]['images']}")
    print(f"{figure.value} by {figure.axis}, ± over {len(options.seeds)} seeds (paper)")
    print_table(table(figure, options.scale, results))
    for note in figure.notes.get(options.scale, ()):
        print(note)
    return results
