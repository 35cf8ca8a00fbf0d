"""What all tests share: the real servers' fixtures and the mark of the tests that use them."""

from __future__ import annotations

import pytest

from tests.servers.commands import started
from tests.servers.fleet import (
    FIXTURES,
    cluster,
    fleet,
    own_fleet,
    own_server,
    sentinel,
    server,
    server_name,
    stream_name,
    tls_server,
)
from tests.servers.postgres import own_postgres, postgres

# pytest finds fixtures under the names that this module has.
__all__ = [
    "cluster",
    "fleet",
    "own_fleet",
    "own_postgres",
    "own_server",
    "postgres",
    "sentinel",
    "server",
    "server_name",
    "started",
    "stream_name",
    "tls_server",
]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "servers: starts or uses a real server")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark by fixture, before ``-m`` selects by mark."""
    for item in items:
        if not {*FIXTURES, "postgres", "own_postgres"}.isdisjoint(
            getattr(item, "fixturenames", ())
        ):
            item.add_marker("servers")
