"""Decoding: free thoughts, and SIDs by a beam search that can return real items only."""
