"""Weights to numbers: zero-shot classification, retrieval, and the metrics they share."""
