"""`likeness keys`, and when `likeness serve` needs a key."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from app.access.keys import NewKey, Scope, id_of
from app.cli.commands import app
from app.cli.serving import access_state, is_loopback, require_access_keys
from app.errors import AccessKeyError, StoreFull
from app.services import Services, build_services
from app.settings import Settings


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LIKENESS_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setattr("app.cli.keys.LEASE_S", 0.0)
    return tmp_path / "data"


def run(*arguments: str, code: int = 0) -> tuple[str, str]:
    result = CliRunner().invoke(app, ["keys", *arguments])
    assert result.exit_code == code, result.output
    return result.stdout, result.stderr


def test_a_key_from_creation_to_revocation() -> None:
    token, about = run("create", "--name", "entrance-1", "--scope", "identify",
                       "--collection", "staff", "--expires", "90d")  # fmt: skip
    assert str(id_of(token.strip())) in about
    assert "identify in staff" in about
    shown, _ = run("list")
    assert "entrance-1" in shown
    assert token.strip() not in shown
    new, about = run("rotate", "entrance-1", "--overlap", "2h")
    assert id_of(new.strip()) != id_of(token.strip())
    assert "accepted for 2h more" in about
    shown, about = run("revoke", "entrance-1")
    assert shown.count("revoked entrance-1") == 2
    assert "No usable access key is left, and calls still need one" in about
    shown, _ = run("list")
    assert shown.count("revoked 20") == 2


def test_no_key_is_created_or_replaced_whose_token_cannot_be_printed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run("create", "--name", "entrance-1", "--scope", "identify")
    before = run("list")

    def full(_token: str) -> None:
        raise StoreFull("Standard output cannot be written.")

    with monkeypatch.context() as patch:
        patch.setattr("app.cli.keys.typer.echo", full)
        run("create", "--name", "entrance-2", "--scope", "identify", code=2)
        run("rotate", "entrance-1", "--overlap", "0h", code=2)
    assert run("list") == before


@pytest.mark.parametrize(
    "wrong",
    [
        ["--name", "a b"],
        ["--scope", "everything"],
        ["--collection", "../x"],
        ["--expires", "soon"],
        ["--expires", "\u0663d"],
        ["--expires", "0d"],
    ],
    ids="=".join,
)
def test_what_is_wrong_is_named(wrong: list[str]) -> None:
    given = {"--name": "a", "--scope": "detect", wrong[0]: wrong[1]}
    arguments = [text for pair in given.items() for text in pair]
    _, about = run("create", *arguments, code=2)
    assert wrong[1] in about


def test_a_time_that_is_too_long() -> None:
    for digits in (14, 5000):
        wrong = f"{'9' * digits}d"
        _, about = run("create", "--name", "a", "--scope", "all", "--expires", wrong, code=2)
        assert "too long: 99999d at most" in " ".join(about.replace("│", " ").split())


def test_a_limited_key_has_no_scope_of_the_whole_service() -> None:
    _, about = run("create", "--name", "a", "--scope", "admin", "--collection", "x", code=2)
    assert "'admin' concerns the whole service" in about


def test_two_keys_of_one_name(data: Path) -> None:
    run("create", "--name", "gate", "--scope", "all")
    _, about = run("create", "--name", "gate", "--scope", "all", code=2)
    assert "usable key named 'gate'" in " ".join(about.split())


@pytest.mark.parametrize("old", ["status", "generate"])
def test_the_old_names_of_encryption_commands(old: str) -> None:
    _, about = run(old, code=0 if old == "generate" else 2)
    assert f"likeness encryption {old}" in about


def test_rotate_without_a_name() -> None:
    """The old name of `encryption rotate`, until there is an access key whose name may have been
    forgotten."""
    build_services(Settings()).close()
    _, about = run("rotate", code=2)
    assert "`likeness keys rotate` is now `likeness encryption rotate`" in " ".join(about.split())
    assert "no encryption key" in about.lower()
    run("create", "--name", "gate", "--scope", "all")
    _, about = run("rotate", code=2)
    assert "which access key?" in about
    assert "no encryption key" not in about.lower(), "it did not begin"


@pytest.mark.parametrize(
    ("host", "alone"),
    [("127.0.0.1", True), ("127.8.9.1", True), ("::1", True), ("localhost", True),
     ("0.0.0.0", False), ("::", False), ("192.168.1.5", False), ("likeness.example", False)],
)  # fmt: skip
def test_addresses_that_others_reach(host: str, alone: bool) -> None:
    assert is_loopback(host) is alone


class TestServe:
    @pytest.fixture
    def open_services(self) -> Callable[..., Services]:
        services = build_services(Settings())

        def opener(**changed: object) -> Services:
            return replace(services, settings=services.settings.model_copy(update=changed))

        return opener

    def test_refuses_an_open_address_without_a_key(
        self, open_services: Callable[..., Services]
    ) -> None:
        with pytest.raises(AccessKeyError, match=r"0\.0\.0\.0.*keys create"):
            require_access_keys(open_services(host="0.0.0.0"))
        require_access_keys(open_services())
        insecure = open_services(host="0.0.0.0", insecure=True)
        require_access_keys(insecure)
        assert "LIKENESS_INSECURE" in access_state(insecure)

    def test_creates_the_first_key(
        self, open_services: Callable[..., Services], tmp_path: Path
    ) -> None:
        file = tmp_path / "first"
        services = open_services(host="0.0.0.0", first_key_file=file)
        require_access_keys(services)
        assert file.stat().st_mode & 0o777 == 0o600
        key = services.access.key_of(file.read_text().strip())
        assert key is not None
        assert key.scopes == {*Scope}
        file.unlink()
        require_access_keys(services)
        assert not file.exists(), "there is a key already"
        assert "needs an access key" in access_state(services)

    def test_a_first_key_that_cannot_be_written_is_not_created(
        self, open_services: Callable[..., Services], tmp_path: Path
    ) -> None:
        services = open_services(host="0.0.0.0", first_key_file=tmp_path / "absent" / "first")
        with pytest.raises(AccessKeyError, match="LIKENESS_FIRST_KEY_FILE"):
            require_access_keys(services)
        assert not services.access.enabled
        (tmp_path / "absent").mkdir()
        require_access_keys(services)
        assert services.access.enabled

    def test_says_that_no_key_is_usable(self, open_services: Callable[..., Services]) -> None:
        services = open_services()
        services.access_keys.create(NewKey("only", [Scope.ADMIN]))
        services.access_keys.revoke("only")
        services.access.refresh()
        assert "none is usable" in access_state(services)


def test_no_list_cuts_ids_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    token, _ = run("create", "--name", "a" * 64, "--scope", "all")
    shown, _ = run("list")
    assert str(id_of(token.strip())) in shown
    assert "…" not in shown


def test_the_list_for_programs() -> None:
    token, _ = run("create", "--name", "gate", "--scope", "identify", "--collection", "staff")
    run("create", "--name", "desk", "--scope", "all")
    shown, _ = run("list", "--json")
    gate, desk = (json.loads(line) for line in shown.splitlines())
    assert gate["key_id"] == id_of(token.strip())
    assert [gate["scopes"], gate["collections"]] == [["identify"], ["staff"]]
    assert [desk["name"], desk["collections"], desk["revoked_at"]] == ["desk", None, None]


def test_all_scopes_of_a_limited_key() -> None:
    _, about = run("create", "--name", "a", "--scope", "all", "--collection", "staff")
    assert "detect, enroll, identify, manage in staff" in " ".join(about.split())


def test_doctor_says_whether_keys_are_needed() -> None:
    CliRunner().invoke(app, ["migrate"])  # which makes the database
    shown = CliRunner().invoke(app, ["doctor", "--no-check"]).stdout
    assert "none: programs of this machine" in shown
    run("create", "--name", "a", "--scope", "all")
    run("create", "--name", "b", "--scope", "all")
    run("revoke", "b")
    shown = CliRunner().invoke(app, ["doctor", "--no-check"]).stdout
    assert "every call needs one: 1 are usable, of 2" in shown
