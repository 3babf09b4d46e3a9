"""Hosts from the command line: ``python -m tests.hosts up|down|kill|start|engine-stop``; Molecule calls it too."""

from __future__ import annotations

import argparse
import ipaddress
import sys
from pathlib import Path

from tests.hosts import engine
from tests.hosts.hosts import ROOT, TEST_PREFIX, TEST_SUBNET, HostSet
from tests.hosts.image import Kind
from tests.hosts.shell import Failure, say


def _host(words: str) -> tuple[int, Kind | None]:
    """``4`` or ``4@trixie``."""
    number, _at, kind = words.partition("@")
    if not number.isdigit():
        raise Failure(f"{words!r} is no host: say its number, or NUMBER@KIND")
    return int(number), Kind.parse(kind) if kind else None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("word", choices=["up", "down", "kill", "start", "engine-stop"])
    parser.add_argument(
        "host",
        nargs="*",
        help="hosts, by number, of a kind of their own if one is said: 1 2 3 4@trixie 5@bookworm-bare",
    )
    parser.add_argument("--prefix", default=TEST_PREFIX)
    parser.add_argument("--subnet", type=ipaddress.IPv4Network, default=ipaddress.IPv4Network(TEST_SUBNET))
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
        )
        said = dict(_host(words) for words in args.host)
        if args.word == "up":
            numbers = list(said) or [1, 2, 3]
            kinds = {number: kind for number, kind in said.items() if kind is not None}
            print("changed" if hosts.up(numbers, kinds=kinds) else "unchanged")
            hosts.write_inventory(numbers[: args.managers], numbers[args.managers :])
        elif args.word == "down":
            print("changed" if hosts.down() else "unchanged")
        else:
            for number in said:
                hosts.kill(number) if args.word == "kill" else hosts.start(number)
    except Failure as failure:
        say(f"error: {failure}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
