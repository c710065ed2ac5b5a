"""The CURVE keys by which hubs on several hosts authenticate each other: creating and loading them.

```
$DPWATCH_KEYS | $XDG_CONFIG_HOME/dpwatch/keys | ~/.config/dpwatch/keys      0700
├── head.json      {"public": …, "secret": …}, the head's key pair            0600
└── client.json    the same for joining hubs; a head admits only this one     0600
```

Every host of a run needs the directory: on a shared home, copied, or mounted from a secret.
"""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

import msgspec
import zmq

HEAD_FILE, CLIENT_FILE = "head.json", "client.json"
KEY_CHARS = 40
"""Length of a key in Z85, ZeroMQ's text form of 32 bytes."""

_LARGEST_FILE = 4096
_OTHERS, _BUT_GROUP = 0o077, 0o037
"""Mode bits that must not be set on one's own files, and on root's: Kubernetes' fsGroup makes those
readable by a group."""


class KeysError(OSError):
    """The keys are missing or unusable; the message says what to do."""


class Pair(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A CURVE key pair, in Z85."""

    public: str
    secret: str

    def __repr__(self) -> str:
        return f"Pair({self.fingerprint})"

    @property
    def fingerprint(self) -> str:
        """The start of the public key's SHA-256, for people to compare."""
        digest = hashlib.sha256(self.public.encode()).hexdigest()[:16]
        return ":".join(digest[i : i + 4] for i in range(0, len(digest), 4))


class Keys(msgspec.Struct, frozen=True):
    """The key pairs of both sides."""

    head: Pair
    client: Pair


def keys_path() -> Path:
    """Path of the directory that holds the keys, whether it exists or not."""
    if named := os.environ.get("DPWATCH_KEYS"):
        return Path(named).absolute()
    config = os.environ.get("XDG_CONFIG_HOME")
    return (Path(config) if config else Path.home() / ".config") / "dpwatch" / "keys"


def make_keys(folder: Path) -> Keys:
    """Creates both key pairs.

    Raises:
        KeysError: Keys exist already, or the directory cannot be created or written.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
        keys = Keys(_new_pair(), _new_pair())
        _write(folder / HEAD_FILE, keys.head)
        _write(folder / CLIENT_FILE, keys.client)
    except FileExistsError as error:
        raise KeysError(f"{error.filename} exists already: remove it to create new keys") from None
    except OSError as error:
        raise KeysError(f"cannot write keys to {folder}: {error.strerror}") from None
    return keys


def load_keys(folder: Path) -> Keys | None:
    """Loads the keys of a directory, None if it has none.

    Raises:
        KeysError: They are readable by others, belong to another user, or are invalid.
    """
    head, client = (_read(folder / name) for name in (HEAD_FILE, CLIENT_FILE))
    if head is None and client is None:
        return None
    if head is None or client is None:
        missing = HEAD_FILE if head is None else CLIENT_FILE
        raise KeysError(f"{folder / missing} is missing: copy both key files to every host")
    return Keys(head, client)


def _new_pair() -> Pair:
    public, secret = zmq.curve_keypair()
    return Pair(public.decode("ascii"), secret.decode("ascii"))


def _write(path: Path, pair: Pair) -> None:
    """Creates the file with its final mode, whatever the umask, so others can never read it."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with open(fd, "wb") as file:
        os.fchmod(fd, 0o600)  # the umask may have removed even the owner's right to read
        file.write(msgspec.json.encode(pair) + b"\n")
        file.flush()
        os.fsync(fd)


def _read(path: Path) -> Pair | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise KeysError(f"cannot read {path}: {error.strerror}") from None
    with open(fd, "rb") as file:
        _check(path, os.fstat(fd))
        text = file.read(_LARGEST_FILE)
    try:
        pair = msgspec.json.decode(text, type=Pair)
        derived = zmq.curve_public(pair.secret.encode("ascii")).decode("ascii")
    except (msgspec.MsgspecError, UnicodeError, ValueError, zmq.ZMQError):
        derived = None
    if derived is None or len(pair.secret) != KEY_CHARS or derived != pair.public:
        raise KeysError(
            f"{path} is not a key pair: remove it and create new ones with dpwatch keys"
        )
    return pair


def _check(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise KeysError(f"{path} is not a regular file")
    mine = status.st_uid == os.getuid()
    if not mine and status.st_uid != 0:
        raise KeysError(f"{path} belongs to another user: create your own keys with dpwatch keys")
    if stat.S_IMODE(status.st_mode) & (_OTHERS if mine else _BUT_GROUP):
        raise KeysError(f"{path} is readable by others: chmod 600 it, or create new keys")
