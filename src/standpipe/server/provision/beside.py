"""What stands beside the server: load balancer, monitoring, containers. Pure.

HAProxy finds the primary by asking each server for its role, as a user that may do nothing else, so
clients that know no Sentinel reach it under one address. There is no gateway yet to balance.

Prometheus gets the server's figures from redis_exporter, whose names the alerts use.

Sources: https://docs.haproxy.org/2.6/configuration.html ,
https://github.com/oliver006/redis_exporter , https://github.com/compose-spec/compose-spec ,
https://kubernetes.io/docs/reference/kubernetes-api/
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Final

from standpipe.server.provision import acl, serverconf
from standpipe.server.provision.bundle import Secrets, server_key, server_plan
from standpipe.server.provision.description import Description, is_address
from standpipe.server.provision.layout import HEAD, Places

CONTAINER_USER: Final = 999
"""The number of the server's user in the images of Redis and Valkey."""

EXPORTER_PORT: Final = 9121
BALANCED_PORT: Final = 6380


def files(description: Description, secrets: Secrets) -> dict[str, str]:
    """The files, by name below ``beside/``."""
    found = {
        "prometheus/prometheus.yml": prometheus(description),
        "prometheus/standpipe-alerts.yml": alerts(description),
        "prometheus/redis-exporter.env": exporter_environment(description, secrets),
        "container/server.conf": container_configuration(description, secrets),
        "container/users.acl": acl.render(description, secrets.passwords),
        "compose.yaml": compose(description),
        "kubernetes.yaml": kubernetes(description, secrets),
    }
    if description.role != "cluster":
        found["haproxy.cfg"] = haproxy(description, secrets)
    return found


# --- load balancer -------------------------------------------------------------------------------


def haproxy(description: Description, secrets: Secrets) -> str:
    """The way to the primary, whichever server that is."""
    password = secrets.passwords["balancer"]
    checked = ""
    if description.tls:
        checked = " check-ssl ca-file /etc/haproxy/ca.pem verify required"
        checked += " crt /etc/haproxy/balancer.pem"
    servers: list[str] = []
    for node in description.servers:
        # HAProxy compares names alone; a server that goes by its address is known by its authority.
        name = f" verifyhost {node.host}" if checked and not is_address(node.host) else ""
        servers.append(
            f"    server {node.host}:{node.port} {node} check inter 1s fall 2 rise 2"
            f"{checked}{name} on-marked-down shutdown-sessions"
        )
    note = (
        "# Clients' TLS goes through to the server. For the check alone this machine needs ca.pem\n"
        "# and, in one file, the balancer's certificate and key (secrets/clients/balancer.*).\n"
        if description.tls
        else ""
    )
    return f"""\
# {HEAD}
{note}global
    maxconn 20000
    stats socket /run/haproxy/admin.sock mode 660 level admin

defaults
    mode tcp
    timeout connect 3s
    # A worker that waits for entries is idle, not gone; keepalive finds those that are.
    timeout client 1h
    timeout server 1h
    timeout check 2s
    option clitcpka
    option srvtcpka

frontend queue
    # Before the port stands the balancer's address in the internal network; without, it is all.
    bind :{BALANCED_PORT}
    default_backend primary

backend primary
    option tcp-check
    tcp-check send "AUTH balancer {password}\\r\\n"
    tcp-check expect string +OK
    tcp-check send ROLE\\r\\n
    # A replica says "slave". While none or two say "master", see the log before anything else.
    tcp-check expect rstring ^\\*[0-9]+\\r\\n\\$6\\r\\nmaster
{chr(10).join(servers)}
"""


def _dns_label(text: str) -> str:
    """A name as DNS and Kubernetes take it.

    A Service's begins with a letter, and to a StatefulSet's Kubernetes adds ten characters of its
    own: the sum, as with ``-nodes``, has to stay within 63.
    """
    found = re.sub(r"[^a-z0-9-]+", "-", text.lower()).strip("-")
    if not found[:1].isalpha():
        found = f"queue-{found}"
    return found[:52].strip("-")


# --- monitoring ----------------------------------------------------------------------------------


def prometheus(description: Description) -> str:
    """Where Prometheus finds the figures of every server."""
    scheme = "rediss" if description.tls else "redis"
    targets = "\n".join(f"          - {scheme}://{node}" for node in description.servers)
    return f"""\
# {HEAD}
global:
  scrape_interval: 15s
  evaluation_interval: 15s

rule_files:
  - standpipe-alerts.yml

scrape_configs:
  - job_name: "{_dns_label(description.name)}"
    # One redis_exporter asks all servers; redis-exporter.env has its options.
    metrics_path: /scrape
    static_configs:
      - targets:
{targets}
    relabel_configs:
      - source_labels: [__address__]
        target_label: __param_target
      - source_labels: [__param_target]
        target_label: instance
      - target_label: __address__
        replacement: 127.0.0.1:{EXPORTER_PORT}
"""


def exporter_environment(description: Description, secrets: Secrets) -> str:
    """redis_exporter's options: as monitoring, and each stream by name."""
    user = next((u for u in description.users if u.role == "monitoring"), None)
    if user is None:
        return "# The description has no user for monitoring.\n"
    keys = ",".join(f"db0={key}" for s in description.streams_of(user) for key in s.keys)
    lines = [
        f"# {HEAD}",
        f"REDIS_EXPORTER_WEB_LISTEN_ADDRESS=127.0.0.1:{EXPORTER_PORT}",
        "# Without an address of its own: Prometheus names each server.",
        "REDIS_ADDR=",
        f"REDIS_USER={user.name}",
        f"REDIS_PASSWORD={secrets.passwords[user.name]}",
        "# CONFIG GET would show passwords, so the user may not; nor is it asked.",
        "REDIS_EXPORTER_CONFIG_COMMAND=-",
        f"REDIS_EXPORTER_CHECK_SINGLE_STREAMS={keys}",
    ]
    if description.tls:
        lines += [
            "REDIS_EXPORTER_TLS_CA_CERT_FILE=/etc/standpipe/tls/ca.pem",
            f"REDIS_EXPORTER_TLS_CLIENT_CERT_FILE=/etc/standpipe/tls/{user.name}.pem",
            f"REDIS_EXPORTER_TLS_CLIENT_KEY_FILE=/etc/standpipe/tls/{user.name}.key",
        ]
    return "\n".join(lines) + "\n"


_ALERTS: Final = (
    (
        "QueueServerDown", "redis_up == 0", "1m", "critical",
        "The server does not answer",
        "Producers wait or spool, workers stand still.",
    ),
    (
        "QueueMemoryNearlyFull",
        "redis_memory_used_bytes / (redis_memory_max_bytes > 0) > 0.8", "5m", "warning",
        "More than 80 % of maxmemory are used",
        "At 100 % new entries are refused (OOM). Look at lag and at groups that nobody reads.",
    ),
    (
        "QueueEvicts", "increase(redis_evicted_keys_total[5m]) > 0", "0m", "critical",
        "Keys are evicted: readings are lost",
        "maxmemory-policy has to be noeviction.",
    ),
    (
        "QueueNotPersisting",
        "redis_aof_last_write_status == 0 or redis_rdb_last_bgsave_status == 0", "1m", "critical",
        "The server cannot write to its disk",
        "Writes are refused (MISCONF). Look at dir, its rights and the free space.",
    ),
    (
        "QueueFsyncDelayed", "increase(redis_aof_delayed_fsync[10m]) > 0", "10m", "warning",
        "The disk does not keep up with the append-only file",
        "Commands wait for it. Nothing else should use this disk.",
    ),
    (
        "QueueConnectionsRefused", "increase(redis_rejected_connections_total[5m]) > 0", "0m",
        "warning",
        "Connections are turned away",
        "maxclients is reached: look in CLIENT LIST for clients that do not close.",
    ),
    (
        "QueueLagGrows",
        "redis_stream_group_lag > 0 and deriv(redis_stream_group_lag[30m]) > 0", "30m", "warning",
        "A group falls behind, and further behind",
        "By its trend, not by a threshold: its workers do less than what comes. Add some.",
    ),
    (
        "QueuePendingGrows",
        "redis_stream_group_messages_pending > 1000 and "
        "deriv(redis_stream_group_messages_pending[30m]) > 0", "30m", "warning",
        "A group acknowledges less than it is given",
        "Handlers fail or hang: `standpipe pending` shows which entries, and whose.",
    ),
)  # fmt: skip

_REPLICA_ALERTS: Final = (
    (
        "QueueReplicaCutOff", "redis_master_link_up == 0", "2m", "critical",
        "A replica has lost its primary",
        "What is written now is on one machine alone.",
    ),
)  # fmt: skip


def alerts(description: Description) -> str:
    """The alert rules."""
    lines = [f"# {HEAD}", "groups:", f'  - name: "{_dns_label(description.name)}"', "    rules:"]
    rules = _ALERTS + (_REPLICA_ALERTS if description.has_replicas else ())
    for name, expression, time, severity, summary, text in rules:
        lines += [
            f"      - alert: {name}",
            f"        expr: {expression}",
            f"        for: {time}",
            "        labels:",
            f"          severity: {severity}",
            "        annotations:",
            f"          summary: {json.dumps(summary)}",
            f"          description: {json.dumps(text)}",
        ]
    return "\n".join(lines) + "\n"


# --- containers ----------------------------------------------------------------------------------


def container_configuration(description: Description, secrets: Secrets) -> str:
    """The server's configuration as its image runs it: the same, but for places."""
    plan = server_plan(description, secrets)
    folder = "/etc/standpipe-server"
    tls = plan.tls and serverconf.TlsFiles(
        f"{folder}/tls/ca.pem", f"{folder}/tls/server.pem", f"{folder}/tls/server.key"
    )
    head = (
        HEAD,
        "For the image: it listens on all addresses of the container, whose network is its own.",
    )
    # The image's own network is the internal one; users have passwords, the default one is off.
    plan = replace(plan, bind="* -::*", folder="/data", log="", acl=f"{folder}/users.acl", tls=tls)
    return serverconf.render(plan, head=head)


def _image(description: Description) -> str:
    version = description.version
    name = "redis" if version.product == "redis" else "valkey/valkey"
    return f"{name}:{version.major}.{version.minor}"


def compose(description: Description) -> str:
    """The server as a Compose file."""
    places, service = Places.of(description), _dns_label(description.name)
    tls = ""
    if description.tls:
        own = server_key(description)
        tls = f"""
      - ../secrets/ca.pem:/etc/standpipe-server/tls/ca.pem:ro
      - ../secrets/servers/{own}.pem:/etc/standpipe-server/tls/server.pem:ro
      - ../secrets/servers/{own}.key:/etc/standpipe-server/tls/server.key:ro"""
    return f"""\
# {HEAD}
# The files below are readable for their owner alone, which has to be the image's user:
#     chown -R {CONTAINER_USER}:{CONTAINER_USER} container ../secrets/ca.pem ../secrets/servers
# The kernel's settings are the host's; standpipe provision --apply makes them there.
name: "{service}"
services:
  "{service}":
    image: {_image(description)}
    user: "{CONTAINER_USER}:{CONTAINER_USER}"
    command: ["{places.service}", "/etc/standpipe-server/server.conf"]
    restart: unless-stopped
    stop_grace_period: 5m
    read_only: true
    cap_drop: [ALL]
    security_opt: ["no-new-privileges:true"]
    # {_whole_gib(description)}: maxmemory, and the room for a fork and for buffers.
    mem_limit: "{description.memory_plan.total}"
    ulimits:
      nofile: 65535
      core: 0
    ports:
      - "127.0.0.1:{description.port}:{description.port}"
    volumes:
      - data:/data
      - ./container/server.conf:/etc/standpipe-server/server.conf:ro
      - ./container/users.acl:/etc/standpipe-server/users.acl:ro{tls}
    healthcheck:
      # That it listens: whoever asks more needs a password. The images' sh has no /dev/tcp.
      test: ["CMD", "bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/{description.port}"]
      interval: 10s
      timeout: 3s
      retries: 3
      start_period: 10m
volumes:
  data: {{}}
"""


def _whole_gib(description: Description) -> str:
    return f"{description.memory_plan.total / 2**30:.1f} GiB of memory"


def kubernetes(description: Description, secrets: Secrets) -> str:
    """The server as Kubernetes manifests: its files as a Secret, a StatefulSet, its Services."""
    name, places = _dns_label(description.name), Places.of(description)
    version = description.version
    data = {
        "server.conf": container_configuration(description, secrets),
        "users.acl": acl.render(description, secrets.passwords),
    }
    items = ["server.conf", "users.acl"]
    if description.tls:
        assert secrets.authority is not None and secrets.server is not None
        data |= {
            "ca.pem": secrets.authority.certificate,
            "server.pem": secrets.server.certificate,
            "server.key": secrets.server.key,
        }
    paths = [{"key": key, "path": key if key in items else f"tls/{key}"} for key in data]
    labels = {"app.kubernetes.io/name": name, "app.kubernetes.io/managed-by": "standpipe"}
    memory = str(description.memory_plan.total)
    container = {
        "name": "server",
        "image": _image(description),
        "command": [places.service, "/etc/standpipe-server/server.conf"],
        "ports": [{"name": "queue", "containerPort": description.port}],
        # The same twice: a queue whose memory is taken away is ended in the middle of a write.
        "resources": {
            "requests": {"memory": memory, "cpu": "1"},
            "limits": {"memory": memory},
        },
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "startupProbe": {
            "tcpSocket": {"port": "queue"},
            "periodSeconds": 5,
            "failureThreshold": 720,
        },
        "livenessProbe": {"tcpSocket": {"port": "queue"}, "periodSeconds": 10},
        "volumeMounts": [
            {"name": "data", "mountPath": "/data"},
            {"name": "files", "mountPath": "/etc/standpipe-server", "readOnly": True},
        ],
    }
    service = {
        "type": "ClusterIP",
        "selector": labels,
        "ports": [{"name": "queue", "port": description.port, "targetPort": "queue"}],
    }
    manifests = [
        _manifest("v1", "Secret", name, labels, {"type": "Opaque", "stringData": data}),
        _manifest("v1", "Service", name, labels, {"spec": service}),
        _manifest(
            "v1", "Service", f"{name}-nodes", labels, {"spec": {**service, "clusterIP": "None"}}
        ),
        _manifest(
            "apps/v1", "StatefulSet", name, labels,
            {
                "spec": {
                    "serviceName": f"{name}-nodes",
                    "replicas": 1,
                    "selector": {"matchLabels": labels},
                    "template": {
                        "metadata": {"labels": labels},
                        "spec": {
                            "automountServiceAccountToken": False,
                            "terminationGracePeriodSeconds": 300,
                            "securityContext": {
                                "runAsNonRoot": True,
                                "runAsUser": CONTAINER_USER,
                                "runAsGroup": CONTAINER_USER,
                                "fsGroup": CONTAINER_USER,
                                "seccompProfile": {"type": "RuntimeDefault"},
                            },
                            "containers": [container],
                            "volumes": [
                                {
                                    "name": "files",
                                    "secret": {
                                        "secretName": name, "defaultMode": 0o440, "items": paths,
                                    },
                                }
                            ],
                        },
                    },
                    "volumeClaimTemplates": [
                        {
                            "metadata": {"name": "data"},
                            "spec": {
                                "accessModes": ["ReadWriteOnce"],
                                # The append-only file, and as much again while it is rewritten.
                                "resources": {"requests": {"storage": str(int(memory) * 3)}},
                            },
                        }
                    ],
                }
            },
        ),
    ]  # fmt: skip
    head = (
        f"# {HEAD}\n# {version} alone, with what it keeps on a volume. It holds secrets: apply it, "
        "do not check it in.\n# Huge pages and overcommit are the node's settings.\n"
    )
    # JSON is YAML; one document for each manifest.
    return head + "".join(
        f"---\n{json.dumps(each, indent=2, ensure_ascii=False)}\n" for each in manifests
    )


def _manifest(
    version: str, kind: str, name: str, labels: dict[str, str], rest: dict[str, object]
) -> dict[str, object]:
    head: dict[str, object] = {"apiVersion": version, "kind": kind}
    return {**head, "metadata": {"name": name, "labels": labels}, **rest}
