"""Settings: one table, strict reading, and a reference page that cannot drift."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY
from hypothesis import given, settings
from hypothesis import strategies as st

from strongroom import config
from strongroom.config import SETTINGS, Config
from strongroom.errors import InvalidConfig

sys.path.insert(0, str(REPOSITORY / "fuzz"))


def load(tmp_path: Path, text: str = "", **variables: str) -> Config:
    """Loads `text` as a file in `tmp_path`; paths of variables and defaults are relative to /base."""
    path = tmp_path / "strongroom.toml"
    path.write_text(text)
    return config.load(path, variables=variables, base=Path("/base"))


def refusal(tmp_path: Path, text: str = "", **variables: str) -> str:
    """The code with which these settings are refused."""
    with pytest.raises(InvalidConfig) as caught:
        load(tmp_path, text, **variables)
    return caught.value.code


def test_without_a_file_everything_has_its_default() -> None:
    """No file and no variable: the defaults of the table, with paths below the base."""
    loaded = config.load(None, variables={}, base=Path("/base"))
    assert loaded.platform == "auto"  # never simulation without being asked
    assert loaded.address == ("127.0.0.1", 8443)
    assert loaded.state_path == Path("/base/strongroom-state")
    assert loaded.root_key_path == Path("/base/strongroom-state/sim-root.pem")
    assert loaded.security.anonymous_upload is False
    assert loaded.security.verify_on_load == "tags"
    assert loaded.preload == ()


def test_every_setting_can_be_set_in_the_file_and_by_its_variable(tmp_path: Path) -> None:
    """Each row of the table reaches the attribute of its name, from the file and from the environment."""
    for setting in (row for row in SETTINGS if row.section != "preload"):
        value, shown = _other_value(setting)
        line = f"{setting.name} = {shown}\n"
        text = f"[{setting.section}]\n{line}" if setting.section else line
        loaded = load(tmp_path, text)
        assert _get(loaded, setting) == value, setting.key
        variable = (
            ",".join(map(str, value))
            if isinstance(value, tuple)
            else str(value).lower()
            if isinstance(value, bool)
            else str(value)
        )
        loaded = load(tmp_path, "", **{setting.variable: variable})
        assert _get(loaded, setting) == value, setting.variable


def _get(loaded: Config, setting: config.Setting) -> object:
    holder = getattr(loaded, setting.section) if setting.section else loaded
    return getattr(holder, setting.name)


def _other_value(setting: config.Setting) -> tuple[object, str]:
    default = setting.default
    if isinstance(default, bool):
        return not default, str(not default).lower()
    if isinstance(default, int):
        return setting.low, str(setting.low)
    if isinstance(default, tuple):
        if default and isinstance(default[0], int):
            return (0, 15), "[15, 0]"
        value = "/a.example" if setting.unit == "paths" else "a.example"
        return (value,), f'["{value}"]'
    if setting.choices:
        return setting.choices[-1], f'"{setting.choices[-1]}"'
    other = "[::1]:0" if setting.unit == "host:port" else "/somewhere"
    return other, f'"{other}"'


def test_a_variable_wins_over_the_file(tmp_path: Path) -> None:
    """The environment lies over the file."""
    loaded = load(tmp_path, 'bind = "127.0.0.1:1"', STRONGROOM_BIND="127.0.0.1:2")
    assert loaded.address == ("127.0.0.1", 2)


def test_paths_in_the_file_are_relative_to_the_file(tmp_path: Path) -> None:
    """A relative path means the same from wherever the server is started."""
    text = 'state_dir = "state"\n[[preload]]\nname = "m"\npath = "models/m.onnx"\n'
    loaded = load(tmp_path, text)
    assert loaded.state_path == tmp_path / "state"
    assert loaded.preload[0].path == str(tmp_path / "models/m.onnx")
    assert load(tmp_path, "", STRONGROOM_STATE_DIR="state").state_path == Path("/base/state")
    assert load(tmp_path, 'state_dir = "/abs"').state_path == Path("/abs")


def test_variables_that_kubernetes_plants_are_passed_over(tmp_path: Path) -> None:
    """A service called "strongroom" must not keep the server from starting in its own cluster."""
    planted = {
        "STRONGROOM_SERVICE_HOST": "10.0.0.1",
        "STRONGROOM_SERVICE_PORT": "8443",
        "STRONGROOM_PORT": "tcp://10.0.0.1:8443",
        "STRONGROOM_PORT_8443_TCP": "tcp://10.0.0.1:8443",
    }
    assert load(tmp_path, "", **planted).address == ("127.0.0.1", 8443)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("platfrom = 'simulated'", "config_unknown_setting"),
        ("[limits]\nmodel_byte = 1", "config_unknown_setting"),
        ("[limit]\nmodel_bytes = 1", "config_unknown_setting"),
        ("[[preload]]\nname='a'\npath='b'\nowner='c'", "config_unknown_setting"),
        ("platform = 'occlum'", "config_out_of_range"),
        ("platform = 1", "config_wrong_type"),
        ("limits = 1", "config_wrong_type"),
        ("preload = 1", "config_wrong_type"),
        ("preload = [1]", "config_wrong_type"),
        ("hosts = 'a'", "config_wrong_type"),
        ("hosts = [1]", "config_wrong_type"),
        ("[limits]\nmodels = true", "config_wrong_type"),
        ("[limits]\nmodels = 1.0", "config_wrong_type"),
        ("[limits]\nmodels = 0", "config_out_of_range"),
        ("[limits]\nmodels = -1", "config_out_of_range"),
        ("[limits]\nmodels = 99999999", "config_out_of_range"),
        ("[security]\nanonymous_upload = 'true'", "config_wrong_type"),
        ("[security]\nverify_on_load = 'none'", "config_out_of_range"),
        ("bind = '127.0.0.1'", "config_out_of_range"),
        ("bind = '127.0.0.1:65536'", "config_out_of_range"),
        ("bind = '::1:8443'", "config_out_of_range"),
        ("bind = 'a b:1'", "config_out_of_range"),
        ("[[preload]]\nname='a'", "config_preload"),
        ("[[preload]]\npath='a'", "config_preload"),
        ("[[preload]]\nname='a/b'\npath='c'", "config_preload"),
        ("[[preload]]\nname='..'\npath='c'", "config_preload"),
        ("[[preload]]\nname='a'\npath='b'\n[[preload]]\nname='a'\npath='c'", "config_preload"),
        ("[[preload]]\nname='a'\npath='b'\naccess='private'", "config_out_of_range"),
        ("[[preload]]\nname='a'\npath='b'\nformat='pickle'", "config_out_of_range"),
        ('state_dir = "a\\u0000b"', "config_out_of_range"),
        ("= 1", "config_malformed"),
        ("a = 1\na = 2", "config_malformed"),
    ],
)
def test_a_file_that_says_something_else_is_refused(tmp_path: Path, text: str, code: str) -> None:
    """Each is wrong in one respect, and told by its own code."""
    assert refusal(tmp_path, text) == code


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        ("STRONGROOM_BINDD", "127.0.0.1:1", "config_unknown_setting"),
        ("STRONGROOM_SECURITY_ANONYMOUS_UPLOAD", "yes", "config_wrong_type"),
        ("STRONGROOM_LIMITS_MODELS", "many", "config_wrong_type"),
        ("STRONGROOM_LIMITS_MODELS", "0", "config_out_of_range"),
        ("STRONGROOM_LIMITS_MODELS", "1" * 5000, "config_wrong_type"),
        ("STRONGROOM_PLATFORM", "occlum", "config_out_of_range"),
    ],
)
def test_a_variable_that_says_something_else_is_refused(
    tmp_path: Path, name: str, value: str, code: str
) -> None:
    """The environment is read as strictly as the file."""
    assert refusal(tmp_path, "", **{name: value}) == code


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    """Missing, too long or not text: a refusal, not a server with defaults."""
    with pytest.raises(InvalidConfig) as caught:
        config.load(tmp_path / "missing.toml", variables={}, base=tmp_path)
    assert caught.value.code == "config_unreadable"
    assert refusal(tmp_path, "#" * (2 << 20)) == "config_unreadable"
    (tmp_path / "latin.toml").write_bytes(b"hosts = ['\xff']")
    with pytest.raises(InvalidConfig) as caught:
        config.load(tmp_path / "latin.toml", variables={}, base=tmp_path)
    assert caught.value.code == "config_malformed"


def test_the_environment_of_this_process_is_read_in_one_place(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """`environment` and `load_config` look at the process; everything else is handed its variables."""
    monkeypatch.setenv("STRONGROOM_BIND", "127.0.0.1:7")
    monkeypatch.chdir(tmp_path)
    assert config.environment()["STRONGROOM_BIND"] == "127.0.0.1:7"
    assert config.load_config(None).address == ("127.0.0.1", 7)
    assert config.load_config(None).state_path == tmp_path / "strongroom-state"


def test_the_reference_page_has_every_setting() -> None:
    """docs/configuration.md holds the tables that `config.reference` makes, word for word."""
    page = (REPOSITORY / "docs" / "configuration.md").read_text()
    assert config.reference() in page


def test_every_setting_is_documented_with_a_unit_where_it_has_one() -> None:
    """Numbers have a unit and a range, everything has a sentence."""
    for setting in SETTINGS:
        assert setting.text.endswith("."), setting.key
        if isinstance(setting.default, int) and not isinstance(setting.default, bool):
            assert setting.unit and setting.low is not None and setting.high is not None, setting.key
            assert setting.low <= setting.default <= setting.high


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_give_a_configuration_or_our_error(data: bytes) -> None:
    """Oracle: a Config or InvalidConfig, nothing else."""
    from targets_server import fuzz_config

    fuzz_config(data)


def test_paths_in_a_list_are_relative_to_the_file(tmp_path: Path) -> None:
    """As single paths are; an empty one is none."""
    assert load(tmp_path, 'endorsements = ["a.json", "/b.json"]').endorsements == (
        str(tmp_path / "a.json"),
        "/b.json",
    )
    for wrong in (
        'endorsements = [""]',
        'endorsements = ["a\\u0000"]',
        "endorsements = [1]",
        'endorsements = "a"',
    ):
        with pytest.raises(InvalidConfig):
            load(tmp_path, wrong)
