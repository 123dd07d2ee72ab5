"""Ranking metrics, list metrics and intervals; knows no stage."""
