"""How many processors there are to be had, and how long they have been idle."""

from __future__ import annotations

import os
from pathlib import Path

from standpipe.worker.processors import allowed_processors, idle_seconds, waited_seconds


def test_allowed_processors() -> None:
    """There is at least one, and not more than the affinity allows."""
    assert 1 <= allowed_processors() <= len(os.sched_getaffinity(0))


def test_idle_seconds(tmp_path: Path) -> None:
    """Idle and waiting for a disk count; what is not there or reads otherwise is unknown."""
    tick = os.sysconf("SC_CLK_TCK")
    stat = tmp_path / "stat"
    stat.write_text(f"cpu  10 20 30 {300 * tick} {50 * tick} 0 0 0 0 0\ncpu0 1 2 3 4 5\n")
    assert idle_seconds(stat) == 350
    for text in ("", "intr 1 2 3 4 5 6\n", "cpu 1 2\n", "cpu a b c d e\n"):
        stat.write_text(text)
        assert idle_seconds(stat) is None
    assert idle_seconds(tmp_path / "missing") is None
    assert (idle_seconds() or 0) > 0


def test_waited_seconds(tmp_path: Path) -> None:
    """The threads' waits are added up; one that ends meanwhile is passed over."""
    for name, text in (("1", "500 2000000000 3"), ("2", "0 500000000 1")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "schedstat").write_text(text)
    (tmp_path / "3").mkdir()
    assert waited_seconds(tmp_path) == 2.5
    (tmp_path / "1" / "schedstat").write_text("nothing")
    assert waited_seconds(tmp_path) is None
    assert waited_seconds(tmp_path / "missing") is None
