"""From a service's spec to the revision its tasks are made from."""

from __future__ import annotations

import hashlib

import msgspec

from swarm_agent.objects.records import Revision
from swarm_agent.objects.specs import EndpointSpec, ServiceSpec

_encoder = msgspec.msgpack.Encoder(order="deterministic")


def revision_of(service_id: str, spec: ServiceSpec, networks: tuple[str, ...]) -> Revision:
    """The revision of a normalised spec whose networks are resolved to ids.

    Scale, labels and update settings are no part of it. Dynamic values a registry adds neither: equal content gives an
    equal id, so a no-op update makes no new revision and restarts nothing.
    """
    endpoint = spec.endpoint_spec or EndpointSpec()
    content = _encoder.encode((spec.task_template, endpoint, networks))
    digest = hashlib.sha256(content).hexdigest()[:16]
    return Revision(
        id=f"{service_id}.{digest}",
        service_id=service_id,
        template=spec.task_template,
        endpoint=endpoint,
        networks=networks,
    )
