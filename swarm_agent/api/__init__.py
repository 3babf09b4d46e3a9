"""The Docker Engine HTTP API: one module a resource, views, engine pass-through.

Owns what clients see: routes, Docker's JSON and texts, which calls are ours and which the engine's. Refuses decisions and
state: it normalises, validates, proposes writes through :class:`~swarm_agent.api.backend.Backend`, and renders records.
"""
