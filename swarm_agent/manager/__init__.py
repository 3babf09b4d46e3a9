"""What a manager runs beside its node: Raft and the store, the RPC server, the front door; and, while it leads, the
control loop, the dispatcher, the authority that issues certificates and the keeper of roles.

Owns the life of these parts and what changes hands with leadership. Refuses to know the node's containers and the HTTP API.
"""
