"""Requests that wait are bounded; what is in already is not refused half-way."""

import pytest

from lushan.serving.admission import Admissions
from lushan.serving.errors import ServerBusyError


def counts(admissions: Admissions) -> tuple[int, int]:
    return admissions.num_waiting, admissions.num_running


def test_one_more_than_may_wait_is_sent_away_until_one_has_started() -> None:
    admissions, started = Admissions(max_waiting=1), list[bool]()
    with admissions.admit() as first, first.part(lambda: bool(started)):
        assert counts(admissions) == (1, 0)
        with pytest.raises(ServerBusyError), admissions.admit():
            raise AssertionError
        started.append(True)
        with admissions.admit():
            assert counts(admissions) == (1, 1)
    assert counts(admissions) == (0, 0)


def test_parts_of_a_request_count_as_one_and_are_never_sent_away() -> None:
    admissions = Admissions(max_waiting=1)
    with admissions.admit() as request:
        for _ in range(2):
            with admissions.admit(request) as same, same.part(lambda: False):
                assert same is request
                assert sum(counts(admissions)) == 1


def test_request_between_two_of_its_parts_does_not_wait() -> None:
    admissions = Admissions(max_waiting=1)
    with admissions.admit() as request:
        with request.part(lambda: True):
            assert counts(admissions) == (0, 1)
        with request.part(lambda: False):
            assert counts(admissions) == (0, 1)
        with admissions.admit():
            assert counts(admissions) == (1, 1)
