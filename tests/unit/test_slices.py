"""How a purge goes through a table: every page is passed, and no statement grows out of hand."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from curfew_daemon.slices import FEWEST, LONGEST, MOST, Slices, rest_after


def test_a_quick_statement_is_followed_by_a_larger_one() -> None:
    """Where little is found the walk doubles its steps, up to a bound; each begins where the last one ended."""
    slices = Slices()
    seen = []
    for _ in range(12):
        seen.append(slices)
        slices = slices.after(full=False, took=LONGEST / 100)
    assert seen[0].first == 0
    assert all(one.end == other.first for one, other in itertools.pairwise(seen))
    assert [each.pages for each in seen[-3:]] == [MOST] * 3


def test_a_slow_statement_is_followed_by_a_smaller_one() -> None:
    """It goes on behind, with half the pages, down to a few."""
    slices = Slices(100, 64).after(full=False, took=LONGEST * 2)
    assert slices == Slices(164, 32)
    for _ in range(10):
        slices = slices.after(full=False, took=1.0)
    assert slices.pages == FEWEST


def test_a_statement_of_the_right_length_is_repeated() -> None:
    """Neither larger nor smaller."""
    assert Slices(0, 64).after(full=False, took=LONGEST / 2) == Slices(64, 64)


def test_a_full_statement_is_followed_by_a_smaller_one_at_the_same_place() -> None:
    """What its limit left on the pages is taken by the next, which sees fewer of them again."""
    assert Slices(100, 64).after(full=True, took=0.001) == Slices(100, 32)
    assert Slices(100, FEWEST).after(full=True, took=0.001) == Slices(100, FEWEST)


def test_what_does_not_get_through_is_passed_by() -> None:
    """The walk goes on behind those pages, carefully."""
    assert Slices(100, 64).past() == Slices(164, FEWEST)


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 10)), max_size=200))
def test_no_page_is_left_out(statements: list[tuple[bool, float]]) -> None:
    """Whatever statements take, a walk never jumps: the next begins at the last one's start or at its end."""
    slices = Slices()
    for full, took in statements:
        following = slices.after(full=full, took=took)
        assert following.first == (slices.first if full else slices.end)
        assert FEWEST <= following.pages <= MOST
        slices = following


def test_it_rests_longer_than_it_works() -> None:
    """Three times as long, and never not at all."""
    assert rest_after(0.02) == 0.06
    assert 0 < rest_after(0.0) < 0.01


def test_a_walk_begins_at_the_first_page_with_a_few() -> None:
    """32 pages, from there up to 1,024, or down to four."""
    slices, pages = Slices(), []
    assert slices.first == 0
    for _ in range(7):
        pages.append(slices.pages)
        slices = slices.after(full=False, took=0.001)
    assert pages == [32, 64, 128, 256, 512, 1024, 1024]
    assert Slices(0, 9).after(full=True, took=0.0).pages == 4
    assert Slices(0, 8).after(full=False, took=1.0).pages == FEWEST == 4


def test_the_edges_of_the_right_length() -> None:
    """A quarter of the longest is not quick, and the longest is not slow: 20 ms."""
    assert LONGEST == 0.02
    assert Slices(0, 64).after(full=False, took=LONGEST / 4).pages == 64
    assert Slices(0, 64).after(full=False, took=LONGEST).pages == 64
    assert Slices(0, 64).after(full=False, took=LONGEST * 1.01).pages == 32
    assert Slices(0, 64).after(full=False, took=LONGEST / 4.01).pages == 128


def test_the_shortest_rest_is_a_millisecond() -> None:
    """A statement that took no time at all is rested after all the same."""
    assert rest_after(0.0) == rest_after(0.0003) == 0.001
    assert rest_after(0.001) == 0.003
