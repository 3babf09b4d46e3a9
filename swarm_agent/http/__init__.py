"""HTTP/1.1 over asyncio streams: the server behind the API, the connection to the local engine, and the proxy between the two.

Refuses to know what a path means (``api``).
"""
