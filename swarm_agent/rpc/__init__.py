"""Traffic between daemons over mutual TLS: manager and node, manager and manager.

Owns the messages and how large each may be, gRPC behind a TLS front of our own, and the links Raft's frames take. Refuses to know what a call
means: handlers are ``manager``'s.
"""
