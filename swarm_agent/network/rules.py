"""The text of every nftables rule we load, per kind of namespace.

Owns: tables named ``swarm`` in the host, in ``ov-node`` and in each ``ov-<network>``. Pure text; ``nft`` loads it.
Invariants: a whole-table text replaces the table in one transaction; an update text changes one service's chain in one
transaction, so no connection ever meets a half-made rule. Hook priorities: -105 comes before Docker's own -100.
"""

from __future__ import annotations

from collections.abc import Iterable

from swarm_agent.network.model import (
    HOST_LINK,
    NODE_POOL,
    VXLAN_PORT,
    NodePlan,
    OverlayPlan,
    PortKey,
    PortPlan,
    host_identity,
    node_subnet,
)
from swarm_agent.network.netlink import mac_of

NODE_LINK = "nd1"  # the other end of HOST_LINK, in ov-node
SWING = "swing"  # the vxlan between the ov-node namespaces

_DELETE_TABLE = "add table ip swarm\ndelete table ip swarm\n"


def _elements(items: Iterable[str]) -> str:
    listed = ", ".join(items)
    return f"elements = {{ {listed} }}; " if listed else ""


def _spread(backends: tuple[str, ...], suffix: str = "") -> str:
    """Where a new connection goes: each backend in turn."""
    if len(backends) == 1:
        return f"{backends[0]}{suffix}"
    return f"numgen inc mod {len(backends)} map {{ {', '.join(f'{i} : {b}{suffix}' for i, b in enumerate(backends))} }}"


# --- overlays


def _vip_chain(vip: str) -> str:
    return "vip_" + vip.replace(".", "_")


def _vip_rule(backends: tuple[str, ...]) -> str:
    return f"meta l4proto {{ tcp, udp }} dnat to {_spread(backends)}"


def overlay_table(overlay: OverlayPlan) -> str:
    """Virtual addresses. One without backends has no element: its address is br0's own, so it refuses at once."""
    live = {vip: backends for vip, backends in overlay.vips.items() if backends}
    chains = "\n".join(
        f"  chain {_vip_chain(vip)} {{ {_vip_rule(backends)}; }}" for vip, backends in live.items()
    )
    return f"""{_DELETE_TABLE}table ip swarm {{
  map vips {{ type ipv4_addr : verdict; {_elements(f"{vip} : goto {_vip_chain(vip)}" for vip in live)}}}
  set self {{ type ipv4_addr . ipv4_addr; {_elements(f"{a} . {a}" for a in overlay.locals)}}}
{chains}
  chain prerouting {{ type nat hook prerouting priority -105; policy accept; ip daddr vmap @vips; }}
  chain postrouting {{ type nat hook postrouting priority 95; policy accept;
    ct status dnat ip saddr . ip daddr @self masquerade comment "a task that picked itself"; }}
}}
"""


def update_vips(
    old: dict[str, tuple[str, ...]], put: dict[str, tuple[str, ...]], remove: tuple[str, ...]
) -> str:
    """``old``: the backends each address has in the loaded table now."""
    lines: list[str] = []
    for vip in remove:
        if old.get(vip):
            lines += _unmap("vips", vip, _vip_chain(vip))
    for vip, backends in put.items():
        chain = _vip_chain(vip)
        if backends and old.get(vip):
            lines += [f"flush chain ip swarm {chain}", f"add rule ip swarm {chain} {_vip_rule(backends)}"]
        elif backends:
            lines += _map("vips", vip, chain, _vip_rule(backends))
        elif old.get(vip):
            lines += _unmap("vips", vip, chain)
    return "\n".join(lines)


def update_self(add: tuple[str, ...], remove: tuple[str, ...]) -> str:
    lines = []
    if remove:
        lines.append(f"delete element ip swarm self {{ {', '.join(f'{a} . {a}' for a in remove)} }}")
    if add:
        lines.append(f"add element ip swarm self {{ {', '.join(f'{a} . {a}' for a in add)} }}")
    return "\n".join(lines)


def _map(table_map: str, key: str, chain: str, rule: str) -> list[str]:
    return [
        f"add chain ip swarm {chain}",
        f"flush chain ip swarm {chain}",
        f"add rule ip swarm {chain} {rule}",
        f"add element ip swarm {table_map} {{ {key} : goto {chain} }}",
    ]


def _unmap(table_map: str, key: str, chain: str) -> list[str]:
    return [
        f"delete element ip swarm {table_map} {{ {key} : goto {chain} }}",
        f"flush chain ip swarm {chain}",
        f"delete chain ip swarm {chain}",
    ]


# --- the node network


def _peer_elements(peers: Iterable[int]) -> list[str]:
    return [f"{mac_of(host_identity(number))} : {number:#x}" for number in peers]


def node_table(node: NodePlan) -> str:
    """Inside ov-node: replies leave by the host the connection came in through.

    The mark is written on *every* packet of the original direction: a client that reuses its port towards another host
    meets the old entry here, and its stale mark would send the answer the old way.
    A task may answer along the node network, never begin: tasks of different networks stay strangers.
    """
    return f"""{_DELETE_TABLE}table ip swarm {{
  map nodes {{ type ether_addr : mark; {_elements(_peer_elements(node.peers))}}}
  chain prerouting {{ type filter hook prerouting priority -150; policy accept;
    iifname "{SWING}" ct direction original ct mark set ether saddr map @nodes
    iifname "{NODE_LINK}" ct direction original ct mark != 0 ct mark set 0
    iifname "br0" ct direction reply ct mark != 0 meta mark set ct mark
  }}
  chain forward {{ type filter hook forward priority 0; policy accept;
    iifname "br0" oifname {{ "br0", "{SWING}" }} ct direction original drop
  }}
}}
"""


def update_nodes(add: Iterable[int], remove: Iterable[int]) -> str:
    lines = []
    gone, new = _peer_elements(remove), _peer_elements(add)
    if gone:
        lines.append(f"delete element ip swarm nodes {{ {', '.join(gone)} }}")
    if new:
        lines.append(f"add element ip swarm nodes {{ {', '.join(new)} }}")
    return "\n".join(lines)


# --- the host


def _port_chain(key: PortKey) -> str:
    return f"port_{key[0]}_{key[1]}"


def _port_rule(key: PortKey, port: PortPlan) -> str:
    return f"meta l4proto {key[0]} dnat ip addr . port to {_spread(port.backends, f' . {port.target}')}"


def _port_key(key: PortKey) -> str:
    return f"{key[0]} . {key[1]}"


def host_table(node: NodePlan, ports: dict[PortKey, PortPlan]) -> str:
    """In the host's own namespace: published ports, egress, and the two doors that must stay shut.

    ``forward``: only connections that came through a published port may enter the node network from outside.
    ``input``: tunnels from nobody but current peers; ports without a backend refuse, whatever the firewall says later.
    """
    live = {key: port for key, port in ports.items() if port.backends}
    dead = [_port_key(key) for key, port in ports.items() if not port.backends]
    spared = [_port_key(key) for key, port in ports.items() if port.spared]
    chains = "\n".join(
        f"  chain {_port_chain(key)} {{ {_port_rule(key, port)}; }}" for key, port in live.items()
    )
    mapped = _elements(f"{_port_key(key)} : goto {_port_chain(key)}" for key in live)
    own = host_identity(node.number)
    return f"""{_DELETE_TABLE}table ip swarm {{
  map ports {{ type inet_proto . inet_service : verdict; {mapped}}}
  set closed {{ type inet_proto . inet_service; {_elements(dead)}}}
  set spared {{ type inet_proto . inet_service; {_elements(spared)}}}
  set peers {{ type ipv4_addr; {_elements(sorted(set(node.peers.values())))}}}
{chains}
  chain prerouting {{ type nat hook prerouting priority -105; policy accept;
    fib daddr type local meta l4proto . th dport vmap @ports
  }}
  chain output {{ type nat hook output priority -105; policy accept;
    ip daddr 127.0.0.0/8 meta l4proto . th dport @spared accept comment "a program of this host's own listens there"
    fib daddr type local meta l4proto . th dport vmap @ports
  }}
  chain postrouting {{ type nat hook postrouting priority 95; policy accept;
    oifname "{HOST_LINK}" ip saddr 127.0.0.0/8 snat to {own} comment "localhost to a published port"
    oifname "{HOST_LINK}" ip saddr {node_subnet(node.number)} snat to {own} comment "a task to a published port"
    iifname "{HOST_LINK}" oifname != "{HOST_LINK}" ip saddr {NODE_POOL} masquerade comment "egress"
  }}
  chain input {{ type filter hook input priority -10; policy accept;
    udp dport {VXLAN_PORT} ip saddr != @peers drop
    ct direction original meta l4proto . th dport @closed goto refuse
  }}
  chain refuse {{
    fib daddr type != local return
    ip daddr 127.0.0.0/8 meta l4proto . th dport @spared return
    meta l4proto tcp reject with tcp reset
    reject
  }}
  chain forward {{ type filter hook forward priority -10; policy accept;
    oifname != "{HOST_LINK}" accept
    ct state established,related accept
    ct status dnat accept
    drop
  }}
}}
"""


def update_ports(
    old: dict[PortKey, PortPlan], put: dict[PortKey, PortPlan], remove: tuple[PortKey, ...]
) -> str:
    """``old``: the ports the loaded table has now."""
    lines: list[str] = []
    for key in remove:
        lines += _close(key, old) + _spare(key, old, spared=False)
    for key, port in put.items():
        before = old.get(key)
        lines += _spare(key, old, spared=port.spared)
        if port.backends and before is not None and before.backends:
            chain = _port_chain(key)
            lines += [f"flush chain ip swarm {chain}", f"add rule ip swarm {chain} {_port_rule(key, port)}"]
        elif port.backends:
            lines += _close(key, old)
            lines += _map("ports", _port_key(key), _port_chain(key), _port_rule(key, port))
        elif before is None or before.backends:
            lines += _close(key, old)
            lines.append(f"add element ip swarm closed {{ {_port_key(key)} }}")
    return "\n".join(lines)


def _spare(key: PortKey, old: dict[PortKey, PortPlan], *, spared: bool) -> list[str]:
    before = old.get(key)
    if (before is not None and before.spared) == spared:
        return []
    return [f"{'add' if spared else 'delete'} element ip swarm spared {{ {_port_key(key)} }}"]


def _close(key: PortKey, old: dict[PortKey, PortPlan]) -> list[str]:
    before = old.get(key)
    if before is None:
        return []
    if before.backends:
        return _unmap("ports", _port_key(key), _port_chain(key))
    return [f"delete element ip swarm closed {{ {_port_key(key)} }}"]


def update_peers(before: Iterable[str], after: Iterable[str]) -> str:
    had, has = set(before), set(after)
    lines = []
    if had - has:
        lines.append(f"delete element ip swarm peers {{ {', '.join(sorted(had - has))} }}")
    if has - had:
        lines.append(f"add element ip swarm peers {{ {', '.join(sorted(has - had))} }}")
    return "\n".join(lines)


NO_TABLE = _DELETE_TABLE
