"""Tokens, the certificate authority, and what is kept on disk."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import ExtendedKeyUsageOID

from swarm_agent.ca import ca
from swarm_agent.ca.ca import Subject
from swarm_agent.ca.identity_files import (
    NodeIdentity,
    load_identity,
    remove_identity,
    save_identity,
    write_atomically,
)
from swarm_agent.ca.tokens import (
    InvalidJoinToken,
    new_token,
    new_tokens,
    parse_token,
    role_of,
    root_digest,
)
from swarm_agent.objects.errors import InvalidSpec
from swarm_agent.objects.records import RootCA

HOUR = 3600 * 10**9
NODE = Subject("node1", "manager", "cluster1")


@pytest.fixture(scope="module")
def root() -> RootCA:
    return ca.make_root()


# --- tokens --------------------------------------------------------------------------------------------------------------
def test_a_token_pins_its_root(root: RootCA) -> None:
    tokens = new_tokens(root.digest)
    for text in (tokens.worker, tokens.manager):
        assert len(text) == len("SWMTKN-1-") + 50 + 1 + 25
        assert parse_token(text).digest == root_digest(root.cert) == root.digest
    assert tokens.worker != tokens.manager
    assert root_digest(ca.make_root().cert) != root.digest


def test_rotating_changes_the_secret_alone(root: RootCA) -> None:
    one, two = (parse_token(new_token(root.digest)) for _ in range(2))
    assert one.digest == two.digest
    assert one.secret != two.secret


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "SWMTKN-1-a-b",
        "SWMTKN-2-" + "a" * 50 + "-" + "b" * 25,
        "SWMTKN-1-" + "A" * 50 + "-" + "b" * 25,
        " SWMTKN-1-" + "a" * 50 + "-" + "b" * 25,
        "SWMTKN-1-" + "a" * 50 + "-" + "b" * 25 + "\n",
        "SWMTKN-1-" + "a" * 50 + "-" + "b" * 26,
    ],
)
def test_what_is_no_token(text: str) -> None:
    with pytest.raises(InvalidJoinToken) as err:
        parse_token(text)
    assert (str(err.value), err.value.http_status, err.value.code) == ("invalid join token", 500, "")


def test_the_role_follows_from_the_token(root: RootCA) -> None:
    tokens = new_tokens(root.digest)
    assert role_of(tokens.worker, tokens) == "worker"
    assert role_of(tokens.manager, tokens) == "manager"
    assert role_of(new_token(root.digest), tokens) is None
    assert role_of("völlig anders", tokens) is None


# --- certificates ----------------------------------------------------------------------------------------------------------
def test_a_certificate_says_who_bears_it(root: RootCA) -> None:
    _, csr = ca.make_request()
    pem, ends = ca.sign(root, csr, NODE, 48 * HOUR)
    assert ca.subject_of(pem) == NODE
    assert ca.issued_by(pem, root.cert)
    assert not ca.issued_by(pem, ca.make_root().cert)
    life = ca.life_of(pem)
    assert life.ends == ends
    assert abs(life.ends - time.time_ns() - 48 * HOUR) < HOUR / 6
    assert life.begins < time.time_ns() - HOUR / 2, "clocks differ a little"
    certificate = x509.load_pem_x509_certificate(pem)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["swarm-manager", "node1", "swarm-ca"]
    uses = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert set(uses) == {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_only_the_key_of_a_request_is_used(root: RootCA) -> None:
    """What a joiner writes into its request gives it nothing."""
    key, csr = ca.make_request()
    pem, _ = ca.sign(root, csr, Subject("me", "worker", "c"), HOUR)
    certificate = x509.load_pem_x509_certificate(pem)
    assert certificate.public_key() == x509.load_pem_x509_csr(csr).public_key()
    assert b"PRIVATE KEY" in key
    assert ca.subject_of(pem) == Subject("me", "worker", "c")
    assert "swarm-ca" not in certificate.subject.rfc4514_string()


@pytest.mark.parametrize("csr", [b"", b"nonsense", b"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n"])  # fmt: skip
def test_what_is_no_request(root: RootCA, csr: bytes) -> None:
    with pytest.raises(InvalidSpec, match="invalid certificate signing request"):
        ca.sign(root, csr, NODE, HOUR)


def test_a_request_whose_key_is_not_its_own(root: RootCA) -> None:
    _, csr = ca.make_request()
    der = bytearray(x509.load_pem_x509_csr(csr).public_bytes(encoding=serialization.Encoding.DER))
    der[-1] ^= 1  # in the signature
    import base64  # noqa: PLC0415

    body = base64.encodebytes(bytes(der))
    forged = b"-----BEGIN CERTIFICATE REQUEST-----\n" + body + b"-----END CERTIFICATE REQUEST-----\n"
    with pytest.raises(InvalidSpec, match="signature"):
        ca.sign(root, forged, NODE, HOUR)


def test_a_certificate_of_no_node() -> None:
    with pytest.raises(ValueError, match="not a node certificate"):
        ca.subject_of(ca.make_root().cert)


def test_tls_info(root: RootCA) -> None:
    subject, public = ca.issuer_of(root.cert)
    certificate = x509.load_pem_x509_certificate(root.cert)
    assert subject == certificate.subject.public_bytes()
    assert serialization.load_der_public_key(public) == certificate.public_key()


# --- on disk -----------------------------------------------------------------------------------------------------------------
def test_an_identity_survives(tmp_path: Path, root: RootCA) -> None:
    assert load_identity(tmp_path) is None
    key, csr = ca.make_request()
    identity = NodeIdentity(key, ca.sign(root, csr, NODE, HOUR)[0], root.cert)
    save_identity(tmp_path, identity)
    assert load_identity(tmp_path) == identity
    assert identity.subject == NODE
    files = {p.name: p.stat().st_mode & 0o777 for p in (tmp_path / "certificates").iterdir()}
    assert files == {"swarm-root-ca.crt": 0o644, "swarm-node.pem": 0o600}
    assert (tmp_path / "certificates").stat().st_mode & 0o777 == 0o700
    remove_identity(tmp_path)
    remove_identity(tmp_path)
    assert load_identity(tmp_path) is None


def test_files_that_make_no_sense(tmp_path: Path) -> None:
    write_atomically(tmp_path / "certificates" / "swarm-root-ca.crt", b"x")
    write_atomically(tmp_path / "certificates" / "swarm-node.pem", b"no pem")
    with pytest.raises(ValueError, match="holds no certificate"):
        load_identity(tmp_path)


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file"
    write_atomically(path, b"a" * 100_000)
    write_atomically(path, b"b", 0o640)
    assert path.read_bytes() == b"b"
    assert [p.name for p in path.parent.iterdir()] == ["file"]
