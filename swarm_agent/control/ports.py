"""Which published ports a service may have beside the others' (BEHAVIOUR 5.6)."""

from __future__ import annotations

from swarm_agent.objects import defaults
from swarm_agent.objects.errors import InvalidSpec
from swarm_agent.objects.specs import ServiceSpec
from swarm_agent.store import View


def must_be_free(view: View, spec: ServiceSpec, own_id: str) -> None:
    """Ingress against anything conflicts, host against host does not. ``own_id``: the service's that is to have ``spec``, "" of a
    new one.

    Raises:
        InvalidSpec: another service has one of the ports, by its spec or as it was given it.
    """
    wanted = [p for p in (spec.endpoint_spec and spec.endpoint_spec.ports) or () if p.published_port]
    if not wanted:
        return
    for other in view.services.all():
        if other.id == own_id:
            continue
        taken = list((other.spec.endpoint_spec and other.spec.endpoint_spec.ports) or ())
        taken += (other.endpoint and other.endpoint.ports) or ()
        for port in wanted:
            for theirs in taken:
                if theirs.published_port != port.published_port or defaults.protocol(
                    theirs
                ) != defaults.protocol(port):
                    continue
                mode = defaults.publish_mode(theirs)
                if mode == "host" and defaults.publish_mode(port) == "host":
                    continue
                kind = "an ingress port" if mode == "ingress" else "a host-published port"
                raise InvalidSpec(
                    f"port '{port.published_port}' is already in use by service '{other.spec.name}' ({other.id}) as {kind}"
                )
