"""Small batches: shared, fair, and each request with its own errors."""

from concurrent.futures import Future
from typing import Any

from lushan.errors import DataError
from lushan.records import Example, Prediction
from lushan.serving.micro_batches import MOST_CHARACTERS, MOST_EXAMPLES, Asked, MicroBatches


class FakePredictor:
    """Answers with the id; refuses the text `bad`."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []

    def predict(self, examples: list[Example]) -> list[Prediction]:
        if any(each.text == "bad" for each in examples):
            raise DataError("bad text")
        self.batches.append([each.id for each in examples])
        return [Prediction(each.id, each.text) for each in examples]


def ask(batches: MicroBatches, predictor: Any, *texts: str) -> "Future[list[Prediction]]":  # noqa: ANN401
    future: Future[list[Prediction]] = Future()
    examples = [Example(f"{text}{number}", text, None) for number, text in enumerate(texts)]
    batches.add(Asked(predictor, examples, future))
    return future


def work(batches: MicroBatches) -> None:
    while batches.is_busy:
        batches.step()


def test_requests_for_one_model_share_a_batch_and_others_wait() -> None:
    batches, one, other = MicroBatches(), FakePredictor(), FakePredictor()
    asked = [ask(batches, each, name) for each, name in ((one, "a"), (other, "b"), (one, "c"))]
    batches.step()
    assert (one.batches, other.batches) == ([["a0", "c0"]], [])
    work(batches)
    assert [each.result()[0].answer for each in asked] == ["a", "b", "c"]


def test_long_request_gives_way_after_each_batch() -> None:
    batches, predictor = MicroBatches(), FakePredictor()
    long = ask(batches, predictor, *["l"] * (MOST_EXAMPLES * 2 + 1))
    batches.step()
    short = ask(batches, predictor, "s")
    batches.step()
    assert (short.done(), long.done()) == (False, False)
    batches.step()
    assert short.done()
    assert [each.id for each in long.result()] == [f"l{n}" for n in range(MOST_EXAMPLES * 2 + 1)]


def test_long_texts_run_alone() -> None:
    batches, predictor = MicroBatches(), FakePredictor()
    text = "x" * (MOST_CHARACTERS + 1)
    ask(batches, predictor, text, text, "y")
    work(batches)
    assert [len(each) for each in predictor.batches] == [1, 1, 1]


def test_request_that_is_refused_leaves_the_others_alone() -> None:
    batches, predictor = MicroBatches(), FakePredictor()
    asked = [ask(batches, predictor, text) for text in ("good", "bad", "fine")]
    work(batches)
    assert str(asked[1].exception()) == "bad text"
    assert [asked[n].result()[0].answer for n in (0, 2)] == ["good", "fine"]


def test_request_that_nobody_waits_for_is_not_answered() -> None:
    batches, predictor = MicroBatches(), FakePredictor()
    ask(batches, predictor, "a").cancel()
    work(batches)
    assert predictor.batches == []


def test_closed_batches_tell_everybody_why() -> None:
    batches = MicroBatches()
    asked = ask(batches, FakePredictor(), "a")
    batches.close(DataError("over"))
    assert str(asked.exception()) == "over"
