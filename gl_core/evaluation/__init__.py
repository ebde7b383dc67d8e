"""How good an embedding is: nearest neighbours, retrieval, re-identification and clustering metrics.

All of them are exact (no index, no sampling) and computed on the device of the vectors. They compare a chunk of queries
at a time, so that memory does not grow with the number of queries. Similarities are products in full float32 or
float64, whatever autocast says; `torch.set_float32_matmul_precision` does reach them, so keep its default, "highest".
"""

from gl_core.evaluation.clustering import clustering_metrics
from gl_core.evaluation.neighbours import nearest_neighbours
from gl_core.evaluation.reidentification import reid_metrics
from gl_core.evaluation.retrieval import retrieval_metrics

__all__ = ["clustering_metrics", "nearest_neighbours", "reid_metrics", "retrieval_metrics"]
