"""The server: lists over HTTP from what a dataset has published, and a page to look at them."""
