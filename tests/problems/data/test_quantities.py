"""What variables are: spellings of units, standard names, components of winds."""

from mldd.problems.data import meaning, plain_unit, winds


def test_spellings_of_units():
    assert len({plain_unit(unit) for unit in ("m/s", "m s-1", "m s**-1", " m  s^-1")}) == 1
    assert plain_unit("kelvin") == plain_unit("K") and plain_unit("degC") != plain_unit("K")
    assert plain_unit("kg/m2") == plain_unit("kg m-2")


def test_a_name_means_something_only_with_its_unit():
    assert meaning("z", "m2 s**-2")["standard_name"] == "geopotential"
    assert meaning("z", "m") == {"units": "m"} and meaning("t2m", "") == {}
    assert meaning("u", "%")["standard_name"] == "relative_humidity"
    assert meaning("u", "m/s")["standard_name"] == "eastward_wind"


def test_amounts_add_up_over_time():
    assert meaning("tp", "m")["cell_methods"] == meaning("rr1", "kg/m2")["cell_methods"] == "time: sum"
    assert "cell_methods" not in meaning("t2m", "K")


def test_components_of_a_wind_have_the_same_name_but_for_the_letter():
    names = [meaning(name, "m s-1").get("standard_name", "") for name in ("u10", "v100", "V10", "u")]
    assert winds(("u10", "v100", "V10", "u"), names) == {"u10,V10": (0, 2)}
    assert winds(("u10", "v10"), ("eastward_wind", "")) == {}
