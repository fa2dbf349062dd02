"""CRS's figures and Table 3 from runs whose results are made by hand."""

import json

import made_results
import matplotlib.image
import numpy as np
import pytest

from configs import crs_sample
from core import metrics, run_schema
from core.errors import UserError
from core.workdir import Workdir, check_no_file
from experiments.resolve import resolve
from input_pipelines import search_protocol
from input_pipelines.dataset import Dataset
from studies import crs_figures, report
from studies.statistics import holm

METRICS = ("hr@1", "hr@5", "hr@10", "ndcg@5", "ndcg@10")


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    config = crs_sample.get_config()
    config.on_sample.users = 60
    config.cache_dir = str(tmp_path_factory.mktemp("cache"))
    config.evolve.iterations = 2
    config = resolve(config)
    data = Dataset(config)
    return config, search_protocol.held_out(config, data, "test").user, data.log.hash


def run(folder, sample, stages, *, seed=0, method="crs", algorithm="r_grpo", **entries):
    """A folder of results: each stage's every metric is a value for every search."""
    config, users, log_hash = sample
    config = config.copy_and_resolve_references()
    config.method, config.seed, config.rl.algorithm = method, seed, algorithm
    workdir = Workdir(str(folder))
    with open(workdir.file("config.json"), "w", encoding="utf-8") as file:
        json.dump(run_schema.stamped(config.to_dict()), file)
    (folder / "log.json").write_text(json.dumps({"hash": log_hash}))
    rows = []
    for stage, value in stages.items():
        values = np.broadcast_to(np.float32(value), len(users))
        np.savez(
            workdir.file("per_user", f"{stage}.npz"), user=users, **dict.fromkeys(METRICS, values)
        )
        rows.append(
            made_results.row(
                stage=stage,
                protocol="search/catalogue",
                examples=len(users),
                metrics={
                    f"{m}/search/catalogue": float(np.mean(values, dtype=float)) for m in METRICS
                },
                data="sample",
                data_hash=log_hash,
                data_split="by_user",
                seed=seed,
                device="cpu",
                per_user=f"per_user/{stage}.npz",
            )
            | entries
        )
    with open(workdir.file("results.json"), "w", encoding="utf-8") as file:
        json.dump({"rows": rows}, file)
    return str(folder)


def test_a_folder_with_both_figures_and_the_table(sample, tmp_path):
    users = sample[1]
    better = np.where(np.arange(len(users)) % 2, 0.5, 0.3)
    stages = {"align": 0.1, "sft_0": 0.2, "rl_0": better, "sft_1": 0.5, "sft_only_1": 0.25}
    # The second round of seed 1 has not come.
    ours = [run(tmp_path / "a0", sample, stages | {"rl_1": better + 0.1})]
    ours += [run(tmp_path / "a1", sample, stages, seed=1)]
    grpo = {"sft_0": 0.2, "rl_0": 0.3, "sft_1": 0.4, "rl_1": 0.4}
    plain = [run(tmp_path / f"b{s}", sample, grpo, seed=s, algorithm="grpo") for s in (0, 1)]
    bm25 = run(tmp_path / "m", sample, {"fit": users % 2}, method="matching")
    runs = crs_figures.read([*ours, *plain], [])
    assert runs.names == ("R-GRPO", "GRPO")
    out = tmp_path / "out"
    text = crs_figures.write(runs, ours[0], [bm25], str(out))
    lines = text.splitlines()
    assert "| R-GRPO | sft_1 | 0, 1 | 0.5000 ± 0.0000 | 0.5000 ± 0.0000 |" in lines
    assert "| R-GRPO | sft_only_1 | 0, 1 | 0.2500 ± 0.0000 | 0.2500 ± 0.0000 |" in lines
    assert not any("align" in line or ("sft_only" in line and "| GRPO" in line) for line in lines)
    rows = {tuple(line.split(" | ")[:3]): line for line in lines if line.startswith("| rl_")}
    gain = metrics.means_of_users(better - 0.3, users).mean()
    first = rows["| rl_0", "R-GRPO", "0, 1"]
    assert first.count("±") == 5 and f"| {gain:+.4f} [" in first
    assert rows["| rl_0", "GRPO", "0, 1"].endswith("| 0.3000 ± 0.0000 |  |  |")
    # One seed of two is held against nothing.
    assert rows["| rl_1", "R-GRPO", "0"].endswith(" |  |  |")
    table = json.loads((out / "table.json").read_text())
    assert [one["first"] for one in table["table3"]] == ["GRPO (rl_0)"]
    titles = ["R-GRPO, sft_1, seeds 0, 1", "GRPO, rl_1, seeds 0, 1", "matching"]
    assert list(table["figure3"]) == titles
    groups = table["figure3"][titles[0]]
    assert list(groups.values()) == pytest.approx([0.5] * len(groups))
    assert len(groups) > 1 and all(label.endswith("queries") for label in groups)
    assert any(f"{next(iter(groups))} (" in line for line in lines)
    for name in ("figure2.png", "figure3.png"):
        assert matplotlib.image.imread(out / name)[..., :3].std() > 0.01
    assert "Table 3" in report.report([str(out)])


def test_p_is_corrected_over_the_whole_table(sample, tmp_path):
    values = np.random.default_rng(0).uniform(size=(4, len(sample[1])))
    names = ("sft_0", "rl_0", "sft_1", "rl_1")
    ours = run(tmp_path / "a", sample, dict(zip(names, values, strict=True)))
    plain = run(tmp_path / "b", sample, dict.fromkeys(names, 0.5), algorithm="grpo")
    _, tested = crs_figures.table_3(crs_figures.read([ours, plain], []))
    assert [stage for stage, _ in tested] == ["rl_0", "rl_1"]
    p = [pair.p for _, pair in tested]
    assert [pair.p_holm for _, pair in tested] == pytest.approx(holm(p))
    assert holm(p) != pytest.approx(p)


def test_what_is_refused(sample, tmp_path):
    ours = run(tmp_path / "a", sample, {"align": 0.1, "sft_0": 0.2})
    dsi = run(tmp_path / "d", sample, {"train": 0.1}, method="gensar")
    with pytest.raises(UserError, match=r"a run of crs in .*, found one of gensar; pass other"):
        crs_figures.read([ours, dsi], [])
    plain = run(tmp_path / "b", sample, {"sft_0": 0.2}, algorithm="grpo")
    with pytest.raises(UserError, match="called A that differ in their seed alone"):
        crs_figures.read([ours, plain], ["A", "A"])
    aligned = run(tmp_path / "c", sample, {"align": 0.1})
    with pytest.raises(UserError, match="a run of R-GRPO that has ended its distillation"):
        crs_figures.read([aligned], [])
    other = run(tmp_path / "o", sample, {"fit": 0.1}, method="matching", data_hash="g")
    with pytest.raises(UserError, match="expected runs on one data_hash"):
        crs_figures.write(crs_figures.read([ours], []), ours, [other], str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="found a file; pass another --out"):
        check_no_file(f"{ours}/config.json", "--out")
