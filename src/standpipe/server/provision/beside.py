"""What stands beside the server: load balancer, monitoring, containers. Pure."""

from __future__ import annotations

from standpipe.server.provision.bundle import Secrets
from standpipe.server.provision.description import Description


def files(description: Description, secrets: Secrets) -> dict[str, str]:
    """The files, by name."""
    return {}
