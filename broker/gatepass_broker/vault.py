"""Where private keys outlive a run of the broker, so that a restart or a crash needs no new one. Never on a disk.

Three ways, the first that there is: a seed that the service manager decrypts for us (systemd.exec(5),
`LoadCredentialEncrypted=`), files in memory that it keeps for us (`FileDescriptorStoreMax=`), or none at all.
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from gatepass.daemon.systemd import Inherited, Manager, Notifier
from gatepass.errors import ConfigurationError
from gatepass_broker.events import PublishedKey
from gatepass_broker.keys import SigningKey

SEED_CREDENTIAL: Final = "signing-seed"
"""Name of the credential that holds the seed: 32 random bytes or more."""

PREFIX: Final = "key-"
"""Before the kid, in the names of files that the service manager keeps."""

_KEY_BYTES: Final = 32
"""Of an Ed25519 private key: RFC 8032 section 5.1.5."""
_SEALS: Final = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


class Vault:
    """Makes private keys, and remembers none: each run of the broker has keys of its own."""

    def make(self, made: float, lifetime: int) -> SigningKey:
        """Return a new key, made at `made` (seconds since the epoch), that signs for `lifetime` seconds."""
        return SigningKey(made, lifetime)

    def recall(self, key: PublishedKey) -> SigningKey | None:
        """Return the private half of a key of an earlier run, None if it is lost."""
        del key
        return None

    def hold(self, keys: Sequence[SigningKey]) -> None:
        """Remember `keys`, which are on the record, and forget all others."""


class SeedVault(Vault):
    """Derives each key from a seed and the moment at which it was made: what is lost can be made again."""

    def __init__(self, seed: bytes) -> None:
        self._seed = seed

    def make(self, made: float, lifetime: int) -> SigningKey:
        """Return the key of that moment."""
        derive = HKDF(SHA256(), _KEY_BYTES, salt=None, info=b"gatepass signing key\0" + struct.pack(">d", made))
        return SigningKey(made, lifetime, Ed25519PrivateKey.from_private_bytes(derive.derive(self._seed)))

    def recall(self, key: PublishedKey) -> SigningKey | None:
        """Return the key again; None if it was made from another seed."""
        return _if_same(self.make(key.made, key.signs_until - int(key.made)), key)


class DescriptorVault(Vault):
    """Has the service manager keep each key in a file that exists in memory only (memfd_create(2))."""

    def __init__(self, kept: Sequence[Inherited], notifier: Notifier) -> None:
        self._kept = {entry.name: entry.descriptor for entry in kept}
        self._names = set(self._kept)
        self._notifier = notifier

    def recall(self, key: PublishedKey) -> SigningKey | None:
        """Return the key that was kept under this kid."""
        descriptor = self._kept.get(PREFIX + key.kid)
        if descriptor is None:
            return None
        try:
            secret = os.pread(descriptor, _KEY_BYTES + 1, 0)
        except OSError:  # it is anything but a file
            return None
        if len(secret) != _KEY_BYTES:
            return None
        private = Ed25519PrivateKey.from_private_bytes(secret)
        return _if_same(SigningKey(key.made, key.signs_until - int(key.made), private), key)

    def hold(self, keys: Sequence[SigningKey]) -> None:
        """Have `keys` kept, then the others forgotten: at no moment is there none."""
        wanted = {PREFIX + key.kid: key for key in keys}
        for name in wanted.keys() - self._names:
            self._keep(name, wanted[name])
        for name in self._names - wanted.keys():
            self._notifier.forget(name)
        self._names = set(wanted)
        while self._kept:
            os.close(self._kept.popitem()[1])

    def _keep(self, name: str, key: SigningKey) -> None:
        with suppress(OSError):  # a key that cannot be kept costs the next run a new one, and no token its validity
            descriptor = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            try:
                os.write(descriptor, key.secret())
                fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
                self._notifier.keep(name, descriptor)
            finally:
                os.close(descriptor)


def open_vault(manager: Manager) -> Vault:
    """Return the best vault that the service manager makes possible. Raise `ConfigurationError`."""
    if manager.credentials is not None and (path := manager.credentials / SEED_CREDENTIAL).exists():
        return SeedVault(_read_seed(path))
    if manager.notifier.is_managed:
        return DescriptorVault(manager.kept(), manager.notifier)
    return Vault()


def _read_seed(path: Path) -> bytes:
    try:
        seed = path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"the credential cannot be read: {error.strerror}", where=str(path)) from None
    if len(seed) < _KEY_BYTES:
        raise ConfigurationError(
            f"the credential has {len(seed)} bytes and needs {_KEY_BYTES} random ones: "
            f"head -c 32 /dev/urandom | systemd-creds encrypt --name={SEED_CREDENTIAL} - FILE",
            where=str(path),
        )
    return seed


def _if_same(found: SigningKey, key: PublishedKey) -> SigningKey | None:
    return found if found.kid == key.kid else None
