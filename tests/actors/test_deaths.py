"""Only deaths that actors may have caused themselves count, and only for an hour."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from actors.deaths import SETTLE_S, WINDOW_S, Death, counted, of_last_hour

NODES = ("a", "b")


def test_deaths_of_gone_nodes_and_of_earlier_hours_are_forgotten() -> None:
    deaths = [
        Death(0.0, "a", True),
        Death(10.0, "gone", True),
        Death(20.0, "", True),
        Death(30.0, "b", False),
    ]
    assert of_last_hour(deaths, 40.0, NODES) == [deaths[0], *deaths[2:]]
    assert of_last_hour(deaths, WINDOW_S + 25.0, NODES) == [deaths[3]]


def test_a_process_that_only_does_not_answer_counts_once_its_node_had_time_to_be_missed() -> None:
    deaths = [Death(0.0, "a", True), Death(0.0, "a", False)]
    assert counted(deaths, SETTLE_S - 1.0) == 1
    assert counted(deaths, SETTLE_S) == 2


@given(
    st.lists(st.tuples(st.floats(0, 1e5), st.sampled_from(["a", "b", "gone", ""]), st.booleans())),
    st.floats(0, 1e5),
)
def test_what_is_forgotten_never_comes_back(given_deaths: list[tuple[float, str, bool]], now: float) -> None:
    deaths = [Death(*one) for one in given_deaths]
    kept = of_last_hour(deaths, now, NODES)
    assert of_last_hour(kept, now, NODES) == kept
    assert of_last_hour(kept, now + 1.0, NODES) == of_last_hour(deaths, now + 1.0, NODES) or any(
        death.at > now for death in deaths
    )
    assert counted(kept, now) <= len(kept) <= len(deaths)
    assert all(death.node != "gone" for death in kept)
