"""The leader's half of a node's session: what each node is assigned and told, whether it is alive, and what it reports.

Owns liveness, leases of strict singletons (``fencing``), each node's assignments and view of the network, and writing status reports. Refuses to
decide (``control``) and to know how messages travel (``rpc``).
"""
