"""Checks of secrets and configs, and of a service's references to them, with Docker's texts (behaviour.md 5.7, 5.15)."""

from __future__ import annotations

import base64
import binascii
import posixpath
import re
from collections.abc import Iterator
from typing import NamedTuple

from swarm_agent.objects import templates
from swarm_agent.objects.errors import InvalidSpec, Unimplemented, UserError
from swarm_agent.objects.records import Revision
from swarm_agent.objects.specs import (
    ConfigReference,
    ConfigSpec,
    ContainerSpec,
    FileTarget,
    SecretReference,
    SecretSpec,
)

LIMITS = {"secret": 500 * 1024, "config": 1000 * 1024}  # bytes; as many are too many
SECRETS_FOLDER = "/run/secrets"
DEFAULT_MODE = 0o444
_NAME = re.compile(r"[a-zA-Z0-9](?:[a-zA-Z0-9-_.]*[a-zA-Z0-9])?")


class BadData(UserError):
    """Data that is no base64, in the words of Docker's HTTP layer."""

    code = ""


def decoded(text: str | None) -> bytes:
    """Standard base64 with padding."""
    try:
        return base64.b64decode(text or "", validate=True)
    except (binascii.Error, ValueError) as err:
        at = next((i for i, c in enumerate(text or "") if not re.match(r"[A-Za-z0-9+/=]", c)), 0)
        raise BadData(f"illegal base64 data at input byte {at}") from err


def name(word: str | None) -> None:
    if not word:
        raise InvalidSpec("name must be provided", "Name")
    if len(word) > 64 or not _NAME.fullmatch(word):
        raise InvalidSpec(
            "invalid name, only 64 [a-zA-Z0-9-_.] characters allowed, and the start and end character must be [a-zA-Z0-9]",
            "Name",
        )


def content(kind: str, data: bytes) -> None:
    """``kind``: secret or config."""
    if not 0 < len(data) < LIMITS[kind]:
        raise InvalidSpec(f"{kind} data must be larger than 0 and less than {LIMITS[kind]} bytes", "Data")


def spec(kind: str, given: SecretSpec | ConfigSpec) -> bytes:
    """Check what is to be created; its data."""
    name(given.name)
    if isinstance(given, SecretSpec) and given.driver is not None:
        if not given.driver.name:
            raise InvalidSpec("secret driver must have a name", "Driver.Name")
        raise Unimplemented("not supported by this version of swarm-agent: secret drivers (--driver)")
    data = decoded(given.data)
    content(kind, data)
    templates.check_driver(given.templating, data)
    return data


# --- references ----------------------------------------------------------------------------------------------------------
class Target(NamedTuple):
    """One file of a container."""

    kind: str  # secret, config
    owner: str  # id
    name: str  # of the secret or config
    given: str  # the file's name as it was asked for
    path: str  # in the container
    uid: int
    gid: int
    mode: int


def targets(ctr: ContainerSpec) -> Iterator[Target]:
    """The files of a checked container, in the order of the references: secrets, then configs."""
    for kind, refs in _kinds(ctr):
        for ref in refs:
            owner, called = _named(ref)
            file = ref.file or FileTarget()
            given = file.name or ""
            folder = SECRETS_FOLDER if kind == "secret" else "/"
            yield Target(
                kind,
                owner,
                called,
                given,
                posixpath.normpath(posixpath.join(folder, given)),
                int(file.uid or 0),
                int(file.gid or 0),
                DEFAULT_MODE if file.mode is None else file.mode,
            )


_Refs = tuple[SecretReference | ConfigReference, ...]


def _kinds(ctr: ContainerSpec) -> tuple[tuple[str, _Refs], ...]:
    return (("secret", ctr.secrets or ()), ("config", ctr.configs or ()))


def _named(ref: SecretReference | ConfigReference) -> tuple[str, str]:
    if isinstance(ref, SecretReference):
        return ref.secret_id or "", ref.secret_name or ""
    return ref.config_id or "", ref.config_name or ""


def check_references(ctr: ContainerSpec) -> None:
    """Raises InvalidSpec; what a store must be asked for is asked elsewhere."""
    for kind, refs in _kinds(ctr):
        seen: dict[str, str] = {}
        for i, ref in enumerate(refs):
            path = f"TaskTemplate.ContainerSpec.{kind.capitalize()}s[{i}]"
            owner, called = _named(ref)
            if not owner or not called:
                raise InvalidSpec(f"malformed {kind} reference", path)
            if isinstance(ref, ConfigReference) and ref.runtime is not None:
                raise Unimplemented(
                    "not supported by this version of swarm-agent: configs for the runtime (--credential-spec)"
                )
            if ref.file is None:
                raise InvalidSpec(f"malformed {kind} reference, no target provided", path)
            file = ref.file.name or ""
            if not file or "\0" in file or file.endswith("/") or posixpath.normpath(file) in (".", "..", "/"):
                raise InvalidSpec(
                    f"malformed file {kind} reference, invalid target file name provided", f"{path}.File.Name"
                )
            if file in seen:
                raise InvalidSpec(
                    f"{kind} references '{seen[file]}' and '{called}' have a conflicting target: '{file}'",
                    path,
                )
            seen[file] = called
            _owner(ref.file, path)
    _places(ctr)


def _owner(file: FileTarget, path: str) -> None:
    for word, value in (("UID", file.uid), ("GID", file.gid)):
        if value and not (value.isascii() and value.isdigit() and int(value) < 1 << 32):
            raise InvalidSpec(f"{word} {value!r} of a target file is no number", f"{path}.File.{word}")
    if file.mode is not None and not 0 <= file.mode <= 0o7777:
        raise InvalidSpec(
            f"mode {file.mode:o} of a target file is not in the range 0 to 7777", f"{path}.File.Mode"
        )


def _places(ctr: ContainerSpec) -> None:
    """Two different names may mean one place; a mount may be there already."""
    taken = {posixpath.normpath(m.target): f"mount {m.target}" for m in ctr.mounts or () if m.target}
    for target in targets(ctr):
        if target.path in taken:
            raise InvalidSpec(
                f"{target.kind} '{target.name}' and {taken[target.path]} have a conflicting target: '{target.path}'"
            )
        taken[target.path] = f"{target.kind} '{target.name}'"


def content_ids(revision: Revision) -> tuple[str, ...]:
    """The ids of the contents a revision's tasks need, ``<owner>.<number>``."""
    return tuple(f"{ref.owner}.{ref.number}" for ref in revision.contents)
