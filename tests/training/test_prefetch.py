"""Batches drawn ahead: the same ones in the same order, never too many, and a thread that does not outlive its run."""

import threading
import time

import pytest
import torch

from edge_sd.training.prefetch import Prefetch


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


def batch(step: int) -> tuple[torch.Tensor, ...]:
    return (torch.tensor([step]),)


def until(what: object) -> None:
    """Wait for a condition, but not for ever."""
    deadline = time.monotonic() + 20
    while not what() and time.monotonic() < deadline:  # type: ignore[operator]
        time.sleep(0.005)


def test_batches_come_in_order() -> None:
    with Prefetch(batch, range(3, 9)) as ahead:
        assert [ahead.take()[0].item() for _ in range(6)] == [3, 4, 5, 6, 7, 8]
    assert not threads()


def test_no_more_are_drawn_than_there_is_room_for() -> None:
    drawn: list[int] = []

    def draw(step: int) -> tuple[torch.Tensor, ...]:
        drawn.append(step)
        return batch(step)

    with Prefetch(draw, range(100), ahead=2) as ahead:
        until(lambda: len(drawn) == 3)
        time.sleep(0.1)
        assert drawn == [0, 1, 2]  # two wait, one is held
        ahead.take()
        until(lambda: len(drawn) == 4)
        assert drawn == [0, 1, 2, 3]
    assert not threads()


@pytest.mark.parametrize("error", [ValueError("a broken image"), KeyboardInterrupt()])
def test_an_error_is_raised_where_its_batch_is_taken(error: BaseException) -> None:
    def draw(step: int) -> tuple[torch.Tensor, ...]:
        if step == 2:
            raise error
        return batch(step)

    with Prefetch(draw, range(5)) as ahead:
        assert [ahead.take()[0].item(), ahead.take()[0].item()] == [0, 1]
        with pytest.raises(type(error)) as caught:
            ahead.take()
    assert caught.value is error
    assert not threads()


def test_the_thread_ends_with_a_run_that_fails() -> None:
    def fail() -> None:
        with Prefetch(batch, range(1000)) as ahead:
            ahead.take()
            raise RuntimeError("elsewhere")

    with pytest.raises(RuntimeError, match="elsewhere"):
        fail()
    assert not threads()


def test_a_run_without_steps_is_none() -> None:
    with Prefetch(batch, range(5, 5)) as ahead:
        assert ahead.waited == 0
    assert not threads()


def test_what_is_waited_for_is_counted_and_nothing_else() -> None:
    def slow(step: int) -> tuple[torch.Tensor, ...]:
        time.sleep(0.05)
        return batch(step)

    with Prefetch(slow, range(4)) as ahead:
        for _ in range(4):
            ahead.take()
        assert ahead.waited > 0.15
    with Prefetch(slow, range(3), ahead=3) as ahead:
        until(lambda: ahead._drawn.full())
        for _ in range(3):
            ahead.take()
        assert ahead.waited < 0.04
