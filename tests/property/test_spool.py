"""Whatever is done to a spool in whatever order, it holds what lists would hold."""

from __future__ import annotations

import random
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from standpipe.errors import SpoolFullError
from standpipe.spool import Spool, SpooledBlock

SHARDS = ("power:{0-0}", "power:{1-2}")
BYTES_MAX = 40_000


def block(sequence: int, shard: str, producer: str, size: int) -> SpooledBlock:
    """A block whose payload follows from its name, so that it cannot be mistaken for another."""
    payload = random.Random(f"{shard} {producer} {sequence}").randbytes(size)
    return SpooledBlock(shard, producer, sequence, "rows1", 3, payload, 0, sequence)


class SpoolModel(RuleBasedStateMachine):
    """Whatever is done in whatever order, the spool holds what lists would hold."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.spool = Spool(self.folder / "spool", bytes_max=BYTES_MAX)
        self.generation = 0
        self.last = dict.fromkeys(SHARDS, 0)
        self.stored: dict[str, list[SpooledBlock]] = {shard: [] for shard in SHARDS}
        self.aside: list[SpooledBlock] = []

    def held(self) -> int:
        return sum(each.size for blocks in [*self.stored.values(), self.aside] for each in blocks)

    @rule(
        shards=st.lists(st.sampled_from(SHARDS), max_size=8),
        size=st.integers(0, 6000),
        step=st.integers(1, 3),
    )
    def append(self, shards: list[str], size: int, step: int) -> None:
        last = dict(self.last)
        blocks: list[SpooledBlock] = []
        for shard in shards:
            last[shard] += step
            producer = f"p{self.generation}"
            blocks.append(block(last[shard], shard, producer, size))
        if self.held() + sum(each.size for each in blocks) > BYTES_MAX:
            with pytest.raises(SpoolFullError):
                self.spool.append(blocks)
            return
        self.spool.append(blocks)
        self.last = last
        for each in blocks:
            self.stored[each.shard_key].append(each)

    @rule(shard=st.sampled_from(SHARDS), count=st.integers(1, 8), bytes_max=st.integers(1, 20_000))
    def drain(self, shard: str, count: int, bytes_max: int) -> None:
        found = self.spool.head(shard, bytes_max=bytes_max, count_max=count)
        assert found == self.stored[shard][: len(found)]
        if not found:
            assert not self.stored[shard]
            return
        size = sum(len(each.payload) for each in found)
        assert len(found) == 1 or (len(found) <= count and size <= bytes_max)
        for producer in dict.fromkeys(each.producer_id for each in found):
            through = max(each.sequence for each in found if each.producer_id == producer)
            self.spool.remove(shard, producer, through)
        del self.stored[shard][: len(found)]

    @precondition(lambda self: any(self.stored.values()))
    @rule(data=st.data())
    def set_aside(self, data: st.DataObject) -> None:
        chosen = data.draw(st.sampled_from([each for b in self.stored.values() for each in b]))
        where = (chosen.shard_key, chosen.producer_id, chosen.sequence)
        assert self.spool.set_aside(*where, reason="refused")
        assert not self.spool.set_aside(*where, reason="refused")
        self.stored[chosen.shard_key].remove(chosen)
        self.aside.append(chosen)

    @precondition(lambda self: self.aside)
    @rule(data=st.data())
    def remove_aside(self, data: st.DataObject) -> None:
        chosen = data.draw(st.sampled_from(self.aside))
        where = (chosen.shard_key, chosen.producer_id, chosen.sequence)
        assert self.spool.remove_aside(*where)
        assert not self.spool.remove_aside(*where)
        self.aside.remove(chosen)

    @rule()
    def restart(self) -> None:
        self.spool.close()
        self.spool = Spool(self.folder / "spool", bytes_max=BYTES_MAX)
        self.generation += 1
        self.last = dict.fromkeys(SHARDS, 0)

    @invariant()
    def agrees(self) -> None:
        for shard, blocks in self.stored.items():
            assert self.spool.head(shard, bytes_max=2**40, count_max=2**40) == blocks
        found = self.spool.aside(count_max=1000)
        assert sorted(map(repr, (each.block for each in found))) == sorted(map(repr, self.aside))
        summary = self.spool.summary()
        stored = [each for blocks in self.stored.values() for each in blocks]
        assert (summary.blocks, summary.events) == (len(stored), sum(e.count for e in stored))
        assert (summary.aside_blocks, summary.bytes + summary.aside_bytes) == (
            len(self.aside),
            self.held(),
        )
        assert summary.oldest_spooled_at == min((e.spooled_at for e in stored), default=None)
        assert not {"file", "totals", "checksum"} & {
            finding.kind for finding in self.spool.verify()
        }

    def teardown(self) -> None:
        self.spool.close()
        shutil.rmtree(self.folder)


TestSpoolModel = SpoolModel.TestCase
TestSpoolModel.settings = settings(max_examples=20, stateful_step_count=25, deadline=None)
