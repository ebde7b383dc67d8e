"""The book's figures: one visual voice, colours that colour-blind readers can tell apart, a ground light in dark mode
too.

Every function returns a matplotlib Figure that belongs to no global state: as the last value of a cell it is shown
once. Where an `ax` can be passed, the drawing goes there (see `panels`), and the Figure that holds it is returned.
"""

from glbook.plots.images import embedding_scatter, image_grid, retrieval_gallery, show_batch
from glbook.plots.interactive import embedding_explorer, embedding_film, film_strip, simplex_playground
from glbook.plots.propagation import assignments_heatmap, path_on_simplex, similarity_heatmap
from glbook.plots.results import comparison, differences, learning_curves, metric_grid, setting_curve, trials
from glbook.plots.style import COLOURS, panels, shortened, use_book_style
from glbook.plots.thumbnails import may_be_shown, thumbnails

__all__ = [
    "COLOURS",
    "assignments_heatmap",
    "comparison",
    "differences",
    "embedding_explorer",
    "embedding_film",
    "embedding_scatter",
    "film_strip",
    "image_grid",
    "learning_curves",
    "may_be_shown",
    "metric_grid",
    "panels",
    "path_on_simplex",
    "retrieval_gallery",
    "setting_curve",
    "shortened",
    "show_batch",
    "similarity_heatmap",
    "simplex_playground",
    "thumbnails",
    "trials",
    "use_book_style",
]
