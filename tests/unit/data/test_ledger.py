"""What the ledger counts, and what it refuses."""

import json
from dataclasses import replace
from typing import Any

import pytest

from lushan.data import example_store
from lushan.data.example_store import ExampleStore
from lushan.data.ledger import (
    CUT_OFF,
    Counts,
    Ledger,
    count_rows,
    count_tokens,
    notes_on_cuts,
    refuse_without_signal,
    without_rows,
)
from lushan.data.splits import Parts
from lushan.errors import DataError
from lushan.records import Example, Features

STOP = 2
TRAIN = [Example("1", "x", "a"), Example("2", "y", "b"), Example("3", "z", "b")]


def answering(index: int, num_tokens: int, *, targets_from: int, cut: int = 0) -> Features:
    """A document whose last tokens are supervised and end with the stop token."""
    ids = (*range(10, 9 + num_tokens), STOP)
    return Features(ids, str(index), index, targets_from=targets_from, num_cut_tokens=cut)


def classed(index: int, num_tokens: int) -> Features:
    return Features(tuple(range(num_tokens)), str(index), index, target=0)


def rows(examples: list[Example] = TRAIN, **num_dropped: int) -> Ledger:
    parts = Parts(examples, validation=examples[:1], test=examples[:2])
    return count_rows(parts, {"train": num_dropped})


def tokens(features: list[Features], examples: list[Example] = TRAIN) -> Ledger:
    return count_tokens(
        rows(examples), "train", examples=examples, features=features, stop_ids={STOP}
    )


def test_rows_read_are_those_kept_and_those_dropped_with_a_reason() -> None:
    train = rows(empty=2, overlap=3, never=0).splits["train"]
    assert train.num_read == 8
    assert train.num_dropped == {"empty": 2, "overlap": 3}
    assert train.total.num_examples == 3
    assert {label: each.num_examples for label, each in train.per_class.items()} == {"a": 1, "b": 2}


def test_tokens_of_answers_are_supervised_or_masked() -> None:
    ledger = tokens([
        answering(0, 10, targets_from=7),
        answering(1, 6, targets_from=4, cut=5),
        answering(2, 4, targets_from=2),
    ])
    train = ledger.splits["train"]
    assert train.total == Counts(
        num_examples=3,
        num_cut_examples=1,
        num_documents=3,
        num_tokens=20,
        num_supervised=7,
        num_masked_tokens=13,
        num_cut_tokens=5,
    )
    assert train.per_class["b"].num_tokens == 10
    assert train.trains_stop_token is True


def test_what_is_learned_here_and_there_masks_the_rest() -> None:
    turns = Features(tuple(range(9)), "0", 0, positions=(3, 4, 7))
    words = Features(tuple(range(9)), "1", 1, positions=(3, 4, 7), target=(0, 1, 0))
    total = tokens([turns, words]).splits["train"].total
    assert (total.num_supervised, total.num_masked_tokens) == (6, 6)


def test_conversation_trains_its_stop_token_where_the_last_turn_is_learned_to_its_end() -> None:
    ended = Features((10, 11, STOP, 12, 13, STOP), "0", 0, positions=(0, 1, 3, 4))
    endless = replace(ended, token_ids=(10, 11, STOP, 12, 13, 14))
    unlearned = replace(ended, positions=(0, 1, 3))
    found = [
        tokens(each).splits["train"].trains_stop_token
        for each in ([ended], [ended, endless], [ended, unlearned], [ended, classed(1, 3)])
    ]
    assert found == [True, False, False, False]
    with pytest.raises(DataError, match=r"would not learn to stop\..*chat template"):
        refuse_without_signal(tokens([replace(endless, example_index=n) for n in range(3)]))


def test_a_layer_that_answers_supervises_each_document_once_and_masks_nothing() -> None:
    train = tokens([classed(0, 5), classed(1, 7), classed(1, 3), classed(2, 2)]).splits["train"]
    assert (train.total.num_documents, train.total.num_supervised) == (4, 4)
    assert (train.total.num_tokens, train.total.num_masked_tokens) == (17, 0)
    assert train.per_class["b"].num_documents == 3
    assert train.trains_stop_token is None


def test_an_example_with_several_labels_counts_for_each_and_one_without_for_none() -> None:
    several = [Example("1", "x", ("a", "b")), Example("2", "y", ())]
    train = tokens([classed(0, 5), classed(1, 3)], several).splits["train"]
    assert {label: each.num_tokens for label, each in train.per_class.items()} == {
        "(none)": 3,
        "a": 5,
        "b": 5,
    }
    assert train.total.num_tokens == 8


def test_other_splits_stay_as_they_are() -> None:
    assert tokens([classed(0, 5)]).splits["test"] == rows().splits["test"]


def test_a_ledger_survives_json() -> None:
    values: dict[str, Any] = tokens([classed(0, 5)]).as_dict()
    assert json.loads(json.dumps(values)) == json.loads(json.dumps(values, default=str))
    assert values["splits"]["train"]["total"]["num_tokens"] == 5


def test_a_run_with_signal_is_let_through() -> None:
    refuse_without_signal(tokens([answering(n, 6, targets_from=4) for n in range(3)]))
    refuse_without_signal(tokens([classed(n, 4) for n in range(3)]))


def test_a_run_without_any_signal_is_refused() -> None:
    with pytest.raises(DataError, match="of 18 training tokens none is supervised"):
        refuse_without_signal(tokens([answering(n, 6, targets_from=6) for n in range(3)]))


def test_a_label_without_signal_is_refused_by_name() -> None:
    with pytest.raises(DataError, match="Zero training signal for `a`"):
        refuse_without_signal(
            tokens([
                answering(0, 6, targets_from=6),
                *(answering(n, 6, targets_from=4) for n in (1, 2)),
            ])
        )


def test_a_run_that_does_not_train_the_stop_token_is_refused() -> None:
    without_stop = Features((10, 11, 12), "0", 0, targets_from=1)
    ledger = tokens([without_stop, *(answering(n, 6, targets_from=4) for n in (1, 2))])
    assert ledger.splits["train"].trains_stop_token is False
    with pytest.raises(DataError, match="would not learn to stop"):
        refuse_without_signal(ledger)


def test_rows_that_lost_truth_are_counted_and_what_has_no_weight_teaches_nothing() -> None:
    short = [
        replace(answering(0, 10, targets_from=7, cut=5), num_cut_items=2),
        replace(answering(1, 6, targets_from=4, cut=5), num_cut_items=1, weight=0.0),
        answering(2, 4, targets_from=2),
    ]
    train = tokens(short).splits["train"]
    assert (train.total.num_cut_examples, train.total.num_cut_truths) == (2, 2)
    assert (train.total.num_supervised, train.total.num_tokens) == (5, 20)
    silent = [replace(each, weight=float(each.example_index == 0)) for each in short]
    with pytest.raises(DataError, match="Zero training signal for `b`"):
        refuse_without_signal(tokens(silent))


def test_rows_that_are_left_out_later_are_told_with_the_others() -> None:
    ledger = without_rows(rows(empty=2), "train", reason=CUT_OFF, num_rows=1, num_added=1)
    train = ledger.splits["train"]
    assert train.num_dropped == {"empty": 2, "answer cut off": 1}
    assert (train.num_read, train.num_added) == (5, 1)


def test_truth_that_was_cut_off_is_told_for_each_split() -> None:
    assert notes_on_cuts(tokens([classed(n, 4) for n in range(3)])) == []
    short = [replace(classed(n, 4), num_cut_items=1) for n in range(2)]
    ledger = without_rows(tokens(short), "train", reason=CUT_OFF, num_rows=7, num_added=0)
    ledger = count_tokens(ledger, "test", examples=TRAIN[:2], features=short[:1])
    left_out, train, test = notes_on_cuts(ledger)
    assert left_out.startswith("7 training rows are left out: the answer stands in what was cut")
    assert train.startswith("train: of 2 rows the truth")
    assert train.endswith(": it is not learned.")
    assert test.startswith("test: of 1 rows the truth")
    assert test.endswith(": it counts as missed.")


def test_rows_and_tokens_are_counted_alike_wherever_the_rows_are_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(example_store, "_MOST_KIND_CHARACTERS", 100)
    several = [*TRAIN, Example("4", "w", ("b", "c")), Example("5", "v", ()), Example("6", "u", "a")]
    features = [answering(n, 9 - n, targets_from=3, cut=n % 2) for n in range(6)]
    store = ExampleStore.collect(several)
    ledger = count_rows(Parts(store, store[:1], store[2:]), {})
    assert ledger == count_rows(Parts(several, several[:1], several[2:]), {})
    assert count_tokens(ledger, "train", examples=store, features=features) == count_tokens(
        ledger, "train", examples=several, features=features
    )
