"""The MATLAB file of Molene: the numbers of its converted file; another file is told."""

import io

import numpy as np
import pytest

import mldd.problems.data.series_files as known
from mldd.problems.data import DataError, load_series
from mldd.problems.data.formats import read_molene


def test_what_is_no_molene_file_is_one_line():
    with pytest.raises(DataError, match="file: expected the graphs of Molene, got"):
        read_molene(b"nothing", "file")
    buffer = io.BytesIO()
    np.save(buffer, np.ones((2, 3)))
    with pytest.raises(DataError, match="expected the graphs of Molene"):
        read_molene(buffer.getvalue(), "file")


def test_the_published_file_has_the_numbers_of_the_converted_one(monkeypatch):
    converted, published = known._MOLENE[37]
    try:
        one = load_series("molene")
        monkeypatch.setitem(known._MOLENE, 37, (published,))
        other = load_series("molene")
    except DataError as error:
        pytest.skip(f"the data set is not here: {error}")
    assert converted.place != published.place
    assert (one.time == other.time).all() and (one.values == other.values).all()
    assert np.allclose(one.latitude, other.latitude, atol=1e-6) and np.allclose(
        one.longitude, other.longitude, atol=1e-6
    )
