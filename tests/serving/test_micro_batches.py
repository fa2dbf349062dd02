"""Requests become batches, in bounded number and time, and none is lost."""

import threading
import time

import pytest
from fake_model import FakeModel

from core.errors import UserError
from serving.micro_batches import Batching, Closed, MicroBatches, Overloaded
from serving.requests import Click, Request


def asked(last="i0", **more):
    return Request(clicks=(Click(last),), k=1, **more)


@pytest.fixture
def gated():
    """A worker whose model answers once its gate is opened, with the first request inside."""
    model = FakeModel(max_steps=None, gate=threading.Event())
    batches = MicroBatches(Batching(most=4, wait_s=0.01, waiting=6))
    batches.use(model)
    first = batches.submit(asked())
    while not model.batches:
        time.sleep(0.001)
    yield model, batches, first
    model.gate.set()
    batches.close()


def test_what_waits_is_answered_together(gated):
    model, batches, first = gated
    others = [batches.submit(asked(f"i{number}")) for number in range(6)]
    model.gate.set()
    assert first.result(5).items[0].item == "i1"
    assert [each.result(5).items[0].item for each in others] == [f"i{n + 1}" for n in range(6)]
    assert model.batches == [1, 4, 2]


def test_a_full_queue_refuses_at_once(gated):
    _, batches, _ = gated
    for _ in range(6):
        batches.submit(asked())
    began = time.monotonic()
    with pytest.raises(Overloaded):
        batches.submit(asked())
    assert time.monotonic() - began < 0.1
    assert batches.waiting() == 6


def test_what_has_waited_too_long_is_refused():
    model = FakeModel(max_steps=None, gate=threading.Event())
    batches = MicroBatches(Batching(most=1, oldest_s=0.05))
    batches.use(model)
    first, second = batches.submit(asked()), batches.submit(asked())
    time.sleep(0.1)
    model.gate.set()
    assert first.result(5).items
    with pytest.raises(Overloaded):
        second.result(5)
    batches.close()


def test_a_request_waits_for_company_no_longer_than_told():
    model, batches = FakeModel(), MicroBatches(Batching(most=8, wait_s=0.2))
    batches.use(model)
    began = time.monotonic()
    futures = [batches.submit(asked()) for _ in range(3)]
    assert all(each.result(5).items for each in futures)
    assert 0.15 < time.monotonic() - began < 2
    assert model.batches == [3]
    batches.close()


def test_a_defect_and_a_refusal_take_no_other_answer_with_them(gated):
    model, batches, _ = gated
    good, broken, refused = (
        batches.submit(asked(user=user)) for user in ("someone", "broken", "refused")
    )
    model.gate.set()
    assert good.result(5).items
    with pytest.raises(ZeroDivisionError):
        broken.result(5)
    assert isinstance(refused.result(5), UserError)


def test_another_model_answers_from_the_next_batch_on(gated):
    model, batches, first = gated
    other = FakeModel(max_steps=3)
    batches.use(other)
    second = batches.submit(asked())
    model.gate.set()
    assert (first.result(5).items[0].item, second.result(5).items[0].item) == ("i1", "i4")


def test_closing_answers_what_waits(gated):
    model, batches, first = gated
    futures = [first, *(batches.submit(asked()) for _ in range(6))]
    closing = threading.Thread(target=batches.close, daemon=True)
    closing.start()
    while not batches.closed:
        time.sleep(0.001)
    with pytest.raises(Closed):
        batches.submit(asked())
    model.gate.set()
    closing.join(5)
    assert all(each.result(0).items for each in futures)
