"""Documents of a batch are grouped by length and by what they continue."""

from lushan.backbones.packing import Prefix, plan_packing


def test_documents_are_grouped_until_one_is_half_as_long_again_and_16_tokens_longer() -> None:
    groups = plan_packing([4, 22, 23, 50, 51]).groups
    assert [each.lengths for each in groups] == [[4, 22], [23, 50], [51]]
    assert [(each.start, each.end) for each in groups] == [(0, 26), (26, 99), (99, 150)]


def test_short_groups_that_continue_nothing_are_also_one() -> None:
    packing = plan_packing([1, 30, 100, 1_024, 2_000, 4_000])
    assert [group.lengths for group in packing.groups] == [
        *([1], [30], [100], [1_024], [2_000], [4_000])
    ]
    assert [group.lengths for group in packing.joined] == [[1, 30, 100, 1_024], [2_000], [4_000]]
    assert [(group.start, group.end) for group in packing.joined][:2] == [
        (0, 1_155),
        (1_155, 3_155),
    ]
    continued = plan_packing([3, 100, 3, 100], prefixes=[Prefix(2)] * 2 + [None] * 2)
    assert [group.lengths for group in continued.joined] == [[3], [100], [3, 100]]
    branched = plan_packing([10, 100], branches=[(4, 7), ()])
    assert [group.lengths for group in branched.joined] == [[10], [100]]


def test_spare_tokens_are_a_group_of_their_own() -> None:
    packing = plan_packing([30, 31], num_spare=3)
    assert [(group.start, group.end, group.longest) for group in packing.groups] == [
        (0, 61, 31),
        (61, 64, 3),
    ]
    assert [group.lengths for group in packing.joined] == [[30, 31, 3]]
    assert packing.joined[0].longest == 31
