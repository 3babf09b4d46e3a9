"""The demo's certificate authority and the registry's certificate."""

from __future__ import annotations

import datetime as dt
import ipaddress
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID


def _key_bytes(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def make(directory: Path, name: str, address: str) -> tuple[Path, Path, Path]:
    """(CA certificate, server certificate, server key) for one server, kept in ``directory`` once made."""
    ca_path, certificate_path, key_path = (
        directory / n for n in ("ca.pem", "registry.pem", "registry-key.pem")
    )
    if ca_path.exists() and certificate_path.exists() and key_path.exists():
        names = x509.load_pem_x509_certificate(
            certificate_path.read_bytes()
        ).extensions.get_extension_for_class(x509.SubjectAlternativeName)
        if ipaddress.ip_address(address) in names.value.get_values_for_type(x509.IPAddress):
            return ca_path, certificate_path, key_path
    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "swarm demo registry CA")])
    extensions: Sequence[tuple[x509.ExtensionType, bool]]
    extensions = [(x509.BasicConstraints(ca=True, path_length=0), True)]
    ca = _sign(ca_name, ca_name, ca_key.public_key(), ca_key, extensions)
    extensions = [
        (
            x509.SubjectAlternativeName([x509.DNSName(name), x509.IPAddress(ipaddress.ip_address(address))]),
            False,
        ),
        (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False),
    ]
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    certificate = _sign(subject, ca_name, key.public_key(), ca_key, extensions)
    ca_path.write_bytes(ca.public_bytes(serialization.Encoding.PEM))
    certificate_path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key_path.touch(mode=0o600)
    key_path.write_bytes(_key_bytes(key))
    return ca_path, certificate_path, key_path


def _sign(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    issuer_key: ec.EllipticCurvePrivateKey,
    extensions: Sequence[tuple[x509.ExtensionType, bool]],
) -> x509.Certificate:
    now = dt.datetime.now(dt.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=3650))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False
        )
    )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical=critical)
    return builder.sign(issuer_key, hashes.SHA256())
