"""Keys, slots and shards: what other languages have to find without asking."""

from __future__ import annotations

import binascii
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from standpipe.errors import ConfigError
from standpipe.keyspace import (
    SLOTS,
    check_stream_name,
    definition_key,
    partition,
    shard_keys,
    side_key,
    slot,
)
from standpipe.limits import SHARDS_MAX, STREAM_NAME_BYTES_MAX

NAME = "power_grid_stream"


# --- slots ---------------------------------------------------------------------------------------


def test_the_slot_is_the_crc16_of_the_specification() -> None:
    """The cluster specification's own test vector: CRC16 of 123456789 is 0x31C3."""
    assert slot("123456789") == 0x31C3 == 12739


@pytest.mark.parametrize(
    ("key", "number"),
    [
        ("foo", 12182),
        ("bar", 5061),
        ("hello", 866),
        ("", 0),
        ("somekey", 11058),
        ("foo{hash_tag}", 2515),
    ],
)
def test_slots_are_those_that_servers_give(key: str, number: int) -> None:
    """Figures of CLUSTER KEYSLOT, as the documentation of the command shows them."""
    assert slot(key) == number


@pytest.mark.parametrize(
    ("key", "hashed"),
    [
        ("{user1000}.following", "user1000"),
        ("{user1000}.followers", "user1000"),
        ("foo{bar}{zap}", "bar"),
        ("foo{{bar}}zap", "{bar"),
        ("foo}{bar}", "bar"),
    ],
)
def test_a_hash_tag_alone_decides(key: str, hashed: str) -> None:
    """What stands between the first { and the next } is hashed."""
    assert slot(key) == binascii.crc_hqx(hashed.encode(), 0) % SLOTS


@pytest.mark.parametrize("key", ["foo{}{bar}", "foo{bar", "foo}bar", "{}", "}{", "{"])
def test_without_a_hash_tag_the_whole_key_decides(key: str) -> None:
    """An empty or an unclosed tag is none, even where another one follows."""
    assert slot(key) == binascii.crc_hqx(key.encode(), 0) % SLOTS


# --- the shard of an event -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "crc"), [("123456789", 0xCBF43926), ("inverter-7", 0x60CA4885), ("Zähler", 0x11CC5E91)]
)
@pytest.mark.parametrize("shards", [2, 3, 16, 256])
def test_the_shard_is_the_crc32_of_the_key(key: str, crc: int, shards: int) -> None:
    """Other languages compute crc32(utf-8 of key) % shards; these figures are fixed for ever."""
    assert partition(key, shards) == crc % shards


@given(st.text(), st.integers(1, SHARDS_MAX))
def test_the_shard_is_one_of_the_streams(key: str, shards: int) -> None:
    """Every key has a shard, always the same."""
    assert 0 <= partition(key, shards) < shards
    assert partition(key, shards) == partition(key, shards)


def test_without_a_key_or_with_one_shard_it_is_the_first() -> None:
    """Plain entries without a key stay together and in order."""
    assert partition(None, 16) == 0
    assert partition("anything", 1) == 0


@pytest.mark.parametrize("shards", [2, 8, 64])
def test_device_ids_spread_over_the_shards(shards: int) -> None:
    """Numbered devices, the usual case, load no shard twice as much as the average."""
    per_shard = 500
    counts = Counter(partition(f"meter-{n}", shards) for n in range(per_shard * shards))
    assert len(counts) == shards
    assert max(counts.values()) < 2 * per_shard
    assert min(counts.values()) > per_shard / 2


# --- the keys of a stream ------------------------------------------------------------------------


def test_a_stream_with_one_shard_is_its_name() -> None:
    """redis-cli XREAD STREAMS power_grid_stream works as the manual shows it."""
    assert shard_keys(NAME, 1) == (NAME,)


def test_the_keys_of_shards_are_fixed_for_ever() -> None:
    """Streams that exist would lose their entries if the tags were chosen in another way."""
    assert shard_keys(NAME, 2) == (f"{NAME}:{{0-0}}", f"{NAME}:{{1-0}}")
    assert shard_keys(NAME, 4) == (
        f"{NAME}:{{0-0}}",
        f"{NAME}:{{1-2}}",
        f"{NAME}:{{2-0}}",
        f"{NAME}:{{3-2}}",
    )


@given(st.integers(2, SHARDS_MAX))
def test_shards_lie_evenly_over_the_slots(shards: int) -> None:
    """Shard i lies in the i-th of as many equal parts, so a cluster's nodes share the load."""
    keys = shard_keys(NAME, shards)
    assert len(set(keys)) == shards
    assert [slot(key) * shards // SLOTS for key in keys] == list(range(shards))


@pytest.mark.parametrize("shards", [0, -1, SHARDS_MAX + 1])
def test_a_number_of_shards_out_of_range_is_refused(shards: int) -> None:
    """1 to 256; more is an error before anything is sent."""
    with pytest.raises(ConfigError, match=f"shards is {shards}") as caught:
        shard_keys(NAME, shards)
    assert str(SHARDS_MAX) in caught.value.hint


@pytest.mark.parametrize(
    "name", [NAME, "a", "plant:north", "grid{eu}", "grid{eu}:1", "Zähler", "a.b-c/d"]
)
@pytest.mark.parametrize("what", ["dead", "seq:producer-1", "definition"])
def test_side_keys_stand_in_the_slot_of_their_shard(name: str, what: str) -> None:
    """An atomic step touches the shard and its side keys, so a cluster must have them together."""
    shards = [1] if "{" in name else [1, 7]
    keys = [key for number in shards for key in shard_keys(name, number)]
    beside = [side_key(key, what) for key in keys]
    assert [slot(key) for key in beside] == [slot(key) for key in keys]
    assert len({*keys, *beside}) == 2 * len(keys)


def test_side_keys_are_fixed_for_ever() -> None:
    """The layout that docs/wire-format.md describes."""
    assert side_key(NAME, "dead") == "{power_grid_stream}:dead"
    assert side_key("power_grid_stream:{0-1}", "dead") == "power_grid_stream:{0-1}:dead"
    assert definition_key(NAME) == "{power_grid_stream}:definition"


# --- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["a", NAME, "plant:north:{eu}", "x{y}z", "Zähler-Ströme", "a" * STREAM_NAME_BYTES_MAX]
)
def test_a_name_that_can_be_a_key_is_returned(name: str) -> None:
    """The manual's names, namespaces with colons, one hash tag and other alphabets are names."""
    assert check_stream_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "a b",
        "a\n",
        "a\tb",
        "a\x00",
        "a\x7f",
        "\u00a0",
        "{a}",
        "{a}b",
        "a{}",
        "a{b",
        "a}b",
        "a{b}{c}",
        "a{b c}",
        "\ud800",
        "a\udfffb",
        "a" * (STREAM_NAME_BYTES_MAX + 1),
        "ä" * (STREAM_NAME_BYTES_MAX // 2 + 1),
    ],
)
def test_a_name_that_cannot_be_a_key_is_refused(name: str) -> None:
    """White space, control characters, odd braces and half characters are errors, never keys."""
    with pytest.raises(ConfigError, match="stream name") as caught:
        check_stream_name(name)
    assert caught.value.hint


def test_a_hash_tag_and_several_shards_exclude_each_other() -> None:
    """A tag in the name would put all shards on one node."""
    assert check_stream_name("grid{eu}", 1)
    with pytest.raises(ConfigError, match="all 4 shards on one node"):
        shard_keys("grid{eu}", 4)
