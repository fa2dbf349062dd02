"""GenSAR on the embedded sample, as README's command trains it, learns to search."""

import pytest

from configs import gensar_qilin
from experiments.train import train


@pytest.mark.slow
@pytest.mark.trains
def test_it_finds_what_queries_ask_for(tmp_path):
    config = gensar_qilin.get_config()
    config.cache_dir = str(tmp_path / "cache")
    # Fewer evaluations than README's command, and the same training.
    config.on_sample.overrides.train.evals = 1
    config.eval.protocols, config.eval.search_protocols = ("neg99",), ("full",)
    rows = {row["protocol"]: row for row in train(config, str(tmp_path / "w"))["rows"]}
    # Chance is 10 of 750 items.
    assert rows["search/full"]["metrics"]["hr@10/search/full"] > 0.10
