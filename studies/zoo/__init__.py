"""Trains several methods under one protocol, and compares them."""
