"""What measured: the program's version and code, the model pack and its networks."""

import hashlib
import subprocess
from pathlib import Path

import app
from app.decision.calibration import Calibration
from app.inference.pack_spec import ModelPack
from app.types import JsonObject

GIT_SECONDS = 10


def software() -> JsonObject:
    """Version, digest of the code that runs, and where it is a checkout its commit; `modified` says
    whether the checkout has changes that are in no commit."""
    root = Path(app.__file__).parent
    digest = hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        digest.update(file.relative_to(root).as_posix().encode() + b"\0")
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    found: dict[str, object] = {
        "name": "likeness", "version": app.__version__, "code_sha256": digest.hexdigest()
    }  # fmt: skip
    commit = _git(root.parent, "rev-parse", "HEAD")
    changes = _git(root.parent, "status", "--porcelain", "--", "app")
    found["commit"] = commit
    found["modified"] = None if commit is None or changes is None else bool(changes)
    return found


def _git(folder: Path, *arguments: str) -> str | None:
    if not (folder / ".git").exists():
        return None
    try:
        done = subprocess.run(  # noqa: S603 - a fixed command
            ["git", "-C", str(folder), *arguments],  # noqa: S607 - of the operator's own PATH
            capture_output=True,
            text=True,
            timeout=GIT_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def model(pack: ModelPack, precision: str) -> JsonObject:
    """The pack, its embedding space, and the SHA-256 of each of its networks."""
    return {
        "pack": pack.name,
        "version": pack.version,
        "embedding_space": pack.embedding_space,
        "precision": precision,
        "networks": [{"file": one.file, "sha256": one.sha256} for one in pack.networks],
    }


def calibration(found: Calibration | None, data: str) -> JsonObject | None:
    """What backs the threshold: its id, a digest of its content, and what it was made of.
    `same_name`: its source is called like the `data` that is measured, so it is probably the same,
    and the rates are near those promised by construction."""
    if found is None:
        return None
    source = found.source
    return {
        "id": found.calibration_id,
        "source": source.kind,
        "same_name": source.name == data,
        "persons": source.persons,
        "faces": source.faces,
        "created_at": found.created_at.isoformat(),
    }
