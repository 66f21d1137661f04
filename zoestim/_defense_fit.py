"""One fit of a ZODenoiserDefense: the black box, its answers, the denoiser, the queries."""

from __future__ import annotations

import math
import warnings
from functools import partial
from numbers import Real
from typing import Any

import numpy as np
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import column_or_1d
from torch import nn

from zoestim._defense_parameters import SHARED
from zoestim._finetuning import TRAINED, ChainTraining, keep_trained
from zoestim.defense import (
    Layout,
    Noise,
    ask_targets,
    fitted_black_box,
    initial_white,
    pretrained_white,
    refuse_no_classifier,
    refuse_other_shape,
    squared_error,
    steps_for,
    trainable_names,
)
from zoestim.evaluation import Asking, BlackBox, draw_seed, shared_generator
from zoestim.training import PLAIN, Chain, asking_of, main_device, same_setting

# What a fit that goes on keeps.
BUILT_FROM = (
    "estimator",
    "response_method",
    "classes",
    "query_batch_size",
    "input_range",
    "quantize",
    "on_error",
    "noise_std",
    "denoiser",
    "batch_size",
    "mse_weight",
    "space",
    "trainable",
    "latent_dim",
)
# A pixel above this is no fraction of white.
LARGEST_FRACTION = 1.5


def fit(defense: Any, X: np.ndarray, y: Any) -> None:
    """Fit a defense, and keep on it what was learned if the queries fail.

    Parameters
    ----------
    defense : ZODenoiserDefense
        Its parameters; the fitted attributes are set on it.
    X : ndarray of shape (n, ...)
        Clean samples.
    y : ndarray of shape (n,) or None
        Their classes.
    """
    if y is not None:
        check_classification_targets(y)
        y = column_or_1d(y, warn=True)
    layout = Layout.of(X, defense.image_shape, defense.data_format)
    _refuse_bad_settings(defense, X, y, layout)
    continued = defense.warm_start and hasattr(defense, "white_")
    prepare = _go_on if continued else _start
    with asking_of(defense) as asking:
        targets = prepare(defense, X, y, layout, asking)
    if defense.trainer_ is not None:
        _train(defense, layout.to_denoiser(X), targets)


def _start(defense: Any, X: np.ndarray, y: Any, layout: Layout, asking: Asking) -> np.ndarray:
    """Set what a first fit has before it trains by queries, and return the targets."""
    device = main_device(defense.device)
    generator = shared_generator(defense.random_state, asking.backend)
    weights, pretraining, votes, training = (draw_seed(generator) for _ in range(4))
    white = initial_white(defense, layout, weights)
    space = _chosen_space(defense, white[0], layout)
    names = trainable_names(white[0], _trainable(defense, space))
    refuse_other_shape(white[0], layout.to_denoiser(X[:2]))
    box = fitted_black_box(defense, X, y)
    classifier, targets, n_asked = ask_targets(
        defense, box, X, y, layout, asking, defense.max_epochs > 0 and bool(names)
    )
    white, decoder = pretrained_white(white, defense, X, layout, device, pretraining)
    classifier.decoder = decoder
    for name, parameter in white[0].named_parameters():
        parameter.requires_grad_(name in names)
    for name in TRAINED:
        vars(defense).pop(name, None)
    defense.estimator_, defense.classes_, defense.space_ = box, classifier.classes, space
    defense.white_, defense._classifier = white, classifier
    defense._vote_seed, defense._training_seed = votes, training % 2**32
    defense._built_from = {name: getattr(defense, name) for name in BUILT_FROM}
    defense.n_queries_, defense.n_iter_ = n_asked, 0
    defense.termination_condition_ = "max_epochs"
    defense.trainer_ = _trainer(defense) if _trains(defense) else None
    return targets


def _go_on(defense: Any, X: np.ndarray, y: Any, layout: Layout, asking: Asking) -> np.ndarray:
    """Set what a fit that goes on trains with, and return the targets."""
    built, plain = defense._built_from, PLAIN | list
    changed = [n for n in BUILT_FROM if not same_setting(built[n], getattr(defense, n), plain)]
    if changed or layout != defense._classifier.layout:
        raise ValueError(
            f"{changed or 'The shape of the samples'} changed since the fit that is to go on, "
            "which keeps its black box and denoiser; expected it as it was. Set warm_start=False "
            "to start anew, from init_denoiser=white_[0] if you like."
        )
    box, before, n_before = defense.estimator_, defense._classifier, defense.n_queries_
    _, targets, n_asked = ask_targets(
        defense, box, X, y, layout, asking, _trains(defense), n_before, before
    )
    defense.n_queries_ += n_asked
    if defense.trainer_ is not None:
        defense.trainer_.set_params(**_training_parameters(defense))
        defense.trainer_._n_queries_before = defense.n_queries_
        if hasattr(defense.trainer_, "net_"):
            defense.trainer_.net_.zo_step.n_queries = defense.n_queries_
    elif _trains(defense):
        defense.trainer_ = _trainer(defense)
    return targets


def _trains(defense: Any) -> bool:
    """Return whether there is anything to train by queries."""
    return defense.max_epochs > 0 and any(p.requires_grad for p in defense.white_.parameters())


def _chosen_space(defense: Any, denoiser: nn.Module, layout: Layout) -> str:
    """Return what queries move: by default whichever takes fewer of them."""
    if defense.space != "auto":
        return defense.space
    if defense.latent_dim is not None:
        return "input"
    if defense.trainable not in ("auto", "all") or defense.pruning is not None:
        return "params"  # which makes a choice among the weights, where each has a price
    names = trainable_names(denoiser, _trainable(defense, "params"))
    n_weights = sum(p.numel() for name, p in denoiser.named_parameters() if name in names)
    return "params" if n_weights <= int(np.prod(layout.item)) else "input"


def _trainable(defense: Any, space: str) -> Any:
    if defense.trainable != "auto":
        return defense.trainable
    return "last" if space == "params" else "all"


def _refuse_bad_settings(defense: Any, X: np.ndarray, y: Any, layout: Layout) -> None:
    refuse_no_classifier(defense.estimator)
    if defense.latent_dim is not None and defense.space == "params":
        raise ValueError(
            f"latent_dim={defense.latent_dim} is for queries at the black box's input, and "
            "space='params' moves weights; expected space='input', or latent_dim=None."
        )
    if defense.target == "labels" and y is None:
        raise ValueError("target='labels' needs the classes, and y is None; pass y to fit.")
    if defense.quantize and defense.input_range is None:
        raise ValueError(
            "quantize=True rounds to 256 levels of input_range, which is None; expected the two "
            "ends of the range, such as (0, 1)."
        )
    if defense.input_range is not None:
        _refuse_bad_range(defense.input_range)
    if defense.journal_queries and defense.checkpoint is None:
        raise ValueError(
            "journal_queries=True keeps answers beside the checkpoint, and there is none; expected "
            "checkpoint=PATH too."
        )
    if defense.checkpoint is not None and defense.random_state is None:
        raise ValueError(
            "checkpoint needs a random_state: without one another run starts from another "
            "denoiser and cannot go on; expected an integer, such as random_state=0."
        )
    largest = float(X.max(initial=0))
    fractions = largest <= LARGEST_FRACTION or X.min(initial=0) < 0
    if layout.image is not None and not fractions and defense.noise_std <= 1:
        warnings.warn(
            f"X holds pixels of up to {largest:g} and noise_std={defense.noise_std} is in the same "
            "units, as radii are. Divide X by its largest value if noise_std is a fraction of it.",
            stacklevel=5,
        )


def _refuse_bad_range(given: Any) -> None:
    numbers = len(given) == 2 and all(isinstance(end, Real) for end in given)
    if not numbers or not -math.inf < given[0] < given[1] < math.inf:
        raise ValueError(
            f"input_range={given!r} is no range; expected two finite numbers, the smaller first, "
            "such as (0, 1)."
        )


def _trainer(defense: Any) -> ChainTraining:
    """Return the estimator that trains the white part by queries."""
    classifier, white = defense._classifier, defense.white_
    penalty = None
    if defense.mse_weight:
        settings = {"weight": defense.mse_weight, "decoder": classifier.decoder}
        penalty = partial(squared_error, **settings)
    width = defense.latent_dim or int(np.prod(classifier.layout.item))
    lanes = max(1, defense.query_batch_size // defense.batch_size)
    trainer = ChainTraining(
        Chain(
            nn.Sequential(Noise(defense.noise_std), *white),
            BlackBox(classifier, vectorized=lanes),
            None if defense.space_ == "params" else width,
            penalty,
            classifier.about(),
        ).eval(),
        **_training_parameters(defense),
        random_state=defense._training_seed,
    )
    trainer._n_queries_before = defense.n_queries_
    return trainer


def _training_parameters(defense: Any) -> dict[str, Any]:
    """Return the parameters of the training that may change between fits."""
    given, classifier = defense.get_params(deep=False), defense._classifier
    smoothing, scheme = steps_for(
        defense.estimator_, classifier.kind, defense.smoothing, defense.scheme
    )
    found = {name: given[name] for name in SHARED}
    if classifier.penalize:  # the box is given up by itself, and that is no error
        found["query_timeout"] = None
    return found | {
        "smoothing": smoothing,
        "scheme": scheme,
        "lr_schedule": _lr_schedule(defense),
        "pruning": "zo-grasp" if defense.trainable == "zo-grasp" else defense.pruning,
    }


def _lr_schedule(defense: Any) -> Any:
    if defense.lr_schedule != "step":
        return defense.lr_schedule
    n_steps = defense.max_epochs / defense.lr_decay_epochs
    return partial(_stepwise, factor=defense.lr_decay, n_steps=n_steps)


def _stepwise(progress: float, *, factor: float, n_steps: float) -> float:
    """Return a rate that falls by a factor in each of so many equal parts of the fit."""
    return factor ** int(progress * n_steps)


def _train(defense: Any, X: np.ndarray, targets: np.ndarray) -> None:
    """Train by queries; a sample without a target is left out."""
    trainer, known = defense.trainer_, targets >= 0
    try:
        trainer.fit(X[known], targets[known])
    finally:
        keep_trained(defense, trainer)
        if hasattr(trainer, "module_"):
            defense.white_ = trainer.module_.white[1:]
