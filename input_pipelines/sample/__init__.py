"""Makes up data with a known structure, in the file formats of real sources."""
