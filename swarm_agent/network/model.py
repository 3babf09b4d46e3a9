"""What a manager tells a node about networks, as rooms.md gives it."""

from __future__ import annotations

from typing import Any, Protocol

import msgspec


class Peer(msgspec.Struct, frozen=True):
    node_id: str
    number: int
    data_addr: str


class Overlay(msgspec.Struct, frozen=True):
    network_id: str
    name: str
    vni: int
    subnet: str
    gateway: str
    mtu: int
    internal: bool


class Endpoint(msgspec.Struct, frozen=True):
    network_id: str
    task_id: str
    task_name: str
    service_id: str
    service_name: str
    node_id: str
    address: str
    aliases: tuple[str, ...]
    ready: bool


class VirtualIP(msgspec.Struct, frozen=True):
    network_id: str
    service_id: str
    service_name: str
    address: str
    aliases: tuple[str, ...]


class PublishedPort(msgspec.Struct, frozen=True):
    service_id: str
    protocol: str
    published: int
    target: int
    mode: str
    backends: tuple[str, ...]


class TaskAddress(msgspec.Struct, frozen=True):
    task_id: str
    address: str
    networks: tuple[str, ...]


class NetworkView(msgspec.Struct, frozen=True):
    node_id: str
    number: int
    data_addr: str
    peers: tuple[Peer, ...] = ()
    overlays: tuple[Overlay, ...] = ()
    endpoints: tuple[Endpoint, ...] = ()
    vips: tuple[VirtualIP, ...] = ()
    ports: tuple[PublishedPort, ...] = ()
    local: tuple[TaskAddress, ...] = ()


class AttachRequest(msgspec.Struct, frozen=True):
    task_id: str
    node_address: str | None
    overlays: tuple[tuple[str, str, tuple[str, ...]], ...] = ()


class ContainerNetwork(msgspec.Struct, frozen=True):
    network_mode: str
    first: dict[str, Any] | None = None
    connect: tuple[tuple[str, dict[str, Any]], ...] = ()
    dns: tuple[str, ...] = ()
    dns_options: tuple[str, ...] = ()


class NodeNetwork(Protocol):
    async def start(self) -> None: ...
    async def apply(self, view: NetworkView) -> None: ...
    async def attach(self, req: AttachRequest) -> ContainerNetwork: ...
    async def detach(self, task_id: str) -> None: ...
    async def stop(self) -> None: ...
