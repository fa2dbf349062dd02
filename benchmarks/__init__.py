"""Measures time and memory of training, evaluation, reading and decoding."""
