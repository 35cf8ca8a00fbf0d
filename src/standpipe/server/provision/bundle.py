"""A deployment as files: what each is for, where it goes, whose it is. Pure.

The secrets are an argument: made once by :func:`fresh_secrets`, kept beside the bundle, and used
again each time it is written, so that writing it twice writes the same.
"""

from __future__ import annotations

import secrets as chance
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from standpipe.limits import PASSWORD_BYTES
from standpipe.server.provision import acl, certificates, kernel, serverconf, units
from standpipe.server.provision.certificates import Pair
from standpipe.server.provision.description import Description
from standpipe.server.provision.layout import CLIENTS, HEAD, USER, File, Places


@dataclass(frozen=True)
class Secrets:
    """What is made up once: it is in no description."""

    passwords: Mapping[str, str] = field(default_factory=dict[str, str])
    authority: Pair | None = None
    server: Pair | None = None
    clients: Mapping[str, Pair] = field(default_factory=dict[str, Pair])
    """By user."""
    renewed: tuple[str, ...] = ()
    """Certificates that were made just now, each with the reason."""


def server_names(description: Description) -> list[str]:
    """What a server's certificate is for: its names, its addresses, and itself."""
    bound = [address.lstrip("-") for address in description.bind]
    return list(dict.fromkeys((*description.hostnames, *bound, "127.0.0.1", "localhost")))


def server_key(description: Description) -> str:
    """Under which name a server's certificate is kept: secrets may be those of several machines."""
    return description.bind[0].lstrip("-").replace(":", "_")


def fresh_secrets(
    description: Description,
    old: Secrets,
    *,
    renew: bool = False,
    now: datetime | None = None,
) -> Secrets:
    """The old secrets, with what is missing or about to end made anew.

    Args:
        description: The deployment, completed.
        old: As they were read; empty at the first time.
        renew: Make all certificates but the authority's anew.
        now: Default: the clock.

    Raises:
        MissingExtraError: with TLS, when ``cryptography`` is not installed.
    """
    passwords = {
        name: old.passwords.get(name) or chance.token_urlsafe(PASSWORD_BYTES)
        for name in acl.acl_users(description)
    }
    # Those that are not used any more stay: another machine's bundle may have the same secrets.
    passwords = {**old.passwords, **passwords}
    if not description.tls:
        return Secrets(passwords, old.authority, old.server, old.clients)
    authority = old.authority or certificates.make_authority(description.name, now=now)
    renewed: list[str] = [] if old.authority else ["authority: there was none"]

    def certificate(name: str, pair: Pair | None, names: Sequence[str] = ()) -> Pair:
        why = "asked for" if renew else "there was none"
        if pair is not None and not renew:
            why = certificates.why_renew(pair, authority, names, now=now)
            if why is None:
                return pair
        renewed.append(f"{name}: {why}")
        return certificates.make_certificate(authority, name, names=names, now=now)

    return Secrets(
        passwords,
        authority,
        certificate("server", old.server, server_names(description)),
        {
            **old.clients,
            **{u.name: certificate(u.name, old.clients.get(u.name)) for u in description.users},
            "balancer": certificate("balancer", old.clients.get("balancer")),
        },
        tuple(renewed),
    )


# --- the machine's files -------------------------------------------------------------------------


def server_plan(description: Description, secrets: Secrets) -> serverconf.Plan:
    """What the server's configuration is written for."""
    places = Places.of(description)
    tls = None
    if description.tls:
        tls = serverconf.TlsFiles(
            f"{places.tls}/ca.pem", f"{places.tls}/server.pem", f"{places.tls}/server.key"
        )
    replication = None
    if description.has_replicas:
        replication = serverconf.Credentials("replication", secrets.passwords["replication"])
    first = description.servers[0]
    return serverconf.Plan(
        description.version,
        bind=" ".join(description.bind),
        port=description.port,
        maxmemory=description.memory_plan.maxmemory,
        fsync=None if description.persistence == "none" else description.persistence,
        folder=description.folder,
        log=places.log,
        cores=description.cores or 1,
        tls=tls,
        acl=places.acl,
        primary=(first.host, first.port) if description.role == "replica" else None,
        replication=replication,
        is_cluster=description.role == "cluster",
    )


def machine_files(description: Description, secrets: Secrets) -> list[File]:
    """All files of the machine, in the order in which they are put in place.

    Args:
        description: The deployment, completed.
        secrets: As :func:`fresh_secrets` makes them.
    """
    places = Places.of(description)
    memory = description.memory_plan
    head = (
        HEAD,
        f"{description.name}: {description.role} on {description.server}",
        "",
        f"Memory of the machine {memory.total:>16,} bytes",
        f"  system              {memory.system:>16,}",
        f"  maxmemory           {memory.maxmemory:>16,}  entries {memory.entries:,}, "
        f"pending lists {memory.pending:,}",
        f"  pages of a fork     {memory.fork:>16,}",
        f"  buffers             {memory.buffers:>16,}",
    )
    text = serverconf.render(server_plan(description, secrets), head=head)
    users = acl.render(description, secrets.passwords)
    found = [
        *units.users_files(description, places),
        places.file(places.config, text, "the server's configuration", 0o600),
        places.file(places.acl, users, "users, and what each may do", 0o600),
    ]
    found += _certificate_files(description, secrets, places)
    found += kernel.machine_files()
    found += units.machine_files(description, places, secrets.passwords)
    return found


def _certificate_files(description: Description, secrets: Secrets, places: Places) -> list[File]:
    if not description.tls:
        return []
    assert secrets.authority is not None and secrets.server is not None, "fresh_secrets made them"
    ca, server = secrets.authority.certificate, secrets.server
    folder = places.tls
    found = [
        places.file(f"{folder}/ca.pem", ca, "who signs all certificates", 0o640),
        places.file(f"{folder}/server.pem", server.certificate, "the server's certificate", 0o640),
        places.file(f"{folder}/server.key", server.key, "the server's private key", 0o600),
        File(f"{CLIENTS}/ca.pem", ca, "who signs all certificates"),
    ]
    for user in description.users:
        shown, key = secrets.clients[user.name]
        path, why = f"{CLIENTS}/{user.name}", f"{user.name} shows it"
        found += [
            File(f"{path}.pem", shown, why, 0o640, group=USER),
            File(f"{path}.key", key, f"the private key of {user.name}", 0o640, group=USER),
        ]
    return found


# --- showing -------------------------------------------------------------------------------------

Masking = Callable[[str], str]


def masked(secrets: Secrets) -> Masking:
    """A function that takes passwords and private keys out of a text that is to be shown."""
    words = set(secrets.passwords.values())
    pairs = [secrets.authority, secrets.server, *secrets.clients.values()]
    for pair in filter(None, pairs):
        lines = (line for line in pair.key.splitlines() if "-----" not in line)
        # A key holds its public half as well, which the certificate shows anyway.
        words.update(line for line in lines if line not in pair.certificate)

    def mask(text: str) -> str:
        for word in words - {""}:
            text = text.replace(word, "***")
        return text

    return mask
