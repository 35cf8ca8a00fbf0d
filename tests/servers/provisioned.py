"""Real servers that run on the files of a bundle, and nothing else."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from standpipe.server.embedded import tied_command
from standpipe.server.provision import acl, bundle, serverconf
from standpipe.server.provision.bundle import Secrets
from standpipe.server.provision.description import Description, complete, parse
from tests.servers.certificates import Certificates
from tests.servers.fleet import Fleet, TestServer

ADMIN = "admin"
"""A user that the tests have beside those of the bundle, who may do everything."""


def described(server: str, /, **fields: Any) -> Description:
    """A description for one of the fleet's servers, on a machine of 1 GiB."""
    given: dict[str, Any] = {
        "server": server,
        "memory": "1GiB",
        "cores": 2,
        "tls": False,
        "streams": [{"name": "power", "groups": ["g"]}],
    }
    return complete(parse(given | fields))


class ProvisionedServer(TestServer):
    """A server of the fleet that runs on the configuration and the users of a bundle.

    Args:
        description: What is provisioned; the port is the test's.
        data: Its folder, in place of the machine's root.
        secrets: Those of other servers of the same deployment; default: new ones.
        admin: Whether it has the tests' own user as well. Without, the default user is off and the
            operator's credentials are used.
    """

    __test__ = False

    def __init__(
        self,
        description: Description,
        data: Path,
        *,
        secrets: Secrets | None = None,
        admin: bool = True,
    ) -> None:
        super().__init__(str(description.server), data)
        self.description = description
        self.secrets = bundle.fresh_secrets(description, secrets or Secrets())
        self._admin = admin
        password = self.secrets.passwords["operator"]
        self.user = (ADMIN, "admin") if admin else ("operator", password)
        self.config = {"cluster-enabled": "yes"} if description.role == "cluster" else {}

    @property
    def url(self) -> str:
        return self.url_of(None)

    def url_of(self, role: str | None) -> str:
        """The URL for one of the bundle's users; None: for the test's own."""
        assert self.user is not None
        name, password = self.user if role is None else (role, self.secrets.passwords[role])
        tls = self.description.tls
        scheme = "rediss" if tls else "redis"
        if self.description.role == "cluster":
            scheme += "+cluster"
        query = ""
        if tls:
            files = self.client_files(name if name in self.secrets.clients else "operator")
            query = "?" + "&".join(f"{option}={path}" for option, path in files.items())
        return f"{scheme}://{name}:{password}@127.0.0.1:{self.port}{query}"

    def client_files(self, user: str) -> dict[str, Path]:
        """redis-py's options for a user's certificate."""
        folder = self.data / "clients"
        folder.mkdir(parents=True, exist_ok=True)
        assert self.secrets.authority is not None
        pair = self.secrets.clients[user]
        texts = {
            "ssl_ca_certs": ("ca.pem", self.secrets.authority.certificate),
            "ssl_certfile": (f"{user}.pem", pair.certificate),
            "ssl_keyfile": (f"{user}.key", pair.key),
        }
        for name, text in texts.values():
            (folder / name).write_text(text)
        return {option: folder / name for option, (name, _) in texts.items()}

    def files(self) -> Mapping[str, str]:
        """The bundle's files of the server: name in the folder → text."""
        self.description = msgspec.structs.replace(self.description, port=self.port)
        plan = bundle.server_plan(self.description, self.secrets)
        # The paths alone are the test's: what the options are called is what is tested.
        tls = plan.tls and serverconf.TlsFiles("tls/ca.pem", "tls/server.pem", "tls/server.key")
        plan = replace(plan, folder=str(self.data), log="", acl="users.acl", tls=tls)
        users = acl.render(self.description, self.secrets.passwords)
        if self._admin:
            users += f"user {ADMIN} on >admin allkeys allchannels +@all\n"
        found = {"server.conf": serverconf.render(plan), "users.acl": users}
        if tls:
            assert self.secrets.authority and self.secrets.server
            found |= {
                "tls/ca.pem": self.secrets.authority.certificate,
                "tls/server.pem": self.secrets.server.certificate,
                "tls/server.key": self.secrets.server.key,
            }
        return found

    def start(self) -> TestServer:
        if self.description.tls and self.certificates is None:
            files = self.client_files("operator")
            self.certificates = Certificates(
                files["ssl_ca_certs"],
                server=self.data,
                server_key=self.data,
                client=files["ssl_certfile"],
                client_key=files["ssl_keyfile"],
            )
        return super().start()

    def _spawn(self) -> None:
        for name, text in self.files().items():
            path = self.data / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            path.chmod(0o600)
        with (self.data / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                tied_command(str(self._binary), "server.conf"),
                cwd=self.data,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )


def provisioned(fleet: Fleet, description: Description, **options: Any) -> ProvisionedServer:
    """A started server of a fleet, which ends it with its others."""
    server = ProvisionedServer(
        description, fleet.root / f"{description.server}-{len(fleet._all)}", **options
    )
    fleet._start(server)
    return server


def refused(server: ProvisionedServer) -> list[str]:
    """What the ACL has refused since the last call."""
    rows = [dict(zip(row[::2], row[1::2], strict=True)) for row in server.command("ACL", "LOG")]
    server.command("ACL", "LOG", "RESET")
    return [f"{row['username']}: {row['reason']} {row['object']}" for row in rows]
