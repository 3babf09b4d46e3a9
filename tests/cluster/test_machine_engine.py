"""The engine that the demo starts by hand on a machine without one leaves that machine's network as it was."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.engine

# In a network and a mount namespace of its own: the machine's own engine, if one runs, is neither seen nor disturbed.
_SCRIPT = """
import sys
from pathlib import Path
from tests.hosts import engine
from tests.hosts.shell import run

place = Path(sys.argv[1])
engine.RUN_DIR, engine.DATA_DIR, engine.DEFAULT_SOCKET = place / "run", place / "data", place / "none.sock"
for name in ("OWN_SOCKET", "PID_FILE", "LOG", "CONFIG", "BEFORE"):
    if hasattr(engine, name):
        setattr(engine, name, engine.RUN_DIR / getattr(engine, name).name)

def network():
    said = [run(["ip", "-brief", "link"]).stdout, run(["nft", "list", "ruleset"]).stdout]
    return "\\n".join(said) + Path("/proc/sys/net/ipv4/ip_forward").read_text()

run(["ip", "link", "set", "lo", "up"])
Path("/proc/sys/net/ipv4/ip_forward").write_text("0")
if sys.argv[2] == "used":
    run(["iptables", "-A", "INPUT", "-p", "tcp", "--dport", "99", "-j", "DROP"])
before = network()
machine = engine.start()
machine.docker("network", "create", "some")
machine.docker("network", "rm", "some")
if sys.argv[2] == "later":
    run(["iptables", "-A", "FORWARD", "-p", "tcp", "--dport", "98", "-j", "DROP"])
during = network()
assert "docker0" in during and "DOCKER" in during, during
engine.stop()
print(before + "=====" + network(), end="")
assert not place.joinpath("run").exists()
"""


@pytest.mark.parametrize("machine", ["untouched", "used", "later"])
def test_nothing_is_left_in_the_network(tmp_path: Path, machine: str) -> None:
    """``used``: the machine has rules of its own; ``later``: somebody adds one while the engine runs, and it stays."""
    done = subprocess.run(
        ["unshare", "--net", "--mount", sys.executable, "-c", _SCRIPT, str(tmp_path), machine],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    before, after = done.stdout.split("=====")
    if machine == "later":
        assert "docker" not in after.lower()
        assert "dport 98" in after
    else:
        assert after == before
