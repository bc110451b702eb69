"""Collections whose faces are of another embedding space than that of the running pack."""

from collections.abc import Sequence
from dataclasses import dataclass

from app.inference.packs import packs_by_space
from app.services import Services
from app.store.identifiers import DEFAULT_COLLECTION

SHOWN = 20


@dataclass(frozen=True, slots=True)
class Unmatched:
    """A collection with faces of another embedding space than the pack's, and the name of a known
    pack of that space."""

    name: str
    faces: int
    embedding_space: str
    made_by: str | None


def unmatched_collections(services: Services) -> list[Unmatched]:
    """Those that have faces: `default` first, then those with most faces."""
    store, ours = services.gallery.store.collections, services.pack.embedding_space
    # A revision of 0 has never had faces: of many collections few need to be counted.
    others = [one for one in store.every() if one.embedding_space != ours and one.revision]
    counted = [(one, store.count(one).templates) for one in others]
    packs = packs_by_space(services.settings.installed_packs) if others else {}
    found = [
        Unmatched(one.name, faces, one.embedding_space, packs.get(one.embedding_space))
        for one, faces in counted
        if faces
    ]
    return sorted(found, key=lambda one: (one.name != DEFAULT_COLLECTION, -one.faces, one.name))


def names_of(unmatched: Sequence[Unmatched]) -> str:
    """Their names, of many the first ones."""
    return _joined([one.name for one in unmatched])


def warning(services: Services, unmatched: Sequence[Unmatched]) -> str | None:
    """What to say about them; None where there are none."""
    if not unmatched:
        return None
    pack = services.pack
    packs = {one.made_by for one in unmatched}
    own = next(iter(packs)) if len(packs) == 1 else None
    serve = f"Set LIKENESS_PACK={own}" if own else "Set LIKENESS_PACK to the pack that made them"
    which, name = ("it", unmatched[0].name) if len(unmatched) == 1 else ("each", "NAME")
    return (
        f"The embedding space of the pack {pack.name} is {pack.embedding_space}. The faces of "
        "these collections are of another one, so they cannot be compared: "
        f"{_joined([_described(one) for one in unmatched])}. "
        f"Enrollment and search there answer 409. {serve}, or migrate {which} to the running "
        f"pack: likeness models migrate {name} --to {pack.name}"
    )


def not_checked(one: Unmatched) -> str:
    """A line of `doctor`."""
    return (
        f"{one.name}: not checked: its faces ({one.faces}) are of the embedding space "
        f"{one.embedding_space}, and the pack is of another one"
    )


def _described(one: Unmatched) -> str:
    by = f", made by {one.made_by}" if one.made_by else ""
    return f"{one.name} (faces: {one.faces}, {one.embedding_space}{by})"


def _joined(texts: Sequence[str]) -> str:
    more = [f"and {len(texts) - SHOWN} more"] if len(texts) > SHOWN else []
    return ", ".join([*texts[:SHOWN], *more])
