"""The kernel's settings: those of the file are ones that kernels have, and are compared."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from standpipe.server.provision import kernel
from standpipe.server.provision.kernel import SETTINGS, differing, render_sysctl


def lay_out(root: Path, **changed: str) -> None:
    """A machine whose kernel is set as the file says, but for some parameters."""
    for name, value, _ in SETTINGS:
        path = root / "proc/sys" / name.replace(".", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(changed.get(name.rpartition(".")[2], value).replace(" ", "\t") + "\n")
    path = root / "sys/kernel/mm/transparent_hugepage/enabled"
    path.parent.mkdir(parents=True)
    path.write_text(changed.get("huge", "always madvise [never]") + "\n")


def test_as_it_should_be(tmp_path: Path) -> None:
    """A machine that is set as the file says differs in nothing."""
    lay_out(tmp_path)
    assert differing(tmp_path) == []
    assert kernel.files_not_in_force(tmp_path) == set()


def test_what_differs_is_named(tmp_path: Path) -> None:
    """Each parameter with another value is named with both; one that is not there is not."""
    lay_out(tmp_path, overcommit_memory="0", tcp_rmem="4096 1 2", huge="[always] madvise never")
    (tmp_path / "proc/sys/net/core/somaxconn").unlink()
    assert differing(tmp_path) == [
        ("vm.overcommit_memory", "0", "1"),
        ("net.ipv4.tcp_rmem", "4096 1 2", "4096 131072 16777216"),
        ("transparent_hugepage", "[always] madvise never", "never"),
    ]
    paths = {file.path for file in kernel.machine_files()}
    assert kernel.files_not_in_force(tmp_path) == paths


@pytest.mark.skipif(sys.platform != "linux", reason="needs root: Linux, whose parameters they are")
def test_kernels_have_them() -> None:
    """No name is misspelled: a running kernel has each of them. A container may hide some."""
    there = [n for n, _, _ in SETTINGS if Path("/proc/sys", n.replace(".", "/")).exists()]
    assert {"vm.overcommit_memory", "net.core.somaxconn", "net.ipv4.tcp_mtu_probing"} <= set(there)
    assert len(there) >= len(SETTINGS) - 4


def test_the_manual_is_followed() -> None:
    """The file has what the manual asks for, each with a reason, and the one setting that is
    without effect only as a note."""
    text = render_sysctl()
    assert "\nvm.overcommit_memory = 1\n" in text and "\nnet.core.somaxconn = 65535\n" in text
    lines = text.splitlines()
    settings = [n for n, line in enumerate(lines) if " = " in line and not line.startswith("#")]
    assert len(settings) == len(SETTINGS)
    assert all(lines[n - 1].startswith("# ") for n in settings)
    assert "# net.ipv4.tcp_low_latency is not set" in text
    assert kernel.SYSCTL_PATH.endswith("/90-standpipe.conf")
