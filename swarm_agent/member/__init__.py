"""This host as a member of a swarm.

Owns what makes it one (``papers``, ``membership``, ``founding``), the order in which its worker side, its session and its manager side
start, change and end (``member``, ``managing``, ``certificate``, ``views``, ``logs``). Refuses to decide anything about the
cluster (``control``) and to answer people (``api``); how it becomes a member and ceases to be one is ``host.py``.
"""
