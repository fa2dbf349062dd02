"""Subsets of Eq. 2 on disk, the loop over them, traces, and packed rows."""

import functools
import hashlib
import json

import numpy as np
import pytest

from core import checksums
from core.errors import UserError
from crs_jax import packing, self_evolve, traces
from crs_jax.inference import MISSED, Answers
from crs_jax.packing import Example
from crs_jax.subsets import Case, Subsets, correct, every, incorrect, sampled

END_THINK = 9
ANSWERS = Answers(
    items=np.array([[1, 2], [2, 1], [3, 1], [3, -1]]),
    scores=np.array([[-1.0, -2.0], [-1.0, -1.0], [-0.5, -3.0], [-0.1, -np.inf]]),
    reasoning=np.array([[5, 6, 9], [5, 9, 0], [5, 6, 7], [9, 0, 0]]),
    lengths=np.array([3, 2, 3, 1]),
)
TARGETS = np.array([1, 1, 3, 3])
PLACES = np.array([10, 11, 12, 13])


def text(tokens):
    return " ".join(map(str, tokens))


def test_incorrect_and_correct_are_by_the_first_answer():
    wrong = incorrect(ANSWERS, TARGETS, PLACES, END_THINK)
    assert wrong == [Case(11, [5], 2)]
    right = correct(ANSWERS, TARGETS, PLACES, END_THINK)
    # Row 2 is right too, but its reasoning never ended; row 3 thought nothing.
    assert right == [Case(10, [5, 6], 1), Case(13, [], 3)]
    both = every(ANSWERS, TARGETS, PLACES, END_THINK)
    assert both == [right[0], *wrong, Case(12, [5, 6, 7], 3), right[1]]
    some = sampled(both, 2, 0)
    assert len(some) == 2 and set(c.example for c in some) < set(PLACES)
    assert some == sampled(both, 2, 0) and sampled(both, 0, 0) == both


def test_ranks_by_hand():
    nothing = np.zeros((4, 1), np.int32)
    above, tied, broken = ANSWERS.ranks(np.array([2, 1, 9, 3]), nothing)
    assert above.tolist() == [1, 0, MISSED, 0] and tied.tolist() == [0, 1, 0, 0]
    assert not broken.any()


def test_other_clicks_of_the_search_do_not_stand_above_a_target():
    target = np.array([2, 1, 9, 3])
    left_out = np.array([[1, 0], [2, 0], [1, 2], [0, 0]])
    above, tied, _ = ANSWERS.ranks(target, left_out)
    # Item 1 stood above 2, and 2 was tied with 1; what the beam has not found stays a miss.
    assert above.tolist() == [0, 0, MISSED, 0] and tied.tolist() == [0, 0, 0, 0]


def test_a_subset_is_made_once_and_held_to_its_hash(tmp_path):
    made = []

    def make():
        made.append(1)
        return [Case(3, [5, 6], 1)]

    subsets = Subsets(str(tmp_path / "s"), text)
    assert subsets.get("rl_0", make) == [Case(3, [5, 6], 1)] == subsets.get("rl_0", make)
    assert made == [1]
    row = json.loads((tmp_path / "s" / "rl_0.jsonl").read_text())
    assert row == {"example": 3, "reasoning": [5, 6], "answer": 1, "text": "5 6"}
    assert subsets.hashes()["rl_0"]["rows"] == 1
    # Characters that Python takes for line ends, and JSON does not.
    odd = Subsets(str(tmp_path / "odd"), lambda tokens: "red\u2028pot\x85\u2029")
    assert odd.get("rl_0", make) == odd.get("rl_0", make) == [Case(3, [5, 6], 1)]
    made.pop()
    # Killed between the two files: made again.
    (tmp_path / "s" / "rl_0.json").unlink()
    subsets.get("rl_0", make)
    assert made == [1, 1]
    (tmp_path / "s" / "rl_0.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match="found other content"):
        subsets.get("rl_0", make)
    for content in (b"", b"[]", b"{", b"\xe9", b"{}", b"[" * 100_000, b'{"rows": 1, "sha256": 1}'):
        (tmp_path / "s" / "rl_0.json").write_bytes(content)
        with pytest.raises(UserError, match=r"rl_0\.json, found .*; remove it and the file of"):
            subsets.get("rl_0", make)
    # Of another program, with its own hash.
    for content in (b"{}\n", b"[3]\n", b"\xe9\n", b"[" * 100_000):
        about = {"rows": 1, "sha256": hashlib.sha256(content).hexdigest()}
        checksums.write_sealed(str(tmp_path / "s" / "rl_0.json"), about)
        (tmp_path / "s" / "rl_0.jsonl").write_bytes(content)
        with pytest.raises(UserError, match=r"the cases of a subset in .*, found none that can be"):
            subsets.get("rl_0", make)


def loop(folder, wrong, right, *, rounds=3):
    """Runs Eq. 2 with parameters that are lists of what was done to them."""

    def train(kind, stage, iteration, cases, params):
        return [*params, (kind, stage, len(cases))]

    done = []

    def collect(counts, name, params, stage, iteration):
        done.append((name, stage, len(params)))
        return [Case(i, [], 0) for i in range(counts[iteration])]

    final = []

    def keep(kind, stage, iteration, cases, params):
        final[:] = train(kind, stage, iteration, cases, params)
        return list(final)

    reason = self_evolve.evolve(
        [],
        rounds,
        Subsets(str(folder), text),
        to_reinforce=functools.partial(collect, wrong, "to_reinforce"),
        correct=functools.partial(collect, right, "correct"),
        reinforce=functools.partial(keep, "rl"),
        fine_tune=functools.partial(keep, "sft"),
    )
    return reason, done, final


def test_the_loop_alternates_and_goes_on_from_what_it_kept(tmp_path):
    reason, done, final = loop(tmp_path, [5, 4, 3], [1, 2, 3])
    assert reason is None
    assert final == [
        ("rl", "rl_0", 5),
        ("sft", "sft_1", 1),
        ("rl", "rl_1", 4),
        ("sft", "sft_2", 2),
        ("rl", "rl_2", 3),
        ("sft", "sft_3", 3),
    ]
    # Incorrect cases by the model before the iteration, correct ones by the model after its RL.
    assert done[:3] == [
        ("to_reinforce", "rl_0", 0),
        ("correct", "sft_1", 1),
        ("to_reinforce", "rl_1", 2),
    ]
    again = loop(tmp_path, [5, 4, 3], [1, 2, 3])
    assert again[1] == [] and again[2] == final


def test_the_loop_ends_early_and_says_so(tmp_path):
    reason, _, final = loop(tmp_path / "a", [5, 0], [1, 1])
    assert reason == "no cases to reinforce are left for rl_1: the loop ends early"
    assert [stage for _, stage, _ in final] == ["rl_0", "sft_1"]
    reason, _, final = loop(tmp_path / "b", [5], [0])
    assert reason == "there are no correct cases for sft_1: the loop ends early"
    assert [stage for _, stage, _ in final] == ["rl_0"]


def test_traces_are_read_and_broken_lines_named(tmp_path):
    path = tmp_path / "traces.jsonl"
    good = {"user": "7", "query": "red pot", "item": "i3", "reasoning": "wants a pot"}
    path.write_text(json.dumps(good) + "\n\n" + json.dumps(good | {"user": 8}) + "\n")
    read = traces.read_traces(str(path))
    assert [trace.user for trace in read] == ["7", "8"] and read[0].reasoning == "wants a pot"
    odd = json.dumps(good | {"reasoning": "wants\u2028a pot"}, ensure_ascii=False)
    path.write_text(odd + "\n", encoding="utf-8")
    assert [trace.reasoning for trace in traces.read_traces(str(path))] == ["wants\u2028a pot"]
    path.write_text(json.dumps(good) + "\n" + '{"user": "7", "query"\n')
    with pytest.raises(UserError, match=r"in line 2 of .*traces\.jsonl, found"):
        traces.read_traces(str(path))
    for changes in (
        {"reasoning": None},
        {"reasoning": ["x"]},
        {"reasoning": " "},
        {"reasoning": "\ud800 hm"},
        {"item": None},
        {"user": True},
    ):
        path.write_text(json.dumps(good | changes) + "\n")
        with pytest.raises(UserError, match="as text in line 1 of"):
            traces.read_traces(str(path))
    path.write_text('{"user": "7"}\n')
    with pytest.raises(UserError, match="in line 1 of"):
        traces.read_traces(str(path))
    with pytest.raises(UserError, match="expected traces as UTF-8 text in"):
        traces.read_traces(str(tmp_path / "none"))


def test_what_tells_the_target_leaks():
    assert traces.leaks("it is the Red-Pot of course", "red pot")
    assert not traces.leaks("it is a red one, a pot", "red pot")
    assert not traces.leaks("a redpot", "pot")
    assert traces.leaks("so <a_3>", "pot") and traces.leaks("so </think>", "")
    assert not traces.leaks("anything", "")
    # The title comes first in a text of more.
    text = "Red Iron Pot Lodge heavy pot for open fires"
    assert traces.leaks("they want the red iron pot", text)
    assert traces.leaks("a pot for open fires", text) and not traces.leaks("a pot for open", text)
    assert not traces.leaks("an iron pot of Lodge", text)


def test_ideographs_tell_the_target_too():
    title = "儿童益智小玩具视频合集，三岁宝宝都喜欢 LEGO 积木"
    assert traces.leaks("所以选择了儿童益智小玩具视频合集这篇笔记", title)
    assert traces.leaks("因为三岁宝宝都喜欢 lego，就选它", title)
    # Six of them at the start tell it, five do not; eight anywhere else.
    assert traces.leaks("想要儿童益智小玩", title) and not traces.leaks("想要儿童益智小", title)
    assert not traces.leaks("给三岁宝宝的", title)


def test_the_template_teacher_needs_only_texts():
    teacher = traces.TemplateTeacher()
    said = [
        teacher.reasoning("tent tentkit", ["camera", "tent tentkit"], "all about tent 3", n)
        for n in range(4)
    ]
    assert said[0] == "It is about tent after camera."
    assert len(set(said)) == 3 and said[3] == said[0]
    assert not any(traces.leaks(text, "all about tent 3") for text in said)
    # Nothing in common, no history: still a sentence.
    assert teacher.reasoning("visa", [], "notice", 1) == "The user wants visa."


def test_packed_rows_hold_whole_examples():
    examples = [
        Example([1, 2], [3]),
        Example([4] * 5, [5, 6]),
        Example([7], [8, 9]),
        Example([1], [2]),
    ]
    batch = packing.packed(examples, 8, least_rows=3)
    assert batch["tokens"].shape == (8, 8)
    # The longest first; what fits beside it is nothing; then both of three tokens and the last.
    assert batch["tokens"][0].tolist() == [4, 4, 4, 4, 4, 5, 6, 0]
    assert batch["tokens"][1].tolist() == [1, 2, 3, 7, 8, 9, 1, 2]
    assert batch["segments"][1].tolist() == [1, 1, 1, 2, 2, 2, 3, 3]
    assert batch["positions"][1].tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    assert batch["answers"][1].tolist() == [False, False, True, False, True, True, False, True]
    assert not batch["segments"][2:].any()
    with pytest.raises(ValueError, match="at most 6 tokens, found 7"):
        packing.packed(examples, 6)
