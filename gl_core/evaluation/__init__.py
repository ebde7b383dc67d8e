"""What an embedding is worth: neighbours, retrieval, re-identification, clustering; exact, and on the device of the vectors."""

from gl_core.evaluation.clustering import clustering_metrics
from gl_core.evaluation.neighbours import nearest_neighbours
from gl_core.evaluation.reidentification import reid_metrics
from gl_core.evaluation.retrieval import retrieval_metrics

__all__ = ["clustering_metrics", "nearest_neighbours", "reid_metrics", "retrieval_metrics"]
