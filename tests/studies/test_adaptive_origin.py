"""Where the numbers of launch.adaptive say they come from, and what it refuses at once."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from made_results import row

from configs import lcr_ser
from core.errors import UserError
from core.results import device
from core.workdir import Workdir, commit_id
from lcrsr.adaptive import Calibration
from studies import adaptive


def test_the_table_names_its_data_seed_commits_and_device(tmp_path):
    rows = [row(stage="train", commit="bbb"), row(stage="rl", commit="aaa")]
    (tmp_path / "results.json").write_text(json.dumps({"rows": rows}))
    run = SimpleNamespace(
        workdir=Workdir(str(tmp_path)),
        data=SimpleNamespace(
            label="qilin (sample data)",
            split=lambda name: SimpleNamespace(user=np.arange(8)),
            counted=lambda split, protocol: np.arange(8) > 0,
        ),
        experiment=SimpleNamespace(config=lcr_ser.method()),
        stage="rl",
    )
    origin = adaptive.origin_of(run)
    heading = adaptive.heading_of(origin)
    assert heading.startswith("qilin (sample data), test split (")
    assert "), 7 examples, seed 0, after RL, trained at commit aaa, measured" in heading
    assert f"measured at commit {commit_id()}, {device()};" in heading
    table = {k: {"steps": 1.0, "seconds": 1.0} for k in ("0", "1", "adaptive", "1 in blocks")}
    calibration = Calibration(price=0.0, best_fixed=1, metric=0.5, mean_steps=1.0)
    text = adaptive.to_markdown("ndcg@5", table, calibration, [0.0, 0.1], heading)
    assert text.startswith(f"{heading}\n\n| K |") and "on test: +0.0000 ± 0.1000 (95%)." in text
    text = adaptive.to_markdown("ndcg@5", table, calibration, [0.0, None], heading)
    assert "on test: +0.0000 of one user, so without an interval." in text


@pytest.mark.parametrize("tolerance", [float("nan"), float("inf"), -1.0])
def test_a_tolerance_is_looked_at_before_the_run(tolerance):
    with pytest.raises(UserError, match=f"tolerance of 0 or more, found {tolerance:g}; correct"):
        adaptive.adapt("none", None, "ndcg@5", tolerance)


def test_a_run_in_a_store_is_refused_as_its_table_would_stay_here():
    with pytest.raises(UserError, match="expected --workdir on a mounted file system, found s3:"):
        adaptive.adapt("s3://bucket/run", None, "ndcg@5", 0.0)
