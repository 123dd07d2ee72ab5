"""Markdown, terminal tables and figures."""
