"""The leader's decisions. Every module but ``loop`` is pure: a view and the time in, writes and reasons out.

Owns: which tasks exist and where (orchestrate, update, schedule), what addresses and ports they get (allocate), which old
ones are forgotten (reap). Refuses: talking to anybody, reading a clock, drawing randomness - ids and time come in through
:class:`~swarm_agent.control.passes.Pass`.
"""
