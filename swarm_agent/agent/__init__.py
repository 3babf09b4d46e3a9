"""What every host does: runs the tasks it is assigned as containers of its Docker Engine and reports how they fare.

Owns the node's half of a session with the leader (``session``), the worker and its task state machine (``worker``, ``runner``, ``fsm``), the executor
and the engine client. Refuses to decide what should run (``control``) and to build networks (``network``).
"""
