"""Traffic between daemons: manager and node, manager and manager, all over mutual TLS.

Owns the RPC surface, who may call what, what a node is told (derived from the store) and how node reports become writes.
Refuses decisions: those are ``control``'s.
"""
