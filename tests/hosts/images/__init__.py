"""Sample images, built here from scratch: no image registry of the world is needed.

Each is two layers (a static busybox, one static program) and a configuration. The same source always gives the same
digests, so that filling a registry twice changes nothing.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import shutil
import tarfile
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from tests.hosts.shell import Failure, run

HERE = Path(__file__).parent
MEDIA_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
MEDIA_CONFIG = "application/vnd.docker.container.image.v1+json"
MEDIA_LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"
SECOND = 1_000_000_000
_EPOCH = "1970-01-01T00:00:00Z"
_APPLETS = (
    "sh",
    "cat",
    "env",
    "hostname",
    "ip",
    "kill",
    "ls",
    "nc",
    "nslookup",
    "ping",
    "ps",
    "sleep",
    "wget",
)


def digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


@dataclass(frozen=True)
class Layer:
    diff_id: str
    blob: bytes


@dataclass(frozen=True)
class Image:
    """An image in the registry's form."""

    name: str  # repository:tag
    config: bytes
    layers: tuple[Layer, ...] = field(repr=False)

    def manifest(self) -> bytes:
        return json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": MEDIA_MANIFEST,
                "config": {
                    "mediaType": MEDIA_CONFIG,
                    "size": len(self.config),
                    "digest": digest(self.config),
                },
                "layers": [
                    {"mediaType": MEDIA_LAYER, "size": len(layer.blob), "digest": digest(layer.blob)}
                    for layer in self.layers
                ],
            },
            indent=1,
        ).encode()

    def archive(self, tag: str) -> bytes:
        """The image as ``docker load`` takes it, for engines that have no registry."""
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w") as tar:
            config = digest(self.config).removeprefix("sha256:") + ".json"
            names = [f"{number}.tar.gz" for number in range(len(self.layers))]
            manifest = json.dumps([{"Config": config, "RepoTags": [tag], "Layers": names}]).encode()
            files = [(config, self.config), ("manifest.json", manifest)]
            for name, data in files + list(zip(names, (layer.blob for layer in self.layers), strict=True)):
                entry = tarfile.TarInfo(name)
                entry.size = len(data)
                tar.addfile(entry, io.BytesIO(data))
        return out.getvalue()


def _layer(files: dict[str, bytes | str]) -> Layer:
    """A layer of executable files (bytes) and symbolic links (text)."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for path in sorted({str(parent) for name in files for parent in Path(name).parents} - {"."}):
            entry = tarfile.TarInfo(path)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(entry)
        for name, content in sorted(files.items()):
            entry = tarfile.TarInfo(name)
            entry.mode = 0o755
            if isinstance(content, str):
                entry.type, entry.linkname = tarfile.SYMTYPE, content
                tar.addfile(entry)
            else:
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    data = raw.getvalue()
    return Layer(digest(data), gzip.compress(data, compresslevel=6, mtime=0))


def _image(
    name: str, layers: tuple[Layer, ...], command: list[str], health: dict[str, object] | None = None
) -> Image:
    settings: dict[str, object] = {
        "Entrypoint": ["/server"],
        "Cmd": command,
        "Env": ["PATH=/bin:/"],
        "ExposedPorts": {"8080/tcp": {}, "8080/udp": {}},
        "StopSignal": "SIGTERM",
    }
    if health is not None:
        settings["Healthcheck"] = health
    config = {
        "architecture": "amd64",
        "os": "linux",
        "created": _EPOCH,
        "config": settings,
        "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in layers]},
        "history": [{"created": _EPOCH, "created_by": "tests/hosts/images"} for _ in layers],
    }
    return Image(name, json.dumps(config, indent=1).encode(), layers)


def build() -> tuple[Image, ...]:
    """Compile the program and make every sample image."""
    busybox = shutil.which("busybox")
    if busybox is None:
        raise Failure("the sample images need a static busybox: apt-get install busybox-static")
    with tempfile.TemporaryDirectory() as scratch:
        program = Path(scratch) / "server"
        flags = ["-O2", "-static", "-s", "-pthread", "-Wall", "-Wextra", "-Werror", "-Wl,--build-id=none"]
        run(["gcc", *flags, "-o", str(program), str(HERE / "server.c")])
        server = program.read_bytes()
    tools: dict[str, bytes | str] = {"bin/busybox": Path(busybox).resolve().read_bytes()}
    tools.update({f"bin/{applet}": "busybox" for applet in _APPLETS})
    layers = (_layer(tools), _layer({"server": server}))
    probe = ["CMD", "/server", "probe", "8080", "/health"]
    # A start is seen within a second; three failures in a row make a container unhealthy.
    health: dict[str, object] = {"Test": probe, "Interval": SECOND, "Timeout": 3 * SECOND, "Retries": 3}
    return (
        _image("echo:latest", layers, ["echo", "8080"]),
        _image("web:v1", layers, ["web", "v1", "8080"], health),
        _image("web:v2", layers, ["web", "v2", "8080"], health),
        _image("sick:latest", layers, ["sick", "8080"], health),
        _image("crash:latest", layers, ["exit", "3", "1"]),
    )
