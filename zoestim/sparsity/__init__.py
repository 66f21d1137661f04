"""Which coordinates to query, Sec. 4: scores, layer-wise ratios, dynamic coordinate sets."""

from zoestim.sparsity._grasp import first_order_grasp_scores, grasp_scores
from zoestim.sparsity._layerwise import draw_coordinates, layer_ratios, top_coordinates
from zoestim.sparsity._pruning import SCORES, CoordinateSchedule, Pruning

__all__ = [
    "SCORES",
    "CoordinateSchedule",
    "Pruning",
    "draw_coordinates",
    "first_order_grasp_scores",
    "grasp_scores",
    "layer_ratios",
    "top_coordinates",
]
