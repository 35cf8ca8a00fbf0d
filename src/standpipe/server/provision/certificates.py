"""An authority of the deployment's own, and the certificates that it signs. Pure, but for chance
and the clock.

One authority for servers and clients: whoever shows a certificate of it belongs to the deployment.
Its key signs and is needed for nothing else, so it stays in the bundle's secrets and is put on no
machine.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final, NamedTuple

from standpipe.errors import ConfigError, MissingExtraError
from standpipe.limits import (
    CERTIFICATE_AUTHORITY_DAYS,
    CERTIFICATE_DAYS,
    CERTIFICATE_RENEW_DAYS,
)

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

CLOCK_SKEW: Final = timedelta(hours=1)
"""A certificate is valid from a while ago: the clocks of machines differ."""


class Pair(NamedTuple):
    """A certificate and its private key, as PEM."""

    certificate: str
    key: str


def make_authority(name: str, *, now: datetime | None = None) -> Pair:
    """A new authority.

    Args:
        name: The deployment's.
        now: From when it is valid; default: the clock.

    Raises:
        MissingExtraError: ``cryptography`` is not installed.
    """
    x509 = _x509()
    key = _new_key()
    subject = _subject(f"{name} authority")
    builder = (
        _builder(subject, subject, key, CERTIFICATE_AUTHORITY_DAYS, now)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(is_authority=True), critical=True)
    )
    return _signed(builder, key, key)


def make_certificate(
    authority: Pair, name: str, *, names: Sequence[str] = (), now: datetime | None = None
) -> Pair:
    """A certificate of a server or a client, with a new key.

    Args:
        authority: Who signs it.
        name: Its common name: a client's user, or the server's name.
        names: Host names and addresses under which a server is reached; none for a client.
        now: From when it is valid; default: the clock.

    Raises:
        ConfigError: the authority's certificate or key cannot be read.
        MissingExtraError: ``cryptography`` is not installed.
    """
    x509 = _x509()
    signer, signer_key = _load(authority)
    key = _new_key()
    from cryptography.x509.oid import ExtendedKeyUsageOID

    purposes = [ExtendedKeyUsageOID.CLIENT_AUTH]
    if names:
        # A server is a client as well: of the primary that it follows, and of the other nodes.
        purposes.append(ExtendedKeyUsageOID.SERVER_AUTH)
    builder = (
        _builder(_subject(name), signer.subject, key, CERTIFICATE_DAYS, now)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(is_authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer_key.public_key()),
            critical=False,
        )
    )
    if names:
        found = x509.SubjectAlternativeName([_general_name(each) for each in names])
        builder = builder.add_extension(found, critical=False)
    return _signed(builder, key, signer_key)


def why_renew(
    pair: Pair, authority: Pair, names: Sequence[str] = (), *, now: datetime | None = None
) -> str | None:
    """Why a certificate has to be made anew; None while it does.

    Args:
        pair: The certificate; what cannot be read has to be made anew.
        authority: Who should have signed it.
        names: The names that it should have.
        now: Default: the clock.
    """
    from cryptography.exceptions import InvalidSignature

    x509 = _x509()
    try:
        certificate, key = _load(pair)
        signer, _ = _load(authority)
        certificate.verify_directly_issued_by(signer)
    except (ConfigError, InvalidSignature, ValueError, TypeError):
        return "it is not one of this authority"
    if key.public_key() != certificate.public_key():
        return "its key is another one's"
    left = certificate.not_valid_after_utc - (now or datetime.now(UTC))
    if left < timedelta(days=CERTIFICATE_RENEW_DAYS):
        return f"it ends on {certificate.not_valid_after_utc:%Y-%m-%d}"
    try:
        found = set(
            certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        )
    except x509.ExtensionNotFound:
        found = set[x509.GeneralName]()
    if found != {_general_name(each) for each in names}:
        return "its names have changed"
    return None


def ends_at(pem: str) -> datetime:
    """When a certificate ends.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        return _x509().load_pem_x509_certificate(pem.encode()).not_valid_after_utc
    except ValueError as error:
        raise _unreadable(error) from error


# --- how they are made ---------------------------------------------------------------------------


def _x509():
    try:
        from cryptography import x509
    except ImportError as error:
        raise MissingExtraError(
            "certificates need the package cryptography",
            hint="pip install 'standpipe[provision]', or tls = false.",
        ) from error
    return x509


def _new_key() -> ec.EllipticCurvePrivateKey:
    from cryptography.hazmat.primitives.asymmetric import ec

    # P-256: every TLS library speaks it, and its handshake costs a tenth of RSA's.
    return ec.generate_private_key(ec.SECP256R1())


def _subject(name: str) -> x509.Name:
    x509 = _x509()
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name[:64])])


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    days: int,
    now: datetime | None,
) -> x509.CertificateBuilder:
    x509 = _x509()
    begin = now or datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin - CLOCK_SKEW)
        .not_valid_after(begin + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _usage(*, is_authority: bool) -> x509.KeyUsage:
    return _x509().KeyUsage(
        digital_signature=not is_authority,
        key_cert_sign=is_authority,
        crl_sign=is_authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _signed(
    builder: x509.CertificateBuilder,
    key: ec.EllipticCurvePrivateKey,
    signer_key: ec.EllipticCurvePrivateKey,
) -> Pair:
    from cryptography.hazmat.primitives import hashes, serialization

    certificate = builder.sign(signer_key, hashes.SHA256())
    return Pair(
        certificate.public_bytes(serialization.Encoding.PEM).decode(),
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ).decode(),
    )


def _load(pair: Pair) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    try:
        certificate = _x509().load_pem_x509_certificate(pair.certificate.encode())
        key = serialization.load_pem_private_key(pair.key.encode(), password=None)
    except (ValueError, TypeError) as error:
        raise _unreadable(error) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise _unreadable("the key is not of an elliptic curve")
    return certificate, key


def _unreadable(error: object) -> ConfigError:
    return ConfigError(
        f"a certificate or key in the bundle's secrets cannot be read: {error}",
        hint="Restore it from a copy, or remove it, and those that it signed, to have new ones.",
    )


def _general_name(name: str) -> x509.GeneralName:
    x509 = _x509()
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
