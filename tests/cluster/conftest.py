"""Real daemons and engines need root and a few programs; without them these tests say so and are skipped."""

from __future__ import annotations

import os
import shutil

import pytest

NEEDED = ("dockerd", "docker", "nft", "conntrack", "ip", "unshare", "gcc", "busybox")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = [p for p in NEEDED if shutil.which(p) is None]
    why = "needs root" if os.geteuid() else f"needs {', '.join(missing)}" if missing else ""
    if why:
        for item in items:
            if "tests/cluster" in str(item.path) or "tests/load" in str(item.path):
                item.add_marker(pytest.mark.skip(reason=why))
