"""The certificate that the service identifies itself with, and its private key (TLS).

The files are examined again every few seconds. A new pair is used for new connections; those that
exist keep the pair that they began with.
"""

import asyncio
import logging
import os
import re
import ssl
import stat
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from app.errors import StartupError
from app.settings import Settings
from app.telemetry.logs import log

if TYPE_CHECKING:
    from cryptography import x509

LOOK_EVERY_S = 5.0
# A pair that cannot be used may become usable without a change of its files: it begins later, or
# the disk did not answer.
RETRY_AFTER = timedelta(minutes=1)
# The log warns once a day from this time before the end on.
WARN_BEFORE = timedelta(days=14)
PEM_PARTS = re.compile(rb"-----BEGIN (?:[A-Z0-9]+ )*?(CERTIFICATE|PRIVATE KEY)-----")
# Of a file: when its content and its permissions were changed, its size, its number; None if it is
# not there.
Version = tuple[int, int, int, int] | None


class CertificateError(StartupError):
    code, title = "certificate_error", "TLS cannot be served"


@dataclass(frozen=True, slots=True)
class CertificateFiles:
    """Two PEM files: a certificate, followed by those of its issuers, and its private key."""

    certificate: Path
    key: Path

    @classmethod
    def of(cls, settings: Settings) -> "CertificateFiles | None":
        """Those of the settings; None if they name none. Raises CertificateError if they name only
        one."""
        certificate, key = settings.tls_cert, settings.tls_key
        if certificate is None and key is None:
            return None
        if certificate is None or key is None:
            given, missing = ("CERT", "KEY") if key is None else ("KEY", "CERT")
            raise CertificateError(
                f"LIKENESS_TLS_{given} is set and LIKENESS_TLS_{missing} is not. TLS needs both: "
                "the file of the certificate and the file of its private key."
            )
        return cls(certificate, key)

    def versions(self) -> tuple[Version, Version]:
        """Differ when one of the files was changed."""
        return _version(self.certificate), _version(self.key)

    def load(self, now: datetime) -> tuple[ssl.SSLContext, datetime]:
        """TLS with this pair, and when its certificate ends. Raises CertificateError if a file
        cannot be read, if they do not belong together, or if the certificate is not valid now."""
        context = _context(self)
        certificate = _first_certificate(self.certificate)
        if now >= certificate.not_valid_after_utc:
            raise CertificateError(
                f"The TLS certificate {self.certificate} ended on "
                f"{_written(certificate.not_valid_after_utc)}. Write a new one to the file."
            )
        if now < certificate.not_valid_before_utc:
            raise CertificateError(
                f"The TLS certificate {self.certificate} is not valid before "
                f"{_written(certificate.not_valid_before_utc)}, and it is {_written(now)} now. "
                "Check the clock of this machine, or write another certificate to the file."
            )
        return context, certificate.not_valid_after_utc


class ServerCertificate:
    """The pair in use. `context` and `ends` change when the files do."""

    def __init__(
        self,
        files: CertificateFiles,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Raises CertificateError if the files hold no pair that is valid now."""
        self._files = files
        self._now = now
        self._tried = self._seen = files.versions()
        self._warned_at: datetime | None = None
        self._refused_at: datetime | None = None  # that the files were loaded without success
        self.context, self.ends = files.load(now())

    @classmethod
    def of(cls, settings: Settings) -> "ServerCertificate | None":
        """That of the settings; None if they name none. Raises CertificateError."""
        files = CertificateFiles.of(settings)
        return None if files is None else cls(files)

    def warn_of_readers(self) -> None:
        """Log that others may read the private key. Of another user's file, such as root's, the
        group may be the service's only way to read it."""
        found = self._files.key.stat()
        others = stat.S_IRWXO | (stat.S_IRWXG if found.st_uid == os.geteuid() else 0)
        if found.st_mode & others:
            log(logging.WARNING, "others can read the private key of the TLS certificate",
                path=str(self._files.key), mode=f"{stat.S_IMODE(found.st_mode):04o}")  # fmt: skip

    async def watch(self, every_s: float = LOOK_EVERY_S) -> None:
        """Follow the files until this is cancelled."""
        while True:
            self.warn_of_its_end()
            await asyncio.sleep(every_s)
            await asyncio.to_thread(self.follow)

    def follow(self) -> None:
        """Load the files if they were changed, but not since the last call: a pair that is being
        written is not read. One that cannot be used is logged, the pair in use is kept, and the
        new one is tried again every minute."""
        found, now = self._files.versions(), self._now()
        settled, self._seen = found == self._seen, found
        again = self._refused_at is not None and now - self._refused_at >= RETRY_AFTER
        changed = found != self._tried
        if not (settled and (changed or again)):
            return
        self._tried = found
        try:
            self.context, self.ends = self._files.load(now)
        except Exception as error:  # noqa: BLE001 (whatever it is, the next pair must be found)
            self._refused_at = now
            if changed:
                reason = error.detail if isinstance(error, CertificateError) else repr(error)
                log(logging.ERROR, "the new TLS certificate cannot be used; the old one is kept",
                    reason=reason, old_one_ends=_written(self.ends))  # fmt: skip
            return
        self._warned_at = self._refused_at = None
        log(logging.INFO, "a new TLS certificate is in use",
            file=str(self._files.certificate), ends=_written(self.ends))  # fmt: skip

    def warn_of_its_end(self) -> None:
        """Log that the certificate ends soon or has ended, once a day."""
        now = self._now()
        due = self._warned_at is None or now - self._warned_at >= timedelta(days=1)
        if now >= self.ends - WARN_BEFORE and due:
            self._warned_at = now
            log(logging.WARNING, "the TLS certificate must be renewed",
                file=str(self._files.certificate), ends=_written(self.ends))  # fmt: skip


def _version(file: Path) -> Version:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino


def _context(files: CertificateFiles) -> ssl.SSLContext:
    """TLS 1.2 and 1.3 with Python's choice of ciphers, all of which have forward secrecy."""
    for file, what in ((files.certificate, "certificate"), (files.key, "private key")):
        _require_readable(file, what)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    try:
        # Without a function OpenSSL would ask on the terminal.
        context.load_cert_chain(files.certificate, files.key, _no_password)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise CertificateError(
                f"The private key {files.key} is not that of the TLS certificate "
                f"{files.certificate}. If the file has several certificates, the service's own "
                "must be the first."
            ) from error
        raise CertificateError(
            f"The TLS certificate {files.certificate} and the private key {files.key} cannot be "
            f"used ({error.reason or _fault(files)}). Both must be PEM files: one of the "
            "certificate, followed by those of its issuers, one of its private key."
        ) from error
    except OSError as error:  # it was removed or replaced just now
        raise CertificateError(
            f"The TLS certificate {files.certificate} or the private key {files.key} cannot be "
            f"read: {error.strerror}. Write both files."
        ) from error
    return context


def _fault(files: CertificateFiles) -> str:
    """What is wrong with two files of which OpenSSL gives no reason."""
    first, second = (_in_pem(file) for file in (files.certificate, files.key))
    if "certificate" in first and "private key" in second:
        return "their contents are damaged"
    if first == {"private key"} and "certificate" in second:
        return "LIKENESS_TLS_CERT and LIKENESS_TLS_KEY are interchanged"
    if not first and not second:
        return "they are not PEM"
    name, what = ("KEY", "private key") if "certificate" in first else ("CERT", "certificate")
    return f"LIKENESS_TLS_{name} has no {what} in PEM"


def _in_pem(file: Path) -> set[str]:
    try:
        content = file.read_bytes()
    except OSError:  # it was removed just now
        return set()
    return {one.decode().lower() for one in PEM_PARTS.findall(content)}


def _require_readable(file: Path, what: str) -> None:
    try:
        with file.open("rb"):
            pass
    except OSError as error:
        raise CertificateError(
            f"The file {file} of the TLS {what} cannot be read: {error.strerror}. Set "
            f"LIKENESS_TLS_{'CERT' if what == 'certificate' else 'KEY'} to a PEM file that the "
            "service's user may read."
        ) from error


def _no_password() -> str:
    raise CertificateError(
        "The private key in LIKENESS_TLS_KEY is encrypted with a password, for which nobody could "
        "be asked at a restart. Decrypt it (openssl pkey -in KEY -out FILE) and restrict who may "
        "read the file."
    )


def _first_certificate(file: Path) -> "x509.Certificate":
    from cryptography import x509  # noqa: PLC0415 (only TLS needs it)

    try:
        return x509.load_pem_x509_certificates(file.read_bytes())[0]
    except (OSError, ValueError, IndexError, x509.InvalidVersion) as error:
        raise CertificateError(
            f"The TLS certificate {file} cannot be read: {error}. Write a PEM file there."
        ) from error


def _written(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M} UTC"
