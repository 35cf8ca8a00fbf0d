"""How long the server's certificate is still valid, looked at in a handshake of our own."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.util import find_spec
from typing import Final
from urllib.parse import parse_qs, urlsplit

from standpipe.doctor.finding import MANUAL, Check, Finding, Level
from standpipe.doctor.thresholds import CERTIFICATE_MS_CRITICAL, CERTIFICATE_MS_WARNING
from standpipe.limits import CONNECT_MS_MAX

CERTIFICATE: Final = Check(
    "server.certificate",
    "when the certificates of a TLS server, and of this client, end",
    "When one ends, nobody can connect any more: producers spool, workers stand still.",
    MANUAL + "Security Hardening (TLS)",
)

CHECKS: Final = (CERTIFICATE,)


async def check_certificate(url: str, shown: str) -> list[Finding]:
    """Look at the certificates of a rediss:// URL; of any other there are none.

    Cost: one TLS handshake that is ended at once.
    """
    parts = urlsplit(url)
    if parts.scheme != "rediss" or parts.hostname is None:
        return []
    if find_spec("cryptography") is None:
        told, fix = (
            "cryptography is not installed: not checked",
            "pip install 'standpipe[provision]'",
        )
        return [Finding(CERTIFICATE, "note", shown, told, fix)]
    query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # Its date is what is looked at; a certificate that has ended must be read as well.
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    found: list[Finding] = []
    client = query.get("ssl_certfile")
    try:
        if client is not None:
            # Without a password given OpenSSL would ask the terminal for that of a locked key.
            password = query.get("ssl_password", "")
            context.load_cert_chain(client, query.get("ssl_keyfile"), password)
            with open(client, "rb") as file:  # noqa: ASYNC230, PTH123  a small local file
                found += _judge(file.read(), f"client certificate {client}")
        async with asyncio.timeout(CONNECT_MS_MAX / 1000):
            _, writer = await asyncio.open_connection(
                parts.hostname, parts.port or 6379, ssl=context
            )
        try:
            tls: ssl.SSLObject = writer.get_extra_info("ssl_object")
            der = tls.getpeercert(binary_form=True)
            assert der is not None, "a TLS server has a certificate"
            found += _judge(ssl.DER_cert_to_PEM_cert(der).encode(), shown)
        finally:
            writer.transport.abort()
    except (OSError, TimeoutError) as error:
        told = f"the handshake failed: {error}"
        found.append(Finding(CERTIFICATE, "warning", shown, told, "Look at `openssl s_client`."))
    return found


def _judge(pem: bytes, place: str) -> Iterator[Finding]:
    from cryptography import x509

    ends = x509.load_pem_x509_certificate(pem).not_valid_after_utc
    left_ms = (ends - datetime.now(UTC)).total_seconds() * 1000
    if left_ms < CERTIFICATE_MS_WARNING:
        level: Level = "critical" if left_ms < CERTIFICATE_MS_CRITICAL else "warning"
        days = left_ms / 86_400_000
        told = f"ended {-days:.0f} days ago" if days < 0 else f"ends in {days:.0f} days"
        yield Finding(
            CERTIFICATE, level, place, f"{told}: {ends:%Y-%m-%d %H:%M} UTC",
            "Renew it (`standpipe provision` writes the script) and CONFIG SET tls-cert-file to "
            "read it anew.",
        )  # fmt: skip
