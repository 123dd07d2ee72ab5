"""The language model: its base, its vocabulary, its one prompt renderer and its checkpoints."""
