"""Archives that several tests import."""

import zipfile
from pathlib import Path


def two_people(folder: Path, photos: Path) -> Path:
    """A zip of two people, three photos, one of them broken."""
    path = folder / "people.zip"
    with zipfile.ZipFile(path, "w") as content:
        content.write(photos / "obama.jpg", "obama/1.jpg")
        content.write(photos / "obama2.jpg", "obama/2.jpg")
        content.writestr("biden/broken.jpg", b"\xff\xd8\xff broken")
    return path
