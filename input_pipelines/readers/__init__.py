"""Reads the files of each source of data into a log."""
