"""The three training stages, each a thin configuration of a TRL trainer."""
