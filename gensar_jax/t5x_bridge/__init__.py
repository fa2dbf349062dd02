"""Runs GenSAR on T5X: SeqIO tasks, model, constrained decoding and checkpoints; install.sh gets
T5X.

Nothing else in this library imports this package. Its modules need T5X and TensorFlow, but for
`installation` and `exported`.
"""
