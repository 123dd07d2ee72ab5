"""Who writes the narratives and the reasoning traces."""
