"""Holds what at least two of the systems use: metrics, tables, GRPO, the training loop."""
