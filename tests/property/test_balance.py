"""Who has which shard in ordered mode: the members of a group, each deciding for itself."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from standpipe.policy import balance

NAMES = ["a", "b", "c", "d", "e"]
members = st.lists(st.sampled_from(NAMES), min_size=1, unique=True)
owners = st.lists(st.none() | st.sampled_from([*NAMES, "leaving", "dead"]), min_size=1, max_size=20)


def step(there: list[str], owned: list[str | None]) -> list[str | None]:
    """What becomes of the shards when each member has decided from the same view."""
    moves = {name: balance(there, owned, name) for name in there}
    following = list(owned)
    for name, (release, take) in moves.items():
        for shard in release:
            assert owned[shard] == name
            following[shard] = None
        for shard in take:
            assert owned[shard] is None
            assert following[shard] is None, "two members are after one shard"
            following[shard] = name
    return following


@given(members, owners)
def test_a_fair_share_in_two_steps(there: list[str], owned: list[str | None]) -> None:
    """Surplus is given up in the first step and all that is free is taken in the second; then each
    has as many as every other, or one more, and nothing moves any longer."""
    gone = [owner not in [*there, None] for owner in owned]
    after = step(there, step(there, owned))
    assert [owner not in [*there, None] for owner in after] == gone, "nobody takes what is owned"
    assert None not in after
    counts = Counter(owner for owner in after if owner in there)
    shares = [counts[name] for name in there]
    assert max(shares) - min(shares) <= 1
    assert step(there, after) == after


@given(members, owners)
def test_nothing_moves_without_need(there: list[str], owned: list[str | None]) -> None:
    """Of the shards that members own, only the surplus over a fair share changes its owner."""
    after = step(there, step(there, owned))
    shared = sum(owner in [*there, None] for owner in owned)
    share, extra = divmod(shared, len(there))
    counts = Counter(owner for owner in owned if owner in there)
    ranked = sorted((counts[name] for name in there), reverse=True)
    surplus = sum(max(0, n - share - (rank < extra)) for rank, n in enumerate(ranked))
    moved = sum(
        before in there and before != then for before, then in zip(owned, after, strict=True)
    )
    assert moved == surplus


@given(members, owners, st.lists(st.sampled_from(NAMES), max_size=12))
def test_views_that_differ_settle_too(
    there: list[str], owned: list[str | None], turns: list[str]
) -> None:
    """Members that act one after another, in any order, end with fair shares as well."""
    now = list(owned)
    for name in [name for name in turns if name in there] + there * 4:
        release, take = balance(there, now, name)
        for shard in release:
            now[shard] = None
        for shard in take:
            now[shard] = name
    counts = Counter(owner for owner in now if owner in there)
    shares = [counts[name] for name in there]
    assert max(shares) - min(shares) <= 1
    assert None not in now
