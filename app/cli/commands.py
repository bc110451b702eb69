"""The commands of `likeness`. The module of a command is imported only when the command is run, so
that `likeness --help` does not load NumPy, ONNX Runtime and the database driver."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from app import __version__
from app.cli import garbage
from app.errors import LikenessError
from app.store.actor import acting_as, user_of_command


@dataclass(frozen=True, slots=True)
class LazyCommand:
    """The module and name of a command (a function, or a `typer.Typer` with several commands), and
    its line in `likeness --help`."""

    module: str
    attribute: str
    summary: str

    def load(self, name: str) -> Any:
        """Import the module and make the command, called `name`."""
        with garbage.paused():  # it took a seventh of the time
            found = getattr(import_module(self.module), self.attribute)
        if not isinstance(found, typer.Typer):
            single = typer.Typer(add_completion=False)
            single.command(name)(found)
            found = single
        command = typer.main.get_command(found)
        command.name = name
        return command


COMMANDS: Mapping[str, LazyCommand] = {
    "serve": LazyCommand("app.cli.serve", "serve", "Start the HTTP service."),
    "import": LazyCommand(
        "app.cli.import_export", "import_folder", "Enroll people from folders, tables and archives."
    ),
    "export": LazyCommand(
        "app.cli.import_export", "export_collection", "Write a collection to a file, unencrypted."
    ),
    "calibrate": LazyCommand(
        "app.cli.calibrate", "calibrate", "Measure a collection's own false match rates."
    ),
    "hygiene": LazyCommand(
        "app.cli.hygiene", "hygiene", "Find duplicate persons, mislabelled and poor faces."
    ),
    "evaluate": LazyCommand(
        "app.cli.evaluate", "evaluate_pack", "Measure accuracy on labelled photos."
    ),
    "attest": LazyCommand(
        "app.cli.attest", "attest_app", "Sign measured error rates against a requirement."
    ),
    "migrate": LazyCommand(
        "app.cli.migrate", "migrate_database", "Migrate the database to this version."
    ),
    "doctor": LazyCommand("app.cli.doctor", "doctor", "Check the installation and the gallery."),
    "backup": LazyCommand("app.cli.backup", "backup", "Write all collections to a file."),
    "restore": LazyCommand("app.cli.backup", "restore", "Load a backup into the database."),
    "models": LazyCommand(
        "app.cli.models", "models_app", "Model packs: list, show, verify, pull, install, …"
    ),
    "keys": LazyCommand(
        "app.cli.keys", "keys_app", "Access keys of the API: create, list, limit, rotate, …"
    ),
    "retention": LazyCommand(
        "app.cli.retention", "retention", "Show which persons the policies would delete."
    ),
    "person": LazyCommand(
        "app.cli.person", "person_app", "Write the record of one person to a folder."
    ),
    "audit": LazyCommand(
        "app.cli.audit", "audit_app", "The audit log: show, verify, export."
    ),
    "encryption": LazyCommand(
        "app.cli.encryption", "encryption_app", "Encryption at rest: generate, status, rotate."
    ),
}  # fmt: skip


class LazyGroup(TyperGroup):
    """Lists `COMMANDS`, and imports only the one that is run."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        for name, command in COMMANDS.items():
            self.add_command(TyperCommand(name, help=command.summary, callback=None))

    def main(self, *args: Any, **options: Any) -> Any:
        """Run a command. One that fails with an error of the service, or because the system refuses
        a path, ends with status 2 and the error's sentence, without a traceback, even if its output
        cannot be written."""
        try:
            try:
                return super().main(*args, **options)
            finally:
                sys.stdout.flush()
        except LikenessError:
            from app.cli.console import clear_errors  # noqa: PLC0415 (no need of it for help)

            with clear_errors():
                raise
        except OSError as error:
            from app.cli.console import clear_errors, refused_path  # noqa: PLC0415 (as above)

            if (refused := refused_path(error)) is None:
                raise
            with clear_errors():
                raise refused from error

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """The command to run and its arguments. Raises click's UsageError for an unknown name."""
        name, command, rest = super().resolve_command(ctx, args)
        return name, COMMANDS[name].load(name) if name else command, rest


app = typer.Typer(
    name="likeness",
    cls=LazyGroup,
    help="Likeness: self-hosted face recognition. Settings are LIKENESS_* environment variables.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,  # they hold keys and embeddings
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"likeness {__version__}")
        raise typer.Exit


@app.callback()
def main(
    context: typer.Context,
    version: Annotated[  # noqa: ARG001 (its callback prints it)
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Run a command."""
    if context.invoked_subcommand != "serve":
        context.with_resource(acting_as(user_of_command()))
