"""How long a node may run strict singletons without a word of the leader's. ``docs/design/fencing.md`` says why the numbers do.

All in seconds of clocks that nobody sets: the node's counts the time a host sleeps, too.
"""

from __future__ import annotations

LEASE_S = 12.0
"""From the moment a node sent a beat that the leader then confirmed."""

RENEW_S = 1.0
"""Between such beats."""

START_S = 6.0
"""So much of a lease has to be left when a container is started under it."""

MARGIN_S = 4.0
"""From a lease's end until the leader takes everything under it for ended: the guard's patience, a kill, clocks of different pace."""

FENCE_S = LEASE_S + MARGIN_S
"""From the last beat a node can have been granted a lease for until it is fenced."""
