"""Drawing a few examples of each kind, the same whatever the order of the rows."""

import heapq
from collections.abc import Hashable, Iterable

from lushan.records import content_id


def draw_in_turn(
    kinds_and_ids: Iterable[tuple[Hashable, str]], *, num_each: int, seed: int
) -> list[int]:
    """Give the places of up to `num_each` examples of each kind, the kinds in turn, in an order that the seed decides.

    Args:
        kinds_and_ids: Of every example.
        num_each: Most examples of a kind.
        seed: Another draws others.
    """
    drawn: dict[Hashable, list[tuple[str, int]]] = {}
    for place, (kind, example_id) in enumerate(kinds_and_ids):
        members = drawn.setdefault(kind, [])
        members.append((content_id(seed, example_id), place))
        if len(members) >= 100 * num_each:  # millions of rows are not remembered
            members[:] = heapq.nsmallest(num_each, members)
    ordered = sorted(sorted(members)[:num_each] for members in drawn.values())
    return [
        place
        for turn in range(num_each)
        for members in ordered
        for _, place in members[turn : turn + 1]
    ]
