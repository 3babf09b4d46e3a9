"""The leader's decisions. Every module but ``loop`` is pure: a view and the time in, writes and reasons out.

Owns: which tasks there are (``orchestration``), where they go (``schedule``, by ``ranking``; ``reasons`` say why not), what addresses and ports they
get (``allocate``), in passes over what became dirty (``engine``, ``passes``, ``ledger``); and what people ask about it (``plan``, ``why``). Refuses:
talking to anybody, reading a clock, drawing randomness - ids and time come in through :class:`~swarm_agent.control.passes.Pass`.
"""
