"""``standpipe provision``: a deployment from a short description, put in place and compared."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from standpipe.cli.running import FAILED, Json, command, print_json

if TYPE_CHECKING:
    from standpipe.server.provision.applying import Applied, Change
    from standpipe.server.provision.bundle import Masking, Secrets
    from standpipe.server.provision.description import Description
    from standpipe.server.provision.layout import File

EXAMPLE = (
    "Example: standpipe provision queue.toml --out ./bundle, then sudo standpipe provision "
    "queue.toml --out ./bundle --apply"
)


@command
def provision(
    description: Annotated[
        Path | None,
        typer.Argument(help="A TOML file; or say all by options.", show_default=False),
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", help="The bundle's folder; it keeps the secrets too.")
    ] = Path("standpipe-bundle"),
    secrets: Annotated[
        Path | None,
        typer.Option(
            "--secrets",
            help="The secrets of another bundle of the same deployment [default: OUT/secrets]",
            show_default=False,
        ),
    ] = None,
    apply: Annotated[
        bool, typer.Option("--apply", help="Put it in place, as root; what it replaces is kept.")
    ] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Change nothing; exit with 1 if anything differs.")
    ] = False,
    renew: Annotated[bool, typer.Option("--renew", help="Make all certificates anew.")] = False,
    root: Annotated[
        Path, typer.Option("--root", help="Put it in place below this folder: of an image.")
    ] = Path("/"),
    activate: Annotated[
        bool,
        typer.Option(
            "--activate/--no-activate", help="With --apply: sysctl, systemctl daemon-reload…"
        ),
    ] = True,
    server: Annotated[
        str | None, typer.Option(help="redis-7.0, valkey-9.1… [default: what is installed]")
    ] = None,
    role: Annotated[str | None, typer.Option(help="primary, replica or cluster.")] = None,
    memory: Annotated[str | None, typer.Option(help="The machine's RAM: 16GiB.")] = None,
    bind: Annotated[list[str] | None, typer.Option(help="Address to listen on; repeat it.")] = None,
    port: Annotated[int | None, typer.Option(help="Port.")] = None,
    hostname: Annotated[
        list[str] | None, typer.Option(help="Name of the server; repeat it.")
    ] = None,
    tls: Annotated[bool | None, typer.Option("--tls/--no-tls", help="TLS, both sides.")] = None,
    persistence: Annotated[str | None, typer.Option(help="always, everysec or none.")] = None,
    node: Annotated[
        list[str] | None, typer.Option(help="Each server, the primary first; repeat it.")
    ] = None,
    stream: Annotated[
        list[str] | None,
        typer.Option(help="NAME, or NAME=GROUP,GROUP; repeat it.", metavar="NAME[=GROUPS]"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a deployment's files: server, users, certificates, kernel, units, what stands beside.

    Options take the place of what the file says. Written twice, it is the same: passwords and
    certificates are made once and kept in the bundle's secrets. With --apply each change is shown
    before it is made.
    """
    from standpipe.errors import ConfigError
    from standpipe.server.provision import beside, bundle, keeping
    from standpipe.server.provision.applying import Placement
    from standpipe.server.provision.description import complete, read
    from standpipe.server.provision.kernel import files_not_in_force

    if apply and check:
        raise ConfigError("--apply and --check together", hint="--check changes nothing.")
    if secrets is not None and not secrets.is_dir():
        raise ConfigError(
            f"--secrets is {secrets}, where there are none",
            hint="Name the folder `secrets` of the deployment's first bundle: new ones would fit "
            "none of its servers.",
        )
    flags: dict[str, Any] = {
        "server": server, "role": role, "memory": memory, "bind": bind, "port": port,
        "hostnames": hostname, "tls": tls, "persistence": persistence, "nodes": node,
        "streams": None if stream is None else [_stream(each) for each in stream],
    }  # fmt: skip
    wanted = complete(read(description, flags))
    kept = secrets or out / "secrets"
    if check and not (kept / keeping.PASSWORDS).exists():
        # Passwords made for the purpose would differ from any that are in place.
        raise ConfigError(
            f"--check has no secrets in {kept} to compare with",
            hint="Name the deployment's bundle with --out, or its secrets with --secrets.",
        )
    found = bundle.fresh_secrets(wanted, keeping.read_secrets(kept, wanted), renew=renew)
    files = bundle.machine_files(wanted, found)
    mask = bundle.masked(found)
    if check:
        _check(wanted, files, root, mask, as_json=as_json)
        return
    placement = Placement(root, activate=activate) if apply else None
    extras = beside.files(wanted, found)
    keeping.write_bundle(out, wanted, found, files, extras, secrets_folder=kept)
    if placement is None:
        _print_written(wanted, found, files, list(extras), out, kept, as_json=as_json)
        return
    shown: list[Change] = []

    def show(change: Change) -> None:
        shown.append(change)
        if not as_json:
            _print_change(change, mask)

    # The kernel is this machine's, whatever lies below another root.
    changed = files_not_in_force(root) if root == Path("/") else ()
    applied = placement.apply(files, show, changed)
    if as_json:
        print_json(_applied_facts(applied, mask))
    else:
        _print_applied(applied)
    if any(ran.code for ran in applied.ran):
        raise typer.Exit(FAILED)


def _stream(text: str) -> dict[str, Any]:
    name, _, groups = text.partition("=")
    return {"name": name, "groups": [each for each in groups.split(",") if each]}


# --- writing -------------------------------------------------------------------------------------


def _print_written(
    wanted: Description,
    secrets: Secrets,
    files: list[File],
    beside: list[str],
    out: Path,
    kept: Path,
    *,
    as_json: bool,
) -> None:
    memory = wanted.memory_plan
    if as_json:
        print_json(
            {
                "bundle": str(out),
                "secrets": str(kept),
                "server": wanted.server,
                "maxmemory": memory.maxmemory,
                "entries": memory.entries,
                "renewed": secrets.renewed,
                "files": [
                    {"path": f.path, "mode": f"{f.mode:04o}", "owner": f"{f.owner}:{f.group}"}
                    for f in files
                ],
                "beside": beside,
            }
        )
        return
    typer.echo(f"bundle   {out}: {len(files)} files for {wanted.server}, {wanted.role}")
    for file in files:
        typer.echo(f"  {file.mode:04o} {file.owner + ':' + file.group:<20} {file.path}  {file.why}")
    typer.echo(f"beside   {', '.join(beside)}")
    typer.echo(f"secrets  {kept}  (passwords and keys: nowhere else as they are)")
    for each in secrets.renewed:
        typer.echo(f"certificate made: {each}")
    typer.echo(f"memory   maxmemory {memory.maxmemory:,} of {memory.total:,} bytes")
    typer.echo("next     --apply as root puts it in place; --check says what differs")


# --- putting in place ----------------------------------------------------------------------------


def _print_change(change: Change, mask: Masking) -> None:
    said = {"create": "new", "replace": "changed", "attributes": "changed", "same": ""}
    typer.secho(f"{said[change.kind]:<8} {change.file.path}  {change.file.why}", bold=True)
    for each in change.attributes:
        typer.echo(f"         {each}")
    for line in change.diff(mask).splitlines():
        colour = {"+": "green", "-": "red", "@": "cyan"}.get(line[:1])
        typer.secho(line, fg=colour)


def _print_applied(applied: Applied) -> None:
    for line, code, said in applied.ran:
        what = "not installed" if code is None else "ok" if code == 0 else f"exit code {code}"
        typer.echo(f"ran      {' '.join(line)}: {what}" + (f"\n{said}" if said and code else ""))
    if applied.backups is not None:
        typer.echo(f"kept     {applied.backups}: what was replaced")
    for service in applied.restart:
        typer.echo(
            f"restart  systemctl restart {service}  (it goes on with the old files till then)"
        )
    count = len(applied.changes)
    typer.echo(f"{count} changed" if count else "nothing to change")


def _applied_facts(applied: Applied, mask: Masking) -> dict[str, Any]:
    return {
        "changes": [_change_facts(each, mask) for each in applied.changes],
        "backups": None if applied.backups is None else str(applied.backups),
        "ran": [{"command": c, "code": code, "said": said} for c, code, said in applied.ran],
        "restart": applied.restart,
    }


def _change_facts(change: Change, mask: Masking) -> dict[str, Any]:
    return {
        "path": change.file.path,
        "change": change.kind,
        "attributes": change.attributes,
        "diff": change.diff(mask),
    }


# --- comparing -----------------------------------------------------------------------------------


def _check(
    wanted: Description, files: list[File], root: Path, mask: Masking, *, as_json: bool
) -> None:
    from standpipe.server.provision.applying import compare
    from standpipe.server.provision.kernel import differing
    from standpipe.server.provision.way import measure_ways

    changes = [each for each in compare(files, root) if each.kind != "same"]
    # The kernel and the network are this machine's, whatever lies below another root.
    here = root == Path("/")
    kernel = differing(root) if here else []
    ways = measure_ways(wanted) if here else []
    if as_json:
        print_json(
            {
                "changes": [_change_facts(each, mask) for each in changes],
                "kernel": [{"name": n, "is": i, "wanted": w} for n, i, w in kernel],
                "ways": [each.as_facts() for each in ways],
            }
        )
    else:
        for change in changes:
            _print_change(change, mask)
        for name, value, to_be in kernel:
            typer.echo(f"kernel   {name} is {value}, not {to_be}")
        for way in ways:
            typer.echo(f"way      {way.host}: {way.text}")
        count = len(changes) + len(kernel) + sum(way.is_wrong for way in ways)
        typer.echo(f"{count} differ" if count else "nothing differs")
    if changes or kernel or any(way.is_wrong for way in ways):
        raise typer.Exit(FAILED)
