"""Semantic IDs: quantizers, collisions, the codebook stage, and the token format."""
