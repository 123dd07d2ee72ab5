"""Count models: what a trained recommender has to beat."""
