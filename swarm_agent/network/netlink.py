"""Route netlink, hand packed: links, addresses, routes, rules, neighbours and forwarding entries of one namespace.

Owns: the wire format of the few rtnetlink messages this project sends, and one socket per namespace.
Refuses: deciding anything. Callers say what should be; here it is packed, sent and acknowledged.
Standard library only, because netd uses it too. A socket stays in the namespace it was opened in, so callers open it
under ``namespaces.entered`` and may then use it from anywhere, one thread at a time.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Self

AF_BRIDGE: Final = 7
NETLINK_ROUTE: Final = 0

RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK, RTM_SETLINK = 16, 17, 18, 19
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWNEIGH, RTM_DELNEIGH, RTM_GETNEIGH = 28, 29, 30
RTM_NEWRULE, RTM_DELRULE, RTM_GETRULE = 32, 33, 34

RTM_NEWNSID, RTM_GETNSID = 88, 90
NETNSA_NSID, NETNSA_FD = 1, 3

NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP = 0x1, 0x4, 0x300
NLM_F_REPLACE, NLM_F_EXCL, NLM_F_CREATE = 0x100, 0x200, 0x400
NLMSG_ERROR, NLMSG_DONE = 2, 3
NLA_F_NESTED, NLA_TYPE_MASK = 0x8000, 0x3FFF

IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_MASTER, IFLA_PROTINFO = 1, 3, 4, 10, 12
IFLA_LINKINFO, IFLA_NET_NS_FD, IFLA_CARRIER, IFLA_LINK_NETNSID = 18, 28, 33, 37
IFLA_INFO_KIND, IFLA_INFO_DATA = 1, 2
VETH_INFO_PEER = 1
IFLA_VXLAN_ID, IFLA_VXLAN_LOCAL, IFLA_VXLAN_LEARNING, IFLA_VXLAN_PROXY, IFLA_VXLAN_PORT = 1, 4, 7, 11, 15
IFLA_BRPORT_MODE, IFLA_BRPORT_ISOLATED = 4, 33
IFF_UP = 1

IFA_ADDRESS, IFA_LOCAL = 1, 2
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PREFSRC, RTA_TABLE = 1, 4, 5, 7, 15
RTNH_F_ONLINK = 4
RT_SCOPE_UNIVERSE, RT_SCOPE_LINK = 0, 253
RTN_UNICAST = 1
NDA_DST, NDA_LLADDR = 1, 2
NTF_SELF, NUD_PERMANENT = 0x02, 0x80
FRA_PRIORITY, FRA_FWMARK, FRA_TABLE, FRA_FWMASK, FRA_PROTOCOL = 6, 10, 15, 16, 21
FR_ACT_TO_TBL = 1

PROTOCOL: Final = 83
"""The routing protocol number our routes and rules carry, so that strays of ours are told from everybody else's."""

MAIN_TABLE: Final = 254
_CHUNK: Final = 100  # messages per send: their acknowledgements must fit the default receive buffer (208 KiB)


class NetlinkError(OSError):
    """The kernel refused one message. ``errno`` is its reason; the text says what was asked."""

    def __init__(self, code: int, what: str) -> None:
        super().__init__(code, f"{what}: {errno.errorcode.get(code, code)}")


@dataclass(frozen=True, slots=True)
class Message:
    """One request. ``what`` goes into the error text; ``ignore`` holds the errnos that mean "already so"."""

    kind: int
    flags: int
    body: bytes
    what: str
    ignore: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Link:
    """A link as the kernel reports it, with the vxlan's own settings where it is one."""

    index: int
    name: str
    up: bool
    mtu: int
    mac: str
    master: int
    carrier: bool
    kind: str
    vni: int = 0
    local: str = ""
    port: int = 0
    lower: int = -1  # id of the namespace its packets leave by, as this one knows it; -1: this one


@dataclass(frozen=True, slots=True)
class Route:
    """One IPv4 unicast route. ``gateway`` empty: the destination is on the link."""

    destination: str  # "a.b.c.d/n"
    device: str
    gateway: str = ""
    source: str = ""
    onlink: bool = False
    table: int = MAIN_TABLE


@dataclass(frozen=True, slots=True)
class Rule:
    """Packets whose mark equals ``mark`` are routed by ``table``."""

    priority: int
    mark: int
    table: int


def attribute(kind: int, data: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(data), kind) + data + b"\0" * (-len(data) % 4)


def nested(kind: int, *parts: bytes) -> bytes:
    return attribute(kind | NLA_F_NESTED, b"".join(parts))


def attributes(data: bytes) -> dict[int, bytes]:
    """Attributes of a message; a later one of the same type wins, a truncated tail ends the walk."""
    found: dict[int, bytes] = {}
    at = 0
    while at + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, at)
        if length < 4 or at + length > len(data):
            break
        found[kind & NLA_TYPE_MASK] = data[at + 4 : at + length]
        at += (length + 3) & ~3
    return found


def mac_of(address: str) -> str:
    """The MAC every endpoint of ours has: derived from its address, so no one has to be asked for it."""
    return "02:42:" + ":".join(f"{part:02x}" for part in socket.inet_aton(address))


def _mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def _text(data: bytes) -> str:
    return data.split(b"\0", 1)[0].decode()


def _name(text: str) -> bytes:
    return text.encode() + b"\0"


def _u32(value: int) -> bytes:
    return struct.pack("=I", value)


def _ifinfo(index: int = 0, flags: int = 0, change: int = 0, family: int = 0) -> bytes:
    return struct.pack("=BxHiII", family, 0, index, flags, change)


def _split(prefix: str) -> tuple[bytes, int]:
    address, _, length = prefix.partition("/")
    return socket.inet_aton(address), int(length or 32)


class Netlink:
    """One route socket. Opened in a namespace, it acts on that namespace until closed."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_ROUTE)
        self._socket.bind((0, 0))
        self._socket.settimeout(10)
        self._sequence = 0
        self.sent = 0  # messages that asked for a change
        self._indexes: dict[str, int] = {}

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- sending

    def send(self, messages: Iterable[Message]) -> list[NetlinkError]:
        """Send many, wait for each to be acknowledged; returns the refusals that are not among a message's ``ignore``."""
        refused: list[NetlinkError] = []
        pending = list(messages)
        self.sent += len(pending)
        for start in range(0, len(pending), _CHUNK):
            waiting: dict[int, Message] = {}
            frames: list[bytes] = []
            for message in pending[start : start + _CHUNK]:
                self._sequence += 1
                waiting[self._sequence] = message
                header = (
                    16 + len(message.body),
                    message.kind,
                    NLM_F_REQUEST | NLM_F_ACK | message.flags,
                    self._sequence,
                    0,
                )
                frames.append(struct.pack("=IHHII", *header) + message.body)
            self._socket.send(b"".join(frames))
            while waiting:
                for kind, sequence, body in self._receive():
                    if kind != NLMSG_ERROR or sequence not in waiting:
                        continue
                    message = waiting.pop(sequence)
                    code = -struct.unpack_from("=i", body)[0]
                    if code and code not in message.ignore:
                        refused.append(NetlinkError(code, message.what))
        return refused

    def do(self, *messages: Message) -> None:
        """Like ``send``, but the first refusal is raised."""
        refused = self.send(messages)
        if refused:
            raise refused[0]

    def dump(self, kind: int, body: bytes) -> list[bytes]:
        self._sequence += 1
        sequence = self._sequence
        header = struct.pack("=IHHII", 16 + len(body), kind, NLM_F_REQUEST | NLM_F_DUMP, sequence, 0)
        self._socket.send(header + body)
        found: list[bytes] = []
        while True:
            for got, number, data in self._receive():
                if number != sequence:
                    continue
                if got == NLMSG_DONE:
                    return found
                if got == NLMSG_ERROR:
                    raise NetlinkError(-struct.unpack_from("=i", data)[0], f"dump {kind}")
                found.append(data)

    def _receive(self) -> list[tuple[int, int, bytes]]:
        data = self._socket.recv(1 << 18)
        found: list[tuple[int, int, bytes]] = []
        at = 0
        while at + 16 <= len(data):
            length, kind, _, sequence, _ = struct.unpack_from("=IHHII", data, at)
            if length < 16:
                break
            found.append((kind, sequence, data[at + 16 : at + length]))
            at += (length + 3) & ~3
        return found

    # --- links

    def links(self) -> dict[str, Link]:
        found: dict[str, Link] = {}
        for data in self.dump(RTM_GETLINK, _ifinfo()):
            link = _link(data)
            found[link.name] = link
        self._indexes = {link.name: link.index for link in found.values()}
        return found

    def index(self, name: str) -> int:
        """Index of a link that must exist. Cached: nobody but us makes or removes the links we ask for by name."""
        if name not in self._indexes:
            self.links()
        if name not in self._indexes:
            raise NetlinkError(errno.ENODEV, f"link {name}")
        return self._indexes[name]

    def forget(self) -> None:
        self._indexes.clear()

    def namespace_id(self, fd: int) -> int:
        """The number by which this namespace knows the one behind ``fd``; -1: it does not."""
        self._sequence += 1
        body = struct.pack("=Bxxx", 0) + attribute(NETNSA_FD, _u32(fd))
        header = struct.pack("=IHHII", 16 + len(body), RTM_GETNSID, NLM_F_REQUEST, self._sequence, 0)
        self._socket.send(header + body)
        while True:
            for kind, sequence, data in self._receive():
                if sequence != self._sequence:
                    continue
                found = attributes(data[4:]) if kind == RTM_NEWNSID else {}
                return int(struct.unpack("=i", found.get(NETNSA_NSID, b"\xff" * 4))[0])

    def make_bridge(self, name: str, mac: str, mtu: int) -> None:
        info = nested(IFLA_LINKINFO, attribute(IFLA_INFO_KIND, _name("bridge")))
        head = (
            attribute(IFLA_IFNAME, _name(name))
            + attribute(IFLA_ADDRESS, _mac(mac))
            + attribute(IFLA_MTU, _u32(mtu))
        )
        self.do(
            Message(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, _ifinfo() + head + info, f"make bridge {name}")
        )
        self.forget()

    def make_vxlan(
        self, name: str, *, vni: int, local: str, port: int, mac: str | None, mtu: int, netns_fd: int
    ) -> None:
        """Make a vxlan whose outer socket is in *this* namespace and whose device appears in ``netns_fd``'s."""
        data = (
            attribute(IFLA_VXLAN_ID, _u32(vni))
            + attribute(IFLA_VXLAN_LOCAL, socket.inet_aton(local))
            + attribute(IFLA_VXLAN_LEARNING, b"\0")
            + attribute(IFLA_VXLAN_PROXY, b"\1")
            + attribute(IFLA_VXLAN_PORT, struct.pack("!H", port))
        )
        info = nested(IFLA_LINKINFO, attribute(IFLA_INFO_KIND, _name("vxlan")), nested(IFLA_INFO_DATA, data))
        head = (
            attribute(IFLA_IFNAME, _name(name))
            + attribute(IFLA_MTU, _u32(mtu))
            + attribute(IFLA_NET_NS_FD, _u32(netns_fd))
        )
        if mac is not None:
            head += attribute(IFLA_ADDRESS, _mac(mac))
        what = f"make vxlan {name} with id {vni}"
        self.do(Message(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, _ifinfo() + head + info, what))

    def make_veth(
        self, name: str, peer: str, *, peer_netns_fd: int, mtu: int, mac: str | None = None
    ) -> None:
        ends = attribute(IFLA_IFNAME, _name(peer)) + attribute(IFLA_MTU, _u32(mtu))
        ends += attribute(IFLA_NET_NS_FD, _u32(peer_netns_fd))
        info = nested(
            IFLA_LINKINFO,
            attribute(IFLA_INFO_KIND, _name("veth")),
            nested(IFLA_INFO_DATA, nested(VETH_INFO_PEER, _ifinfo() + ends)),
        )
        head = attribute(IFLA_IFNAME, _name(name)) + attribute(IFLA_MTU, _u32(mtu))
        if mac is not None:
            head += attribute(IFLA_ADDRESS, _mac(mac))
        self.do(Message(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, _ifinfo() + head + info, f"make veth {name}"))
        self.forget()

    def set_link(
        self,
        name: str,
        *,
        master: int | None = None,
        mtu: int | None = None,
        mac: str | None = None,
        up: bool = True,
    ) -> None:
        index = self.index(name)
        extra = b""
        if master is not None:
            extra += attribute(IFLA_MASTER, _u32(master))
        if mtu is not None:
            extra += attribute(IFLA_MTU, _u32(mtu))
        if mac is not None:
            extra += attribute(IFLA_ADDRESS, _mac(mac))
        self.do(
            Message(RTM_NEWLINK, 0, _ifinfo(index, IFF_UP if up else 0, IFF_UP) + extra, f"set link {name}")
        )

    def ensure_link(
        self, name: str, *, master: int | None = None, mtu: int | None = None, mac: str | None = None
    ) -> None:
        """As ``set_link``, but what is right already is not said again: that would be news to whoever listens."""
        have = self.links().get(name)
        if have is not None:
            wanted = (
                True,
                have.master if master is None else master,
                have.mtu if mtu is None else mtu,
                have.mac if mac is None else mac,
            )
            if wanted == (have.up, have.master, have.mtu, have.mac):
                return
        self.set_link(name, master=master, mtu=mtu, mac=mac)

    def set_bridge_port(self, name: str, *, hairpin: bool, isolated: bool) -> None:
        index = self.index(name)
        modes = nested(
            IFLA_PROTINFO,
            attribute(IFLA_BRPORT_MODE, bytes([hairpin])),
            attribute(IFLA_BRPORT_ISOLATED, bytes([isolated])),
        )
        self.do(Message(RTM_SETLINK, 0, _ifinfo(index, family=AF_BRIDGE) + modes, f"set bridge port {name}"))

    def delete_link(self, name: str) -> bool:
        """True when there was such a link."""
        self.forget()
        message = Message(
            RTM_DELLINK, 0, _ifinfo() + attribute(IFLA_IFNAME, _name(name)), f"delete link {name}"
        )
        refused = self.send([message])
        if not refused:
            return True
        if refused[0].errno == errno.ENODEV:
            return False
        raise refused[0]

    # --- addresses

    def addresses(self, device: str) -> set[str]:
        """IPv4 addresses of a device, as "a.b.c.d/n"."""
        index = self.index(device)
        found = set()
        for data in self.dump(RTM_GETADDR, struct.pack("=BBBBI", socket.AF_INET, 0, 0, 0, 0)):
            _, length, _, _, owner = struct.unpack_from("=BBBBI", data)
            if owner == index:
                found.add(f"{socket.inet_ntoa(attributes(data[8:])[IFA_LOCAL])}/{length}")
        return found

    def holder(self, address: str) -> int:
        """Index of the link that has this IPv4 address; 0: none has."""
        for data in self.dump(RTM_GETADDR, struct.pack("=BBBBI", socket.AF_INET, 0, 0, 0, 0)):
            owner: int = struct.unpack_from("=BBBBI", data)[4]
            if socket.inet_ntoa(attributes(data[8:])[IFA_LOCAL]) == address:
                return owner
        return 0

    def address_message(self, device: str, address: str, *, add: bool) -> Message:
        packed, length = _split(address)
        body = struct.pack("=BBBBI", socket.AF_INET, length, 0, 0, self.index(device))
        body += attribute(IFA_LOCAL, packed) + attribute(IFA_ADDRESS, packed)
        if add:
            return Message(
                RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, body, f"add address {address}", (errno.EEXIST,)
            )
        return Message(RTM_DELADDR, 0, body, f"remove address {address}", (errno.EADDRNOTAVAIL,))

    def set_addresses(self, device: str, wanted: Sequence[str]) -> None:
        """Make a device's IPv4 addresses exactly these; the first one wanted becomes the primary one if none was there."""
        have = self.addresses(device)
        adds = [self.address_message(device, a, add=True) for a in wanted if a not in have]
        removes = [self.address_message(device, a, add=False) for a in sorted(have - set(wanted))]
        self.do(*adds, *removes)

    # --- routes and rules

    def routes(self) -> set[Route]:
        """Our own IPv4 routes, in every table."""
        names = {link.index: name for name, link in self.links().items()}
        found = set()
        for data in self.dump(RTM_GETROUTE, struct.pack("=BBBBBBBBI", socket.AF_INET, *([0] * 8))):
            _, length, _, _, table, protocol, _, _, flags = struct.unpack_from("=BBBBBBBBI", data)
            if protocol != PROTOCOL:
                continue
            parts = attributes(data[12:])
            destination = socket.inet_ntoa(parts.get(RTA_DST, b"\0\0\0\0"))
            found.add(
                Route(
                    destination=f"{destination}/{length}",
                    device=names.get(struct.unpack("=i", parts.get(RTA_OIF, b"\0" * 4))[0], ""),
                    gateway=socket.inet_ntoa(parts[RTA_GATEWAY]) if RTA_GATEWAY in parts else "",
                    source=socket.inet_ntoa(parts[RTA_PREFSRC]) if RTA_PREFSRC in parts else "",
                    onlink=bool(flags & RTNH_F_ONLINK),
                    table=struct.unpack("=I", parts[RTA_TABLE])[0] if RTA_TABLE in parts else table,
                )
            )
        return found

    def way_to(self, address: str) -> int:
        """Index of the link by which the kernel would send to an IPv4 address; 0: there is no way."""
        self._sequence += 1
        body = struct.pack("=BBBBBBBBI", socket.AF_INET, 32, *([0] * 7))
        body += attribute(RTA_DST, socket.inet_aton(address))
        header = struct.pack("=IHHII", 16 + len(body), RTM_GETROUTE, NLM_F_REQUEST, self._sequence, 0)
        self._socket.send(header + body)
        while True:
            for kind, sequence, data in self._receive():
                if sequence != self._sequence:
                    continue
                found = attributes(data[12:]) if kind == RTM_NEWROUTE else {}
                return int(struct.unpack("=i", found.get(RTA_OIF, b"\0" * 4))[0])

    def route_message(self, route: Route, *, add: bool) -> Message:
        packed, length = _split(route.destination)
        scope = RT_SCOPE_UNIVERSE if route.gateway else RT_SCOPE_LINK
        flags = RTNH_F_ONLINK if route.onlink else 0
        body = struct.pack("=BBBBBBBBI", socket.AF_INET, length, 0, 0, 0, PROTOCOL, scope, RTN_UNICAST, flags)
        body += attribute(RTA_DST, packed) + attribute(RTA_OIF, _u32(self.index(route.device)))
        body += attribute(RTA_TABLE, _u32(route.table))
        if route.gateway:
            body += attribute(RTA_GATEWAY, socket.inet_aton(route.gateway))
        if route.source:
            body += attribute(RTA_PREFSRC, socket.inet_aton(route.source))
        what = (
            f"{'add' if add else 'remove'} route {route.destination} dev {route.device} table {route.table}"
        )
        if add:
            return Message(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, body, what)
        return Message(RTM_DELROUTE, 0, body, what, (errno.ESRCH,))

    def rules(self) -> set[Rule]:
        """Our own IPv4 rules."""
        found = set()
        for data in self.dump(RTM_GETRULE, struct.pack("=BBBBBBBBI", socket.AF_INET, *([0] * 8))):
            parts = attributes(data[12:])
            if parts.get(FRA_PROTOCOL, b"") != bytes([PROTOCOL]):
                continue
            table = struct.unpack("=I", parts[FRA_TABLE])[0] if FRA_TABLE in parts else data[4]
            mark = struct.unpack("=I", parts.get(FRA_FWMARK, b"\0" * 4))[0]
            found.add(Rule(struct.unpack("=I", parts[FRA_PRIORITY])[0], mark, table))
        return found

    @staticmethod
    def rule_message(rule: Rule, *, add: bool) -> Message:
        body = struct.pack("=BBBBBBBBI", socket.AF_INET, 0, 0, 0, 0, 0, 0, FR_ACT_TO_TBL, 0)
        body += attribute(FRA_PRIORITY, _u32(rule.priority)) + attribute(FRA_TABLE, _u32(rule.table))
        body += attribute(FRA_FWMARK, _u32(rule.mark)) + attribute(FRA_FWMASK, _u32(0xFFFFFFFF))
        body += attribute(FRA_PROTOCOL, bytes([PROTOCOL]))
        what = f"{'add' if add else 'remove'} rule for mark {rule.mark}"
        if add:
            return Message(RTM_NEWRULE, NLM_F_CREATE | NLM_F_EXCL, body, what, (errno.EEXIST,))
        return Message(RTM_DELRULE, 0, body, what, (errno.ENOENT,))

    # --- neighbours and forwarding entries

    def neighbours(self, device: str) -> set[tuple[str, str]]:
        """Permanent IPv4 neighbours of a device: (address, mac)."""
        found = set()
        for address, mac in self._neighbours(socket.AF_INET, device):
            if len(address) == 4 and mac:
                found.add((socket.inet_ntoa(address), mac))
        return found

    def forwarding(self, device: str) -> set[tuple[str, str]]:
        """Forwarding entries of a vxlan device itself: (mac, remote tunnel end)."""
        found = set()
        for address, mac in self._neighbours(AF_BRIDGE, device):
            if len(address) == 4 and mac:
                found.add((mac, socket.inet_ntoa(address)))
        return found

    def _neighbours(self, family: int, device: str) -> list[tuple[bytes, str]]:
        index = self.index(device)
        found = []
        for data in self.dump(RTM_GETNEIGH, struct.pack("=BxHiHBB", family, 0, 0, 0, 0, 0)):
            _, _, owner, state, _, _ = struct.unpack_from("=BxHiHBB", data)
            if owner == index and state & NUD_PERMANENT:
                parts = attributes(data[12:])
                found.append((parts.get(NDA_DST, b""), parts.get(NDA_LLADDR, b"").hex(":")))
        return found

    def neighbour_message(self, device: str, address: str, mac: str, *, add: bool) -> Message:
        body = struct.pack("=BxHiHBB", socket.AF_INET, 0, self.index(device), NUD_PERMANENT, 0, 0)
        body += attribute(NDA_DST, socket.inet_aton(address)) + attribute(NDA_LLADDR, _mac(mac))
        if add:
            return Message(RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, body, f"add neighbour {address}")
        return Message(RTM_DELNEIGH, 0, body, f"remove neighbour {address}", (errno.ENOENT,))

    def forwarding_message(self, device: str, mac: str, remote: str, *, add: bool) -> Message:
        # NTF_SELF: without it the kernel writes a *bridge* entry, drops the remote and blackholes the MAC locally.
        body = struct.pack("=BxHiHBB", AF_BRIDGE, 0, self.index(device), NUD_PERMANENT, NTF_SELF, 0)
        body += attribute(NDA_LLADDR, _mac(mac)) + attribute(NDA_DST, socket.inet_aton(remote))
        if add:
            return Message(
                RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, body, f"add forwarding {mac} to {remote}"
            )
        return Message(RTM_DELNEIGH, 0, body, f"remove forwarding {mac} to {remote}", (errno.ENOENT,))


def _link(data: bytes) -> Link:
    _, _, index, flags, _ = struct.unpack_from("=BxHiII", data)
    parts = attributes(data[16:])
    info = attributes(parts.get(IFLA_LINKINFO, b""))
    kind = _text(info.get(IFLA_INFO_KIND, b""))
    vxlan = attributes(info.get(IFLA_INFO_DATA, b"")) if kind == "vxlan" else {}
    local = vxlan.get(IFLA_VXLAN_LOCAL, b"")
    return Link(
        index=index,
        name=_text(parts.get(IFLA_IFNAME, b"")),
        up=bool(flags & IFF_UP),
        mtu=struct.unpack("=I", parts.get(IFLA_MTU, b"\0" * 4))[0],
        mac=parts.get(IFLA_ADDRESS, b"").hex(":"),
        master=struct.unpack("=I", parts.get(IFLA_MASTER, b"\0" * 4))[0],
        carrier=parts.get(IFLA_CARRIER, b"\0") == b"\1",
        kind=kind,
        vni=struct.unpack("=I", vxlan.get(IFLA_VXLAN_ID, b"\0" * 4))[0],
        local=socket.inet_ntoa(local) if local else "",
        port=struct.unpack("!H", vxlan.get(IFLA_VXLAN_PORT, b"\0\0"))[0],
        lower=struct.unpack("=i", parts.get(IFLA_LINK_NETNSID, b"\xff" * 4))[0],
    )
