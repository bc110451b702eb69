"""What each command answers its user."""

import csv
import gc
import json
import re
import shutil
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from app import __version__
from app.cli.commands import COMMANDS
from app.cli.console import ignored_settings, misspelt_settings
from app.cli.serving import prepare
from app.encryption.keys import parse_keys
from app.gallery.gallery import Gallery
from app.inference.pack_spec import ModelPack
from app.services import build_services
from app.settings import Settings
from app.store.records import CollectionRecord
from tests.cli.conftest import Run


@pytest.fixture
def people(tmp_path: Path, photos: Path) -> Path:
    """A folder of people with everything that such folders have in them."""
    folder = tmp_path / "people"
    for person, files in {
        "Barack Obama": ["obama.jpg", "obama2.jpg"],
        "biden": ["biden.jpg"],
    }.items():
        (folder / person).mkdir(parents=True)
        for file in files:
            shutil.copy(photos / file, folder / person)
    (folder / "biden" / "note.txt").write_text("not a photo")
    (folder / "biden" / "broken.JPG").write_bytes(b"\xff\xd8\xff broken")
    (folder / "nobody").mkdir()
    (folder / "readme.md").write_text("not a photo")
    (folder / "biden" / "leads-out.jpg").symlink_to(photos / "obama.jpg")
    return folder


def test_every_command_is_listed_and_has_help(run: Run) -> None:
    listed = run("-h").stdout
    for name, command in COMMANDS.items():
        assert f" {name} " in listed
        assert command.summary in listed
        assert f"Usage: likeness {name} " in run(name, "--help").stdout


def test_the_list_of_commands_needs_no_heavy_import(environment: dict[str, str]) -> None:
    script = (
        "import sys\n"
        "from app.cli.commands import app\n"
        "try: app(['--help'])\n"
        "except SystemExit: pass\n"
        "print([name for name in ('numpy', 'pydantic', 'sqlalchemy') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_version(run: Run) -> None:
    assert run("--version").stdout == f"likeness {__version__}\n"


def test_a_misspelt_command_is_answered_with_the_nearest(run: Run) -> None:
    answer = run("serv")
    assert answer.exit_code == 2
    assert "Did you mean 'serve'?" in answer.stderr


def test_a_misspelt_setting_is_refused(run: Run) -> None:
    answer = run("models", "list", LIKENESS_DATADIR="elsewhere", LIKENESS_PUBLISH="8080")
    assert answer.exit_code == 2
    assert answer.stderr == ("LIKENESS_DATADIR is not a setting. Did you mean LIKENESS_DATA_DIR?\n")


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("LIKENESS_PROT", "PORT"), ("LIKENESS_HSOT", "HOST"), ("likeness_packs", "PACK")],
)
def test_letters_in_another_order_are_a_misspelling(name: str, nearest: str) -> None:
    assert misspelt_settings([name]) == {name: f"LIKENESS_{nearest}"}


def test_variables_of_others_are_no_settings() -> None:
    """Compose, commands that take a key, and Kubernetes for a Service called likeness."""
    others = ["PUBLISH", "API_KEY", "SOURCE_KEY", "SERVICE_HOST", "SERVICE_PORT_HTTP",
              "PORT_8000_TCP", "PORT_8000_TCP_ADDR"]  # fmt: skip
    given = ["PATH", *(f"LIKENESS_{name}" for name in others), "LIKENESS_DB_URL"]
    assert misspelt_settings(given) == {}
    assert ignored_settings(given) == ["LIKENESS_DB_URL"]


def test_a_port_that_kubernetes_sets_is_explained(run: Run) -> None:
    answer = run("doctor", LIKENESS_PORT="tcp://10.0.0.1:8000")
    assert answer.exit_code == 2
    assert "enableServiceLinks: false" in answer.stderr


@pytest.mark.parametrize(("port", "limit"), [("-1", "or equal to 0"), ("99999", "to 65535")])
def test_serve_refuses_a_port_that_is_none(run: Run, port: str, limit: str) -> None:
    answer = run("serve", "--port", port)
    assert answer.exit_code == 2
    assert "'--port'" in answer.stderr
    assert limit in answer.stderr


def test_a_pack_that_nobody_publishes_is_named_before_anything_is_missing(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "insightface", None)  # not installed
    answer = run("models", "pull", "bufalo_l")
    assert answer.exit_code == 2
    assert (
        "There is no pack 'bufalo_l' to fetch; there are accurate, fast, buffalo_l" in answer.stderr
    )


def test_a_path_is_no_name_of_a_pack_to_fetch(run: Run, tmp_path: Path) -> None:
    answer = run("models", "pull", tmp_path)
    assert answer.exit_code == 2
    assert "There is no pack" in answer.stderr
    assert "Remove it" not in answer.stderr


def test_evaluate_names_a_folder_that_is_not_there(run: Run, tmp_path: Path) -> None:
    answer = run("evaluate", tmp_path / "people")
    assert answer.exit_code == 2
    assert f"{tmp_path}/people does not exist; check the path." in answer.stderr


@pytest.mark.parametrize(
    "command",
    [
        ("import", "NAME"),
        ("import", "NAME", "--report", "report.csv"),
        ("import", "table.csv", "--images", "NAME"),
        ("evaluate", "NAME"),
        ("models", "verify", "NAME"),
    ],
)
def test_a_path_that_the_system_refuses_is_an_error_without_a_traceback(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "table.csv").write_text("person_id,image\n")
    name = "a" * 300
    answer = run(*(name if one == "NAME" else one for one in command))
    assert answer.exit_code == 2
    assert "A file or folder cannot be used." in answer.stderr
    assert name in answer.stderr
    assert "File name too long. Check the path" in answer.stderr


def test_doctor_prints_paths_to_the_end(run: Run, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    run("migrate")
    answer = run("doctor", COLUMNS="60")
    cells = "".join(
        line.split("│")[-2].strip() for line in answer.stdout.splitlines() if "│" in line
    )
    assert f"sqlite:///{tmp_path}/data/likeness.db" in cells


@pytest.mark.parametrize("pid", [1, 17])
def test_the_first_process_of_a_container_can_be_stopped_while_it_starts(
    environment: dict[str, str], pid: int
) -> None:
    """Linux ignores signals to process 1 for which it has no handler."""
    script = (
        "import os, signal, sys, types, app.cli\n"
        f"os.getpid = lambda: {pid}\n"
        "tell = lambda: print(callable(signal.getsignal(signal.SIGTERM)))\n"
        "sys.modules['app.cli.commands'] = types.SimpleNamespace(app=tell)\n"
        "app.cli.main()\n"
        "signal.raise_signal(signal.SIGTERM)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False
    )
    first = pid == 1
    assert done.stdout.split() == [str(first)]
    assert done.returncode == (143 if first else -15), done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("command", "collects"), [("serve", False), ("migrate", True)])
def test_the_garbage_collector_is_off_while_the_service_is_imported(
    environment: dict[str, str], command: str, collects: bool
) -> None:
    script = (
        "import gc, sys, app.cli\n"
        "from app.cli.commands import COMMANDS\n"
        "import app.cli.commands as commands\n"
        f"commands.app = lambda: (COMMANDS['{command}'].load('{command}'), print(gc.isenabled()))\n"
        f"sys.argv = ['likeness', '{command}']\n"
        "app.cli.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [str(collects)]


def test_blas_does_not_spin(environment: dict[str, str]) -> None:
    """It is set before NumPy is loaded, and only where the user did not set it."""
    script = (
        "import os, sys, types, app.cli\n"
        "tell = lambda: print('numpy' in sys.modules, os.environ['OPENBLAS_THREAD_TIMEOUT'])\n"
        "sys.modules['app.cli.commands'] = types.SimpleNamespace(app=tell)\n"
        "app.cli.main()"
    )
    for given, kept in (({}, "20"), ({"OPENBLAS_THREAD_TIMEOUT": "26"}, "26")):
        done = subprocess.run(
            [sys.executable, "-c", script],
            env={**environment, **given}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.stdout.split() == ["False", kept], done.stderr


def test_a_report_does_not_replace_what_is_imported(run: Run, tmp_path: Path) -> None:
    table, link = tmp_path / "rows.csv", tmp_path / "link.csv"
    table.write_text("person_id,image\nada,ada.jpg\n")
    link.symlink_to(table)
    for report in (table, link):
        refused = run("import", table, "--report", report)
        assert refused.exit_code == 2
        assert "would be replaced" in " ".join(refused.output.split())
        assert table.read_text() == "person_id,image\nada,ada.jpg\n"
    nowhere = run("import", table, "--report", tmp_path / "nowhere" / "report.csv")
    assert "/nowhere/report.csv cannot be written" in " ".join(nowhere.output.split())


def test_import_reports_every_file_and_runs_again_safely(
    run: Run, people: Path, tmp_path: Path
) -> None:
    report = tmp_path / "report.csv"
    first = run("import", people, "--report", report)
    assert first.exit_code == 1, first.stderr  # one photo is broken
    with report.open() as file:
        rows = {
            Path(row["place"]).name: (row["result"], row["reason"]) for row in csv.DictReader(file)
        }
    assert rows == {
        "obama.jpg": ("enrolled", ""),
        "obama2.jpg": ("enrolled", ""),
        "biden.jpg": ("enrolled", ""),
        "broken.JPG": ("rejected", "unreadable_image"),
        "leads-out.jpg": ("rejected", "unreadable_file"),
        "note.txt": ("skipped", "not_a_photo"),
        "readme.md": ("skipped", "not_a_photo"),
    }
    again = run("import", people)
    assert re.search(r"skipped\s.*already_enrolled\s.*3", again.stdout)
    assert "2 persons, 3 faces" in run("doctor").stdout


def test_import_into_another_collection_makes_it(run: Run, people: Path) -> None:
    for name in ("broken.JPG", "leads-out.jpg"):
        (people / "biden" / name).unlink()
    made = run("import", people, "--collection", "press")
    assert (made.exit_code, "'press' did not exist" in made.stderr) == (0, True)
    assert "0 persons, 0 faces" in run("doctor").stdout


def test_import_into_a_collection_that_another_command_makes_at_that_moment(
    run: Run, people: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("broken.JPG", "leads-out.jpg"):
        (people / "biden" / name).unlink()
    make = Gallery.create_collection

    def after_another(gallery: Gallery, *given: Any) -> CollectionRecord:
        make(gallery, *given)
        return make(gallery, *given)

    monkeypatch.setattr(Gallery, "create_collection", after_another)
    done = run("import", people, "--collection", "press")
    assert (done.exit_code, "did not exist" in done.stderr) == (0, False)


@pytest.mark.slow
def test_an_import_and_the_service_give_an_unused_default_collection_the_new_pack(
    run: Run, people: Path, environment: dict[str, str]
) -> None:
    """Commands that only read a gallery do not: a service may use it with another pack."""
    folder = Path(environment["LIKENESS_DATA_DIR"])
    build_services(Settings(data_dir=folder, pack="default-1.0")).close()

    def space() -> str:
        services = build_services(Settings(data_dir=folder))
        with closing(services):
            return services.gallery.store.collections.get("default").embedding_space

    old = space()
    assert run("doctor").exit_code == 0
    assert space() == old
    with closing(build_services(Settings(data_dir=folder))) as services:
        prepare(services)
    new = space()
    assert new != old
    run("import", people, LIKENESS_PACK="default-1.0")  # one of the files is damaged
    assert space() == old


def test_import_of_nothing(run: Run, tmp_path: Path) -> None:
    answer = run("import", tmp_path / "absent")
    assert answer.exit_code == 2
    assert "does not exist" in answer.stderr


def test_import_with_a_gate(run: Run, people: Path) -> None:
    gate = '{"min_face_size_px": 4000}'
    assert "face_too_small" in run("import", people, "--gate", gate).stdout
    wrong = run("import", people, "--gate", '{"min": 1}')
    assert wrong.exit_code == 2
    assert "--gate.min: There is no such field" in wrong.stderr
    never = run("import", people, "--gate", '{"min_face_size_px": 1e9}')
    assert never.exit_code != 0
    assert "gate.min_face_size_px is 1e+09" in never.stderr


@pytest.mark.slow
def test_import_by_the_script(people: Path, environment: dict[str, str]) -> None:
    (people / "biden" / "broken.JPG").unlink()
    script = Path(__file__).parents[2] / "scripts" / "import_gallery.py"
    done = subprocess.run(
        [sys.executable, script, people, "--on-error", "stop", "--json"],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert json.loads(done.stdout)["enrolled"] == 3, done.stderr


def test_models_are_listed_and_verified(run: Run) -> None:
    assert "default" in run("models", "list").stdout
    assert "intact are detector.onnx" in run("models", "verify").stdout


def test_a_changed_network_stops_the_start(run: Run, tmp_path: Path) -> None:
    default = Path(__file__).parents[2] / "models" / "default"
    pack = shutil.copytree(default, tmp_path / "pack")
    with (pack / "recogniser.onnx").open("ab") as file:
        file.write(b"\0")
    for command in (["models", "verify"], ["serve"], ["doctor"]):
        answer = run(*command, LIKENESS_PACK=str(pack))
        assert answer.exit_code == 2
        message = " ".join(answer.stderr.split())
        assert "recogniser.onnx is not the file" in message
        assert "Restore the file" in message
        assert "Traceback" not in message


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"LIKENESS_PACK": "absent"}, "no model pack 'absent'"),
        ({"LIKENESS_DEVICE": "cuda"}, "LIKENESS_DEVICE=cpu"),
        ({"LIKENESS_DEVICE": "tpu"}, "LIKENESS_DEVICE=tpu"),
        ({"LIKENESS_PORT": "x"}, "LIKENESS_PORT=x"),
        ({"LIKENESS_DATABASE_URL": "mysql://x/y"}, "use SQLite or PostgreSQL"),
    ],
)
def test_settings_that_cannot_be(run: Run, settings: dict[str, str], said: str) -> None:
    answer = run("serve", **settings)
    assert answer.exit_code == 2
    assert said in " ".join(answer.stderr.split())
    assert "Traceback" not in answer.stderr
    assert gc.isenabled()


def test_a_refused_value_is_shown_as_it_was_given(run: Run) -> None:
    """Rich would print `:x:` as a picture."""
    answer = run("keys", "list", LIKENESS_CORS_ORIGINS="javascript:x")
    assert answer.exit_code == 2
    assert "LIKENESS_CORS_ORIGINS=javascript:x: " in " ".join(answer.stderr.split())


def test_calibrate_says_what_it_needs(run: Run, pack: ModelPack, tmp_path: Path) -> None:
    run("migrate")  # makes the database
    early = run("calibrate")
    assert early.exit_code == 2
    assert "0 people are too few" in " ".join(early.stderr.split())
    assert "calibration decides, or its fixed threshold" in " ".join(early.stderr.split())
    assert "calibration decides again" in run("calibrate", "--reset").stdout
    plain = tmp_path / "plain"
    shutil.copytree(pack.folder, plain, ignore=shutil.ignore_patterns("calibration.json"))
    reset = run("calibrate", "--reset", LIKENESS_PACK=str(plain))
    assert f"The fixed threshold of default, {pack.decision.threshold:g}, decides" in reset.stdout
    nowhere = run("calibrate", "nowhere")
    assert nowhere.exit_code == 2
    assert "There is no collection 'nowhere'" in " ".join(nowhere.stderr.split())


def test_a_generated_key_is_one_line_that_can_be_read(run: Run) -> None:
    made = run("encryption", "generate", "--id", "prod-1", COLUMNS="20")
    assert made.exit_code == 0, made.stderr
    (key,) = parse_keys(made.stdout.encode(), "stdout")
    assert key.key_id == "prod-1"
    assert made.stdout.count("\n") == 1
    assert run("encryption", "generate", "--id", "a key").exit_code == 2


def test_migrate_says_first_and_does_then(run: Run, tmp_path: Path) -> None:
    would = run("migrate", "--dry-run")
    assert would.exit_code == 0, would.stderr
    assert f"No database yet at {tmp_path}/data" in " ".join(would.stderr.split())
    assert not (tmp_path / "data").exists()
    assert "would run 0001 First tables" in would.stdout
    done = run("migrate")
    assert "ran 0001 First tables" in done.stdout
    assert "up to date" in run("migrate", "--dry-run").stdout
    nowhere = run("migrate", LIKENESS_DATABASE_URL="postgresql://u:secret@127.0.0.1:1/likeness")
    assert nowhere.exit_code == 2
    assert "Check that the server runs" in " ".join(nowhere.stderr.split())
    assert "secret" not in nowhere.stdout + nowhere.stderr


@pytest.mark.parametrize(
    "command",
    [
        ("retention", "--days"),
        ("import", "people", "--limit"),
        ("hygiene", "--limit"),
        ("audit", "show", "--last"),
    ],
    ids=" ".join,
)
def test_a_number_that_is_too_large_is_refused(run: Run, command: tuple[str, ...]) -> None:
    answer = run(*command, "9" * 20)
    assert answer.exit_code == 2
    assert f"'{command[-1]}': Input should be less than or equal to" in answer.stderr


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--mean", "x", "without --recogniser"),
        ("--std", "0", "without --recogniser"),
        ("--architecture", "bogus", "without --detector"),
        ("--threshold-basis", "a guess", "without --threshold"),
        ("--threshold", "7", "--threshold is a similarity from -1 to 1; not 7."),
        ("--threshold", "nan", "--threshold is a similarity"),
        ("--liveness", "9:x.onnx", "a scale from 1 to 8"),
    ],
)
def test_options_of_a_pack_that_cannot_be(
    run: Run, tmp_path: Path, option: str, value: str, said: str
) -> None:
    answer = run("models", "pack", tmp_path / "mine", option, value)
    assert answer.exit_code == 2
    assert said in answer.stderr
    assert not (tmp_path / "mine").exists()


def test_a_pack_replaces_no_folder(run: Run, tmp_path: Path) -> None:
    """Said before the networks are converted, which takes minutes."""
    answer = run("models", "pack", tmp_path, "--recogniser", tmp_path / "none.onnx")
    assert answer.exit_code == 2
    assert f"{tmp_path} exists already" in answer.stderr


def test_a_zip_of_a_pack_replaces_none(run: Run, tmp_path: Path) -> None:
    archive = tmp_path / "mine.zip"
    archive.write_text("another")
    answer = run("models", "pack", tmp_path / "mine", "--zip")
    assert answer.exit_code == 2
    assert f"{archive} exists already" in answer.stderr
    assert (archive.read_text(), (tmp_path / "mine").exists()) == ("another", False)
