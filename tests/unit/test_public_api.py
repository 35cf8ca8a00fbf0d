"""The names that a user may rely on, and that asking for them costs nothing beforehand."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

import standpipe

NAMES = {
    "Archive", "Archiver",
    "Batch", "Context", "DeadLetters", "EmbeddedServer", "Event", "EventId", "Producer", "Reader",
    "Receipt", "Reject", "Retry", "Selection", "StandpipeError", "Stream", "Worker", "__version__",
    "datasets", "errors", "groups", "sync",
}  # fmt: skip
"""Taking one away breaks programs; adding one is a promise."""
HEAVY = {
    "anyio", "asyncio", "hiredis", "msgspec", "numpy", "pandas", "pyarrow", "redis", "rich", "ssl",
    "typer", "uvloop", "wntr", "zstandard",
}  # fmt: skip


def loaded_by(code: str) -> set[str]:
    """What a fresh interpreter has imported after running this, by its top-level names."""
    shown = (
        "import json, sys; print(json.dumps(sorted({m.partition('.')[0] for m in sys.modules})))"
    )
    said = subprocess.run(
        [sys.executable, "-c", f"{code}\n{shown}"],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    return set(json.loads(said.stdout))


def test_all_is_explicit() -> None:
    """``__all__`` is this list, sorted, and ``dir`` shows it."""
    assert set(standpipe.__all__) == NAMES
    assert standpipe.__all__ == sorted(standpipe.__all__)
    assert dir(standpipe) == standpipe.__all__


@pytest.mark.parametrize("name", sorted(NAMES))
def test_every_name_is_there(name: str) -> None:
    """Each name can be imported, documents itself, and is the same each time."""
    found = getattr(standpipe, name)
    assert found is getattr(standpipe, name)
    assert name == "__version__" or found.__doc__


def test_other_names_are_not() -> None:
    """A name that is not in the list is an AttributeError, as in any module."""
    with pytest.raises(AttributeError, match="has no attribute 'Consumer'"):
        standpipe.Consumer  # noqa: B018  raises
    with pytest.raises(ImportError):
        exec("from standpipe import nosuch")


def test_importing_is_cheap() -> None:
    """``import standpipe`` loads none of the libraries that it stands on."""
    assert HEAVY & loaded_by("import standpipe") == HEAVY & loaded_by("pass")


def test_events_need_no_client() -> None:
    """Making events loads neither the client nor Arrow."""
    assert not {"redis", "pyarrow", "anyio", "rich"} & loaded_by("from standpipe import Event")


def test_sending_needs_no_arrow() -> None:
    """Sending and reading rows and plain entries does without Arrow, numpy and the command line."""
    code = "from standpipe import Producer, Reader, Stream, Worker, sync"
    assert not {"pyarrow", "numpy", "rich", "typer", "wntr"} & loaded_by(code)
