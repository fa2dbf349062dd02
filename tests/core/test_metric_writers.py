"""metrics.jsonl after kills and damage: nothing that can be read is lost."""

import json
import logging
import os
import resource
import struct

import pytest
from tensorboardX.proto import event_pb2

from core.errors import UserError
from core.metric_writers import MetricWriter, read_lines
from core.workdir import Workdir

LINES = [{"stage": "a", "step": step, "train/loss": 0.5} for step in range(1, 6)]
TEXT = [json.dumps(line).encode() + b"\n" for line in LINES]


def resumed(folder, content, first_step=9, stage="a"):
    (folder / "metrics.jsonl").write_bytes(content)
    MetricWriter(Workdir(str(folder)), stage, first_step).close()
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_bytes().splitlines()]


def asides(folder):
    return sorted(name for name in os.listdir(folder) if "damaged" in name)


def test_lines_beyond_the_step_go_and_of_other_stages_stay(tmp_path):
    assert resumed(tmp_path, b"".join(TEXT), 3) == LINES[:3]
    assert resumed(tmp_path, b"".join(TEXT), 3, "b") == LINES
    assert asides(tmp_path) == []


@pytest.mark.parametrize("cut", [1, 20, 40])
def test_a_cut_last_line_goes_without_a_word(tmp_path, cut, caplog):
    assert resumed(tmp_path, b"".join(TEXT)[:-cut]) == LINES[: 5 if cut == 1 else 4]
    assert asides(tmp_path) == [] and not caplog.records


BAD = {
    "cut": b'{"stage": "a", "st\n',
    "latin": b'{"stage": "\xe9", "step": 3}\n',
    "list": b"[1, 2]\n",
    "no step": b'{"stage": "a"}\n',
    "step": b'{"stage": "a", "step": "3"}\n',
    "words": b'{"stage": "a", "step": 3, "train/loss": "low"}\n',
    "nested": b"[" * 100_000 + b"\n",
    "long": b'{"stage": "' + b"x" * 3_000_000 + b'", "step": 3}\n',
    "zeros": b"\0" * 300 + b"\n",
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_a_bad_line_within_costs_that_line_alone_and_the_file_is_kept(tmp_path, bad, caplog):
    content = b"".join([*TEXT[:2], bad, *TEXT[3:]])
    with caplog.at_level(logging.WARNING):
        assert resumed(tmp_path, content) == [*LINES[:2], *LINES[3:]]
    (said,) = caplog.messages
    assert (
        "1 of 5 lines cannot be read, the first of them line 3; the others go on; the file is kept"
        in said
    )
    assert asides(tmp_path) == ["metrics.jsonl.damaged-1"]
    assert (tmp_path / "metrics.jsonl.damaged-1").read_bytes() == content
    # Damaged again: the first copy stays.
    resumed(tmp_path, b"x\n" + b"".join(TEXT))
    assert asides(tmp_path) == ["metrics.jsonl.damaged-1", "metrics.jsonl.damaged-2"]
    assert (tmp_path / "metrics.jsonl.damaged-1").read_bytes() == content


def test_a_reader_says_what_it_leaves_out_and_changes_nothing(tmp_path, caplog):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(TEXT[0] + b"x\n" + TEXT[1])
    assert read_lines(str(path)) == LINES[:2]
    assert "1 of 3 lines cannot be read" in caplog.text
    assert os.listdir(tmp_path) == ["metrics.jsonl"]
    assert read_lines(str(tmp_path / "none")) == []
    with pytest.raises(UserError, match=r"expected the metrics of a run at .*, found Is a dir"):
        read_lines(str(tmp_path))


def test_a_full_disk_is_one_line(tmp_path):
    writer = MetricWriter(Workdir(str(tmp_path)), "a", 0)
    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"to write .*metrics\.jsonl, found No space left on dev"):
        writer.write(1, {"train/loss": 0.5})
    writer.close()


def test_full_events_are_one_line_and_no_wait_for_ever(tmp_path):
    # TensorBoard's own writer died in its thread, and the run waited for it.
    writer = MetricWriter(Workdir(str(tmp_path)), "a", 0)
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(UserError, match=r"expected to write .*, found File too large; free"):
            for step in range(1000):
                writer.write(step, {"loss": 0.5})
                (tmp_path / "metrics.jsonl").write_text("")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))


def test_tensorboard_reads_what_was_written(tmp_path):
    writer = MetricWriter(Workdir(str(tmp_path)), "a", 2)
    writer.write(3, {"ndcg@5/full": 0.25})
    writer.close()
    (name,) = os.listdir(tmp_path / "events" / "a")
    content = (tmp_path / "events" / "a" / name).read_bytes()
    events = []
    while content:
        (size,) = struct.unpack("Q", content[:8])
        events.append(event_pb2.Event.FromString(content[12 : 12 + size]))
        content = content[16 + size :]
    assert [event.step for event in events] == [0, 3, 3]
    assert events[0].file_version == "brain.Event:2"
    assert events[1].session_log.status == event_pb2.SessionLog.START
    (value,) = events[2].summary.value
    assert (value.tag, value.simple_value) == ("ndcg_at_5/full", 0.25)
