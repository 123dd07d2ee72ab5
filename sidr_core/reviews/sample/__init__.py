"""The generated world: sample reviews and items, without a network."""
