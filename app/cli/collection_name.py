"""How commands name the collection that they work on."""

from typing import Annotated

import typer

from app.store.store import DEFAULT_COLLECTION

# Every command that works on a collection has --collection. Those that work on nothing else also
# take its name as their argument.
CollectionArgument = Annotated[
    str | None,
    typer.Argument(metavar="collection", help="The same as --collection."),
]
CollectionOption = Annotated[
    str | None,
    typer.Option("--collection", help=f"Name of the collection; default: {DEFAULT_COLLECTION}."),
]


def collection_name(argument: str | None, option: str | None) -> str:
    """The collection that a command's argument or --collection names; `default` without both.

    Raises typer.BadParameter, which ends the command with status 2, if they name two collections.
    """
    if argument is not None and option is not None and argument != option:
        raise typer.BadParameter(
            f"The argument names the collection '{argument}', and --collection '{option}'. "
            "Give one of them."
        )
    return argument or option or DEFAULT_COLLECTION
