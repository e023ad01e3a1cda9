"""Pictures of results, drawn with matplotlib; must not know torch, nor the classes whose results it draws."""

from noisykernels.plotting.blocks import plot_blocks
from noisykernels.plotting.comparison import plot_compare
from noisykernels.plotting.curves import plot_curves, plot_profile, plot_study
from noisykernels.plotting.formats import plot_agreement, plot_front, plot_layer_formats
from noisykernels.plotting.maps import plot_heat_map, plot_mixed_map
from noisykernels.plotting.ordering import plot_orders
from noisykernels.plotting.votes import plot_votes
from noisykernels.plotting.yields import plot_yields

__all__ = [
    "plot_agreement",
    "plot_blocks",
    "plot_compare",
    "plot_curves",
    "plot_front",
    "plot_heat_map",
    "plot_layer_formats",
    "plot_mixed_map",
    "plot_orders",
    "plot_profile",
    "plot_study",
    "plot_votes",
    "plot_yields",
]
