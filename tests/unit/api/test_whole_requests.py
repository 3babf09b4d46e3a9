"""Every field of a request is honoured or refused, every removal is meant, and what does not parse is 400 with the place."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import pytest

from tests.unit.api.backend_double import NODE_ID, House, play, replace

OVERLAY = {"Driver": "overlay"}
FORCE: dict[str, Any] = {"ForceNewCluster": True, "ListenAddr": "0.0.0.0:2377", "SubnetSize": 24}


# --- init --force-new-cluster ----------------------------------------------------------------------------------------
def test_a_forced_new_cluster_is_as_its_init_says(tmp_path: Path) -> None:
    async def story(home: House) -> None:
        labels = {"Labels": {"site": "north"}, "Orchestration": {"TaskHistoryRetentionLimit": 3}}
        version = (await home.get("/swarm"))["Version"]["Index"]
        assert (await home.ask("POST", f"/swarm/update?version={version}", labels))[0] == 200
        spec = {
            "Labels": None,
            "Orchestration": {"TaskHistoryRetentionLimit": 8},
            "Raft": {"ElectionTick": 0, "HeartbeatTick": 0},
            "Dispatcher": {"HeartbeatPeriod": 7_000_000_000},
            "EncryptionConfig": {"AutoLockManagers": False},
        }
        body = {**FORCE, "AutoLockManagers": True, "Availability": "drain", "Spec": spec}
        assert await home.ask("POST", "/swarm/init", body) == (200, NODE_ID)
        now = (await home.get("/swarm"))["Spec"]
        assert now["Orchestration"] == {"TaskHistoryRetentionLimit": 8}
        assert now["Dispatcher"] == {"HeartbeatPeriod": 7_000_000_000}
        assert now["EncryptionConfig"] == {"AutoLockManagers": True}
        assert now["Labels"] == {"site": "north"}, "what is not stated stays"
        assert (await home.get("/swarm/unlockkey"))["UnlockKey"].startswith("SWMKEY-1-")
        assert (await home.get(f"/nodes/{NODE_ID}"))["Spec"]["Availability"] == "drain"
        key = (await home.get("/swarm/unlockkey"))["UnlockKey"]
        assert (await home.ask("POST", "/swarm/init", FORCE))[0] == 200
        assert (await home.get("/swarm/unlockkey"))["UnlockKey"] == key, (
            "a lock is not taken away by saying nothing"
        )
        assert (await home.get("/swarm"))["Spec"] == now

    play(tmp_path, story)


@pytest.mark.parametrize(
    ("more", "word"),
    [
        ({"DefaultAddrPool": ["10.20.0.0/16"]}, "--default-addr-pool"),
        ({"SubnetSize": 26}, "--default-addr-pool-mask-length"),
        ({"DataPathPort": 7789}, "--data-path-port"),
        ({"Availability": "sleepy"}, "invalid Availability"),
        ({"Spec": {"CAConfig": {"NodeCertExpiry": 5}}}, "minimum certificate expiry"),
        ({"Spec": {"Raft": {"ElectionTick": 30}}}, "Raft.ElectionTick"),
    ],
)
def test_what_a_forced_new_cluster_cannot_do_is_refused_before_anything_is_done(
    tmp_path: Path, more: dict[str, Any], word: str
) -> None:
    async def story(home: House) -> None:
        status, said = await home.refusal("POST", "/swarm/init", {**FORCE, **more})
        assert 400 <= status < 502
        assert word in said
        assert home.backend.called == []

    play(tmp_path, story)


# --- removals --------------------------------------------------------------------------------------------------------
def test_a_removal_is_meant_whatever_the_cluster_writes_meanwhile(tmp_path: Path) -> None:
    async def story(home: House) -> None:
        _, made = await home.ask("POST", "/networks/create", {"Name": "app", **OVERLAY})
        _, secret = await home.ask("POST", "/secrets/create", {"Name": "key", "Data": "aA=="})
        for path, table in ((f"/networks/{made['Id']}", "networks"), (f"/secrets/{secret['ID']}", "secrets")):

            def faster(table: str = table) -> None:
                (row,) = getattr(home.backend.store, table).all()
                home.backend.put(replace(row, **({"vni": 4097} if table == "networks" else {"number": 2})))

            home.backend.before_write = faster
            assert (await home.ask("DELETE", path))[0] == 204
            assert not list(getattr(home.backend.store, table).all())

    play(tmp_path, story)


def test_a_label_of_a_secret_is_written_beside_a_new_version_and_not_over_another_label(
    tmp_path: Path,
) -> None:
    async def story(home: House) -> None:
        _, made = await home.ask("POST", "/secrets/create", {"Name": "key", "Data": "aA=="})
        path = f"/secrets/{made['ID']}"
        version = (await home.get(path))["Version"]["Index"]
        assert (await home.ask("POST", f"/swarm-agent{path}/versions", {"Data": "aQ=="}))[0] == 201
        status, _ = await home.ask(
            "POST", f"{path}/update?version={version}", {"Name": "key", "Labels": {"a": "1"}}
        )
        assert status == 200
        assert (await home.get(path))["Spec"]["Labels"] == {"a": "1"}
        refused = await home.refusal(
            "POST", f"{path}/update?version={version}", {"Name": "key", "Labels": {"a": "2"}}
        )
        assert "update out of sequence" in refused[1]

    play(tmp_path, story)


# --- prune -----------------------------------------------------------------------------------------------------------
def test_pruning_takes_away_unused_overlays_that_the_filters_mean(tmp_path: Path) -> None:
    async def story(home: House) -> None:
        asked: list[dict[str, Any]] = []

        async def engine(call: Any) -> None:
            asked.append(json.loads(parse_qs(urlsplit(call.target).query)["filters"][0]))
            await call.whole(b'{"NetworksDeleted":["local"]}')

        home.engine.answers["/networks/prune"] = engine
        for name, labels in (("used", {}), ("kept", {"keep": "yes"}), ("spare", {})):
            await home.ask("POST", "/networks/create", {"Name": name, "Labels": labels, **OVERLAY})
        home.backend.settle()
        web = {
            "Name": "web",
            "TaskTemplate": {"ContainerSpec": {"Image": "w"}, "Networks": [{"Target": "used"}]},
        }
        assert (await home.ask("POST", "/services/create", web))[0] == 201

        def names() -> set[str | None]:
            return {n.spec.name for n in home.backend.store.networks.all()}

        for filters in ({"until": ["1h"]}, {"label": ["nobody"]}):
            assert (
                await home.ask("POST", f"/networks/prune?filters={json.dumps(filters)}".replace(" ", ""))
            )[1] == {"NetworksDeleted": ["local"]}
        assert names() == {"used", "kept", "spare"}
        status, answer = await home.ask("POST", '/networks/prune?filters={"label!":{"keep":true}}')
        assert (status, answer) == (200, {"NetworksDeleted": ["spare", "local"]})
        assert names() == {"used", "kept"}
        assert all("swarm.network" in f["label!"] for f in asked), (
            "the local ends of ours are not the engine's to prune"
        )
        for bad in ({"until": ["never"]}, {"until": ["1h", "2h"]}, {"colour": ["red"]}):
            status, _ = await home.refusal(
                "POST", f"/networks/prune?filters={json.dumps(bad)}".replace(" ", "")
            )
            assert status == 400
        assert len(asked) == 3, "a bad filter is refused before anything goes"

    play(tmp_path, story)


# --- what does not parse ---------------------------------------------------------------------------------------------
def test_a_target_that_is_no_url_is_answered(tmp_path: Path) -> None:
    async def story(home: House) -> None:
        for target in ("http://[::1/x", "//[/services"):
            reader, writer = await asyncio.open_unix_connection(home.path)
            writer.write(f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 400 "), head
            said = await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]))
            assert b"malformed request target" in said
            writer.close()

    play(tmp_path, story)


@pytest.mark.parametrize("version", ["", "x", "-1", quote("²"), "9" * 30, "9" * 5000])
def test_a_version_that_is_no_number_is_400(tmp_path: Path, version: str) -> None:
    async def story(home: House) -> None:
        status, said = await home.refusal("POST", f"/nodes/{NODE_ID}/update?version={version}", {})
        assert status == 400
        assert "invalid node version" in said

    play(tmp_path, story)
