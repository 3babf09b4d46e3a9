"""This host as a member of a swarm: how it becomes one, runs as one and ceases to be one.

Owns the files that make it a member (``state``, ``membership``), init, join, recover, unlock and leave (``node``, ``bootstrap``), and the order in
which its worker side, its session and its manager side start, change and end (``member``, ``manager_role``, ``certificate``). Refuses to decide
anything about the cluster (``control``) and to answer people (``api``).
"""
