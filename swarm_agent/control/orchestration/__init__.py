"""Which tasks a service has, and what becomes of each.

Owns the modes (``replicated``, ``everywhere``, ``jobs``), the life of one place (``slots``, ``restarts``), updates (``update``, ``progress``), moves
(``moves``, ``rebalance``), what has to be there before (``depends``), what a changed node may keep (``enforce``), who follows a new
version of a secret (``track``), and what is forgotten (``reap``). ``orchestrate`` is the way in for a service as a whole, ``survey`` what it knows of
its places. Refuses to choose nodes and addresses: it leaves tasks without them to ``control.schedule``.
"""
