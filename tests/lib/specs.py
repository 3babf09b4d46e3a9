"""Service specs for stories on paper: what is not said is as plain as can be."""

from __future__ import annotations

from typing import Any

from swarm_agent.objects.specs import (
    ContainerSpec,
    EndpointSpec,
    PortConfig,
    Replicated,
    ServiceMode,
    ServiceSpec,
    TaskTemplate,
    UpdateConfig,
)


def a_spec(
    replicas: int = 1,
    image: str = "web:1",
    *,
    name: str = "web",
    mode: ServiceMode | None = None,
    labels: dict[str, str] | None = None,
    update: UpdateConfig | None = None,
    rollback: UpdateConfig | None = None,
    ports: tuple[PortConfig, ...] = (),
    **template: Any,
) -> ServiceSpec:
    """``mode``: if it is not ``replicas`` of it; ``template``: further fields of the task template."""
    template.setdefault("container_spec", ContainerSpec(image=image))
    return ServiceSpec(
        name=name,
        labels=labels or {},
        task_template=TaskTemplate(**template),
        mode=mode or ServiceMode(replicated=Replicated(replicas=replicas)),
        update_config=update,
        rollback_config=rollback,
        endpoint_spec=EndpointSpec(ports=ports) if ports else None,
    )
