"""Recommendation lists, metrics, intervals and the tables made of them."""
