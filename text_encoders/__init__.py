"""Turns texts into vectors with pre-trained encoders, for all three systems; imports core alone."""
