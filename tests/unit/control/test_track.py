"""New versions of what services track: who rolls, who does not, and what is forgotten."""

from __future__ import annotations

from unittest import mock

import msgspec

from swarm_agent.control.controllers import Controllers
from swarm_agent.control.references import resolve_contents, versions
from swarm_agent.control.revisions import revision_of
from swarm_agent.objects.enums import TaskState
from swarm_agent.objects.normalise import normalise
from swarm_agent.objects.records import Content, ContentRef, Secret, Service, Task
from swarm_agent.objects.specs import Replicated, SecretSpec, ServiceMode, ServiceSpec, UpdateConfig
from swarm_agent.store import Delete, Group
from tests.lib.model_cluster import ModelCluster


def cluster() -> ModelCluster:
    paper = ModelCluster()
    paper.add_node("n1")
    paper.write(
        Secret(id="s", spec=SecretSpec(name="key")),
        Content(id="s.1", owner="s", number=1, data=b"1"),
    )
    return paper


def web(paper: ModelCluster, how: str = "track", name: str = "web") -> str:
    raw = {
        "Name": name,
        "Labels": {"swarm-agent.secret.key": how},
        "TaskTemplate": {
            "ContainerSpec": {
                "Image": "web:1",
                "Secrets": [{"SecretID": "s", "SecretName": "key", "File": {"Name": "key"}}],
            }
        },
    }
    spec = normalise(raw, ServiceSpec)
    resolved = resolve_contents(paper.store, spec)
    id_ = paper.id()
    revision = revision_of(id_, spec, (), resolved.contents, 1)
    paper.write(revision, Service(id=id_, spec=spec, revision_id=revision.id, tracked=resolved.tracked))
    paper.settle()
    return id_


def publish(paper: ModelCluster, number: int) -> None:
    secret = paper.store.secrets.get("s")
    assert secret is not None
    paper.write(
        msgspec.structs.replace(secret, number=number),
        Content(id=f"s.{number}", owner="s", number=number, data=b"%d" % number),
    )


def number(paper: ModelCluster, service_id: str) -> int:
    revision = paper.store.revisions.get(paper.service(service_id).revision_id)
    assert revision is not None
    return revision.contents[0].number


def test_those_that_track_roll_and_those_that_pin_do_not() -> None:
    paper = cluster()
    tracking, pinned = web(paper), web(paper, "pin", "old")
    before = [t.id for t in paper.running(pinned)]
    (old,) = paper.running(tracking)
    publish(paper, 2)
    paper.advance(10)
    assert (number(paper, tracking), number(paper, pinned)) == (2, 1)
    assert [t.id for t in paper.running(pinned)] == before
    (new,) = paper.running(tracking)
    assert new.id != old.id
    assert new.revision_id == paper.service(tracking).revision_id
    assert paper.service(tracking).previous_revision_id == old.revision_id


def test_a_rollback_stays_until_the_next_version() -> None:
    paper = cluster()
    id_ = web(paper)
    first = paper.service(id_).revision_id
    publish(paper, 2)
    paper.advance(10)
    paper.write(msgspec.structs.replace(paper.service(id_), revision_id=first, update_status=None))
    paper.advance(10)
    secret = paper.store.secrets.get("s")
    assert secret is not None
    labelled = msgspec.structs.replace(secret.spec, labels={"a": "b"})
    paper.write(msgspec.structs.replace(secret, spec=labelled))
    paper.controllers = Controllers(paper.store, paper.id)  # a new leader
    paper.advance(10)
    assert number(paper, id_) == 1
    publish(paper, 3)
    paper.advance(10)
    assert number(paper, id_) == 3


def test_a_new_leader_does_what_the_old_one_had_not_done() -> None:
    paper = cluster()
    id_ = web(paper)
    paper.controllers = Controllers(paper.store, paper.id)
    with mock.patch.object(paper.controllers, "changed"):
        publish(paper, 2)
    paper.controllers = Controllers(paper.store, paper.id)
    paper.advance(10)
    assert number(paper, id_) == 2


def test_versions_nobody_points_at_go_after_ten() -> None:
    paper = cluster()
    id_ = web(paper, "pin")
    for count in range(2, 15):
        publish(paper, count)
        paper.settle()
    assert [c.number for c in versions(paper.store, "s")] == [1, *range(5, 15)]
    paper.remove(id_)
    paper.advance(30)
    assert [c.number for c in versions(paper.store, "s")] == list(range(5, 15))


def test_contents_whose_owner_is_gone_go() -> None:
    paper = cluster()
    paper.write(Content(id="x.1", owner="x", number=1, data=b"1"), Secret(id="x", spec=SecretSpec(name="x")))
    secret = paper.store.secrets.get("x")
    assert secret is not None
    assert paper.commit((Group("t", (Delete("secret", "x", secret.version),)),)) == (True,)
    paper.settle()
    assert versions(paper.store, "x") == []


def failing_version(paper: ModelCluster) -> str:
    """A tracking service whose tasks fail with version 2 and which then goes back by itself."""
    id_ = web(paper)
    service = paper.service(id_)
    config = UpdateConfig(failure_action="rollback")
    paper.write(
        msgspec.structs.replace(service, spec=msgspec.structs.replace(service.spec, update_config=config))
    )

    def outcome(task: Task) -> TaskState:
        revision = paper.store.revisions.get(task.revision_id)
        assert revision is not None
        return TaskState.FAILED if revision.contents[0].number == 2 else TaskState.RUNNING

    paper.outcome = outcome
    return id_


def test_an_automatic_rollback_stays_until_the_next_version() -> None:
    paper = cluster()
    id_ = failing_version(paper)
    publish(paper, 2)
    paper.advance(60)
    status = paper.service(id_).update_status
    assert status is not None
    assert (number(paper, id_), status.state) == (1, "rollback_completed")
    paper.controllers = Controllers(paper.store, paper.id)  # a new leader
    paper.advance(10)
    assert number(paper, id_) == 1
    publish(paper, 3)
    paper.advance(60)
    assert number(paper, id_) == 3


def test_a_rolled_back_spec_that_tracks_again_does_not_take_what_is_there_now() -> None:
    """The update stopped tracking: only the previous spec says that it does."""
    paper = cluster()
    id_ = failing_version(paper)
    service = paper.service(id_)
    publish(paper, 2)
    spec = msgspec.structs.replace(service.spec, labels={"swarm-agent.secret.key": "2"})
    resolved = resolve_contents(paper.store, spec, service)
    revision = revision_of(id_, spec, (), resolved.contents, 2)
    paper.write(
        revision,
        msgspec.structs.replace(
            service,
            spec=spec,
            revision_id=revision.id,
            previous_spec=service.spec,
            previous_revision_id=service.revision_id,
            tracked=resolved.tracked,
        ),
    )
    paper.advance(60)
    assert number(paper, id_) == 1
    assert paper.service(id_).tracked == (ContentRef(owner="s", number=2),)


def test_an_update_whose_way_back_is_gone_pauses() -> None:
    paper = cluster()
    id_ = failing_version(paper)
    publish(paper, 2)
    content = paper.store.contents.get("s.1")
    assert content is not None
    assert paper.commit((Group("t", (Delete("content", "s.1", content.version),)),)) == (True,)
    paper.advance(60)
    status = paper.service(id_).update_status
    assert status is not None
    assert status.state == "paused"
    assert status.message.endswith(
        ", and cannot be rolled back: version 1 of secret key is not kept any more"
    )
    assert number(paper, id_) == 2


def test_what_the_same_pass_makes_of_a_new_version_stands_or_falls_with_it() -> None:
    """A service is changed while a pass that rolls it to a new version is on its way to the log."""
    paper = cluster()
    id_ = web(paper)
    publish(paper, 2)
    service = paper.service(id_)
    scaled = msgspec.structs.replace(service.spec, mode=ServiceMode(replicated=Replicated(replicas=3)))
    paper.write(msgspec.structs.replace(service, spec=scaled))
    groups = paper.controllers.run(paper.now)
    labelled = msgspec.structs.replace(scaled, labels={**scaled.labels, "a": "b"})
    paper.write(msgspec.structs.replace(paper.service(id_), spec=labelled))
    accepted = paper.commit(groups)
    assert not all(accepted)
    for task in paper.store.tasks.all():
        assert paper.store.revisions.get(task.revision_id) is not None
    paper.controllers.retry(g.key for g, done in zip(groups, accepted, strict=True) if not done)
    paper.advance(10)
    assert number(paper, id_) == 2
    assert len(paper.running(id_)) == 3
