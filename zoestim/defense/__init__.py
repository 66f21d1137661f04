"""Robustify a black-box classifier, Sec. 6.2 and App. G: what is before and around its queries."""

from zoestim.defense._black_box import RESPONSES, is_estimator, refuse_no_classifier
from zoestim.defense._defended import Defended
from zoestim.defense._denoisers import Noise, choose_trainable
from zoestim.defense._layout import DATA_FORMATS, Layout
from zoestim.defense._scores import Classifier
from zoestim.defense._steps import steps_for
from zoestim.defense._targets import ask_targets, fitted_black_box
from zoestim.defense._white import pretrained_white, squared_error

__all__ = [
    "DATA_FORMATS",
    "RESPONSES",
    "Classifier",
    "Defended",
    "Layout",
    "Noise",
    "ask_targets",
    "choose_trainable",
    "fitted_black_box",
    "is_estimator",
    "pretrained_white",
    "refuse_no_classifier",
    "squared_error",
    "steps_for",
]
