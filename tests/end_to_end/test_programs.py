"""The programs as functions and as commands, on a data set of seconds."""

import json
import pathlib
import shutil
import subprocess
import sys

import jobs
import numpy as np
import pytest

from core.errors import UserError
from experiments.evaluate import evaluate
from experiments.methods import open_experiment
from experiments.predict import predict, read_users
from experiments.resolve import resolve
from experiments.restored import Restored
from experiments.teacher import open_teacher
from experiments.train import train
from studies import adaptive
from studies.adaptive import adapt

ROOT = pathlib.Path(__file__).parent.parent.parent
CONFIG = "--config=configs/lcr_ser_csv_log.py"


@pytest.fixture(scope="module")
def trained(small_config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run") / "w"
    return small_config, workdir, train(small_config, str(workdir))


def run(module, *arguments):
    return subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        cwd=ROOT,
        env=jobs.one_device(),
        capture_output=True,
        text=True,
        timeout=300,
    )


def mistake(done):
    """The one line of a program that ended in a user's mistake."""
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, done.stderr
    return lines[0]


def test_training_leaves_every_result(trained):
    _, workdir, results = trained
    found = {(r["stage"], r["protocol"]) for r in results["rows"]}
    stages = ("train", "rl", "control")
    assert found == {(s, p) for s in stages for p in ("neg99", "full")}
    for row in results["rows"]:
        assert row["split"] == "test" and row["data_split"] == "leave_one_out"
        assert row["data_hash"] and row["commit"] and row["seed"] == 0
        assert set(row["metrics"]) == {
            f"{m}/{row['protocol']}" for m in ("hr@1", "hr@5", "hr@10", "ndcg@5", "ndcg@10")
        }
        saved = np.load(workdir / row["per_user"])
        name = f"ndcg@5/{row['protocol']}"
        assert saved["ndcg@5"].mean() == pytest.approx(row["metrics"][name], abs=1e-6)
        assert len(saved["user"]) == row["examples"] == 57
    assert (workdir / "curves.png").stat().st_size > 5000
    assert ", after RL |" in (workdir / "summary.md").read_text()
    assert list((workdir / "events").rglob("*tfevents*"))


def test_evaluating_again_gives_the_same_numbers(trained):
    _, workdir, results = trained
    restored = Restored(str(workdir), "train")
    for protocol in ("neg99", "full"):
        before = next(
            r for r in results["rows"] if (r["stage"], r["protocol"]) == ("train", protocol)
        )
        assert evaluate(restored, "test", protocol)["metrics"] == pytest.approx(before["metrics"])


def test_adaptive_steps_are_calibrated_and_measured(trained):
    _, workdir, results = trained
    text = adapt(str(workdir), "train", "ndcg@5", 0.001)
    table = json.loads((workdir / "adaptive.json").read_text())
    assert (workdir / "adaptive.md").read_text() == text
    assert list(table["rows"]) == ["0", "1", "2", "adaptive", "2 in blocks"]
    assert text.startswith(adaptive.heading_of(table)) and table["seed"] == 0
    assert sum(table["users_by_steps"]) == 57
    taken = np.dot(table["users_by_steps"], range(3)) / 57
    assert table["rows"]["adaptive"]["steps"] == pytest.approx(taken)
    # The run's own test metric is that of its two active steps.
    row = next(r for r in results["rows"] if (r["stage"], r["protocol"]) == ("train", "neg99"))
    assert table["rows"]["2"]["test"] == pytest.approx(row["metrics"]["ndcg@5/neg99"], abs=1e-5)
    with pytest.raises(UserError, match="tolerance of 0 or more, found -1"):
        adapt(str(workdir), "train", "ndcg@5", -1.0)


def test_steps_that_were_not_trained_are_not_adapted(trained, tmp_path):
    _, workdir, _ = trained
    other = tmp_path / "w"
    shutil.copytree(workdir, other)
    config = json.loads((other / "config.json").read_text())
    config["train"]["active_steps"] = 1
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="all of its 2 steps, found active_steps of 1"):
        adapt(str(other), "train", "ndcg@5", 0.001)


def test_a_student_in_one_pass_learns_its_teachers_scores(trained, tmp_path):
    config, workdir, _ = trained
    student = config.copy_and_resolve_references()
    student.update_from_flattened_dict(
        {
            "model.max_steps": 0,
            "train.active_steps": 0,
            "train.teacher": str(workdir),
            "rl.enabled": False,
        }
    )
    # The first batches it trains on bring the teacher's scores of their candidates.
    data = Restored(str(workdir)).data
    taught = [open_teacher(resolve(student), data)]
    experiment = open_experiment(resolve(student), data, taught[0])
    batch = next(experiment.training_batches(0)[0](0))
    assert batch["teacher"].shape == batch["candidates"].shape
    assert np.asarray(batch["teacher"]).std() > 0
    # What its RL stage keeps may be where it began, so the scores cannot tell the stage.
    student.train.teacher_stage = "train"
    taught.append(open_teacher(resolve(student), data))
    assert [each.run.stage for each in taught] == ["rl", "train"]
    student.train.teacher_stage = ""
    results = train(student, str(tmp_path / "student"))
    assert {row["stage"] for row in results["rows"]} == {"train"}
    lines = (tmp_path / "student" / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["train/distillation"] for line in lines if "distillation" in line]
    assert losses[-1] < losses[0]
    # Evaluated and used without its teacher.
    moved = json.loads((tmp_path / "student" / "config.json").read_text())
    moved["train"]["teacher"] = str(tmp_path / "gone")
    (tmp_path / "student" / "config.json").write_text(json.dumps(moved))
    row = next(row for row in results["rows"] if row["protocol"] == "neg99")
    again = evaluate(Restored(str(tmp_path / "student")), "test", "neg99")["metrics"]
    assert again == pytest.approx(row["metrics"])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train.teacher": "nowhere"}, "nowhere"),
        ({"data.rec_length": 5}, "config.data.rec_length=5, found 6"),
        ({"train.teacher_stage": "sft"}, "a stage of rl, train, control, found 'sft'"),
    ],
    ids=str,
)
def test_teachers_that_do_not_fit_are_refused(trained, tmp_path, changes, words):
    config, workdir, _ = trained
    student = config.copy_and_resolve_references()
    student.update_from_flattened_dict({"train.teacher": str(workdir)} | changes)
    with pytest.raises(UserError, match=words):
        train(student, str(tmp_path / "student"))
    assert not (tmp_path / "student").exists()


def test_predictions_are_unseen_items_best_first(trained):
    _, workdir, _ = trained
    restored = Restored(str(workdir))
    assert restored.stage == "rl"
    rows = list(predict(restored, ["u7", "u1"], 20))
    assert [(r["user"], r["rank"]) for r in rows] == [
        (u, k) for u in ("u7", "u1") for k in range(1, 21)
    ]
    log = restored.data.log
    user = log.user_ids.tolist().index("u7")
    clicked = log.rec_items[log.rec_offsets[user] : log.rec_offsets[user + 1]]
    seen = set(log.item_ids[clicked])
    mine = [r for r in rows if r["user"] == "u7"]
    assert not seen & {r["item"] for r in mine}
    assert len({r["item"] for r in mine}) == 20
    scores = [r["score"] for r in mine]
    assert scores == sorted(scores, reverse=True)
    for users, words in (
        (["nobody"], "found 'nobody', which it does not hold"),
        (["u_1", "u7", "u_2", "u_3"], "found 'u_1' and 2 more, which it does not hold"),
        ("nobody", "found 'nobody', which"),
    ):
        with pytest.raises(UserError, match=words):
            list(predict(restored, users, 3))
    assert [row["user"] for row in predict(restored, "u7", 3)] == ["u7"] * 3, "one user, no letters"
    with pytest.raises(UserError, match=r"neg99, neg99pop, published99, full, found 'ful'"):
        evaluate(restored, "test", "ful")
    with pytest.raises(UserError, match="at most 150"):
        list(predict(restored, ["u7"], 151))


def test_the_predict_command_writes_json_lines(trained, tmp_path):
    _, workdir, _ = trained
    (tmp_path / "users").write_text("u5\nu6\n")
    out = tmp_path / "out.jsonl"
    done = run(
        "launch.predict",
        f"--workdir={workdir}",
        f"--users={tmp_path / 'users'}",
        "--top_k=3",
        f"--out={out}",
    )
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(r["user"], r["rank"]) for r in rows] == [
        (u, k) for u in ("u5", "u6") for k in (1, 2, 3)
    ]


def test_another_config_in_the_same_workdir_is_refused(trained):
    config, workdir, _ = trained
    other = config.copy_and_resolve_references()
    other.model.heads = 4
    with pytest.raises(UserError, match=r"model\.heads was 2 and is 4"):
        train(other, str(workdir))


def test_users_files(tmp_path):
    (tmp_path / "marked").write_bytes("\ufeffu1\r\n\nu\u20282\n".encode())
    assert read_users(str(tmp_path / "marked")) == ["u1", "u\u20282"]
    with pytest.raises(UserError, match="No such file"):
        read_users(str(tmp_path / "none"))
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(UserError, match="found none"):
        read_users(str(tmp_path / "empty"))
    (tmp_path / "latin").write_bytes("u1\nJürgen\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"UTF-8 text in .*latin, found .*save the file as UTF-8"):
        read_users(str(tmp_path / "latin"))


def test_command_line_mistakes_end_in_one_line(tmp_path, csv_folder):
    data = f"--config.data_dir={csv_folder}"
    workdir = tmp_path / "w"
    here = f"--workdir={workdir}"
    assert "'wings'" in mistake(run("launch.train", CONFIG, "--config.wings=2", here))
    assert "bogus" in mistake(run("launch.train", CONFIG, data, "--bogus=1", here))
    assert "configs/no.py" in mistake(run("launch.train", "--config=configs/no.py", here))
    assert "data_dir=DIR" in mistake(run("launch.train", CONFIG, here))
    line = mistake(run("launch.train", CONFIG, f"--config.data_dir={tmp_path / 'no'}", here))
    assert "found nothing" in line
    line = mistake(run("launch.train", CONFIG, data, "--config.model.block=cube", here))
    assert "config.model" in line and "'cube'" in line
    assert "no-such-run" in mistake(run("launch.evaluate", "--workdir=no-such-run"))
    assert not workdir.exists(), "nothing is written before the run can start"


@pytest.mark.parametrize("module", ["launch.train", "launch.benchmark"])
def test_help_tells_the_usage_and_every_flag(module):
    done = run(module, "--help")
    assert done.returncode == 0 and not done.stderr
    assert f"python -m {module} --" in done.stdout
    assert "\n  --config: " in done.stdout
    # Flags of the libraries below are not this program's.
    assert "--verbosity" not in done.stdout and len(done.stdout.splitlines()) < 30


def test_help_of_t5x_needs_no_t5x():
    done = run("launch.t5x", "--help")
    assert done.returncode == 0 and "python -m launch.t5x train" in done.stdout


def test_a_catalogue_without_99_negatives_is_refused_where_nothing_else_ranks(tmp_path):
    (tmp_path / "clicks.csv").write_text(
        "user,item,time\n" + "".join(f"u,i{t},{t}\n" for t in range(5))
    )
    (tmp_path / "searches.csv").write_text("user,session,time,query,clicked_items\n")
    line = mistake(
        run(
            "launch.train",
            CONFIG,
            f"--config.data_dir={tmp_path}",
            f"--config.cache_dir={tmp_path / 'cache'}",
            "--config.eval.protocols=('neg99',)",
            f"--workdir={tmp_path / 'w'}",
        )
    )
    assert "99 items that they have not touched for neg99" in line
    assert not (tmp_path / "w").exists()
