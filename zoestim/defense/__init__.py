"""Robustify a black-box classifier, Sec. 6.2 and App. G: what is before and around its queries."""

from zoestim.defense._black_box import RESPONSES, is_estimator, refuse_no_classifier
from zoestim.defense._defended import Defended
from zoestim.defense._denoisers import Noise, refuse_other_shape, trainable_names
from zoestim.defense._layout import DATA_FORMATS, Layout
from zoestim.defense._scores import Classifier
from zoestim.defense._steps import steps_for
from zoestim.defense._targets import ask_targets, fitted_black_box
from zoestim.defense._white import initial_white, pretrained_white, squared_error

__all__ = [
    "DATA_FORMATS",
    "RESPONSES",
    "Classifier",
    "Defended",
    "Layout",
    "Noise",
    "ask_targets",
    "fitted_black_box",
    "initial_white",
    "is_estimator",
    "pretrained_white",
    "refuse_no_classifier",
    "refuse_other_shape",
    "squared_error",
    "steps_for",
    "trainable_names",
]
