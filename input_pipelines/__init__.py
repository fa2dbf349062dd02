"""Logs of searches and recommendations: readers, splits, candidate lists, batches."""
