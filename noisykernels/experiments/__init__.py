"""Studies beside the walk: votes, chips, formats, orders; knows of no command line."""

from noisykernels.experiments.format_layers import LayerFormats, layer_formats
from noisykernels.experiments.format_search import FormatChoice, LinearPredictor, exhaustive_search, search_format
from noisykernels.experiments.format_sweep import FormatResult, Sweep, design_space, sweep_formats
from noisykernels.experiments.ordering import LayerOrder, OrderStudy, order_sensitivity
from noisykernels.experiments.sums import order_of, plot_running_sums, running_sums
from noisykernels.experiments.voting import Votes, vote
from noisykernels.experiments.yields import Chips, chips, worst_of

__all__ = [
    "Chips",
    "FormatChoice",
    "FormatResult",
    "LayerFormats",
    "LayerOrder",
    "LinearPredictor",
    "OrderStudy",
    "Sweep",
    "Votes",
    "chips",
    "design_space",
    "exhaustive_search",
    "layer_formats",
    "order_of",
    "order_sensitivity",
    "plot_running_sums",
    "running_sums",
    "search_format",
    "sweep_formats",
    "vote",
    "worst_of",
]
