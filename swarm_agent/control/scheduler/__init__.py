"""Which nodes are feasible for a task, which of them is best, and placing it there.

Owns the filters (``feasibility``), spreading over branches (``spread``), what each node has left (``usage``), the orders of nodes that are kept from
task to task and repaired lazily (``feasible_nodes`` for all services with the same requirements, ``ranking`` for one service, ``ranking_cache``
for which of them are kept), and why no node will do (``rejections``). Refuses to decide which tasks there are.
"""
