"""GRIB files: the numbers of messages packed by hand after the manual, and of the converted known set."""

import struct

import numpy as np
import pytest

import mldd.problems.data.series_files as known
from mldd.problems.data import DataError, load_series

pytest.importorskip("cfgrib", reason="cfgrib is not installed", exc_type=ImportError)


def message(values, *, hour=5, bits=16, binary=-3, decimal=1, edition=1, scan=0, packing=0, grid=0):
    """Pack a grid of values into a GRIB message: 52.5 to 50 north, 1 west to 1 east."""
    rows, columns = values.shape
    scaled = values * 10.0**decimal
    reference = float(np.floor(scaled.min()))
    packed = np.round((scaled - reference) / 2.0**binary).astype(f">u{bits // 8}").tobytes()
    product = bytearray(28)
    product[:3] = (28).to_bytes(3, "big")
    product[3:7] = bytes([128, 98, 255, 255])
    product[8], product[9] = 167, 1  # 2 metre temperature at the surface
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


VALUES = np.random.default_rng(0).uniform(-20, 30, (3, 3, 4))


@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize("decimal", [0, 2])
def test_messages_are_unpacked(tmp_path, bits, decimal):
    path = tmp_path / "file.grib"
    path.write_bytes(b"".join(message(v, hour=h, bits=bits, decimal=decimal) for h, v in enumerate(VALUES)))
    series = load_series(path)
    assert series.time.astype(str).tolist() == [f"2019-03-01T0{hour}:30:00" for hour in range(3)]
    assert series.grid == (3, 4)
    assert series.latitude[::4].tolist() == [52.5, 51.25, 50.0]
    assert series.longitude[:4] == pytest.approx([-1, -1 / 3, 1 / 3, 1], abs=1e-3)
    assert np.abs(series.values.reshape(VALUES.shape) - VALUES).max() <= 2.0**-4 / 10**decimal * 1.01
    assert series.label(0) == "t2m (K)"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_is_cut_off_is_refused_wherever_it_ends(tmp_path):
    """ecCodes reads the messages before the cut, and says nothing."""
    path, messages = tmp_path / "file.grib", [message(v, hour=h) for h, v in enumerate(VALUES)]
    content, ends = b"".join(messages), np.cumsum([len(m) for m in messages])
    for length in range(int(ends[1]) + 4, len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(DataError, match=f"got one at byte {ends[1]} that is cut off or damaged"):
            load_series(path)
    path.write_bytes(bytes(5) + messages[0] + bytes(18) + messages[1] + b"padding")
    assert load_series(path).times == 2


@pytest.mark.parametrize("content", [b"nothing", message(VALUES[0])[:60], message(VALUES[0])])
def test_what_is_no_series_is_refused_in_one_line(tmp_path, content):
    path = tmp_path / "file.grb"
    path.write_bytes(content)
    with pytest.raises(DataError, match="file.grb: ") as error:
        load_series(path)
    assert "\n" not in str(error.value)


def test_the_published_file_has_the_numbers_of_the_converted_one(monkeypatch):
    converted, published = known._ERA5
    try:
        one = load_series("era5-uk")
        monkeypatch.setattr(known, "_ERA5", (published,))
        other = load_series("era5-uk")
    except DataError as error:
        pytest.skip(f"the data set is not here: {error}")
    assert converted.place != published.place
    assert (one.time == other.time).all() and one.units == other.units
    assert (one.values == other.values).all()
    assert np.allclose(one.latitude, other.latitude) and np.allclose(one.longitude, other.longitude, atol=1e-6)
