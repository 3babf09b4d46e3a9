# SPDX-License-Identifier: Apache-2.0
"""What the modules promise about check mode, diff mode and running twice."""

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options: {}
attributes:
  check_mode:
    description: Can run in check mode and say what would change, without changing it.
  diff_mode:
    description: Shows what changed, or would change, as before and after.
  idempotent:
    description: Run again with the same options, it changes nothing.
  action_group:
    description: Use C(group/swarm.cluster.cluster) in C(module_defaults) to set options for all modules of the group.
    support: full
    membership:
      - swarm.cluster.cluster
"""

    READ_ONLY = r"""
options: {}
attributes:
  check_mode:
    support: full
    details:
      - Only reads.
  diff_mode:
    support: N/A
    details:
      - Only reads.
  idempotent:
    support: full
    details:
      - Only reads.
"""
