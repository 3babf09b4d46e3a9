"""Secrets and configs through the API: what is accepted, shown, refused, and which version a service gets."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec
import pytest

from swarm_agent.objects.records import ContentRef, Service
from tests.unit.api.backend_double import House, play

KINDS = [("secret", 512_000), ("config", 1_024_000)]


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


async def make(home: House, kind: str, name: str = "x", data: bytes = b"one", **more: Any) -> str:
    status, answer = await home.ask("POST", f"/{kind}s/create", {"Name": name, "Data": b64(data), **more})
    assert status == 201, answer
    return str(answer["ID"])


def reference(kind: str, id_: str, name: str = "x", target: str = "t", **more: Any) -> dict[str, Any]:
    word = kind.capitalize()
    file = {"Name": target, "UID": "0", "GID": "0", "Mode": 292, **more}
    return {f"{word}ID": id_, f"{word}Name": name, "File": file}


def service(kind: str, *references: dict[str, Any], **more: Any) -> dict[str, Any]:
    container = {"Image": "web:1", f"{kind.capitalize()}s": list(references)}
    return {"Name": "web", "TaskTemplate": {"ContainerSpec": container}, **more}


@pytest.mark.parametrize(("kind", "limit"), KINDS)
def test_the_life_of_one(tmp_path: Path, kind: str, limit: int) -> None:
    async def story(home: House) -> None:
        id_ = await make(home, kind, data=b"h\xff", Labels={"a": "1"})
        shown = await home.get(f"/{kind}s/{id_[:24]}")
        assert shown["ID"] == id_
        assert shown["Spec"].pop("Data", None) == (None if kind == "secret" else b64(b"h\xff"))
        assert shown["Spec"] == {"Name": "x", "Labels": {"a": "1"}}
        assert await home.get(f"/{kind}s") == [await home.get(f"/{kind}s/x")]
        assert await home.refusal("POST", f"/{kind}s/create", {"Name": "X", "Data": "YQ=="}) == (
            409,
            f"rpc error: code = AlreadyExists desc = {kind} X already exists",
        )
        version = shown["Version"]["Index"]
        labelled = {"Name": "x", "Labels": {"b": "2"}}
        assert (await home.ask("POST", f"/{kind}s/x/update?version={version}", labelled))[0] == 200
        after = await home.get(f"/{kind}s/x")
        assert after["Spec"]["Labels"] == {"b": "2"}
        assert after["Version"]["Index"] > version
        status, text = await home.refusal("POST", f"/{kind}s/x/update?version={version}", labelled)
        assert (status, text) == (500, "rpc error: code = Unknown desc = update out of sequence")
        current = f"/{kind}s/x/update?version={after['Version']['Index']}"
        for wrong in ({"Name": "y"}, {"Name": "x", "Data": b64(b"other")}):
            assert await home.refusal("POST", current, wrong) == (
                400,
                "rpc error: code = InvalidArgument desc = only updates to Labels are allowed",
            )
        assert (await home.ask("POST", current, {"Name": "x", "Data": b64(b"h\xff"), "Labels": {}}))[0] == 200
        assert (await home.refusal("POST", f"/{kind}s/x/update?version=z", {}))[1].startswith(
            f"invalid {kind} version 'z'"
        )
        assert await home.ask("DELETE", f"/{kind}s/x") == (204, b"")
        assert await home.refusal("GET", f"/{kind}s/x") == (404, f"{kind} x not found")
        assert len(home.backend.store.contents) == 0
        events = [(e["Type"], e["Action"]) for e in home.backend.events.past if e["Type"] == kind]
        assert events == [(kind, "create"), (kind, "update"), (kind, "update"), (kind, "remove")]

    play(tmp_path, story)  # fmt: skip


@pytest.mark.parametrize(("kind", "limit"), KINDS)
@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"Data": "YQ=="}, "name must be provided"),
        ({"Name": "-x", "Data": "YQ=="}, "invalid name, only 64 [a-zA-Z0-9-_.] characters allowed, and the start and end character must be [a-zA-Z0-9]"),
        ({"Name": "x" * 65, "Data": "YQ=="}, "invalid name, only 64"),
        ({"Name": "x", "Data": "_-=="}, "illegal base64 data at input byte 0"),
        ({"Name": "x", "Data": "YQ"}, "illegal base64 data"),
        ({"Name": "x"}, "data must be larger than 0 and less than {limit} bytes"),
        ({"Name": "x", "Data": "YQ==", "Templating": {"Name": "jinja"}}, 'unrecognized template type "jinja"'),
        ({"Name": "x", "Data": b64(b"{{nope}}"), "Templating": {"Name": "golang"}}, 'template: expansion:1: function "nope" not defined'),
    ],
)  # fmt: skip
def test_what_is_refused(tmp_path: Path, kind: str, limit: int, body: dict[str, Any], text: str) -> None:
    async def story(home: House) -> None:
        status, said = await home.refusal("POST", f"/{kind}s/create", body)
        assert status == 400
        assert text.replace("{limit}", str(limit)) in said
        assert len(home.backend.store.contents) == 0

    play(tmp_path, story)


@pytest.mark.parametrize(("kind", "limit"), KINDS)
def test_the_limit_is_exact(tmp_path: Path, kind: str, limit: int) -> None:
    async def story(home: House) -> None:
        await make(home, kind, data=b"x" * (limit - 1))
        status, _ = await home.refusal("POST", f"/{kind}s/create", {"Name": "y", "Data": b64(b"x" * limit)})
        assert status == 400

    play(tmp_path, story)


def test_drivers_are_refused_by_name(tmp_path: Path) -> None:
    async def story(home: House) -> None:
        body = {"Name": "x", "Driver": {"Name": "vault"}}
        status, text = await home.refusal("POST", "/secrets/create", body)
        assert status == 501
        assert "secret drivers (--driver)" in text
        assert (await home.refusal("POST", "/secrets/create", {"Name": "x", "Driver": {}}))[0] == 400

    play(tmp_path, story)


def test_below_the_level_nothing_is_made(tmp_path: Path) -> None:
    async def story(home: House) -> None:
        cluster = home.backend.store.cluster
        assert cluster is not None
        home.backend.put(msgspec.structs.replace(cluster, feature_level=2))
        status, text = await home.refusal("POST", "/secrets/create", {"Name": "x", "Data": "YQ=="})
        assert status == 501
        assert "needs feature level 3" in text

    play(tmp_path, story)


def test_filters(tmp_path: Path) -> None:
    async def story(home: House) -> None:
        await make(home, "secret", "ab", Labels={"k": "v"})
        await make(home, "secret", "abc")
        for wanted, names in (
            ({"name": ["ab"]}, ["ab", "abc"]),
            ({"names": ["ab"]}, ["ab"]),
            ({"label": ["k=v"]}, ["ab"]),
            ({"id": ["zz"]}, []),
        ):
            found = await home.get("/secrets?filters=" + quote(json.dumps(wanted)))
            assert [s["Spec"]["Name"] for s in found] == names
        assert (await home.refusal("GET", "/configs?filters=" + quote('{"x":["y"]}')))[0] == 400

    play(tmp_path, story)


# --- references ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["secret", "config"])
def test_references_are_checked(tmp_path: Path, kind: str) -> None:
    async def story(home: House) -> None:
        id_ = await make(home, kind)
        good = reference(kind, id_)
        word = kind.capitalize()
        for refs, text in (
            ([{**good, f"{word}ID": ""}], f"malformed {kind} reference"),
            (
                [{k: v for k, v in good.items() if k != "File"}],
                f"malformed {kind} reference, no target provided",
            ),
            (
                [reference(kind, id_, target="")],
                f"malformed file {kind} reference, invalid target file name provided",
            ),
            ([reference(kind, id_, target="a/..")], f"malformed file {kind} reference, invalid target"),
            ([good, good], f"{kind} references 'x' and 'x' have a conflicting target: 't'"),
            ([good, reference(kind, id_, target="./t")], "have a conflicting target"),
            ([reference(kind, id_, UID="root")], "UID 'root' of a target file is no number"),
            ([reference(kind, id_, Mode=0o10000)], "mode 10000 of a target file"),
            ([reference(kind, id_, "y")], f"{kind} not found: y"),
            (
                [reference(kind, "a" * 25, "b"), reference(kind, "a" * 25, "c", "u")],
                f"{kind}s not found: b, c",
            ),
        ):
            status, said = await home.refusal("POST", "/services/create", service(kind, *refs))
            assert status == 400
            assert text in said
        assert (await home.ask("POST", "/services/create", service(kind, good)))[0] == 201
        assert await home.refusal("DELETE", f"/{kind}s/x") == (
            400,
            f"rpc error: code = InvalidArgument desc = {kind} 'x' is in use by the following service: web",
        )
        other = {**service(kind, good), "Name": "api"}
        assert (await home.ask("POST", "/services/create", other))[0] == 201
        assert (await home.refusal("DELETE", f"/{kind}s/x"))[1].endswith("following services: api, web")

    play(tmp_path, story)  # fmt: skip


def test_a_config_and_a_mount_at_one_place(tmp_path: Path) -> None:
    async def story(home: House) -> None:
        id_ = await make(home, "config")
        body = service("config", reference("config", id_, target="/etc//x"))
        body["TaskTemplate"]["ContainerSpec"]["Mounts"] = [{"Type": "tmpfs", "Target": "/etc/x"}]
        _, text = await home.refusal("POST", "/services/create", body)
        assert "config 'x' and mount /etc/x have a conflicting target: '/etc/x'" in text

    play(tmp_path, story)


# --- versions ------------------------------------------------------------------------------------------------------------
async def new_version(home: House, data: bytes, kind: str = "secret") -> int:
    status, answer = await home.ask("POST", f"/swarm-agent/{kind}s/x/versions", {"Data": b64(data)})
    assert status == 201, answer
    return int(answer["Number"])


def web(home: House) -> Service:
    return next(home.backend.store.services.by("name", "web"))


def contents_of(home: House) -> dict[str, int]:
    revision = home.backend.store.revisions.get(web(home).revision_id)
    assert revision is not None
    return {c.owner: c.number for c in revision.contents}


async def again(home: House, spec: dict[str, Any], **changes: Any) -> tuple[int, Any]:
    version = (await home.get("/services/web"))["Version"]["Index"]
    return await home.ask("POST", f"/services/web/update?version={version}", {**spec, **changes})


def test_versions_are_counted_and_listed(tmp_path: Path) -> None:
    async def story(home: House) -> None:
        id_ = await make(home, "config")
        spec = service("config", reference("config", id_))
        assert (await home.ask("POST", "/services/create", spec))[0] == 201
        assert [await new_version(home, b"two", "config"), await new_version(home, b"three", "config")] == [
            2,
            3,
        ]
        listed = await home.get("/swarm-agent/configs/x/versions")
        assert [(v["Number"], v["Current"], v["Services"], v["Size"]) for v in listed] == [
            (1, False, ["web"], 3),
            (2, False, [], 3),
            (3, True, [], 5),
        ]
        assert len({v["Digest"] for v in listed}) == 3
        assert (await home.get("/configs/x"))["Spec"]["Data"] == b64(b"three")
        for body in ({}, {"Data": 5}, {"Data": "%"}, {"Data": ""}):
            assert (await home.refusal("POST", "/swarm-agent/configs/x/versions", body))[0] == 400

    play(tmp_path, story)  # fmt: skip


def test_two_new_versions_at_once_are_two(tmp_path: Path) -> None:
    async def story(home: House) -> None:
        id_ = await make(home, "secret")

        def rival() -> None:
            secret = home.backend.store.secrets.get(id_)
            assert secret is not None
            home.backend.put(msgspec.structs.replace(secret, number=2))

        home.backend.before_write = rival
        assert await new_version(home, b"mine") == 3

    play(tmp_path, story)


def test_a_reference_keeps_its_version_until_it_is_told_otherwise(tmp_path: Path) -> None:
    async def story(home: House) -> None:
        id_ = await make(home, "secret")
        spec = service("secret", reference("secret", id_))
        assert (await home.ask("POST", "/services/create", spec))[0] == 201
        await new_version(home, b"two")
        assert (await again(home, spec, Mode={"Replicated": {"Replicas": 2}}))[0] == 200
        assert contents_of(home) == {id_: 1}
        assert (await again(home, spec, Labels={"swarm-agent.secret.x": "2"}))[0] == 200
        assert contents_of(home) == {id_: 2}
        status, answer = await again(home, spec, Labels={"swarm-agent.secret.x": "7"})
        assert status == 400
        assert "secret x has no version 7: 1, 2 are kept" in answer["message"]

    play(tmp_path, story)


def test_what_was_rolled_back_from_is_not_taken_again_by_an_update(tmp_path: Path) -> None:
    async def story(home: House) -> None:
        id_ = await make(home, "secret")
        spec = service("secret", reference("secret", id_), Labels={"swarm-agent.secret.x": "track"})
        assert (await home.ask("POST", "/services/create", spec))[0] == 201
        first = web(home).revision_id
        assert web(home).tracked == (ContentRef(owner=id_, number=1),)
        await new_version(home, b"two")
        assert (await again(home, spec))[0] == 200
        assert contents_of(home) == {id_: 2}
        home.backend.put(msgspec.structs.replace(web(home), revision_id=first))  # rolled back
        assert (await again(home, spec, Mode={"Replicated": {"Replicas": 2}}))[0] == 200
        assert contents_of(home) == {id_: 1}
        await new_version(home, b"three")
        assert (await again(home, spec))[0] == 200
        assert contents_of(home) == {id_: 3}

    play(tmp_path, story)


async def roll_back(home: House) -> tuple[int, Any]:
    version = (await home.get("/services/web"))["Version"]["Index"]
    return await home.ask("POST", f"/services/web/update?version={version}&rollback=previous", {})


def test_a_rollback_brings_the_contents_back_and_is_not_undone(tmp_path: Path) -> None:
    async def story(home: House) -> None:
        id_ = await make(home, "secret")
        spec = service("secret", reference("secret", id_))
        assert (
            await home.ask("POST", "/services/create", {**spec, "Labels": {"swarm-agent.secret.x": "track"}})
        )[0] == 201
        await new_version(home, b"two")
        assert (await again(home, spec, Labels={"swarm-agent.secret.x": "2"}))[0] == 200
        assert (contents_of(home), web(home).tracked) == ({id_: 2}, ())
        assert (await roll_back(home))[0] == 200
        assert (contents_of(home), web(home).tracked) == ({id_: 1}, (ContentRef(owner=id_, number=2),))

    play(tmp_path, story)  # fmt: skip


def test_there_is_no_way_back_to_a_secret_that_was_removed(tmp_path: Path) -> None:
    async def story(home: House) -> None:
        old, new = await make(home, "secret"), await make(home, "secret", "y")
        spec = service("secret", reference("secret", old))
        assert (await home.ask("POST", "/services/create", spec))[0] == 201
        changed = service("secret", reference("secret", new, "y"))
        assert (await again(home, changed))[0] == 200
        assert (await home.ask("DELETE", "/secrets/x"))[0] == 204
        status, answer = await roll_back(home)
        assert (status, answer["message"]) == (
            400,
            "rpc error: code = InvalidArgument desc = secret not found: x",
        )

    play(tmp_path, story)  # fmt: skip
