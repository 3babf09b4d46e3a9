"""Which nodes will do for a task, and which of them is best.

Owns the filters, the spread of tasks over branches, and the orders of nodes that are kept from task to task and repaired late
(``pools``: for all services of a demand; ``groups``: for one service; ``boards``: which of them are kept). Refuses to place anything
(``control.schedule``) and to say in words why nothing will do (``control.reasons``).
"""
