"""Figures and tables of what the stages measured."""
