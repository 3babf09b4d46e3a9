"""The key file and the sealed private key: what opens them, what does not, and every interrupted step."""

from __future__ import annotations

import json
import random
import stat
from pathlib import Path

import msgspec
import pytest

from swarm_agent.ca import ca
from swarm_agent.ca.identity_files import NodeIdentity, load_certificate, load_identity, save_identity
from swarm_agent.ca.key_file import (
    NAME,
    KeyFile,
    KeyFileDamaged,
    KeySet,
    LockedKeys,
    StoredKey,
    load_keys,
    remove_keys,
)
from swarm_agent.ca.unlock import (
    InvalidUnlockKey,
    MalformedUnlockKey,
    new_unlock_key,
    parse_unlock_key,
    shown,
)

FIRST, SECOND = b"1" * 32, b"2" * 32
ROOT = ca.make_root()


def identity(role: str = "manager") -> NodeIdentity:
    key, csr = ca.make_request()
    cert, _ = ca.sign(ROOT, csr, ca.Subject("n1", role, "c1"), 3600 * 10**9)
    return NodeIdentity(key, cert, ROOT.cert)


def unlocked(state: Path, unlock_key: bytes = FIRST) -> KeyFile:
    found = load_keys(state)
    assert isinstance(found, LockedKeys)
    return found.unlock(unlock_key)


def pem(state: Path) -> bytes:
    return (state / "certificates" / "swarm-node.pem").read_bytes()


# --- the unlock key ------------------------------------------------------------------------------------------------------
def test_an_unlock_key_reads_back_as_it_is_shown() -> None:
    rng = random.Random(1)
    for _ in range(200):
        key = new_unlock_key(rng.getrandbits)
        text = shown(key)
        assert len(key) == 32
        assert len(text) == len("SWMKEY-1-") + 43
        assert parse_unlock_key(text) == key
        assert parse_unlock_key(f"  {text}\n") == key
    assert shown(b"") == ""


@pytest.mark.parametrize(
    "text", ["", "x", "SWMKEY-1-", "SWMKEY-2-" + "a" * 43, "SWMKEY-1-" + "a" * 42, "SWMKEY-1-" + "-" * 43]
)
def test_what_is_no_unlock_key_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(MalformedUnlockKey) as refused:
        parse_unlock_key(text)
    assert len(text) < 3 or text == "SWMKEY-1-" or text not in str(refused.value)


# --- the key file ----------------------------------------------------------------------------------------------------------
def test_without_a_lock_keys_are_there_for_root_only(tmp_path: Path) -> None:
    made = KeyFile.create(tmp_path)
    assert stat.S_IMODE((tmp_path / NAME).stat().st_mode) == 0o600
    found = load_keys(tmp_path)
    assert isinstance(found, KeyFile)
    assert (found.keys, found.lock_version, found.locked) == (made.keys, 0, False)
    assert len(made.keys.data[0].secret) == 32
    remove_keys(tmp_path)
    remove_keys(tmp_path)
    assert load_keys(tmp_path) is None


def test_with_a_lock_nothing_of_them_is_readable_and_only_its_key_opens_them(tmp_path: Path) -> None:
    made = KeyFile.create(tmp_path, unlock_key=FIRST, lock_version=4)
    raw = (tmp_path / NAME).read_bytes()
    assert set(json.loads(raw)) == {"version", "lock_version", "sealed"}
    found = load_keys(tmp_path)
    assert isinstance(found, LockedKeys)
    with pytest.raises(InvalidUnlockKey, match="swarm could not be unlocked: invalid key provided"):
        found.unlock(SECOND)
    assert (tmp_path / NAME).read_bytes() == raw
    opened = found.unlock(FIRST)
    assert (opened.keys, opened.lock_version, opened.locked) == (made.keys, 4, True)


def test_every_changed_byte_of_a_locked_file_is_noticed(tmp_path: Path) -> None:
    KeyFile.create(tmp_path, unlock_key=FIRST, lock_version=1)
    path = tmp_path / NAME
    raw = path.read_bytes()
    for at in range(len(raw)):
        path.write_bytes(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :])
        with pytest.raises((InvalidUnlockKey, KeyFileDamaged)):
            unlocked(tmp_path)


@pytest.mark.parametrize(
    "content", ["", "{}", '{"version":1,"lock_version":0}', '{"version":9,"lock_version":0}', "[]"]
)
def test_nonsense_is_refused_by_name(tmp_path: Path, content: str) -> None:
    (tmp_path / NAME).write_text(content)
    with pytest.raises(KeyFileDamaged, match=r"keys\.json"):
        load_keys(tmp_path)


def test_another_lock_opens_the_same_keys_and_the_former_none(tmp_path: Path) -> None:
    file = KeyFile.create(tmp_path, unlock_key=FIRST, lock_version=1)
    file.relock(SECOND, 2)
    with pytest.raises(InvalidUnlockKey):
        unlocked(tmp_path, FIRST)
    assert unlocked(tmp_path, SECOND).keys == file.keys
    file.relock(b"", 3)
    found = load_keys(tmp_path)
    assert isinstance(found, KeyFile)
    assert (found.keys, found.lock_version) == (file.keys, 3)


def test_a_change_is_on_disk_when_it_returns(tmp_path: Path) -> None:
    file = KeyFile.create(tmp_path, unlock_key=FIRST, lock_version=1)
    another = StoredKey(2, b"x" * 32, 1)
    file.change(lambda now: msgspec.structs.replace(now, data=(*now.data, another)))
    assert unlocked(tmp_path).keys == file.keys
    assert file.keys.data[-1] == another


def test_keys_do_not_show_in_what_is_printed_of_them() -> None:
    assert "xxx" not in repr(KeySet(data=(StoredKey(1, b"x" * 32, 0),)))


# --- the private key -------------------------------------------------------------------------------------------------------
def test_a_managers_private_key_is_sealed_under_a_lock_and_its_certificate_is_not(tmp_path: Path) -> None:
    own = identity()
    keys = KeyFile.create(tmp_path, unlock_key=FIRST, lock_version=1)
    save_identity(tmp_path, own, keys)
    assert own.key not in pem(tmp_path)
    assert b"PRIVATE KEY-----\nMIG" not in pem(tmp_path)
    assert own.cert in pem(tmp_path)
    assert load_identity(tmp_path, unlocked(tmp_path)) == own
    assert load_certificate(tmp_path) == NodeIdentity(b"", own.cert, own.root)
    with pytest.raises(ValueError, match="sealed with a key that"):
        load_identity(tmp_path)
    with pytest.raises(ValueError, match="sealed with a key that"):
        load_identity(tmp_path, KeyFile.create(tmp_path))


def test_every_new_private_key_is_sealed_with_a_new_key(tmp_path: Path) -> None:
    keys = KeyFile.create(tmp_path, unlock_key=FIRST, lock_version=1)
    save_identity(tmp_path, identity(), keys)
    before = keys.keys.identity
    save_identity(tmp_path, own := identity(), keys)
    assert len(keys.keys.identity) == len(before) == 1
    assert keys.keys.identity[0].secret != before[0].secret
    assert load_identity(tmp_path, unlocked(tmp_path)) == own


@pytest.mark.parametrize("role", ["manager", "worker"])
def test_without_a_lock_or_on_a_worker_it_is_plain(tmp_path: Path, role: str) -> None:
    own = identity(role)
    keys = KeyFile.create(tmp_path, unlock_key=b"" if role == "manager" else FIRST, lock_version=3)
    save_identity(tmp_path, own, keys)
    assert own.key in pem(tmp_path)
    assert load_identity(tmp_path) == own
    assert keys.keys.identity == ()
    assert keys.keys.identity_lock == 3


def test_a_sealed_key_that_was_changed_or_put_to_another_certificate_is_refused(tmp_path: Path) -> None:
    keys = KeyFile.create(tmp_path, unlock_key=FIRST, lock_version=1)
    own = identity()
    save_identity(tmp_path, own, keys)
    sealed = pem(tmp_path).removesuffix(own.cert)
    path = tmp_path / "certificates" / "swarm-node.pem"
    path.write_bytes(sealed + identity().cert)
    with pytest.raises(ValueError, match="sealed with a key that"):
        load_identity(tmp_path, keys)
    body = sealed.index(b"\n") + 30
    path.write_bytes(sealed[:body] + bytes([sealed[body] ^ 1]) + sealed[body + 1 :] + own.cert)
    with pytest.raises(ValueError, match="sealed with a key that"):
        load_identity(tmp_path, keys)


class _Cut(BaseException):
    """The power goes."""


@pytest.mark.parametrize("before", [b"", FIRST])
@pytest.mark.parametrize("after", [b"", SECOND])
def test_a_cut_between_any_two_writes_leaves_key_and_certificate_usable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: bytes, after: bytes
) -> None:
    """The lock changes and the private key with it: whatever was written, what opens the key file opens all of it."""
    from swarm_agent.ca import identity_files, key_file  # noqa: PLC0415

    real = identity_files.write_atomically
    writes = 0
    cut_at: int | None = None

    def write(path: Path, data: bytes, mode: int = 0o600) -> None:
        nonlocal writes
        if writes == cut_at:
            raise _Cut
        writes += 1
        real(path, data, mode)

    monkeypatch.setattr(identity_files, "write_atomically", write)
    monkeypatch.setattr(key_file, "write_atomically", write)

    def life(state: Path) -> tuple[list[NodeIdentity], bool]:
        """Identities that may be found; whether it was cut."""
        nonlocal writes, cut_at
        own, renewed = identity(), identity()
        at, cut_at, writes = cut_at, None, 0
        keys = KeyFile.create(state, unlock_key=before, lock_version=1)
        save_identity(state, own, keys)
        cut_at, writes = at, 0
        try:
            keys.relock(after, 2)
            save_identity(state, renewed, keys)
        except _Cut:
            return [own, renewed], True
        finally:
            cut_at = None
        return [renewed], False

    for number in range(20):
        state = tmp_path / str(number)
        cut_at = number
        acceptable, cut = life(state)
        found = load_keys(state)
        if isinstance(found, LockedKeys):
            locked = found
            for key in (before, after):
                if key:
                    try:
                        found = locked.unlock(key)
                        break
                    except InvalidUnlockKey:
                        continue
        assert isinstance(found, KeyFile)
        own = load_identity(state, found)
        assert own in acceptable
        save_identity(state, own, found)
        assert load_identity(state, found) == own
        assert len(found.keys.identity) == int(found.locked)
        if not cut:
            assert number >= 3
            return
    raise AssertionError("never ran to its end")
