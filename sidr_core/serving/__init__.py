"""What goes live, and what serves it."""
