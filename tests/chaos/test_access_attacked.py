"""Access keys and their limits over HTTP: several processes, many clients, kills, a full disk."""

import itertools
import random
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.store.sql.audit_log import AuditEntry
from tests.chaos.served import Installation, Serving
from tests.waiting import until

pytestmark = pytest.mark.chaos


@pytest.fixture(params=["sqlite", "postgresql"])
def installation(request: pytest.FixtureRequest, tmp_path: Path) -> Installation:
    url = None
    if request.param == "postgresql":
        url = request.getfixturevalue("postgres").new_database()
    return Installation(tmp_path / "data", url)


@pytest.fixture
def admin(installation: Installation) -> str:
    return installation.create_key()


@pytest.fixture
def two(installation: Installation, admin: str) -> Iterator[list[Serving]]:
    assert admin
    with ExitStack() as stack:
        yield [stack.enter_context(installation.start()) for _ in range(2)]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 12 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(folder)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def created(service: Serving, admin: str, **fields: Any) -> httpx.Response:
    body = {"name": "gate", "scopes": ["manage"], **fields}
    return service.ask("POST", "/v1/keys", admin, json=body)


class Use:
    """Clients that use a token at several processes, all the time."""

    def __init__(self, services: list[Serving], token: str) -> None:
        self.accepted, self.revoked, self.over = (threading.Event() for _ in range(3))
        self.accepted_late: list[tuple[str, int]] = []
        self._token = token
        self._clients = [
            threading.Thread(target=self._use, args=[service])
            for service in services
            for _ in range(3)
        ]
        for one in self._clients:
            one.start()

    def _use(self, service: Serving) -> None:
        with httpx.Client(base_url=service.url, timeout=60) as client:
            while not self.over.is_set():
                late = self.revoked.is_set()
                try:
                    answer = client.get("/v1/collections", headers={"X-Api-Key": self._token})
                except httpx.RemoteProtocolError:
                    # A call that is under way when its key is revoked is cut; a later one is not.
                    if late:
                        self.accepted_late.append((service.url, 0))
                    continue
                if answer.status_code == 200:
                    self.accepted.set()
                if late and answer.status_code != 401:
                    self.accepted_late.append((service.url, answer.status_code))

    def end(self) -> None:
        self.over.set()
        for one in self._clients:
            one.join()


def test_a_revocation_is_effective_in_every_process_when_it_is_acknowledged(
    two: list[Serving], admin: str
) -> None:
    for turn in range(4):
        name = f"gate-{turn}"
        use = Use(two, created(two[turn % 2], admin, name=name).json()["token"])
        try:
            assert use.accepted.wait(60)
            assert two[turn // 2].ask("DELETE", f"/v1/keys/{name}", admin).is_success
            use.revoked.set()
            time.sleep(1)
        finally:
            use.end()
        assert use.accepted_late == []


def test_one_usable_key_of_a_name(
    two: list[Serving], admin: str, installation: Installation
) -> None:
    """Of many that are created at once, by two processes."""
    with ThreadPoolExecutor(16) as pool:
        answers = [
            one.result() for one in [pool.submit(created, two[at % 2], admin) for at in range(16)]
        ]
    codes = sorted(answer.status_code for answer in answers)
    assert codes == [201] + [409] * 15
    verification, entries = installation.audit()
    assert verification.problem is None
    assert [one.members["action"] for one in entries].count("key.created") == 2


def test_the_photos_of_a_day_over_two_processes(
    two: list[Serving], admin: str, installation: Installation
) -> None:
    """Exactly the quota is accepted; a process that is killed may take what it had reserved."""
    limits = {"photos_per_day": 20}
    token = created(two[0], admin, name="camera", scopes=["detect"], limits=limits).json()["token"]
    time.sleep(2)  # until both know it

    def send(service: Serving) -> int:
        answer = service.ask("POST", "/v1/detect", token, "image/jpeg", content=b"no photo")
        return answer.status_code

    with ThreadPoolExecutor(12) as pool:
        codes = [one.result() for one in [pool.submit(send, two[at % 2]) for at in range(40)]]
    assert codes.count(429) == 20, codes
    two[0].kill()
    with installation.start() as again:
        assert send(again) == 429


class Changes:
    """Keys that clients create and revoke, and what became of them."""

    def __init__(self, admin: str) -> None:
        self.tokens: dict[str, str] = {}  # of keys whose creation was acknowledged, by name
        self.revoked: set[str] = set()
        self.asked: set[str] = set()  # revocations without an answer
        self._admin = admin

    def until_killed(self, service: Serving, prefix: str) -> None:
        """Create keys and revoke every other one, until the process is gone."""
        with suppress(httpx.TransportError):
            for number in itertools.count():
                name = f"{prefix}-{number}"
                self.tokens[name] = created(service, self._admin, name=name).json()["token"]
                if number % 2:
                    self.asked.add(name)
                    if service.ask("DELETE", f"/v1/keys/{name}", self._admin).is_success:
                        self.revoked.add(name)

    def wrong(self, service: Serving) -> dict[str, int]:
        """Keys that are answered otherwise than was acknowledged, and how."""
        found = {
            name: service.ask("GET", "/v1/collections", token).status_code
            for name, token in self.tokens.items()
        }
        unclear = self.asked - self.revoked
        return {
            name: status
            for name, status in found.items()
            if name not in unclear and status != (401 if name in self.revoked else 200)
        }


def test_keys_through_kills(installation: Installation, admin: str) -> None:
    """Each key that was acknowledged is there, each that was revoked stays so, and the audit log
    has each change that was kept and no other."""
    changes = Changes(admin)
    for cycle in range(4):
        service, before = installation.start(), len(changes.revoked)
        clients = [
            threading.Thread(target=changes.until_killed, args=[service, f"k{cycle}-{worker}"])
            for worker in range(4)
        ]
        for one in clients:
            one.start()
        until(lambda before=before: len(changes.revoked) > before)  # type: ignore[misc]
        time.sleep(random.uniform(0, 1))
        service.kill()
        for one in clients:
            one.join()
    with installation.start() as service:
        assert changes.wrong(service) == {}
        listed = service.ask("GET", "/v1/keys", admin).json()["items"]
    verification, entries = installation.audit()
    assert verification.problem is None
    assert named(entries, "key.created") == sorted(one["name"] for one in listed)
    ended = sorted(one["name"] for one in listed if one["revoked_at"])
    assert named(entries, "key.revoked") == ended


def named(entries: list[AuditEntry], action: str) -> list[str]:
    """The names of keys that entries of an action are about."""
    members = [one.members for one in entries]
    return sorted(one["details"]["name"] for one in members if one["action"] == action)


def test_a_full_disk_while_keys_are_changed(small_disk: Path) -> None:
    """No key without its entry in the audit log, and none whose creation was refused; what was
    created before is still accepted, and revoked when there is room again."""
    installation = Installation(small_disk / "data")
    admin = installation.create_key()
    with installation.start() as service:
        assert created(service, admin, name="before").status_code == 201
        token = created(service, admin, name="kept").json()["token"]
        filler = small_disk / "filler"
        fill(filler)
        acknowledged, refused = ["admin", "before", "kept"], set[int]()
        for number in range(200):
            answer = created(service, admin, name=f"full-{number}")
            if answer.status_code == 201:
                acknowledged.append(f"full-{number}")
            else:
                refused.add(answer.status_code)
                fill(filler)
            if len(refused) and number > 20:
                break
        assert refused <= {507, 503}
        assert refused
        assert service.ask("GET", "/v1/collections", token).status_code == 200
        revoked = service.ask("DELETE", "/v1/keys/before", admin).status_code
        assert revoked in (200, 507, 503)
        filler.unlink()
        assert service.ask("DELETE", "/v1/keys/kept", admin).status_code == 200
        assert service.ask("GET", "/v1/collections", token).status_code == 401
        assert created(service, admin, name="after").status_code == 201
        listed = service.ask("GET", "/v1/keys", admin).json()["items"]
    assert sorted(one["name"] for one in listed) == sorted([*acknowledged, "after"])
    ended = {one["name"] for one in listed if one["revoked_at"]}
    assert ended == ({"before", "kept"} if revoked == 200 else {"kept"})
    verification, entries = installation.audit()
    assert verification.problem is None
    assert named(entries, "key.created") == sorted([*acknowledged, "after"])


def fill(file: Path) -> None:
    """Append to a file until its disk is full."""
    with suppress(OSError), file.open("ab", buffering=0) as target:
        while True:
            target.write(bytes(512))
