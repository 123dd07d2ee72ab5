"""From source files to typed reviews and items (`raw`), and from there to samples (`interactions`)."""
