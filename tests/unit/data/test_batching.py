"""Packing documents, and the order of a run."""

from collections import Counter
from functools import partial

import numpy as np
import pytest
import torch

from lushan.data.batching import PackedSource, Step, pack, split_by_tokens
from lushan.records import Features


def document(index: int, length: int, *, weight: float = 1.0) -> Features:
    ids = tuple(range(100 * index, 100 * index + length))
    return Features(ids, f"id{index}", index, target=index, weight=weight)


def source(*, seed: int = 0, max_batch_tokens: int = 4096) -> PackedSource:
    documents = [document(index, 3 + index % 4) for index in range(10)]
    return PackedSource(documents, rows_per_step=4, seed=seed, max_batch_tokens=max_batch_tokens)


def rows_of(step: Step) -> list[int]:
    return sorted(each.example_index for batch in step.micro_batches for each in batch.features)


def counts(step: Step) -> tuple[float, int]:
    return step.num_supervised, step.num_tokens


def test_packed_documents_keep_their_tokens_and_count_their_own_positions() -> None:
    batch = pack([document(1, 3), document(2, 2)])
    assert batch.token_ids_1T.tolist() == [[200, 201, 100, 101, 102]]
    assert batch.position_ids_1T.tolist() == [[0, 1, 0, 1, 2]]
    assert batch.document_ids_1T.tolist() == [[0, 0, 1, 1, 1]]
    assert batch.first_N.tolist() == [0, 2]
    assert batch.last_N.tolist() == [1, 4]
    assert [each.example_index for each in batch.features] == [2, 1]


def test_every_branch_goes_on_where_the_start_of_its_document_ends() -> None:
    branched = Features((5, 6, 7, 8, 9, 5), "a", 0, branches=((2, 1), (3, 1), (5, 1)))
    batch = pack([branched, document(1, 2)], first_position=4)
    assert batch.position_ids_1T.tolist() == [[4, 5, 4, 5, 6, 6, 7, 6]]


def test_positions_go_on_behind_a_shared_prefix() -> None:
    batch = pack([document(1, 2)], first_position=7)
    assert batch.position_ids_1T.tolist() == [[7, 8]]


def test_each_document_can_begin_at_a_position_of_its_own() -> None:
    batch = pack([document(1, 3), document(2, 2), document(3, 1)], first_position=[0, 7, 7])
    assert [each.example_index for each in batch.features] == [1, 3, 2]
    assert batch.position_ids_1T.tolist() == [[0, 1, 2, 7, 7, 8]]


def test_documents_are_split_in_order_and_a_long_one_stands_alone() -> None:
    documents = [document(index, length) for index, length in enumerate([3, 3, 9, 2, 4])]
    parts = split_by_tokens(documents, 6)
    assert [[each.example_index for each in part] for part in parts] == [[0, 1], [2], [3, 4]]


def test_epoch_takes_every_row_once() -> None:
    steps = list(source().rest_of_epoch())
    assert len(steps) == source().num_steps_per_epoch == 3
    assert Counter(row for step in steps for row in rows_of(step)) == Counter(range(10))


def test_order_depends_on_seed_and_epoch_alone() -> None:
    first, again, other_seed = source(), source(), source(seed=1)
    orders = [
        [rows_of(step) for step in each.rest_of_epoch()] for each in (first, again, other_seed)
    ]
    second_epoch = [rows_of(step) for step in first.rest_of_epoch()]
    assert orders[0] == orders[1]
    assert orders[0] != orders[2]
    assert orders[0] != second_epoch


@pytest.mark.parametrize("num_steps", [0, 1, 3, 4])
def test_source_goes_on_where_it_was_left(num_steps: int) -> None:
    whole = source()
    expected = [rows_of(step) for _ in range(2) for step in whole.rest_of_epoch()]
    left, resumed = source(), source()
    stream = (step for _ in range(2) for step in left.rest_of_epoch())
    done = [rows_of(next(stream)) for _ in range(num_steps)]
    resumed.load_state_dict(left.state_dict())
    rest = [rows_of(step) for _ in range(resumed.epoch, 2) for step in resumed.rest_of_epoch()]
    assert done + rest == expected


def test_what_is_drawn_depends_on_the_place_of_the_step() -> None:
    documents = [document(n, 2) for n in range(8)]
    sources = [
        PackedSource(documents, rows_per_step=4, seed=0, process=(rank, 2)) for rank in range(2)
    ]
    resumed = source()
    resumed.load_state_dict({"epoch": 0, "step_in_epoch": 1})
    seeds = [step.seed for each in sources for _ in range(2) for step in each.rest_of_epoch()]
    assert len(set(seeds)) == 8
    assert next(resumed.rest_of_epoch()).seed == seeds[1]


def test_smaller_micro_batches_change_neither_rows_nor_count() -> None:
    large = list(source().rest_of_epoch())
    small = list(source(max_batch_tokens=5).rest_of_epoch())
    assert [rows_of(step) for step in large] == [rows_of(step) for step in small]
    assert [counts(step) for step in large] == [counts(step) for step in small]
    assert max(len(step.micro_batches) for step in small) > 1


def test_processes_share_the_rows_of_a_step_and_count_all_of_them() -> None:
    documents = [document(index, 3) for index in range(10)]
    shares = [
        list(PackedSource(documents, rows_per_step=4, seed=0, process=(rank, 2)).rest_of_epoch())
        for rank in range(2)
    ]
    whole = list(PackedSource(documents, rows_per_step=4, seed=0).rest_of_epoch())
    for step, one, two in zip(whole, *shares, strict=True):
        assert sorted(rows_of(one) + rows_of(two)) == rows_of(step)
        assert counts(one) == counts(two) == counts(step)


def test_processes_compute_equally_often_where_they_must() -> None:
    documents = [document(index, 3 + 9 * (index == 0)) for index in range(7)]
    make = partial(PackedSource, documents, rows_per_step=3, seed=0, max_batch_tokens=4)
    even, usual = (
        [list(make(process=(rank, 2), even=is_even).rest_of_epoch()) for rank in range(2)]
        for is_even in (True, False)
    )
    for one, other in zip(*even, strict=True):
        assert len(one.micro_batches) == len(other.micro_batches)
    for same, alone in zip((*even[0], *even[1]), (*usual[0], *usual[1]), strict=True):
        size = len(alone.micro_batches)
        own, added = same.micro_batches[:size], same.micro_batches[size:]
        assert [each.features for each in own] == [each.features for each in alone.micro_batches]
        assert not any(each.weight for batch in added for each in batch.features)
        assert same[1:] == alone[1:]
    assert len(even[1][-1].micro_batches) > len(usual[1][-1].micro_batches) == 0


def test_documents_of_one_row_stay_together() -> None:
    windows = [document(index // 3, 3) for index in range(12)]
    steps = list(PackedSource(windows, rows_per_step=2, seed=0).rest_of_epoch())
    assert [Counter(rows_of(step)).most_common()[-1][1] for step in steps] == [3, 3]


def test_count_is_the_sum_of_weights_and_supervised_tokens() -> None:
    documents = [document(0, 3, weight=0.5), Features((1, 2, 3, 4), "b", 1, targets_from=2)]
    (step,) = PackedSource(documents, rows_per_step=2, seed=0).rest_of_epoch()
    assert counts(step) == (0.5 + 2, 7)


def test_packing_leaves_types_that_torch_indexes_with() -> None:
    batch = pack([document(1, 3)])
    assert {tensor.dtype for tensor in (batch.token_ids_1T, batch.first_N)} == {torch.int64}


def test_rows_stand_in_the_order_of_their_first_documents_and_keep_them_together() -> None:
    indices = [7, 2, 7, 9, 2, 0]
    mixed = [Features((number,), "", index) for number, index in enumerate(indices)]
    steps = PackedSource(mixed, rows_per_step=1, seed=0).rest_of_epoch()
    found = [[each.token_ids[0] for each in step.micro_batches[0].features] for step in steps]
    order = np.random.default_rng([0, 0]).permutation(4)
    assert found == [[[0, 2], [1, 4], [3], [5]][row] for row in order]


@pytest.mark.parametrize("num_rows", [1, 2, 17, 1000])
def test_order_is_that_of_a_permutation(num_rows: int) -> None:
    documents = [Features((number,), "", number) for number in range(num_rows)]
    steps = PackedSource(documents, rows_per_step=1, seed=3).rest_of_epoch()
    found = [step.micro_batches[0].features[0].example_index for step in steps]
    assert found == np.random.default_rng([3, 0]).permutation(num_rows).tolist()


def test_small_numbers_are_shuffled_as_large_ones() -> None:
    order = np.arange(70_000, dtype=np.uint32)
    np.random.default_rng([5, 1]).shuffle(order)
    assert np.array_equal(order, np.random.default_rng([5, 1]).permutation(70_000))
