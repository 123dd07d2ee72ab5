"""Column names, contracts, and how tables are written and read."""
