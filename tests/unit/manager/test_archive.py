"""Backups as files: whole and of the right key, or refused with the reason."""

from __future__ import annotations

import random

import pytest

from swarm_agent.manager.backup import (
    ArchiveUnreadable,
    BackupHeader,
    new_backup_key,
    parse_backup_key,
    read_head,
    seal,
    shown,
    unseal,
)
from swarm_agent.raft.core import ConfState, Member, SnapshotMeta

KEY = random.Random(1).randbytes(32)
META = SnapshotMeta(7, 3, ConfState((Member(1, "n1", "a:1"),)))
HEAD = BackupHeader(
    version=1, cluster_id="c", created=5, index=7, feature_level=2, release="0.1", salt=b"s" * 16
)
VIEW = (b"marker one", b"", b"marker two")


def archive(key: bytes = KEY) -> bytes:
    return b"".join(seal(HEAD, key, META, VIEW))


def test_what_went_in_comes_out() -> None:
    assert unseal(archive(), KEY) == (HEAD, META, VIEW)
    assert read_head(archive()) == HEAD
    assert b"marker" not in archive()


def test_the_key_has_a_form_of_its_own() -> None:
    key = new_backup_key(random.Random(2).randbytes)
    assert parse_backup_key(shown(key) + "\n") == key
    for wrong in ("", "SWMKEY-1-" + shown(key)[9:], shown(key)[:-1]):
        with pytest.raises(ArchiveUnreadable, match="SWMBAK-1-"):
            parse_backup_key(wrong)


def test_another_key_is_told_from_damage_of_the_head() -> None:
    with pytest.raises(ArchiveUnreadable, match="another key"):
        unseal(archive(), b"x" * 32)
    with pytest.raises(ArchiveUnreadable, match="no backup"):
        unseal(b"hello", KEY)


@pytest.mark.parametrize("at", range(len(archive())))
def test_no_part_of_it_is_accepted(at: int) -> None:
    with pytest.raises(ArchiveUnreadable):
        unseal(archive()[:at], KEY)


@pytest.mark.parametrize("at", range(len(archive())))
def test_every_changed_byte_is_noticed(at: int) -> None:
    data = bytearray(archive())
    data[at] ^= 1
    with pytest.raises(ArchiveUnreadable):
        unseal(bytes(data), KEY)


def test_nothing_may_follow() -> None:
    with pytest.raises(ArchiveUnreadable, match="follow"):
        unseal(archive() + b"x", KEY)
