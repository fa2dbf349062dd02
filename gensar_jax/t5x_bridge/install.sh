#!/usr/bin/env bash
# Installs T5X beside this library, into the Python environment that is active; run it from the
# repository's root. T5X, AirIO and jestimator without what they ask for: their pins do not fit one
# another, nor the JAX of today (`gensar_jax.t5x_bridge.installation`).
set -euo pipefail
T5X=cc342d419ec3e3e9c4bf1df33c82330cafdc1e16
AIRIO=69897df7d9a427b947a9f7bb4164c7782b43e601
pip install -e '.[t5x]'
pip install --no-deps jestimator==0.3.3
pip install --no-deps "airio @ git+https://github.com/google/airio@$AIRIO"
pip install --no-deps "t5x @ git+https://github.com/google-research/t5x@$T5X"
