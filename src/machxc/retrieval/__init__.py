"""From the sketch of a query, R x B bucket logits, to its k best labels with their scores."""

from machxc.retrieval.label_scores import label_scores
from machxc.retrieval.retrieve import METHODS, top_k

__all__ = ["METHODS", "label_scores", "top_k"]
