"""Every metric of ``/metrics``: its name, type and help, and how it is written in Prometheus' text format 0.0.4.

Names that Docker has for its swarm mode are Docker's, so that dashboards go on working; that is why some gauges end in ``_total``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

_NAME = re.compile(r"[a-z][a-z0-9_]*")
_ESCAPED = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})
_HELP_ESCAPED = str.maketrans({"\\": r"\\", "\n": r"\n"})

METRICS: dict[str, Metric] = {}  # all that are declared, by name


class Metric:
    """One declared metric. What it writes is a whole block: help, type, then all of its samples.

    Raises:
        ValueError: the name is taken or malformed, or it is a counter's without ``_total``.
    """

    __slots__ = ("_head", "help", "kind", "name")

    def __init__(self, name: str, kind: str, text: str) -> None:
        if not _NAME.fullmatch(name) or name in METRICS:
            raise ValueError(f"{name} is declared already, or is not a metric's name")
        if kind == "counter" and not name.endswith("_total"):
            raise ValueError(f"the name of the counter {name} does not end in _total")
        self.name, self.kind, self.help = name, kind, text
        self._head = f"# HELP {name} {text.translate(_HELP_ESCAPED)}\n# TYPE {name} {kind}\n"
        METRICS[name] = self

    def text(self, value: float, **labels: str) -> str:
        """The metric with its only sample."""
        if not labels:
            return f"{self._head}{self.name} {value}\n"
        inner = ",".join(f'{name}="{said.translate(_ESCAPED)}"' for name, said in labels.items())
        return f"{self._head}{self.name}{{{inner}}} {value}\n"

    def text_by(self, label: str, values: Mapping[str, float]) -> str:
        """The metric with a sample for each value of one label, sorted; "" when there is none."""
        if not values:
            return ""
        name = self.name
        lines = [
            f'{name}{{{label}="{said.translate(_ESCAPED)}"}} {n}\n' for said, n in sorted(values.items())
        ]
        return self._head + "".join(lines)


def _gauge(name: str, text: str) -> Metric:
    return Metric(name, "gauge", text)


def _counter(name: str, text: str) -> Metric:
    return Metric(name, "counter", text)


# Every node, in a swarm or not.
AGENT_INFO = _gauge("swarm_agent_info", "Always 1; the label is the version of swarm-agent")
LOOP_LAG_WORST = _gauge(
    "swarm_agent_loop_lag_worst_seconds", "Longest delay of the main event loop since the agent started"
)
LOOP_STALLS = _counter(
    "swarm_agent_loop_stalls_total", "Times the main event loop was late by more than 0.25 seconds"
)
NODE_MANAGER = _gauge("swarm_node_manager", "Whether this node is a manager (1) or not (0)")
MANAGER_LEADER = _gauge("swarm_manager_leader", "Whether this manager is the leader (1) or not (0)")

# Every node of a swarm.
NODE_INFO = _gauge("swarm_node_info", "Always 1; the labels are the ids of this node and of its swarm")
SESSION_CONNECTED = _gauge(
    "swarm_agent_session_connected", "Whether this node has a session with the leader (1) or not (0)"
)
AGENT_TASKS = _gauge("swarm_agent_tasks", "Tasks assigned to this node, by state as it observes them")

# Every manager: its own view of what is replicated.
RAFT_TERM = _gauge("swarm_raft_term", "Current Raft term")
RAFT_COMMIT_INDEX = _gauge("swarm_raft_commit_index", "Index of the last committed Raft entry")
RAFT_APPLIED_INDEX = _gauge("swarm_raft_applied_index", "Index of the last Raft entry applied to the store")
RAFT_MEMBERS = _gauge("swarm_raft_members", "Members of the Raft group, learners included")
RAFT_MISSED_TICKS = _counter(
    "swarm_raft_missed_ticks_total", "Raft ticks that came late or never: the host or the agent is overloaded"
)
CLUSTER_FEATURE_LEVEL = _gauge("swarm_cluster_feature_level", "Feature level the swarm is at")
MANAGER_FEATURE_LEVEL = _gauge(
    "swarm_manager_feature_level", "Highest feature level this manager goes along with"
)
MANAGER_SERVICES = _gauge("swarm_manager_services_total", "Services in the swarm")
MANAGER_NETWORKS = _gauge("swarm_manager_networks_total", "Networks in the swarm")
MANAGER_SECRETS = _gauge("swarm_manager_secrets_total", "Secrets in the swarm")
MANAGER_CONFIGS = _gauge("swarm_manager_configs_total", "Configs in the swarm")
MANAGER_NODES = _gauge("swarm_manager_nodes", "Nodes in the swarm, by state")
MANAGER_TASKS = _gauge("swarm_manager_tasks_total", "Tasks in the swarm, by observed state")

# The leader. Its counters start at 0 with each term of leadership.
CONTROL_PASSES = _counter("swarm_control_passes_total", "Passes of the control loop")
CONTROL_REJECTED = _counter(
    "swarm_control_rejected_groups_total",
    "Groups of writes that were refused because a row had changed meanwhile; they are decided again",
)
CONTROL_FAULTS = _counter(
    "swarm_control_faults_total",
    "Internal errors of the control loop; above 0 the agent has a bug: see its log",
)
CONTROL_LAST_PASS = _gauge("swarm_control_last_pass_seconds", "Duration of the last pass of the control loop")
MANAGER_SESSIONS = _gauge("swarm_manager_sessions", "Nodes that have a session with this leader")
