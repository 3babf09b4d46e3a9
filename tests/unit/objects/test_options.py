"""What labels of the prefix ``swarm-agent.`` ask for, and how a wrong one is refused."""

from __future__ import annotations

import pytest

from swarm_agent.objects.defaults import SECOND
from swarm_agent.objects.errors import InvalidSpec
from swarm_agent.objects.options import Affinity, Dependency, Options, PreStart, Schedule, options
from tests.lib.optional import unwrap


def asked(**labels: str) -> Options:
    return options({"swarm-agent." + k.replace("__", ".").replace("_", "-"): v for k, v in labels.items()})


def test_labels_of_others_mean_nothing() -> None:
    assert options({"traefik.enable": "true", "swarm.cronjob.enable": "true"}) == Options()


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ({"update__progress_deadline": "90s"}, Options(progress_deadline=90 * SECOND)),
        ({"restart__max_delay": "1h30m"}, Options(restart_max_delay=5400 * SECOND)),
        (
            {"schedule": "@daily", "schedule__timezone": "Asia/Tokyo"},
            Options(schedule=Schedule("@daily", "Asia/Tokyo")),
        ),
        (
            {"placement__affinity": "service==db, service!=~batch"},
            Options(affinities=(Affinity("db", True, True), Affinity("batch", False, False))),
        ),
        (
            {"depends_on": "db:healthy,cache"},
            Options(depends_on=(Dependency("db", "healthy"), Dependency("cache", "started"))),
        ),
        (
            {"pre_start": "migrate --to 'the top'"},
            Options(pre_start=PreStart(command=("migrate", "--to", "the top"))),
        ),
        ({"pre_start": '["a b", "c"]'}, Options(pre_start=PreStart(command=("a b", "c")))),
        ({"singleton": "strict"}, Options(singleton=True)),
    ],
)
def test_what_labels_ask_for(labels: dict[str, str], expected: Options) -> None:
    assert asked(**labels) == expected


@pytest.mark.parametrize(
    ("labels", "text"),
    [
        (
            {"rebalanse": "never"},
            "label swarm-agent.rebalanse: no such option; did you mean swarm-agent.rebalance",
        ),
        (
            {"rebalance": "often"},
            "label swarm-agent.rebalance: 'often' is none of advise, never, on-join, continuous",
        ),
        (
            {"restart__max_delay": "5"},
            "label swarm-agent.restart.max-delay: '5' is no duration: write it like 90s, 5m or 1h30m",
        ),
        ({"schedule__timezone": "UTC"}, "label swarm-agent.schedule is missing, its settings are there"),
        (
            {"min_healthy": "101%"},
            "label swarm-agent.min-healthy: '101%' is neither a number of tasks nor a share like 75%",
        ),
        ({"placement__affinity": "db"}, "'db' is no affinity"),
        ({"secret__db": "²"}, "'²' is none of track, pin or the number of a version"),
        ({"pre_start": "[]"}, "it names no program"),
        ({"pre_start": "run 'it"}, "No closing quotation"),
        ({"restart__max_delay": "9" * 400 + "h"}, "is longer than 292 years"),
        ({"restart__max_delay": "300000000h"}, "is longer than 292 years"),
        ({"depends_on": ":healthy"}, "names no service"),
        (
            {"secret__db": "newest"},
            "label swarm-agent.secret.db: 'newest' is none of track, pin or the number of a version",
        ),
    ],
)
def test_a_wrong_label_is_refused_with_its_path(labels: dict[str, str], text: str) -> None:
    with pytest.raises(InvalidSpec) as caught:
        asked(**labels)
    assert text in str(caught.value)
    assert caught.value.path.startswith("Labels['swarm-agent.")


def test_versions_of_references() -> None:
    wanted = asked(secrets="track", secret__db="3", config__web="track")
    assert [wanted.version_of("secret", n) for n in ("db", "other")] == ["3", "track"]
    assert [wanted.version_of("config", n) for n in ("web", "other")] == ["track", "pin"]


def test_minimum_healthy() -> None:
    assert unwrap(asked(min_healthy="2").min_healthy).of(5) == 2
    assert unwrap(asked(min_healthy="2").min_healthy).of(1) == 1
    assert unwrap(asked(min_healthy="50%").min_healthy).of(5) == 3
