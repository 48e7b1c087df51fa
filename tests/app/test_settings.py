"""Settings come from flags, then the environment, then defaults; nonsense is refused in one line."""

import pytest

from app.settings import Settings, parse


def test_defaults():
    assert parse([], {}) == Settings()


def test_flags_win_over_the_environment():
    settings = parse(["--port", "9000"], {"MOST_PORT": "8000", "MOST_DEVICE": "cpu"})
    assert (settings.port, settings.device) == (9000, "cpu")


@pytest.mark.parametrize(
    ("argv", "environment", "message"),
    [
        (["--port", "http"], {}, "argument --port: invalid int value: 'http'"),
        ([], {"MOST_PORT": "http"}, "MOST_PORT is 'http', not int"),
        (["--speed", "9"], {}, "unrecognized arguments: --speed 9"),
        (["--por", "9"], {}, "unrecognized arguments: --por 9"),
        ([], {"MOST_LOCAL": "perhaps"}, "MOST_LOCAL is 'perhaps': say 1 or 0"),
        (["--sessions", "0"], {}, "--sessions is 0: give a number in 1..1000"),
        (["--port", "70000"], {}, "--port is 70000: give a number in 0..65535"),
    ],
)
def test_nonsense_is_refused_in_one_line(argv, environment, message, capsys):
    with pytest.raises(SystemExit):
        parse(argv, environment)
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_help_names_every_setting(capsys):
    with pytest.raises(SystemExit):
        parse(["--help"], {})
    text = capsys.readouterr().out
    for name in vars(Settings()):
        assert f"--{name.replace('_', '-')}" in text


@pytest.mark.parametrize(("given", "meant"), [("1", True), ("true", True), ("0", False), ("", False)])
def test_a_switch_is_set_by_the_environment_and_unset_by_a_flag(given, meant):
    assert parse([], {"MOST_HALF_DUPLEX": given}).half_duplex is meant
    assert parse(["--no-half-duplex"], {"MOST_HALF_DUPLEX": given}).half_duplex is False
