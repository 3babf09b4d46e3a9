"""What every host does: run the tasks it was given as containers of its Docker Engine and report how they fare.

Owns: the engine client, the task state machine, the executor. Refuses: deciding what should run (``control``), talking to
managers (``session``), networks (``network``).
"""
