"""Uses trained runs: recommends and searches for anyone, from a workdir alone."""
