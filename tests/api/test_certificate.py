"""The certificate of the service: what is refused at the start, and what becomes of new files."""

import logging
import ssl
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from app.api.certificate import CertificateError, CertificateFiles, ServerCertificate
from app.settings import Settings
from tests.certificates import YEAR, Pair, make_pair


def files_of(pair: Pair) -> CertificateFiles:
    return CertificateFiles(pair.certificate, pair.key)


def test_without_settings_there_is_none() -> None:
    assert ServerCertificate.of(Settings()) is None


@pytest.mark.parametrize("given", ["tls_cert", "tls_key"])
def test_one_file_of_two(tmp_path: Path, given: str) -> None:
    with pytest.raises(CertificateError, match="TLS needs both"):
        ServerCertificate.of(Settings(**{given: tmp_path / "file"}))


def write(text: bytes) -> Callable[[Pair], None]:
    return lambda pair: (pair.certificate.write_bytes(text), None)[1]


def mismatch(pair: Pair) -> None:
    pair.key.write_bytes(make_pair(pair.key.parent, "other").key.read_bytes())


def interchanged(pair: Pair) -> None:
    certificate = pair.certificate.read_bytes()
    pair.certificate.write_bytes(pair.key.read_bytes())
    pair.key.write_bytes(certificate)


def both_without_pem(pair: Pair) -> None:
    for file in (pair.certificate, pair.key):
        file.write_bytes(b"\x30\x82")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda pair: pair.certificate.unlink(), "service.crt of the TLS certificate cannot be"),
        (lambda pair: pair.key.unlink(), "service.key of the TLS private key cannot be read: No"),
        (mismatch, "service.key is not that of the TLS certificate"),
        (write(b""), "LIKENESS_TLS_CERT has no certificate in PEM"),
        (interchanged, "LIKENESS_TLS_CERT and LIKENESS_TLS_KEY are interchanged"),
        (lambda pair: (pair.key.write_bytes(b"x"), None)[1], "TLS_KEY has no private key in PEM"),
        (both_without_pem, "they are not PEM"),
        (write(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"), "be used"),
    ],
    ids=[
        "no certificate",
        "no key",
        "another key",
        "empty",
        "interchanged",
        "text as key",
        "no PEM",
        "damaged",
    ],
)
def test_files_that_cannot_be_used(
    tmp_path: Path, damage: Callable[[Pair], None], said: str
) -> None:
    pair = make_pair(tmp_path)
    damage(pair)
    with pytest.raises(CertificateError, match=said):
        ServerCertificate(files_of(pair))


def test_files_that_the_user_may_not_read(tmp_path: Path) -> None:
    """A folder cannot be read as a file by root either."""
    with pytest.raises(CertificateError, match="Is a directory"):
        ServerCertificate(CertificateFiles(tmp_path, tmp_path))


@pytest.mark.parametrize(
    ("begins", "ends", "said"),
    [(-YEAR, timedelta(hours=-1), "ended on"), (timedelta(hours=1), YEAR, "not valid before")],
)
def test_a_certificate_that_is_not_valid_now(
    tmp_path: Path, begins: timedelta, ends: timedelta, said: str
) -> None:
    with pytest.raises(CertificateError, match=said):
        ServerCertificate(files_of(make_pair(tmp_path, begins=begins, ends=ends)))


def test_a_key_with_a_password_is_refused_without_asking(tmp_path: Path) -> None:
    with pytest.raises(CertificateError, match="encrypted with a password"):
        ServerCertificate(files_of(make_pair(tmp_path, password=b"secret")))


def test_new_files_are_used_when_they_have_settled(tmp_path: Path) -> None:
    pair, new = make_pair(tmp_path), make_pair(tmp_path, "new", ends=2 * YEAR)
    used = ServerCertificate(files_of(pair))
    first, ends = used.context, used.ends
    assert first.minimum_version is ssl.TLSVersion.TLSv1_2
    used.follow()
    assert used.context is first
    pair.replace_by(new)
    used.follow()
    assert used.context is first, "they may still be written"
    used.follow()
    assert used.context is not first
    assert used.ends > ends


def test_new_files_that_cannot_be_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The old pair is kept; the log says why, once; the next good pair is used."""
    pair = make_pair(tmp_path)
    used = ServerCertificate(files_of(pair))
    first = used.context
    mismatch(pair)
    with caplog.at_level(logging.INFO, "likeness"):
        for _ in range(4):
            used.follow()
        pair.certificate.unlink()
        for _ in range(4):
            used.follow()
    assert used.context is first
    reasons = [record.fields["reason"] for record in caplog.records]  # type: ignore[attr-defined]
    assert ["is not that of" in reasons[0], "No such file" in reasons[1]] == [True, True]
    assert len(reasons) == 2
    pair.replace_by(make_pair(tmp_path, "new"))
    used.follow()
    used.follow()
    assert used.context is not first


def test_an_error_that_nobody_foresaw_does_not_end_the_watching(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pair = make_pair(tmp_path)
    used = ServerCertificate(files_of(pair))
    first = used.context

    def broken(*_: object) -> None:
        raise ValueError("of a library")

    pair.replace_by(make_pair(tmp_path, "new"))
    with monkeypatch.context() as failing:
        failing.setattr(CertificateFiles, "load", broken)
        for _ in range(4):
            used.follow()
    assert used.context is first
    reasons = [record.fields["reason"] for record in caplog.records]  # type: ignore[attr-defined]
    assert reasons == ["ValueError('of a library')"]
    pair.replace_by(make_pair(tmp_path, "newest"))
    used.follow()
    used.follow()
    assert used.context is not first


def test_a_file_that_may_be_read_only_now(tmp_path: Path) -> None:
    """A change of permissions changes neither the content nor its time."""
    pair = make_pair(tmp_path)
    before = files_of(pair).versions()
    pair.key.chmod(0o640)
    assert files_of(pair).versions() != before


def test_new_files_that_begin_later(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """They are used when they begin, although nothing is written any more."""
    now = [datetime.now(UTC)]
    pair = make_pair(tmp_path)
    used = ServerCertificate(files_of(pair), lambda: now[0])
    first = used.context
    pair.replace_by(make_pair(tmp_path, "new", begins=timedelta(hours=1)))
    with caplog.at_level(logging.ERROR, "likeness"):
        for minutes in (0, 1, 2, 30, 59):
            now[0] = datetime.now(UTC) + timedelta(minutes=minutes)
            used.follow()
            assert used.context is first
    assert len(caplog.records) == 1
    now[0] = datetime.now(UTC) + timedelta(minutes=61)
    used.follow()
    assert used.context is not first


def test_a_file_that_vanishes_while_it_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Following goes on: a failure of any other kind would end it for ever."""
    pair, new = make_pair(tmp_path), make_pair(tmp_path, "new")
    used = ServerCertificate(files_of(pair))
    first = used.context
    pair.replace_by(new)
    monkeypatch.setattr(
        "app.api.certificate._require_readable", lambda *_: pair.key.unlink(missing_ok=True)
    )
    used.follow()
    used.follow()
    assert used.context is first


def test_the_log_says_that_it_must_be_renewed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Once a day."""
    now = [datetime.now(UTC)]
    used = ServerCertificate(files_of(make_pair(tmp_path, ends=timedelta(days=30))), lambda: now[0])
    with caplog.at_level(logging.WARNING, "likeness"):
        for day in (0, 15, 17, 17.5, 18.1, 40):
            now[0] = datetime.now(UTC) + timedelta(days=day)
            used.warn_of_its_end()
    assert [record.message for record in caplog.records] == [
        "the TLS certificate must be renewed"
    ] * 3


@pytest.mark.parametrize(
    ("mode", "mine", "warned"),
    [(0o600, True, False), (0o400, False, False), (0o640, True, True), (0o640, False, False),
     (0o644, False, True)],
)  # fmt: skip
def test_a_key_that_others_may_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
    mode: int, mine: bool, warned: bool,
) -> None:  # fmt: skip
    """Of a key of root's, the group may be the service's."""
    files = files_of(make_pair(tmp_path))
    files.key.chmod(mode)
    certificate = ServerCertificate(files)
    if not mine:
        monkeypatch.setattr("os.geteuid", lambda: files.key.stat().st_uid + 1)
    with caplog.at_level(logging.WARNING, "likeness"):
        certificate.warn_of_readers()
    assert [record.fields for record in caplog.records] == (  # type: ignore[attr-defined]
        [{"path": str(files.key), "mode": f"{mode:04o}"}] if warned else []
    )
