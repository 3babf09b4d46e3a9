"""The Docker Engine HTTP API: one module a resource, views, and the router that says which calls are ours.

Owns what clients see: routes, Docker's JSON and texts. Refuses decisions and
state: it normalises, validates, proposes writes through :class:`~swarm_agent.api.backend.Backend`, and renders records.
"""
