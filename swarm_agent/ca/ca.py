"""The certificate authority: root, node certificates, what a certificate says of its bearer (behaviour.md 20)."""

from __future__ import annotations

import datetime
import secrets
import time
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from swarm_agent.ca.tokens import root_digest
from swarm_agent.objects.errors import InvalidSpec
from swarm_agent.objects.records import RootCA

ROOT_YEARS = 20
BACK_DATED = datetime.timedelta(hours=1)  # clocks differ a little
SERVER_NAME = "swarm-manager"  # what clients expect of a manager's certificate
OU = {"manager": "swarm-manager", "worker": "swarm-worker"}
_ROLES = {ou: role for role, ou in OU.items()}


class Subject(NamedTuple):
    """Who a certificate speaks for."""

    node_id: str
    role: str
    cluster_id: str


class Source:
    """Where keys, serial numbers and the time of certificates come from: the operating system, in simulations a seed."""

    def now(self) -> int:
        """Nanoseconds since the epoch."""
        return time.time_ns()

    def key(self) -> ec.EllipticCurvePrivateKey:
        return ec.generate_private_key(ec.SECP256R1())

    def bits(self, count: int) -> int:
        """For secrets."""
        return secrets.randbits(count)

    def entropy(self, count: int) -> bytes:
        """So many bytes, for keys and nonces."""
        return self.bits(count * 8).to_bytes(count, "big")

    def serial(self) -> int:
        return x509.random_serial_number()


SYSTEM = Source()


def make_root(source: Source = SYSTEM) -> RootCA:
    """A new self-signed root: ECDSA P-256, 20 years, at most one intermediate."""
    key = source.key()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "swarm-ca")])
    now = _time(source)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(source.serial())
        .not_valid_before(now - BACK_DATED)
        .not_valid_after(now + datetime.timedelta(days=365 * ROOT_YEARS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=1), critical=True)
        .add_extension(_key_usage(ca=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256(), ecdsa_deterministic=True)
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    return RootCA(cert=pem, key=key_pem(key), digest=root_digest(pem))


def sign(
    root: RootCA, csr_pem: bytes, subject: Subject, life_ns: int, source: Source = SYSTEM
) -> tuple[bytes, int]:
    """A node certificate for a signing request; only the public key of the request is used.

    Returns:
        The PEM and the end of its life, nanoseconds.

    Raises:
        InvalidSpec: the request is no valid CSR.
    """
    try:
        csr = x509.load_pem_x509_csr(csr_pem)
    except ValueError as err:
        raise InvalidSpec(f"invalid certificate signing request: {err}") from err
    if not csr.is_signature_valid:
        raise InvalidSpec("invalid certificate signing request: its signature does not match its key")
    issuer = x509.load_pem_x509_certificate(root.cert)
    issuer_key = serialization.load_pem_private_key(root.key, None)
    assert isinstance(issuer_key, ec.EllipticCurvePrivateKey)
    ou = OU[subject.role]
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, subject.cluster_id),
            x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, ou),
            x509.NameAttribute(NameOID.COMMON_NAME, subject.node_id),
        ]
    )
    names = [ou, subject.node_id, *(["swarm-ca"] if subject.role == "manager" else [])]
    now = _time(source)
    ends = now + datetime.timedelta(microseconds=life_ns // 1000)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer.subject)
        .public_key(csr.public_key())
        .serial_number(source.serial())
        .not_valid_before(now - BACK_DATED)
        .not_valid_after(ends)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(ca=False), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
            critical=False,
        )
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(n) for n in names]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()),
            critical=False,
        )
        .sign(issuer_key, hashes.SHA256(), ecdsa_deterministic=True)
    )
    return certificate.public_bytes(serialization.Encoding.PEM), int(ends.timestamp()) * 1_000_000_000


def make_request(source: Source = SYSTEM) -> tuple[bytes, bytes]:
    """A fresh key and a signing request for it: (key PEM, CSR PEM). The key never leaves the host."""
    key = source.key()
    csr = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([]))
        .sign(key, hashes.SHA256(), ecdsa_deterministic=True)
    )
    return key_pem(key), csr.public_bytes(serialization.Encoding.PEM)


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def subject_of(cert_pem: bytes) -> Subject:
    """What a node certificate says; ValueError when it is not one of ours."""
    certificate = x509.load_pem_x509_certificate(cert_pem)
    fields = {a.oid: str(a.value) for a in certificate.subject}
    return _subject(
        fields.get(NameOID.COMMON_NAME, ""),
        fields.get(NameOID.ORGANIZATIONAL_UNIT_NAME, ""),
        fields.get(NameOID.ORGANIZATION_NAME, ""),
    )


def _subject(node_id: str, ou: str, cluster_id: str) -> Subject:
    role = _ROLES.get(ou)
    if not node_id or role is None or not cluster_id:
        raise ValueError(f"not a node certificate: CN={node_id!r} OU={ou!r} O={cluster_id!r}")
    return Subject(node_id, role, cluster_id)


class Life(NamedTuple):
    """When a certificate is valid, nanoseconds."""

    begins: int
    ends: int


def life_of(cert_pem: bytes) -> Life:
    certificate = x509.load_pem_x509_certificate(cert_pem)
    return Life(
        int(certificate.not_valid_before_utc.timestamp()) * 1_000_000_000,
        int(certificate.not_valid_after_utc.timestamp()) * 1_000_000_000,
    )


def issuer_of(root_pem: bytes) -> tuple[bytes, bytes]:
    """(issuer subject DER, issuer public key DER) as Docker's TLSInfo shows them."""
    root = x509.load_pem_x509_certificate(root_pem)
    public = root.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return root.subject.public_bytes(), public


def issued_by(cert_pem: bytes, root_pem: bytes) -> bool:
    """Whether the root signed this certificate."""
    certificate = x509.load_pem_x509_certificate(cert_pem)
    try:
        certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(root_pem))
    except Exception:  # noqa: BLE001 - cryptography raises several kinds, all mean no
        return False
    return True


def _time(source: Source) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(source.now() / 1e9, datetime.UTC)


def _key_usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )
