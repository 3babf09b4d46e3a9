"""``python -m swarm_agent.cli``."""

from swarm_agent.cli import main

main()
