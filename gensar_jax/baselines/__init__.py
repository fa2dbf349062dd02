"""Generative baselines on GenSAR's T5: one file a method, each with its paper."""
