"""Writes made-up raw files: `python -m input_pipelines.sample --out=DIR`."""

from input_pipelines.sample.generator import main

if __name__ == "__main__":
    main()
