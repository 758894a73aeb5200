"""Pictures: of parts, points, masks, curves and many values.

Every function returns a matplotlib `Figure`; `figure.savefig(path)` writes it. Figures are made without pyplot, so no
display is needed and none is kept open.
"""

try:
    import matplotlib  # noqa: F401 (the rest of the package needs it)
except ImportError as error:
    raise ImportError("plots need matplotlib: pip install eden_hf[plots]") from error

from eden_hf.plots.curves import plot_few_shot, plot_finetuning, plot_history, plot_pruner_audit
from eden_hf.plots.drawing import COLOURS, show
from eden_hf.plots.masks import plot_masks
from eden_hf.plots.parts import Part, outline, plot_hits, plot_levels, plot_neighbours
from eden_hf.plots.points import plot_confidence, plot_correspondence, plot_found, plot_landmarks, plot_matches
from eden_hf.plots.values import plot_costs, plot_densities, plot_groups, plot_ratios, plot_tsne

__all__ = [
    "COLOURS",
    "Part",
    "outline",
    "plot_confidence",
    "plot_correspondence",
    "plot_costs",
    "plot_densities",
    "plot_few_shot",
    "plot_finetuning",
    "plot_found",
    "plot_groups",
    "plot_history",
    "plot_hits",
    "plot_landmarks",
    "plot_levels",
    "plot_masks",
    "plot_matches",
    "plot_neighbours",
    "plot_pruner_audit",
    "plot_ratios",
    "plot_tsne",
    "show",
]
