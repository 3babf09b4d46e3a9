"""The text of the table that keeps tasks and plain containers off what only members may send to each other.

Owns: table ``inet swarm_guard`` in the host's namespace. Pure text; small enough to be replaced whole with every change.

A container's packets leave masqueraded, so to another host they come from a member: what it must not send has to end
here, on its own host. That is the tunnels' port, IP inside IP, and the ports of the swarm's own control, towards this host and
towards any member. The other half is what arrives: a tunnelled packet whose source says "member" but which came in from a
container, or out of a tunnel, is a forged one.

And what a task sends to an overlay never leaves this host another way: while the overlay's link is missing in the container, its
default route would take it out to the world.
"""

from __future__ import annotations

from collections.abc import Iterable

from swarm_agent.network.model import HOST_LINK, VXLAN_PORT, Guards

TABLE = "swarm_guard"
_IP_IN_IP = "{ 4, 41, 47, 94, 137 }"  # IPv4, IPv6, GRE, IPIP, MPLS in IP
# Kinds of links a forged packet can come out of. Not among them: plain network cards, and what is made of several of them
# or stands for one (bond, team, vlan, macvlan): there the way back may rightly be another.
_KINDS = ", ".join(
    f'"{kind}"'
    for kind in (
        *("bridge", "veth", "tun", "wireguard", "vxlan", "geneve", "gtp", "ipip", "gre", "gretap", "erspan"),
        *("sit", "vti", "xfrm", "ip6tnl", "ip6gre", "ip6gretap"),
    )
)

NO_TABLE = f"add table inet {TABLE}\ndelete table inet {TABLE}\n"


def _set(name: str, kind: str, items: Iterable[str]) -> str:
    listed = ", ".join(items)
    return f"set {name} {{ type {kind}; {f'elements = {{ {listed} }}; ' if listed else ''}}}"


def table(guards: Guards) -> str:
    inner = _set("inner", "ifname", (f'"{link}"' for link in guards.inner))
    members = _set("members", "ipv4_addr", guards.members)
    control = _set("control", "inet_service", map(str, guards.ports))
    subnets = _set("subnets", "ipv4_addr; flags interval", guards.subnets)
    return f"""{NO_TABLE}table inet {TABLE} {{
  {inner}
  {members}
  {control}
  {subnets}
  chain refuse {{ meta l4proto tcp reject with tcp reset; drop; }}
  chain tunnelled {{
    iifname @inner drop
    meta iifkind {{ {_KINDS} }} fib saddr . iif oif missing drop
  }}
  chain relayed {{
    ip saddr @members fib saddr . iif oif exists accept comment "this host is a router between members"
    drop
  }}
  chain to_member {{
    tcp dport @control ct direction original goto refuse
    meta l4proto {_IP_IN_IP} drop
  }}
  chain input {{ type filter hook input priority -20; policy accept;
    udp dport {VXLAN_PORT} goto tunnelled
    iifname @inner tcp dport @control goto refuse
    iifname @inner meta l4proto {_IP_IN_IP} drop
  }}
  chain forward {{ type filter hook forward priority -20; policy accept;
    udp dport {VXLAN_PORT} iifname @inner oifname != @inner drop
    udp dport {VXLAN_PORT} oifname != @inner goto relayed
    iifname "{HOST_LINK}" ip daddr @subnets reject with icmp type host-unreachable
    iifname @inner ip daddr @members goto to_member
  }}
  chain output {{ type filter hook output priority -20; policy accept;
    udp dport {VXLAN_PORT} ct status dnat accept comment "to a container, by a port that is published"
    udp dport {VXLAN_PORT} meta skuid 0-4294967295 drop comment "the kernel's own tunnels have no user"
  }}
}}
"""
