"""systemd units, users, folders and log rotation of the machine. Pure.

The server's unit takes the place of the distribution's of the same name, so `systemctl restart
redis-server` stays what it was. It is shut in further: see docs/provision.md for the comparison.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final
from zlib import crc32

from standpipe.server.provision.description import Description, UserNeed, is_address
from standpipe.server.provision.layout import HOME, USER, File, Places, url

SYSTEMD: Final = "/etc/systemd/system"
RELOAD: Final = ("systemctl", "daemon-reload")

_HEAD: Final = "# Written by `standpipe provision`."

_AGAIN: Final = """\
# Started again for as long as it takes: systemd would give up for good after five times in ten
# seconds, and a server or a disk may be away for longer.
StartLimitIntervalSec=0
"""

_SHUT_IN: Final = """\
# It may see and change its own folders, and nothing else of the machine.
UMask=0077
CapabilityBoundingSet=
AmbientCapabilities=
NoNewPrivileges=true
ProtectSystem=strict
ProtectHome=true
PrivateTmp=true
PrivateDevices=true
PrivateUsers=true
PrivateIPC=true
ProtectClock=true
ProtectControlGroups=true
ProtectHostname=true
ProtectKernelLogs=true
ProtectKernelModules=true
ProtectKernelTunables=true
ProtectProc=invisible
RemoveIPC=true
KeyringMode=private
LockPersonality=true
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX
RestrictNamespaces=true
RestrictRealtime=true
RestrictSUIDSGID=true
SystemCallArchitectures=native
SystemCallErrorNumber=EPERM
SystemCallFilter=@system-service
SystemCallFilter=~@privileged @resources
"""


def server_unit(description: Description, places: Places) -> str:
    """The server's unit."""
    program = f"/usr/bin/{places.service}"
    return f"""\
{_HEAD}
[Unit]
Description={description.name}: the queue's server ({description.server}, {description.role})
Documentation=https://redis.io/docs/latest/ https://valkey.io/topics/
After=network-online.target standpipe-hugepages.service
Wants=network-online.target
{_AGAIN}
[Service]
Type=notify
ExecStart={program} {places.config} --supervised systemd
User={places.user}
Group={places.user}
Restart=always
RestartSec=1
# It says that it is ready when its data is read in, however long that takes.
TimeoutStartSec=infinity
# Writing out on SIGTERM takes as long as the disk does; killed halfway it would load the log.
TimeoutStopSec=300
# 10000 clients, the server's own 32, and one for each file that it writes.
LimitNOFILE=65535
# A core file would hold every reading, and as much memory as there is.
LimitCORE=0
# If memory runs out, something else goes first.
OOMScoreAdjust=-500
RuntimeDirectory={places.user}
RuntimeDirectoryMode=0750
ReadWritePaths=-{description.folder}
ReadWritePaths=-/var/log/{places.user}
{_networks(description)}
{_SHUT_IN}# The server compiles nothing at run time.
MemoryDenyWriteExecute=true
# It can run no other program, so nobody who breaks in has a shell.
NoExecPaths=/
ExecPaths={program} -/usr/bin/{places.user}-check-rdb /usr/lib -/usr/lib64 -/lib -/lib64

[Install]
WantedBy=multi-user.target
"""


def _networks(description: Description) -> str:
    if not description.networks:
        return ""
    nodes = [node.host for node in description.servers if is_address(node.host)]
    allowed = " ".join(dict.fromkeys(("localhost", *description.networks, *nodes)))
    why = "# Clients and the other servers; packets of all others do not reach it."
    return f"{why}\nIPAddressDeny=any\nIPAddressAllow={allowed}\n"


def _client_unit(
    description: Description, what: str, user: UserNeed, command: str, *, instance: str = ""
) -> str:
    extra = f"EnvironmentFile={instance}\n" if instance else ""
    return f"""\
{_HEAD}
[Unit]
Description={description.name}: {what}
After=network-online.target
Wants=network-online.target
{_AGAIN}
[Service]
Type=exec
ExecStart={command}
# The server's URL with the password of {user.name}; read by systemd, not by the process.
EnvironmentFile=/etc/standpipe/{user.name}.env
{extra}User={USER}
Group={USER}
WorkingDirectory={HOME}
Restart=always
RestartSec=1
# A drain: handlers end, acknowledgements leave, what is left is given back.
KillSignal=SIGTERM
TimeoutStopSec=90
LimitNOFILE=65535
LimitCORE=0
ReadWritePaths=-{HOME}

{_SHUT_IN}
[Install]
WantedBy=multi-user.target
"""


def machine_files(
    description: Description, places: Places, passwords: Mapping[str, str]
) -> list[File]:
    """The units, the clients' environments and the log rotation."""
    found = [
        File(
            f"{SYSTEMD}/{places.service}.service", server_unit(description, places),
            "the server's unit", then=RELOAD, restart=places.service,
        )
    ]  # fmt: skip
    found += [
        File(
            f"/etc/standpipe/{user.name}.env",
            f"# Written by `standpipe provision`: how {user.name} ({user.role}) connects.\n"
            f"STANDPIPE_URL={url(description, user.name, passwords[user.name])}\n",
            f"how {user.name} connects",
            0o600,
        )
        for user in description.users
    ]
    worker = next((user for user in description.users if user.role == "worker"), None)
    if worker is not None:
        found += _worker_files(description, worker)
    keeper = next((user for user in description.users if user.role == "keeper"), None)
    if keeper is not None:
        found += _keeper_files(description, keeper)
    found.append(
        File(
            f"/etc/logrotate.d/{places.service}",
            f"""\
{_HEAD}
# The server opens its log for each line, so it need not be told.
/var/log/{places.user}/*.log {{
    daily
    maxsize 100M
    rotate 14
    missingok
    notifempty
    compress
    delaycompress
}}
""",
            "log rotation",
        )
    )
    return found


def _worker_files(description: Description, worker: UserNeed) -> list[File]:
    found = [
        File(
            f"{SYSTEMD}/standpipe-worker@.service",
            _client_unit(
                description, "workers of %i", worker,
                # Without braces the variable is taken for words, not for one argument.
                f"{description.program} work $WORK",
                instance="/etc/standpipe/workers/%i.env",
            ),
            "workers of a group: one instance for each", then=RELOAD,
        )
    ]  # fmt: skip
    found += [
        File(
            f"/etc/standpipe/workers/{instance_name(stream.name, group)}.env",
            "# Yours to change: `standpipe provision` writes it if it is not there.\n"
            f"# A handler (module:function below {HOME}) or --sink URL.\n"
            "# Without --no-retain it tries to trim, which its user may not: the janitor does.\n"
            f'WORK="{stream.name} --group {group} --no-retain --processes auto handlers:handle"\n',
            f"what the workers of {group} do",
            0o640,
            group=USER,
            keeps_text=True,
        )
        for stream in description.streams
        for group in stream.groups
    ]
    return found


def _keeper_files(description: Description, keeper: UserNeed) -> list[File]:
    names = " ".join(stream.name for stream in description.streams_of(keeper))
    return [
        File(
            f"{SYSTEMD}/standpipe-janitor.service",
            _client_unit(
                description, "keeps streams within their limits", keeper,
                f"{description.program} retain {names}".rstrip(),
            ),
            "keeps streams within their limits", then=RELOAD,
        ),
        File(
            f"{SYSTEMD}/standpipe-archiver@.service",
            _client_unit(
                description, "archive of %I", keeper,
                f"{description.program} archive run %I --follow",
                instance="/etc/standpipe/archive.env",
            ),
            "the archive of a stream: one instance for each", then=RELOAD,
        ),
        File(
            "/etc/standpipe/archive.env",
            "# Yours to change: `standpipe provision` writes it if it is not there.\n"
            f"# A folder that {USER} may write to, or a URL.\n"
            f"STANDPIPE_ARCHIVE={HOME}/archive\n",
            "where the archive is",
            0o640,
            group=USER,
            keeps_text=True,
        ),
    ]  # fmt: skip


def instance_name(stream: str, group: str) -> str:
    """The instance of ``standpipe-worker@`` for a group: what systemd takes in a unit's name, and
    no other group's."""
    words = f"{stream}.{group}"
    found = re.sub(r"[^A-Za-z0-9_.:-]", "_", words)
    if found == words and "." not in stream:
        return found
    # Others may come out the same: a.b and c are not a and b.c.
    mark = crc32(f"{stream}\0{group}".encode())
    return f"{found}-{mark:08x}"


def users_files(description: Description, places: Places) -> list[File]:
    """Users and folders, which the other files need: put in place first."""
    sysusers, tmpfiles = "/etc/sysusers.d/standpipe.conf", "/etc/tmpfiles.d/standpipe.conf"
    return [
        File(
            sysusers,
            f"{_HEAD}\n"
            f'u {places.user} - "The queue\'s server" {description.folder}\n'
            f'u {USER} - "Standpipe workers and what runs beside them" {HOME}\n',
            "the users that it runs as",
            then=("systemd-sysusers", sysusers),
        ),
        File(
            tmpfiles,
            f"{_HEAD}\n"
            f"d {description.folder} 0750 {places.user} {places.user}\n"
            f"d /var/log/{places.user} 0750 {places.user} {places.user}\n"
            f"d {HOME} 0750 {USER} {USER}\n",
            "the folders that it writes to",
            then=("systemd-tmpfiles", "--create", tmpfiles),
        ),
    ]
