"""Trains, opens, evaluates and queries runs of every method: what programs and notebooks call."""
