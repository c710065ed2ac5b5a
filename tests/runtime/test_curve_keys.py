"""Key files: their modes under any umask, and what is refused."""

import os
import stat

import pytest

from dpwatch.runtime.curve_keys import (
    CLIENT_FILE,
    HEAD_FILE,
    KeysError,
    keys_path,
    load_keys,
    make_keys,
)


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077, 0o277])
def test_only_the_owner_can_read_them(tmp_path, umask):
    folder = tmp_path / "keys"
    before = os.umask(umask)
    try:
        made = make_keys(folder)
    finally:
        os.umask(before)
    assert mode(folder) == 0o700
    assert mode(folder / HEAD_FILE) == mode(folder / CLIENT_FILE) == 0o600
    assert load_keys(folder) == made
    assert made.head != made.client


def test_existing_keys_are_not_overwritten(tmp_path):
    made = make_keys(tmp_path)
    with pytest.raises(KeysError, match="exists already"):
        make_keys(tmp_path)
    assert load_keys(tmp_path) == made


def test_an_empty_directory_has_no_keys(tmp_path):
    assert load_keys(tmp_path) is None


@pytest.mark.parametrize("open_to", [0o640, 0o604, 0o644, 0o620])
def test_keys_that_others_can_read_are_refused(tmp_path, open_to):
    make_keys(tmp_path)
    (tmp_path / CLIENT_FILE).chmod(open_to)
    with pytest.raises(KeysError, match="is readable by others"):
        load_keys(tmp_path)


def test_a_missing_key_file_is_reported(tmp_path):
    make_keys(tmp_path)
    (tmp_path / HEAD_FILE).unlink()
    with pytest.raises(KeysError, match=r"head\.json is missing"):
        load_keys(tmp_path)


@pytest.mark.parametrize(
    "text",
    ["", "{}", "[1]", '{"public": "x", "secret": "y"}', '{"public": "é", "secret": "é"}', "\x00"],
)
def test_invalid_key_files_are_refused(tmp_path, text):
    make_keys(tmp_path)
    (tmp_path / CLIENT_FILE).write_text(text)
    with pytest.raises(KeysError, match="not a key pair"):
        load_keys(tmp_path)


def test_a_public_key_that_does_not_match_is_refused(tmp_path):
    make_keys(tmp_path)
    head, client = ((tmp_path / name).read_text() for name in (HEAD_FILE, CLIENT_FILE))
    mixed = client.split('"secret"')[0] + '"secret"' + head.split('"secret"')[1]
    (tmp_path / CLIENT_FILE).write_text(mixed)
    with pytest.raises(KeysError, match="not a key pair"):
        load_keys(tmp_path)


def test_secrets_are_not_shown(tmp_path):
    made = make_keys(tmp_path)
    assert made.head.secret not in repr(made)
    assert made.client.fingerprint in repr(made)


def test_the_key_directory_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("DPWATCH_KEYS", str(tmp_path))
    assert keys_path() == tmp_path
    monkeypatch.delenv("DPWATCH_KEYS")
    monkeypatch.setenv("XDG_CONFIG_HOME", "/c")
    assert str(keys_path()) == "/c/dpwatch/keys"


@pytest.mark.parametrize(("mode_there", "fine"), [(0o440, True), (0o444, False), (0o460, False)])
def test_roots_files_may_be_group_readable(tmp_path, monkeypatch, mode_there, fine):
    """As Kubernetes mounts a secret for a user who is not root."""
    if os.getuid():
        pytest.skip("needs root to make root's files")
    made = make_keys(tmp_path)
    for name in (HEAD_FILE, CLIENT_FILE):
        (tmp_path / name).chmod(mode_there)
    monkeypatch.setattr(os, "getuid", lambda: 1000)
    if fine:
        assert load_keys(tmp_path) == made
    else:
        with pytest.raises(KeysError, match="is readable by others"):
            load_keys(tmp_path)
