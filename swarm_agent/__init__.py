"""swarm-agent: a self-healing cluster of Docker Engines.

One package per idea; ``docs/design/rooms.md`` names the rooms and which way the arrows point.
"""

__version__ = "0.1.0"
