"""The installed command `likeness`."""

import typer

from app.cli.calibrate import calibrate
from app.cli.doctor import doctor
from app.cli.evaluate import evaluate_pack
from app.cli.import_gallery import import_folder
from app.cli.models import models_app
from app.cli.serve import serve

app = typer.Typer(
    name="likeness",
    help="Likeness: self-hosted face recognition. Settings are LIKENESS_* environment variables.",
    no_args_is_help=True,
    add_completion=False,
)
app.command()(serve)
app.command("import")(import_folder)
app.command()(calibrate)
app.command("evaluate")(evaluate_pack)
app.command()(doctor)
app.add_typer(models_app, name="models")
