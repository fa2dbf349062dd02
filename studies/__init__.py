"""Compares and explains finished runs: statistics, tables, figures, reports."""
