"""Tasks go to those that hold the fewest, against a plain count of everything."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from actors.balance import Balance

MEMBERS = st.integers(0, 5)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("join"), MEMBERS),
        st.tuples(st.just("leave"), MEMBERS),
        st.tuples(st.just("give"), MEMBERS),
        st.tuples(st.just("done"), MEMBERS),
    ),
    max_size=60,
)


@given(st.integers(1, 3), STEPS)
def test_gives_to_one_of_those_with_the_fewest_below_the_limit(
    limit: int, steps: list[tuple[str, int]]
) -> None:
    balance: Balance[int] = Balance(limit)
    there: set[int] = set()
    held: Counter[int] = Counter()
    for what, member in steps:
        if what == "join" and member not in there:
            balance.join(member)
            there.add(member)
        elif what == "leave":
            balance.leave(member)
            there.discard(member)
            del held[member]
        elif what == "give":
            given = balance.give()
            free = {one: held[one] for one in there if held[one] < limit}
            assert bool(given) == bool(free)
            for one in given:
                assert free[one] == min(free.values())
                held[one] += 1
        elif what == "done" and (held[member] or member not in there):
            balance.done(member)
            held[member] -= int(member in there)


def test_takes_turns_among_equals() -> None:
    balance: Balance[str] = Balance(2, "ab")
    balance.join("c")
    assert [balance.give()[0] for _ in range(6)] == ["a", "b", "c", "a", "b", "c"]
    assert balance.give() == []
    balance.done("b")
    assert balance.give() == ["b"]
