"""One fit of a ZODenoiserDefense: the black box, its answers, the denoiser, the queries."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

import numpy as np
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import column_or_1d
from torch import nn

from zoestim._defense_parameters import SHARED
from zoestim._finetuning import ChainTraining
from zoestim.defense import (
    Layout,
    Noise,
    ask_targets,
    choose_trainable,
    fitted_black_box,
    pretrained_white,
    refuse_no_classifier,
    squared_error,
    steps_for,
)
from zoestim.evaluation import BlackBox, draw_seed, shared_generator
from zoestim.training import Chain, main_device, make_asking

# What its fit leaves behind, on the defense too.
TRAINED = (
    "net_",
    "history_",
    "loss_curve_",
    "n_iter_",
    "n_queries_",
    "query_log_",
    "layer_ratios_",
    "feature_reuse_",
    "termination_condition_",
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
    asking, device = make_asking(defense), main_device(defense.device)
    try:
        generator = shared_generator(defense.random_state, asking.backend)
        seeds = [draw_seed(generator) for _ in range(4)]
        box = fitted_black_box(defense, X, y)
        classifier, targets, n_asked = ask_targets(defense, box, X, y, layout, asking)
    finally:
        if asking.backend is not defense.backend:
            asking.backend.close()
    if not (defense.warm_start and hasattr(defense, "trainer_")):
        white, decoder = pretrained_white(defense, X, layout, device, seeds[:2])
        classifier.decoder = decoder
        defense.estimator_, defense.classes_ = box, classifier.classes
        defense.white_, defense._classifier = white, classifier
        defense._vote_seed = seeds[2]
        defense.n_queries_, defense.n_iter_ = n_asked, 0
        defense.termination_condition_ = "max_epochs"
        trains = defense.max_epochs and any(True for _ in white.parameters())
        defense.trainer_ = _trainer(defense, n_asked, seeds[3]) if trains else None
    if defense.trainer_ is not None:
        _train(defense, layout.to_denoiser(X), targets)


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
    largest = float(np.abs(X).max(initial=0))
    if layout.image is not None and largest > LARGEST_FRACTION and defense.noise_std <= 1:
        warnings.warn(
            f"X holds pixels of up to {largest:g} and noise_std={defense.noise_std} is in the same "
            "units, as radii are. Divide X by its largest value if noise_std is a fraction of it.",
            stacklevel=5,
        )


def _trainer(defense: Any, n_asked: int, seed: int) -> ChainTraining:
    """Return the estimator that trains the white part by queries."""
    classifier, white, given = defense._classifier, defense.white_, defense.get_params(deep=False)
    by_weights, trainable = defense.space == "params", defense.trainable
    if trainable == "auto":
        trainable = "last" if by_weights else "all"
    choose_trainable(white[0], trainable)
    smoothing, scheme = steps_for(
        defense.estimator_, classifier.kind, defense.smoothing, defense.scheme
    )
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
            None if by_weights else width,
            penalty,
            classifier.about(),
        ).eval(),
        **{name: given[name] for name in SHARED},
        smoothing=smoothing,
        scheme=scheme,
        lr_schedule=_lr_schedule(defense),
        pruning="zo-grasp" if trainable == "zo-grasp" else defense.pruning,
        random_state=seed % 2**32,
    )
    trainer._n_queries_before = n_asked
    return trainer


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
        for name in TRAINED:
            if hasattr(trainer, name):
                setattr(defense, name, getattr(trainer, name))
        if hasattr(trainer, "module_"):
            defense.white_ = trainer.module_.white[1:]
