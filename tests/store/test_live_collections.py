"""A query that looks for collections leaves out those that are deleted, whose rows are still
there: `lookups.is_live`."""

import ast
from collections.abc import Iterator
from pathlib import Path

APP = Path(__file__).parents[2] / "app"
QUERIES = {"select", "select_from", "join", "outerjoin", "exists"}
# Functions with queries of deleted collections, too; why they may.
OF_ALL = {
    "store/database.py:Database.ping": "reads nothing of the row",
    "store/sql/changes.py:ChangeLog._logs": "old changes are pruned of every collection",
    "store/sql/changes.py:ChangeLog._prune": "of one collection, which `_logs` found",
    "store/sql/collection_removal.py:CollectionRemoval._remove_some": "deletes them",
    "store/sql/retention.py:RetentionStore.note_matches": "locks those of keys; answers nothing",
    "gallery/backup_bodies.py:_lock_collections": "a restore replaces all of them",
    "gallery/backup_bodies.py:_mark": "a restore has just replaced all of them",
}


def functions(body: list[ast.stmt], inside: str = "") -> Iterator[tuple[str, ast.stmt]]:
    """The functions and methods of a file, and its other statements, each with its name."""
    for one in body:
        if isinstance(one, ast.ClassDef):
            yield from functions(one.body, f"{one.name}.")
        else:
            yield f"{inside}{getattr(one, 'name', f'line {one.lineno}')}", one


def is_table(node: ast.AST) -> bool:
    """Whether it is the table of collections, as `collections` or `tables.collections`."""
    if isinstance(node, ast.Attribute):
        return node.attr == "collections" and ast.unparse(node.value) == "tables"
    return isinstance(node, ast.Name) and node.id == "collections"


def has_query(function: ast.stmt) -> bool:
    """Whether a query in it reads the table."""
    called = (one for one in ast.walk(function) if isinstance(one, ast.Call))
    return any(
        ast.unparse(one.func).rpartition(".")[2] in QUERIES
        and any(is_table(node) for argument in one.args for node in ast.walk(argument))
        for one in called
    )


def test_every_query_of_collections_is_of_live_ones() -> None:
    found = set()
    for file in sorted(APP.rglob("*.py")):
        text = file.read_text("utf-8")
        if "sql.tables import" not in text and "sql import tables" not in text:
            continue
        for name, one in functions(ast.parse(text).body):
            if has_query(one) and "is_live(" not in ast.unparse(one):
                found.add(f"{file.relative_to(APP)}:{name}")
    assert found == OF_ALL.keys(), "add `is_live()` to the query, or say here why not"
