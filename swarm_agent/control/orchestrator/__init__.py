"""Which tasks a service has, and what becomes of each.

Owns the modes (``replicated``, ``global_``, ``jobs``), the life of one slot (``slot``, ``restart``), updates (``update``, ``update_progress``),
replacements on other nodes (``drain``, ``rebalance``), dependencies between services (``dependencies``), constraints that stop holding
(``constraint_enforcer``), new versions of secrets and configs (``content_rollout``) and what is forgotten (``task_reaper``). ``service`` is the entry
for a service as a whole, ``slot_index`` what is known of its slots. Refuses to choose nodes and addresses: it leaves tasks without them to
``control.scheduler.scheduler``.
"""
