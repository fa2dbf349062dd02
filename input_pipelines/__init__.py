"""Turns logs of searches and recommendations into batches: readers, splits, candidate lists."""

import os

# What TensorFlow says of itself while it starts: four lines that mean nothing to who trains with
# JAX. It must be told before it is imported, which nothing does before this package.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
