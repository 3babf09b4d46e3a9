"""Docker's image references: ``[domain[:port]/]path[:tag][@digest]``."""

from __future__ import annotations

import re
from typing import NamedTuple

_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_DOMAIN = r"(?:(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])(?:\.(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9]))*(?::[0-9]+)?)"
_REFERENCE = re.compile(
    rf"(?:(?P<domain>{_DOMAIN})/)?(?P<path>{_COMPONENT}(?:/{_COMPONENT})*)"
    r"(?::(?P<tag>[\w][\w.-]{0,127}))?"
    r"(?:@(?P<digest>[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{32,}))?"
)
_IMAGE_ID = re.compile(r"(?:sha256:)?[0-9a-f]{64}")


class ImageReference(NamedTuple):
    name: str  # repository as written, without tag and digest
    tag: str
    digest: str


def is_image_id(text: str) -> bool:
    """Whether this names an image of the local engine by id; such an image is never pulled."""
    return _IMAGE_ID.fullmatch(text) is not None


def parse_image(text: str) -> ImageReference | None:
    """Split a reference; ``None`` when it is not one."""
    match = _REFERENCE.fullmatch(text)
    if match is None or len(match["path"]) > 255:
        return None
    name = f"{match['domain']}/{match['path']}" if match["domain"] else match["path"]
    return ImageReference(name, match["tag"] or "", match["digest"] or "")
