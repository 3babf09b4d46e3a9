"""What a manager runs beside its node: Raft and the store, the RPC server, the join server; and, while it leads, the control loop, the
dispatcher, the certificate issuer, the role manager and the feature level.

Owns the life of these parts and what changes hands with leadership. Refuses to know the node's containers and the HTTP API.
"""
