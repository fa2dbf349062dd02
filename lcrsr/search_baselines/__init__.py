"""Ranks items for a query without training by gradients: floors of the search task."""
