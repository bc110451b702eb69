"""Which rows are of some persons."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.index.certified import persons
from app.index.certified.persons import PersonSet

keys = st.integers(1, 40) | st.integers(1, 2**40)


@pytest.mark.parametrize("most", [0, 1 << 20])
@given(wanted=st.sets(keys), rows=st.lists(keys))
def test_it_agrees_with_looking_one_by_one(most: int, wanted: set[int], rows: list[int]) -> None:
    """With a flag a key, and without where the keys lie too far apart."""
    before, persons.MOST_FLAGS = persons.MOST_FLAGS, most
    try:
        some = PersonSet(np.array(sorted(wanted), np.int64))
    finally:
        persons.MOST_FLAGS = before
    found = some.rows_of(np.array(rows, np.int64)).tolist()
    assert found == [i for i, row in enumerate(rows) if row in wanted]
