"""What the files of a machine are, and where they go: as Debian's packages have them. Pure."""

from __future__ import annotations

from typing import Final, NamedTuple
from urllib.parse import quote

from standpipe.server.provision.description import Description

HEAD: Final = "Written by `standpipe provision`; change the description and write it again."

CLIENTS: Final = "/etc/standpipe/tls"
"""Where a machine's clients have their certificates."""

USER: Final = "standpipe"
"""The user as which workers run."""

HOME: Final = "/var/lib/standpipe"
"""Their folder: handlers, sinks, spools."""


class File(NamedTuple):
    """A file of the machine."""

    path: str
    """Where it goes, absolute."""
    text: str
    why: str
    mode: int = 0o644
    owner: str = "root"
    group: str = "root"
    then: tuple[str, ...] = ()
    """The command that makes a change of it take effect; none: see ``restart``."""
    restart: str | None = None
    """The service that has to be restarted for a change to take effect, by the operator."""
    keeps_text: bool = False
    """Written if it is not there; what the operator has made of it stays."""


class Places(NamedTuple):
    """Where a server's files are: as Debian's packages have them."""

    service: str
    user: str
    config: str
    acl: str
    tls: str
    log: str

    @classmethod
    def of(cls, description: Description) -> Places:
        product = description.version.product
        folder = f"/etc/{product}"
        return cls(
            service=f"{product}-server",
            user=product,
            config=f"{folder}/{product}.conf",
            acl=f"{folder}/users.acl",
            tls=f"{folder}/tls",
            log=f"/var/log/{product}/{product}-server.log",
        )

    def file(self, path: str, text: str, why: str, mode: int) -> File:
        """A file that is the server's own, read at its start."""
        return File(path, text, why, mode, self.user, self.user, restart=self.service)


def url(description: Description, user: str, password: str) -> str:
    """The URL under which a user reaches the deployment, with its password."""
    scheme = "rediss" if description.tls else "redis"
    servers = description.servers
    if description.role == "cluster":
        scheme, hosts = f"{scheme}+cluster", ",".join(map(str, servers))
    else:
        hosts = str(servers[0])
    query = ""
    if description.tls:
        query = (
            f"?ssl_ca_certs={CLIENTS}/ca.pem&ssl_certfile={CLIENTS}/{user}.pem"
            f"&ssl_keyfile={CLIENTS}/{user}.key"
        )
    return f"{scheme}://{user}:{quote(password, safe='')}@{hosts}{query}"
