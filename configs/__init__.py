"""One ml_collections file a method: configs/METHOD.py:DATASET[,VARIANT]."""
