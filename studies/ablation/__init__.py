"""Sweeps over settings: trains their arms side by side, then draws tables and figures."""
