"""The commands of `likeness`, each from its own file."""

import typer

from app.cli.backup import backup, restore
from app.cli.calibrate import calibrate
from app.cli.doctor import doctor
from app.cli.evaluate import evaluate_pack
from app.cli.export_gallery import export_collection
from app.cli.hygiene import hygiene
from app.cli.import_gallery import import_folder
from app.cli.keys import keys_app
from app.cli.migrate import migrate_database
from app.cli.models import models_app
from app.cli.models_install import install, pack_networks, pull
from app.cli.models_migrate import migrate_collection
from app.cli.serve import serve

app = typer.Typer(
    name="likeness",
    help="Likeness: self-hosted face recognition. Settings are LIKENESS_* environment variables.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,  # they hold keys and embeddings
)
app.command()(serve)
app.command("import")(import_folder)
app.command("export")(export_collection)
app.command()(calibrate)
app.command()(hygiene)
app.command("evaluate")(evaluate_pack)
app.command("migrate")(migrate_database)
app.command()(doctor)
app.command()(backup)
app.command()(restore)
models_app.command()(pull)
models_app.command()(install)
models_app.command("pack")(pack_networks)
models_app.command("migrate")(migrate_collection)
app.add_typer(models_app, name="models")
app.add_typer(keys_app, name="keys")
