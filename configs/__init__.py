"""One ml_collections file per experiment, named MODEL_DATASET.py."""
