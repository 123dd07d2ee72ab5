"""The stage `recommendations`: lists of all models for the test rows."""
