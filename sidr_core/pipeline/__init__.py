"""The mechanism: stages, store, profile, runs."""
