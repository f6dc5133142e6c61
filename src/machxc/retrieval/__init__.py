"""From the sketch of a query, R x B bucket logits, to its k best labels with their scores."""

from machxc.retrieval.deadline import budget_within
from machxc.retrieval.label_scores import label_scores
from machxc.retrieval.retrieve import METHODS, check_settings, top_k, top_k_within

__all__ = ["METHODS", "budget_within", "check_settings", "label_scores", "top_k", "top_k_within"]
