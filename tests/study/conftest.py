"""The study of most tests here."""

import pytest

from budgettune.study.handle import create_study
from tests.support.studies import grid


@pytest.fixture
def study(storage_url):
    """Return a grid of four cells."""
    with create_study(grid(), storage_url) as handle:
        yield handle
