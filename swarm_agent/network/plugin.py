"""The engine's network plugin: libnetwork's remote driver and remote IPAM protocols, answered from the journal.

Owns: what each call of the protocol means for us. Refuses: choosing anything. Addresses come from the manager by way
of ``docker create``, ports' settings from the journal. It remembers nothing between calls but in the journal, so it
may be killed between any two of them. The address side keeps no book at all: an address is taken when the manager
says so, and there is nothing to leak when a release is lost.
Standard library only.
"""

from __future__ import annotations

import ipaddress
import json
import logging
from collections.abc import Callable
from typing import Any

from swarm_agent.network import veth
from swarm_agent.network.netlink import mac_of
from swarm_agent.network.state_files import EndpointEntry, EngineNetworkEntry, StateFiles

log = logging.getLogger(__name__)

OPTION = "swarm.network"
Request = dict[str, Any]
Answer = dict[str, Any]


class Refused(Exception):
    """The engine asked for something we will not do; the sentence reaches the user."""


class Plugin:
    """``handle`` answers one call. Blocking: called in netd's worker thread, one call at a time."""

    def __init__(self, journal: StateFiles) -> None:
        self._journal = journal
        self._calls: dict[str, Callable[[Request], Answer]] = {
            "/Plugin.Activate": lambda _: {"Implements": ["NetworkDriver", "IpamDriver"]},
            "/NetworkDriver.GetCapabilities": lambda _: {"Scope": "local", "ConnectivityScope": "global"},
            "/NetworkDriver.CreateNetwork": self._create_network,
            "/NetworkDriver.DeleteNetwork": self._delete_network,
            "/NetworkDriver.CreateEndpoint": self._create_endpoint,
            "/NetworkDriver.DeleteEndpoint": self._delete_endpoint,
            "/NetworkDriver.EndpointOperInfo": lambda _: {"Value": {}},
            "/NetworkDriver.Join": self._join,
            "/NetworkDriver.Leave": self._leave,
            "/NetworkDriver.DiscoverNew": lambda _: {},
            "/NetworkDriver.DiscoverDelete": lambda _: {},
            "/NetworkDriver.ProgramExternalConnectivity": lambda _: {},
            "/NetworkDriver.RevokeExternalConnectivity": lambda _: {},
            "/IpamDriver.GetCapabilities": lambda _: {
                "RequiresMACAddress": False,
                "RequiresRequestReplay": False,
            },
            "/IpamDriver.GetDefaultAddressSpaces": lambda _: {
                "LocalDefaultAddressSpace": "swarm-local",
                "GlobalDefaultAddressSpace": "swarm-global",
            },
            "/IpamDriver.RequestPool": _request_pool,
            "/IpamDriver.ReleasePool": lambda _: {},
            "/IpamDriver.RequestAddress": _request_address,
            "/IpamDriver.ReleaseAddress": lambda _: {},
        }

    def handle(self, path: str, body: bytes) -> bytes:
        """Never raises: what goes wrong is in the answer's ``Err``, where the engine looks for it."""
        try:
            call = self._calls.get(path)
            if call is None:
                raise Refused(f"swarm-agent-net does not know the call {path}")
            request = json.loads(body) if body.strip() else {}
            if not isinstance(request, dict):
                raise Refused("the request is not a JSON object")
            answer = call(request)
        except (Refused, veth.NoNetwork) as error:
            log.warning(f"{path}: {error}")
            answer = {"Err": str(error)}
        except Exception as error:  # one bad call must not end the process all containers rely on
            log.exception(f"{path} failed")
            answer = {"Err": f"swarm-agent-net: {type(error).__name__}: {error}"}
        else:
            log.debug(f"{path} {body!r} -> {answer}")
        return json.dumps(answer).encode()

    # --- networks

    def _create_network(self, request: Request) -> Answer:
        options = (request.get("Options") or {}).get("com.docker.network.generic") or {}
        network = options.get(OPTION)
        if not network:
            raise Refused(
                "networks of driver swarm are made by swarm-agent; use `docker network create -d overlay`"
            )
        self._journal.put(request["NetworkID"], EngineNetworkEntry(request["NetworkID"], network))
        return {}

    def _delete_network(self, request: Request) -> Answer:
        self._journal.drop(EngineNetworkEntry, request["NetworkID"])
        return {}

    # --- endpoints

    def _create_endpoint(self, request: Request) -> Answer:
        interface = request.get("Interface") or {}
        address = (interface.get("Address") or "").partition("/")[0]
        if not address:
            raise Refused("an endpoint of a swarm network needs an address")
        network = veth.network_of(self._journal, request["NetworkID"])
        given = interface.get("MacAddress") or ""
        # Other hosts derive the MAC from the address: one given by hand would make the container unreachable there.
        mac = mac_of(address)
        if given and given.lower() != mac:
            raise Refused(
                f"a task's MAC address on network {network.network} is {mac}, not {given}: leave it out"
            )
        entry = EndpointEntry(request["EndpointID"], network.network, address, mac)
        self._journal.put(request["EndpointID"], entry)
        return {"Interface": {} if given else {"MacAddress": mac}}

    def _delete_endpoint(self, request: Request) -> Answer:
        self._journal.drop(EndpointEntry, request["EndpointID"])
        return {}

    def _join(self, request: Request) -> Answer:
        network = veth.network_of(self._journal, request["NetworkID"])
        endpoint = self._journal.get(EndpointEntry, request["EndpointID"])
        if endpoint is None:
            raise Refused(f"endpoint {request['EndpointID'][:12]} was never created")
        inner = veth.join(network, endpoint)
        answer: Answer = {
            "InterfaceName": {"SrcName": inner, "DstPrefix": "eth"},
            "DisableGatewayService": True,
        }
        if network.default_gateway:
            # As a route, not as "Gateway": an endpoint with a gateway is the one whose address the engine's own resolver
            # gives for a container's name, and the node network's ports do not talk to each other.
            answer["StaticRoutes"] = [
                {"Destination": "0.0.0.0/0", "RouteType": 0, "NextHop": network.default_gateway}
            ]
        return answer

    def _leave(self, request: Request) -> Answer:
        try:
            network = veth.network_of(self._journal, request["NetworkID"])
        except veth.NoNetwork:
            network = None
        veth.leave(network, request["EndpointID"])
        return {}


# --- addresses: a pool's id says all there is to know about it


def _request_pool(request: Request) -> Answer:
    if request.get("V6"):
        raise Refused("networks of driver swarm have no IPv6 yet")
    pool = request.get("Pool") or ""
    if not pool:
        raise Refused("a swarm network needs a subnet: networks of driver swarm are made by swarm-agent")
    network = (request.get("Options") or {}).get(OPTION, "")
    return {"PoolID": f"swarm/{network}/{ipaddress.IPv4Network(pool)}", "Pool": pool, "Data": {}}


def _request_address(request: Request) -> Answer:
    pool = ipaddress.IPv4Network(request["PoolID"].split("/", 2)[2])
    address = request.get("Address") or ""
    if not address:
        if (request.get("Options") or {}).get("RequestAddressType") != "com.docker.network.gateway":
            raise Refused("the swarm's managers give addresses; this container asked for none")
        address = str(pool.network_address + 1)
    if ipaddress.IPv4Address(address) not in pool:
        raise Refused(f"address {address} is not in {pool}")
    return {"Address": f"{address}/{pool.prefixlen}", "Data": {}}
