"""A rehearsal of a profile: the same graph on small stand-ins, and an estimate of the real run."""
