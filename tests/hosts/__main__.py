"""Hosts from the command line: ``python -m tests.hosts up|down|kill|start|engine-stop``; Molecule calls it too."""

from __future__ import annotations

import argparse
import ipaddress
import sys
from pathlib import Path

from tests.hosts import engine
from tests.hosts.hosts import ROOT, TEST_PREFIX, TEST_SUBNET, HostSet
from tests.hosts.shell import Failure, say


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("word", choices=["up", "down", "kill", "start", "engine-stop"])
    parser.add_argument("number", type=int, nargs="*", help="hosts, by number")
    parser.add_argument("--prefix", default=TEST_PREFIX)
    parser.add_argument("--subnet", type=ipaddress.IPv4Network, default=ipaddress.IPv4Network(TEST_SUBNET))
    parser.add_argument("--suite", default="bookworm", choices=["bookworm", "trixie"])
    parser.add_argument("--cold", action="store_true", help="hosts without Docker: the roles install it")
    parser.add_argument("--dir", type=Path)
    parser.add_argument(
        "--managers", type=int, default=3, help="how many of the hosts the inventory calls managers"
    )
    args = parser.parse_args()
    try:
        if args.word == "engine-stop":
            kept = engine.stop()
            if kept:
                say(kept)
            return 0
        hosts = HostSet(
            engine.start(),
            args.prefix,
            args.subnet,
            args.dir or ROOT / ".cache" / args.prefix,
            suite=args.suite,
            warm=not args.cold,
        )
        if args.word == "up":
            numbers = args.number or [1, 2, 3]
            print("changed" if hosts.up(numbers) else "unchanged")
            hosts.write_inventory(numbers[: args.managers], numbers[args.managers :])
        elif args.word == "down":
            print("changed" if hosts.down() else "unchanged")
        else:
            for number in args.number:
                hosts.kill(number) if args.word == "kill" else hosts.start(number)
    except Failure as failure:
        say(f"error: {failure}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
