"""Defines T5 in Flax linen with T5X's parameter names, shapes, initialisers and logical axes."""
