"""Writers of a run: what services lose costs no training, and a continued run keeps its ids."""

import importlib.machinery
import json
import logging
import math
import struct
import sys
import threading
import time
import types

import jax
import pytest

from core.background_writer import BackgroundWriter
from core.errors import Preempted, UserError
from core.metric_writers import MetricWriter
from core.run_logging import IDS_FILE, check_writers, logging_run
from core.workdir import Workdir

ROW = {"stage": "a", "split": "test", "step": 2, "metrics": {"ndcg@5/full": 0.5}}


class Recorder:
    """Remembers what it is told, and fails or waits as it is asked to."""

    def __init__(self, failing=(), waits_for=None):
        self.calls, self._failing, self._waits_for = [], failing, waits_for

    def _take(self, *call):
        if self._waits_for is not None:
            self._waits_for.wait()
        if call[0] in self._failing:
            raise ConnectionError("the service is\naway")
        self.calls.append(call)

    def start_stage(self, stage, first_step):
        self._take("start", stage, first_step)

    def write(self, stage, step, values):
        self._take("write", stage, step, values)

    def end_stage(self, stage):
        self._take("end", stage)

    def write_results(self, rows):
        self._take("results", rows)

    def close(self, status):
        self._take("close", status)


def write_stage(writer, steps=(1, 2)):
    writer.start_stage("a", 0)
    for step in steps:
        writer.write("a", step, {"loss": 0.5})
    writer.end_stage("a")
    writer.write_results([ROW])
    writer.close("finished")


ALL = [
    ("start", "a", 0),
    ("write", "a", 1, {"loss": 0.5}),
    ("write", "a", 2, {"loss": 0.5}),
    ("end", "a"),
    ("results", [ROW]),
    ("close", "finished"),
]


def test_another_thread_writes_everything_in_order(caplog):
    recorder, threads = Recorder(), []
    write_stage(
        BackgroundWriter(
            "S", lambda: threads.append(threading.current_thread()) or recorder, must_open=True
        )
    )
    assert recorder.calls == ALL and not caplog.records
    assert threads[0] is not threading.main_thread()


def test_a_service_that_fails_costs_its_values_and_two_warnings(caplog):
    recorder = Recorder(failing=("write",))
    write_stage(BackgroundWriter("S", lambda: recorder, must_open=True), steps=range(5))
    assert recorder.calls == [ALL[0], *ALL[3:]]
    assert caplog.messages == [
        "S misses values: the service is away; the training goes on",
        "S: 5 writes were lost in all",
    ]


def test_a_service_that_hangs_is_left_behind(caplog):
    released = threading.Event()
    recorder = Recorder(waits_for=released)
    writer = BackgroundWriter("S", lambda: recorder, must_open=True, close_s=0.2, most_waiting=3)
    started = time.monotonic()
    write_stage(writer, steps=range(100))
    assert time.monotonic() - started < 5
    released.set()
    assert caplog.messages[0] == "S misses values: it does not keep up; the training goes on"
    assert caplog.messages[1].startswith("S has not taken the last values within 0 s; they stay in")


def broken():
    raise ConnectionError("no route")


def test_a_new_run_that_does_not_begin_is_refused_and_a_known_one_goes_on(caplog):
    with pytest.raises(UserError, match=r"^expected S to begin a run, found no route; mend that, "):
        BackgroundWriter("S", broken, must_open=True)
    write_stage(BackgroundWriter("S", broken, must_open=False))
    assert caplog.messages == ["S does not continue the run (no route); the training goes on"]


def test_a_service_that_does_not_answer_is_waited_for_so_long(caplog):
    released, recorder = threading.Event(), Recorder()

    def slow():
        released.wait()
        return recorder

    with pytest.raises(UserError, match=r"to begin a run, found no answer within 0 s"):
        BackgroundWriter("S", slow, must_open=True, open_s=0.1)
    writer = BackgroundWriter("S", slow, must_open=False, open_s=0.1)
    assert "S does not continue the run (no answer within 0 s)" in caplog.text
    # It answers later: nothing of what has been handed over is lost.
    released.set()
    write_stage(writer)
    assert recorder.calls == ALL


def test_only_known_writers_whose_package_is_here(monkeypatch):
    check_writers(("tensorboard",))
    with pytest.raises(UserError, match=r"of tensorboard, wandb, mlflow, found 'wand'; pass these"):
        check_writers(("tensorboard", "wand"))
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"the package wandb .* pip install -e '\.\[wandb\]', or "):
        check_writers(("wandb",))
    # Python takes any folder of that name for a package.
    folder = types.ModuleType("mlflow")
    folder.__spec__ = importlib.machinery.ModuleSpec("mlflow", None, is_package=True)
    monkeypatch.setitem(sys.modules, "mlflow", folder)
    with pytest.raises(UserError, match=r"the package mlflow .* pip install -e '\.\[mlflow\]'"):
        check_writers(("mlflow",))


def config(*writers):
    return {"loop": {"writers": writers}, "model": {"width": 8, "widths": (1, 2)}, "name": ""}


def test_without_tensorboard_there_are_no_events(tmp_path):
    for writers in ((), ("tensorboard",)):
        workdir = Workdir(str(tmp_path))
        with logging_run(workdir, config(*writers)):
            stage = MetricWriter(workdir, "a", 0)
            stage.write(1, {"loss": 0.5})
            stage.close()
        assert (tmp_path / "events").exists() == bool(writers)
    assert (tmp_path / "metrics.jsonl").read_text() == '{"stage": "a", "step": 1, "loss": 0.5}\n'


def test_a_stage_hands_its_values_to_every_writer_of_the_run(tmp_path):
    workdir, recorder = Workdir(str(tmp_path)), Recorder()
    workdir.writers = [recorder]
    for first_step in (0, 1):  # killed after step 2, continued from the checkpoint of step 1
        stage = MetricWriter(workdir, "a", first_step)
        stage.write(first_step + 1, {"loss": math.inf})
        stage.close()
    starts = [call for call in recorder.calls if call[0] == "start"]
    assert starts == [("start", "a", 0), ("start", "a", 1)]
    assert ("write", "a", 2, {"loss": math.inf}) in recorder.calls
    assert not (tmp_path / "events").exists()


def test_processes_but_the_first_write_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    workdir = Workdir(str(tmp_path))
    with logging_run(workdir, config("tensorboard", "wandb")):
        stage = MetricWriter(workdir, "a", 0)
        stage.write(1, {"loss": 0.5})
        stage.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["[]", "{", '{"wandb": 3}', '{"wandb": {"id": 3}}'])
def test_damaged_ids_are_one_line(tmp_path, text):
    (tmp_path / IDS_FILE).write_text(text)
    words = r"writers\.json.*remove the file, and the services begin a new run"
    workdir = Workdir(str(tmp_path))
    with pytest.raises(UserError, match=words), logging_run(workdir, config("wandb")):
        pass


def killed_and_continued(folder, name, values):
    """Writes steps 1 and 2, is stopped, and goes on from step 1 as the same command would."""
    for first_step, steps in ((0, (1, 2)), (1, (2, 3))):
        workdir = Workdir(str(folder))
        try:
            with logging_run(workdir, config(name)):
                stage = MetricWriter(workdir, "a", first_step)
                for step in steps:
                    stage.write(step, values(step))
                stage.close()
                if first_step == 0:
                    raise Preempted("stopped")
                workdir.write_result_row(
                    dict.fromkeys(("protocol", "selected_on", "commit", "data"), "")
                    | {"data_hash": "", "data_split": "", "examples": 1, "seed": 0}
                    | ROW
                )
        except Preempted:
            assert first_step == 0
    return json.loads((folder / IDS_FILE).read_text())[name]


def measured(step):
    return {"ndcg@5/full": math.nan if step == 2 else step / 4}


def wandb_records(path):
    """Reads a .wandb file: records in blocks of 32 KiB, each part with a head of 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    content, place, whole = path.read_bytes(), 7, b""
    while place + 7 <= len(content):
        if (left := 32768 - place % 32768) < 7:
            place += left
            continue
        _, size, kind = struct.unpack("<IHB", content[place : place + 7])
        whole += content[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # a whole record, or the last part of one
            yield wandb_internal_pb2.Record.FromString(whole)
            whole = b""


def test_wandb_offline_needs_no_network_and_continues_its_run(tmp_path, monkeypatch, caplog):
    pytest.importorskip("wandb", reason="the extra wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    ids = killed_and_continued(tmp_path, "wandb", measured)
    files = sorted(
        tmp_path.glob("wandb/offline-run-*/run-*.wandb"), key=lambda path: path.stat().st_mtime_ns
    )
    assert [path.stem for path in files] == [f"run-{ids['id']}"] * 2
    seen, summary = [], {}
    for path in files:
        for record in wandb_records(path):
            values = {item.nested_key[0]: item.value_json for item in record.history.item}
            if values:
                seen.append((values["a/step"], values["a/ndcg@5/full"]))
            for item in record.summary.update:
                summary[item.key or "/".join(item.nested_key)] = item.value_json
    assert seen == [("1", "0.25"), ("2", "NaN"), ("2", "NaN"), ("3", "0.75")]
    assert summary["a/test/ndcg@5/full"] == "0.5"
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_wandb_without_an_account_is_one_line(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb", reason="the extra wandb is not installed")
    wandb.teardown()  # it keeps the variables that it has read
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    words = r"expected Weights & Biases to begin a run, found .*; mend that, or take it out of"
    workdir = Workdir(str(tmp_path))
    with pytest.raises(UserError, match=words), logging_run(workdir, config("wandb")):
        pass
    assert not (tmp_path / IDS_FILE).exists()


@pytest.mark.parametrize("told", [True, False])
def test_mlflow_continues_its_run_from_any_folder(tmp_path, monkeypatch, caplog, told):
    mlflow = pytest.importorskip("mlflow", reason="the extra mlflow is not installed")
    store = f"sqlite:///{tmp_path}/store.db"
    mlflow.set_tracking_uri(store)
    if told:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    else:
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    workdir = tmp_path / "w"
    workdir.mkdir()
    ids = killed_and_continued(workdir, "mlflow", measured)
    assert ids.get("tracking_uri") == (None if told else store)
    client = mlflow.MlflowClient(tracking_uri=store)
    run = client.get_run(ids["id"])
    assert run.info.status == "FINISHED" and run.info.run_name == "w"
    assert run.data.params["model.width"] == "8" and run.data.params["name"] == '""'
    assert run.data.metrics["a/test/ndcg_at_5/full"] == 0.5
    history = client.get_metric_history(ids["id"], "a/ndcg_at_5/full")
    seen = sorted((metric.step, str(metric.value)) for metric in history)
    assert seen == [(1, "0.25"), (2, "nan"), (2, "nan"), (3, "0.75")]
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
