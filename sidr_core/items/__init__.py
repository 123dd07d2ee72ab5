"""The items' text and its vectors."""
