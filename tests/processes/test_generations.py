"""Which networks run, while others take their place."""

import os
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from app.processes.generations import Generation, Generations, Role


@dataclass(frozen=True)
class Process:
    role: Role
    generation: Generation


def networks(one: Generation) -> Process:
    return Process(Role.NETWORKS, one)


def serving(one: Generation) -> Process:
    return Process(Role.SERVING, one)


@pytest.fixture
def generations() -> Iterator[Generations]:
    made = Generations(with_networks=True)
    yield made
    made.coming = None
    made.forget_unused([])
    made.current.close()


def test_networks_come_before_those_that_ask_them(generations: Generations) -> None:
    first = generations.current
    assert generations.without_networks([]) == [first]
    assert generations.without_networks([networks(first)]) == []


def test_the_old_ones_run_until_nobody_asks_them(generations: Generations) -> None:
    first, coming = generations.current, generations.begin()
    assert generations.without_networks([networks(first), serving(first)]) == []
    assert generations.current is first
    generations.take_over()
    assert generations.current is coming
    everyone = [networks(first), networks(coming), serving(first), serving(coming)]
    assert generations.is_used(first, everyone, stopping=False)
    assert not generations.is_used(first, everyone[1::2], stopping=False)
    assert generations.without_networks(everyone[1:]) == [first]


def test_a_replacement_that_fails_leaves_the_current_one(generations: Generations) -> None:
    first, _ = generations.current, generations.begin()
    generations.coming = None
    assert generations.current is first

    generations.begin()
    generations.take_over()
    generations.return_to([serving(first)])
    assert generations.current is first


def test_a_replacement_that_fails_half_way_keeps_both(generations: Generations) -> None:
    first, second = generations.current, generations.begin()
    generations.take_over()
    generations.return_to([serving(first), serving(second)])
    assert generations.current is second
    assert generations.without_networks([serving(first), serving(second)]) == [first, second]


def test_a_stop_keeps_those_that_are_still_asked(generations: Generations) -> None:
    first = generations.current
    assert generations.is_used(first, [serving(first)], stopping=True)
    assert not generations.is_used(first, [networks(first)], stopping=True)


def test_what_no_process_has_is_closed(generations: Generations) -> None:
    first = generations.current
    generations.begin()
    generations.take_over()
    generations.forget_unused([serving(first)])
    os.fstat(first.end_of(Role.NETWORKS))
    generations.forget_unused([])
    assert first.end_of(Role.NETWORKS) == -1
    assert generations.without_networks([]) == [generations.current]


def test_without_networks_nothing_connects_them() -> None:
    assert Generations(with_networks=False).current.end_of(Role.SERVING) == -1
