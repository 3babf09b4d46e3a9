"""Names in containers, on hosts whose ``/etc/resolv.conf`` says what real ones say, with and without options of the user's."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from swarm_agent.network.model import VirtualIP
from tests.cluster.network.lab import CLIENT, RESOLV_CONFS, Cluster, Listener, lab, probe

pytestmark = pytest.mark.engine

VIP = "10.0.9.200"
TASKS = {"10.0.9.11", "10.0.9.12"}
NAMES = {
    "web": {VIP},
    "www": {VIP},
    "WEB": {VIP},
    "web.app": {VIP},
    "tasks.web": TASKS,
    "tasks.www": TASKS,
    "web.t1": {"10.0.9.11"},
    "web.t2": {"10.0.9.12"},
}
STATED = {
    "nothing": ((), ()),
    "ndots:0": ((), ("ndots:0",)),
    "ndots:2": ((), ("ndots:2",)),
    "ndots:15 and more": (("corp.example", "example.net"), ("timeout:3", "ndots:15")),
}


@pytest.fixture(scope="module")
def cluster(engine_needed: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with lab(tmp_path_factory.mktemp("names"), (1, 2)) as two:
        two.overlay("app", 4096, "10.0.9.0/24")
        two.vips.append(VirtualIP("app", "web", "web", VIP, ("www",)))
        for n in two.hosts:
            two.task(f"t{n}", n, "web", 10 + n, app=f"10.0.9.1{n}")
        two.apply()
        for task in two.tasks.values():
            two.start(task)
        yield two


@pytest.fixture(scope="module")
def upstream(cluster: Cluster) -> Iterator[None]:
    """The servers the hosts' files name: one outside, one at the stub's address in the host itself."""
    listeners = [
        Listener(cluster.client.enter, "upstream", CLIENT),
        Listener(cluster.hosts[1].space.enter, "upstream", "127.0.0.53"),
    ]
    yield
    for listener in listeners:
        listener.close()


@pytest.mark.parametrize("stated", STATED)
@pytest.mark.parametrize("form", RESOLV_CONFS)
def test_every_name_is_found_whatever_the_hosts_file_and_the_user_say(
    cluster: Cluster, upstream: None, form: str, stated: str
) -> None:
    search, options = STATED[stated]
    host = cluster.hosts[1]
    host.set_resolv_conf(form)
    client = cluster.task("c", 1, "client", 21, app="10.0.9.21")
    cluster.apply(1)
    cluster.start(client, search=search, options=options)
    try:
        assert {name: set(host.resolve(client.name, name)) for name in NAMES} == NAMES
        if form != "empty":
            assert host.resolve(client.name, "example.org") == ["192.0.2.7"]
        # As programs do that read no resolv.conf, and have no search list.
        (direct,) = probe(cluster.inside("c"), "dns", "127.0.0.11", "web", 1)
        assert direct["answers"] == [VIP]
        (pointer,) = probe(cluster.inside("c"), "dns", "127.0.0.11", "12.9.0.10.in-addr.arpa", 12)
        assert pointer["answers"] == ["web.t2.app"]

        lines = [line.split() for line in host.resolv_conf(client.name).splitlines()]
        assert ["nameserver", "127.0.0.11"] in lines
        if options:
            (written,) = [line[1:] for line in lines if line[:1] == ["options"]]
            assert [option for option in written if option in options] == list(options)
            assert sum(option.startswith("ndots") for option in written) == 1
        if search:
            assert [line[1:] for line in lines if line[:1] == ["search"]] == [list(search)]
    finally:
        cluster.remove(client)
    assert not list(host.state.rglob("resolv/*")), "what was made for the task goes with it"
