"""The thread: commands in order, errors to who asked, and an end."""

import threading
from concurrent.futures import Future
from typing import cast

import pytest

from lushan.inference.predict import Predictor
from lushan.records import Example, Prediction
from lushan.serving import compute_thread
from lushan.serving.compute_thread import ComputeThread
from lushan.serving.micro_batches import Asked, MicroBatches
from lushan.serving.serve_settings import ServeSettings


def test_functions_run_in_the_thread_in_order() -> None:
    thread = ComputeThread(ServeSettings(max_rows=1, max_tokens=1000))
    names: list[str] = []
    futures: list[Future[None]] = [Future() for _ in range(3)]
    for future in futures:
        thread.call(lambda: names.append(threading.current_thread().name), future)
    thread.start()
    for future in futures:
        future.result(timeout=5)
    thread.stop()
    assert names == ["lushan-compute"] * 3


def test_error_reaches_who_asked_and_the_thread_goes_on() -> None:
    thread = ComputeThread(ServeSettings(max_rows=1, max_tokens=1000))
    thread.start()
    failing: Future[float] = Future()
    thread.call(lambda: 1 / 0, failing)
    with pytest.raises(ZeroDivisionError):
        failing.result(timeout=5)
    working: Future[int] = Future()
    thread.call(lambda: 7, working)
    assert working.result(timeout=5) == 7
    thread.stop()


def test_function_that_nobody_waits_for_is_not_called() -> None:
    thread = ComputeThread(ServeSettings(max_rows=1, max_tokens=1000))
    called: list[int] = []
    futures: list[Future[None]] = [Future(), Future()]
    for number, future in enumerate(futures):
        thread.call(lambda number=number: called.append(number), future)
    futures[0].cancel()
    thread.start()
    futures[1].result(timeout=5)
    thread.stop()
    assert called == [1]


def test_thread_that_was_never_started_can_be_stopped() -> None:
    ComputeThread(ServeSettings(max_rows=1, max_tokens=1000)).stop()


def test_failure_in_the_middle_is_told_to_all_who_wait_and_the_thread_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(_: MicroBatches) -> None:
        raise RuntimeError("a slip")

    thread = ComputeThread(ServeSettings(max_rows=1, max_tokens=1000))
    asked: Future[list[Prediction]] = Future()
    with monkeypatch.context() as patch:
        patch.setattr(MicroBatches, "step", fail)
        thread.predict(Asked(cast("Predictor", None), [Example("1", "a", None)], asked))
        thread.start()
        assert str(asked.exception(timeout=5)) == "a slip"
    working: Future[int] = Future()
    thread.call(lambda: 7, working)
    assert working.result(timeout=5) == 7
    thread.stop()


def test_freed_memory_is_given_back_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    given_back: list[int] = []
    monkeypatch.setattr(compute_thread, "STEPS_BETWEEN_TRIMS", 2)
    monkeypatch.setattr(compute_thread, "give_back_freed_memory", lambda: given_back.append(1))
    thread = ComputeThread(ServeSettings(max_rows=1, max_tokens=1000))
    futures: list[Future[int]] = [Future() for _ in range(5)]
    for future in futures:
        thread.call(lambda: 7, future)
    thread.start()
    for future in futures:
        future.result(timeout=5)
    thread.stop()
    assert len(given_back) in (2, 3)  # to be told to stop is a step too
