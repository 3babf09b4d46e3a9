"""TLS contexts from an identity in memory. Keys never touch a disk on the way: the ssl module wants files, a memfd is one."""

from __future__ import annotations

import os
import ssl
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from swarm_agent.ca.ca import Subject, subject_of
from swarm_agent.ca.identity_files import NodeIdentity


def load_pair(context: ssl.SSLContext, identity: NodeIdentity) -> None:
    """Give the context this key and certificate; again with a renewed pair, for handshakes from then on."""
    descriptor = os.memfd_create("pair", os.MFD_CLOEXEC)
    try:
        with os.fdopen(descriptor, "wb", closefd=False) as file:
            file.write(identity.key + identity.cert)
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


def mutual_server(identity: NodeIdentity) -> ssl.SSLContext:
    """Serves members of the cluster only."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=identity.root.decode())
    load_pair(context, identity)
    return context


def mutual_client(identity: NodeIdentity) -> ssl.SSLContext:
    """Shows who we are, and accepts only the member that is asked for."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(cadata=identity.root.decode())
    load_pair(context, identity)
    return context


def subject_of_peer(session: Any) -> Subject:
    """Who is at the other end of a connection (``ssl_object`` of its transport); ValueError for no member's certificate."""
    certificate = session.getpeercert(True)
    if certificate is None:
        raise ValueError("it shows no certificate")
    return subject_of(x509.load_der_x509_certificate(certificate).public_bytes(Encoding.PEM))
