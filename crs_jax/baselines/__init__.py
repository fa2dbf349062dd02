"""Methods beside CRS on its decoder: one file a method, each with its paper."""
