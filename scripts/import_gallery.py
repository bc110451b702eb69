"""Import a folder of people into the gallery: the same as `likeness import`."""

import typer

from app.cli.import_gallery import import_folder

if __name__ == "__main__":
    typer.run(import_folder)
