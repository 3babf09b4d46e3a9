"""A small image registry beside the hosts: TLS from a CA of its own, one part of it behind a password."""

from __future__ import annotations

import base64
import http.client
import json
import ssl
import urllib.parse
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import bcrypt

from tests.hosts import images
from tests.hosts.images import Image

OPEN_PORT = 5000
LOCKED_PORT = 5001
PORTS = (OPEN_PORT, LOCKED_PORT)
USER = "demo"
PASSWORD = "demo-password"  # opens nothing but the demo's own sample image

_CONFIG = """\
version: 0.1
log: {{level: warn, accesslog: {{disabled: true}}}}
storage:
  filesystem: {{rootdirectory: /var/lib/registry-{port}}}
http:
  addr: :{port}
  secret: demo
  tls: {{certificate: /etc/registry/registry.pem, key: /etc/registry/registry-key.pem}}
{auth}"""
_AUTH = """\
auth:
  htpasswd: {realm: demo, path: /etc/registry/htpasswd}
"""


def write_config(directory: Path) -> None:
    """What the registry processes read, beside the certificates that ``pki`` put there."""
    (directory / "open.yml").write_text(_CONFIG.format(port=OPEN_PORT, auth=""))
    (directory / "locked.yml").write_text(_CONFIG.format(port=LOCKED_PORT, auth=_AUTH))
    passwords = directory / "htpasswd"
    if not passwords.exists():
        passwords.write_text(f"{USER}:{bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(5)).decode()}\n")


COMMAND = "docker-registry serve /etc/registry/open.yml & exec docker-registry serve /etc/registry/locked.yml"


@dataclass(frozen=True)
class Registry:
    """A client for filling a registry: Docker's registry HTTP API, version 2."""

    address: str
    port: int
    ca: Path

    def _ask(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        content_type: str = "application/octet-stream",
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        connection = http.client.HTTPSConnection(
            self.address, self.port, timeout=30, context=ssl.create_default_context(cafile=str(self.ca))
        )
        headers = {"Accept": images.MEDIA_MANIFEST, "Content-Type": content_type}
        if self.port == LOCKED_PORT:
            headers["Authorization"] = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        try:
            connection.request(method, path, body=body, headers=headers)
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()
        finally:
            connection.close()

    def answers(self) -> bool:
        try:
            return self._ask("GET", "/v2/")[0] == 200
        except (OSError, http.client.HTTPException):
            return False

    def push(self, image: Image, repository: str | None = None) -> bool:
        """Make the registry hold this image; whether anything had to be sent."""
        name, _, tag = image.name.partition(":")
        name = repository or name
        manifest = image.manifest()
        status, headers, _ = self._ask("HEAD", f"/v2/{name}/manifests/{tag}")
        if status == 200 and headers["Docker-Content-Digest"] == images.digest(manifest):
            return False
        for blob in (image.config, *(layer.blob for layer in image.layers)):
            self._push_blob(name, blob)
        status, _, answer = self._ask("PUT", f"/v2/{name}/manifests/{tag}", manifest, images.MEDIA_MANIFEST)
        if status != 201:
            raise RuntimeError(
                f"registry refused {name}:{tag} with {status}: {answer.decode(errors='replace')}"
            )
        return True

    def _push_blob(self, name: str, blob: bytes) -> None:
        known = images.digest(blob)
        if self._ask("HEAD", f"/v2/{name}/blobs/{known}")[0] == 200:
            return
        _, headers, _ = self._ask("POST", f"/v2/{name}/blobs/uploads/", b"")
        place = urllib.parse.urlsplit(headers["Location"])
        query = f"{place.query}&digest={known}" if place.query else f"digest={known}"
        status, _, answer = self._ask("PUT", f"{place.path}?{query}", blob)
        if status != 201:
            raise RuntimeError(
                f"registry refused a layer of {name} with {status}: {answer.decode(errors='replace')}"
            )


def fill(address: str, ca: Path, made: Iterable[Image]) -> list[str]:
    """Fill both parts of the registry; the names of what was sent."""
    sent = []
    for image in made:
        if Registry(address, OPEN_PORT, ca).push(image):
            sent.append(image.name)
        if image.name == "echo:latest" and Registry(address, LOCKED_PORT, ca).push(image, "private/echo"):
            sent.append("private/echo:latest")
    return sent


def catalogue(address: str, port: int, ca: Path) -> list[str]:
    return sorted(json.loads(Registry(address, port, ca)._ask("GET", "/v2/_catalog")[2])["repositories"])
