"""Which package is installed for a command, and what apt's many lines mean."""

from __future__ import annotations

from ansible_collections.swarm.cluster.plugins.modules import swarm_packages

POLICY = """\
docker-cli:
  Installed: (none)
  Candidate: 26.1.5+dfsg1-9+b4
  Version table:
     26.1.5+dfsg1-9+b4 500
docker.io:
  Installed: (none)
  Candidate: 26.1.5+dfsg1-9+b4
gone:
  Installed: (none)
  Candidate: (none)
"""
UPDATE = """\
Err:1 http://mirror.example/debian trixie InRelease
  Temporary failure resolving 'mirror.example'
Reading package lists...
W: Failed to fetch http://mirror.example/debian/dists/trixie/InRelease  Temporary failure resolving 'mirror.example'
W: Failed to fetch http://mirror.example/debian/dists/trixie-updates/InRelease  Temporary failure resolving 'mirror.example'
W: Some index files failed to download. They have been ignored, or old ones used instead.
"""
URIS = """\
'http://mirror.example/debian/dists/trixie/InRelease' mirror.example_debian_dists_trixie_InRelease 0
'http://mirror.example/debian/dists/trixie-updates/InRelease' mirror.example_debian_dists_trixie-updates_InRelease 0
'https://security.example/debian/dists/trixie-security/InRelease' security.example_x_InRelease 0
"""
COMMANDS = {"docker": ["docker-cli", "docker.io"], "dockerd": ["docker.io"], "nft": ["nftables"]}


def test_what_the_lists_know() -> None:
    assert swarm_packages.parse_policy(POLICY) == {"docker-cli", "docker.io"}


def test_a_release_with_the_command_in_a_package_of_its_own() -> None:
    known = {"docker-cli", "docker.io", "nftables"}
    assert swarm_packages.choose(["docker"], COMMANDS, known) == (["docker-cli"], [])
    assert swarm_packages.choose(["docker", "dockerd"], COMMANDS, known) == (["docker-cli", "docker.io"], [])


def test_a_release_that_has_both_in_one() -> None:
    known = {"docker.io", "nftables"}
    assert swarm_packages.choose(["docker", "dockerd", "nft"], COMMANDS, known) == (
        ["docker.io", "nftables"],
        [],
    )


def test_a_command_that_no_package_has() -> None:
    assert swarm_packages.choose(["docker", "nft"], COMMANDS, {"docker.io"}) == (["docker.io"], ["nft"])


def test_each_reason_is_told_once() -> None:
    assert swarm_packages.complaint(UPDATE) == "Temporary failure resolving 'mirror.example'"
    assert (
        swarm_packages.complaint("Reading state\nE: Unable to locate package x\n")
        == "Unable to locate package x"
    )
    assert (
        swarm_packages.complaint("dpkg: error processing archive a.deb") == "error processing archive a.deb"
    )


def test_mirrors_are_named_once() -> None:
    assert swarm_packages.mirrors(URIS) == ["http://mirror.example", "https://security.example"]
