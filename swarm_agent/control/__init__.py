"""The leader's decisions. Every module but ``loop`` is pure: a view and the time in, writes and reasons out.

Owns which tasks there are (``orchestrator``), where they go (``scheduler``), which addresses, subnets and ports they get (``allocator``, ``subnets``,
``admission``), the passes over what has become dirty (``controllers``, ``transaction``), and what people ask about all of it (``plan``,
``explain``). Refuses to talk to anybody, read a clock or draw random numbers: ids and time come in through
:class:`~swarm_agent.control.transaction.Transaction`.
"""
