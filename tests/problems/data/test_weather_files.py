"""Published formats of the known weather sets: the same numbers as their converted files; damaged ones are told."""

import io
import struct

import numpy as np
import pytest

from mldd.problems.data import DataError, load_series, series_files
from mldd.problems.data.weather_files import read_grib, read_molene


def message(values, *, hour=5, bits=16, binary=-3, decimal=1, edition=1, scan=0, packing=0, grid=0):
    """Pack a grid of values into a GRIB message: 52.5 to 50 north, 1 west to 1 east."""
    rows, columns = values.shape
    scaled = values * 10.0**decimal
    reference = float(np.floor(scaled.min()))
    packed = np.round((scaled - reference) / 2.0**binary).astype(f">u{bits // 8}").tobytes()
    product = bytearray(28)
    product[:3] = (28).to_bytes(3, "big")
    product[7], product[12:17], product[24] = 0x80, bytes([19, 3, 1, hour, 30]), 21
    product[26:28] = struct.pack(">H", decimal if decimal >= 0 else 0x8000 - decimal)
    description = bytearray(32)
    description[:3], description[5], description[27] = (32).to_bytes(3, "big"), grid, scan
    description[6:10] = struct.pack(">HH", columns, rows)
    description[10:16] = (52500).to_bytes(3, "big") + (0x800000 + 1000).to_bytes(3, "big")
    description[17:23] = (50000).to_bytes(3, "big") + (1000).to_bytes(3, "big")
    exponent = 70  # of 16, less 64: six hexadecimal digits before the point
    fraction = round(abs(reference) * 2**24 / 16.0**6)
    data = (11 + len(packed)).to_bytes(3, "big") + bytes([packing << 4]) + struct.pack(">H", 0x8000 - binary)
    data += bytes([exponent + (128 if reference < 0 else 0)]) + fraction.to_bytes(3, "big") + bytes([bits]) + packed
    length = 8 + len(product) + len(description) + len(data) + 4
    head = b"GRIB" + length.to_bytes(3, "big") + bytes([edition])
    return head + bytes(product) + bytes(description) + data + b"7777"


VALUES = np.random.default_rng(0).uniform(-20, 30, (2, 3, 4))


@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize("decimal", [0, 2])
def test_messages_are_unpacked(bits, decimal):
    content = b"".join(message(v, hour=h, bits=bits, decimal=decimal) + bytes(7) for h, v in enumerate(VALUES))
    field = read_grib(content, "file", "t")
    assert field.time.astype(str).tolist() == ["2019-03-01T00:30:00", "2019-03-01T01:30:00"]
    assert field.latitude.tolist() == [52.5, 51.25, 50.0]
    assert field.longitude == pytest.approx([-1, -1 / 3, 1 / 3, 1])
    assert np.abs(field.variables["t"] - VALUES).max() <= 2.0**-4 / 10**decimal * 1.01


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (message(VALUES[0], edition=2), "got edition 2 in message 0"),
        (message(VALUES[0], packing=4), "got packing 4 of 16 bits"),
        (message(VALUES[0], scan=64), "got grid type 0, scan 64"),
        (message(VALUES[0], grid=3), "got grid type 3"),
        (message(VALUES[0]) + message(VALUES[1])[:60], "in message 1"),
        (message(VALUES[0])[:6], "in message 0"),
        (message(VALUES[0]) + message(VALUES[1][:2]), "expected messages on one grid, got 2 grids"),
        (b"nothing", "expected messages on one grid, got 0 grids"),
    ],
)
def test_other_grib_files_are_refused_in_one_line(content, said):
    with pytest.raises(DataError, match=said) as error:
        read_grib(content, "file", "t")
    assert "\n" not in str(error.value)


def test_what_is_no_molene_file_is_one_line():
    with pytest.raises(DataError, match="file: expected the graphs of Molene, got"):
        read_molene(b"nothing", "file")
    with pytest.raises(DataError, match="expected the graphs of Molene"):
        buffer = io.BytesIO()
        np.save(buffer, VALUES)
        read_molene(buffer.getvalue(), "file")


@pytest.mark.parametrize("name", ["era5-uk", "molene"])
def test_published_files_have_the_numbers_of_the_converted_ones(name, monkeypatch):
    converted, published = series_files._ERA5 if name == "era5-uk" else series_files._MOLENE[37]
    try:
        one = load_series(name)
        monkeypatch.setattr(series_files, "_ERA5", (published,))
        monkeypatch.setitem(series_files._MOLENE, 37, (published,))
        other = load_series(name)
    except DataError as error:
        pytest.skip(f"the data set is not here: {error}")
    assert converted.place != published.place
    assert (one.time == other.time).all()
    assert (one.values == other.values).all()
    for place in ("latitude", "longitude"):
        assert np.allclose(getattr(one, place), getattr(other, place), atol=1e-6)
