"""`import lcrsr` shows what a notebook uses, and imports it when it is used."""

import subprocess
import sys

import pytest

import experiments.evaluate
import experiments.train
import lcrsr


def test_train_and_evaluate_are_those_of_experiments():
    assert lcrsr.train is experiments.train.train
    assert lcrsr.evaluate is experiments.evaluate.evaluate
    assert {"train", "evaluate", "__version__"} <= set(dir(lcrsr))
    with pytest.raises(AttributeError, match="module 'lcrsr' has no attribute 'trian'"):
        _ = lcrsr.trian


def test_the_import_alone_is_light():
    code = (
        "import sys, lcrsr; print([n for n in ('jax', 'numpy', 'experiments') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
