"""Settings: what a file and --set may say, what is refused and how, and that they come back as they were."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import pytest

from train import config as config_module
from train.config import claim, config_hash, deadline, find_config, load_config, to_yaml


@dataclass(frozen=True)
class Encoder:
    learning_rate: float = 1e-3
    steps: int = 10
    widths: tuple[int, ...] = (32, 64)
    norm: Literal["group", "layer"] = "group"

    def __post_init__(self):
        if self.steps < 0:
            raise ValueError(f"steps is {self.steps}; it cannot be negative")


@dataclass(frozen=True)
class Source:
    folder: Path
    weight: float = 1.0


@dataclass(frozen=True)
class Config:
    encoder: Encoder = Encoder(steps=77)
    sources: tuple[Source, ...] = ()
    mix: dict[str, float] = field(default_factory=lambda: {"words": 0.25, "world": 0.75})
    span: tuple[float, float] = (0.5, 2.0)
    seed: int = 0
    name: str = "ears"
    start: Path | None = None
    bf16: bool = False
    limit: int | Literal["all"] = "all"


@pytest.fixture
def load(tmp_path):
    """`load(text, *overrides)`: a Config from YAML text; errors name the file x.yaml."""

    def load(text, *overrides, cls=Config):
        path = tmp_path / "x.yaml"
        path.write_text(text)
        return load_config(cls, path, overrides)

    return load


FULL = """
encoder: {learning_rate: 1e-4, steps: 5, widths: [1, 2, 3], norm: layer}
sources:
  - {folder: a/b, weight: 2}
  - folder: c
mix: {world: 1}
span: [1, 1e1]
start: weights/last
bf16: true
limit: 3
"""


def test_a_file_becomes_typed_settings(load):
    assert load(FULL) == Config(
        encoder=Encoder(1e-4, 5, (1, 2, 3), "layer"),
        sources=(Source(Path("a/b"), 2.0), Source(Path("c"))),
        mix={"world": 1.0},
        span=(1.0, 10.0),
        start=Path("weights/last"),
        bf16=True,
        limit=3,
    )


def test_what_is_left_out_is_the_default_also_in_a_section(load):
    assert load("") == load_config(Config, None) == Config()
    assert load("encoder: {norm: layer}").encoder == Encoder(steps=77, norm="layer")


def test_overrides_win_over_the_file_and_leave_the_rest(load):
    changed = load(FULL, "encoder.steps=100", "encoder.widths=[9]", "mix.words=1e-1", "start=null", "name='7'")
    expected = replace(load(FULL), encoder=Encoder(1e-4, 100, (9,), "layer"), mix={"world": 1.0, "words": 0.1})
    assert changed == replace(expected, start=None, name="7")
    assert load("", "mix.words=0.5").mix == {"words": 0.5, "world": 0.75}
    assert load("", "mix={words: 0.5}").mix == {"words": 0.5}
    assert load("", "mix.words=0.5", "mix={world: 2}").mix == {"world": 2.0}
    assert load("encoder:", "encoder.steps=2").encoder.steps == 2
    assert load_config(Source, None, ["folder=x"]) == Source(Path("x"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("encoder: {lerning_rate: 1}", "encoder.lerning_rate is no setting; did you mean learning_rate?"),
        ("zzz: 1", "zzz is no setting; there are encoder, sources, mix,"),
        ("encoder: {steps: 1e3}", "encoder.steps is '1e3'; expected a whole number"),
        ("encoder: {steps: 2.0}", "encoder.steps is 2.0; expected a whole number"),
        ("encoder: {steps: true}", "encoder.steps is True; expected a whole number"),
        ("encoder: {steps: -1}", "encoder steps is -1; it cannot be negative"),
        ("encoder: {learning_rate: fast}", "encoder.learning_rate is 'fast'; expected a number"),
        ("encoder: {learning_rate: .nan}", "encoder.learning_rate is nan; expected a number"),
        ("encoder: {learning_rate: yes}", "encoder.learning_rate is True; expected a number"),
        ("encoder: {widths: 3}", "encoder.widths is 3; expected a list, each item a whole number"),
        ("encoder: {widths: [3, x]}", "encoder.widths[1] is 'x'; expected a whole number"),
        ("encoder: {norm: batch}", "encoder.norm is 'batch'; expected one of group, layer"),
        ("encoder: 3", "encoder is 3; expected settings (learning_rate, steps, widths, norm)"),
        ("encoder:", "encoder is empty; expected settings"),
        ("span: [1]", "span is [1]; expected a list of 2 (a number, a number)"),
        ("sources: [{folder: a, wieght: 1}]", "sources[0].wieght is no setting; did you mean weight?"),
        ("sources: [{weight: 1}]", "sources[0].folder is missing; expected a path"),
        ("mix: {a: b}", "mix.a is 'b'; expected a number"),
        ("mix: {1: 2}", "mix is {1: 2}; expected names with a number each"),
        ("name: no", "name is False; expected text (in quotes)"),
        ("bf16: 1", "bf16 is 1; expected true or false"),
        ("start: 3", "start is 3; expected a path"),
        ("limit: some", "limit is 'some'; expected a whole number or one of all"),
        ("- 1", "expected settings, 'name: value' on each line, got [1]"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(load, tmp_path, text, message):
    with pytest.raises(ValueError, match=r"^[^\n]+$") as error:
        load(text)
    assert str(error.value).startswith(f"{tmp_path / 'x.yaml'}: {message}")


def test_broken_yaml_names_the_line(load, tmp_path):
    for text in (
        "seed: 1\nname: [",
        "seed: 1\nseed: 2",
        "encoder: {steps: 1,\n steps: 2}",
        "seed: !!python/object:os 1",
    ):
        with pytest.raises(ValueError, match=r"^[^\n]+$") as error:
            load(text)
        assert str(error.value).startswith(f"{tmp_path / 'x.yaml'}:")
        assert ".yaml:2:" in str(error.value) or "python" in text


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("encoder.stps=1", "encoder.stps is no setting; did you mean steps?"),
        ("encodr.steps=1", "encodr is no setting; did you mean encoder?"),
        ("encoder.steps=x", "encoder.steps is 'x'; expected a whole number"),
        ("seed.x=1", "seed is {'x': 1}; expected a whole number"),
        ("name.x=1", "name is 'ears', not a section"),
        ("encoder.steps", "expected name=value, as in --set encoder.steps=100"),
        ("=3", "expected name=value, as in --set encoder.steps=100"),
        ("mix.words=x", "mix.words is 'x'; expected a number"),
        ("seed=", "seed is empty; expected a whole number"),
    ],
)
def test_a_wrong_override_is_named_instead_of_the_file(load, override, message):
    with pytest.raises(ValueError, match=r"^--set") as error:
        load("name: ears\nencoder: {norm: layer}", override)
    assert str(error.value) == f"--set {override}: {message}"


def test_a_broken_value_of_an_override_is_refused(load):
    with pytest.raises(ValueError, match=r"^--set seed=\[:1:2: "):
        load("", "seed=[")


def test_settings_come_back_from_their_own_yaml(load):
    config = load(FULL, "encoder.learning_rate=1e-5")
    assert load(to_yaml(config)) == config
    assert "  widths: [1, 2, 3]\n" in to_yaml(config)
    assert load(to_yaml(Config())) == Config()


def test_the_hash_is_of_the_settings_alone(load):
    assert config_hash(load("seed: 3\nspan: [1, 2]")) == config_hash(load("{span: [1e0, 2.0], seed: 3}"))
    assert config_hash(load("mix: {a: 1, b: 2}")) == config_hash(load("mix: {b: 2, a: 1}"))
    assert config_hash(load("seed: 3")) != config_hash(load("seed: 4"))
    assert len(config_hash(Config())) == 12


def test_a_config_is_found_by_path_or_by_name(tmp_path, monkeypatch):
    presets = tmp_path / "configs"
    presets.mkdir()
    (presets / "ears-nano.yaml").touch()
    (presets / "ears-debug.yaml").touch()
    monkeypatch.setattr(config_module, "PRESETS", presets)
    assert find_config("ears-nano") == find_config("ears-nano.yaml") == presets / "ears-nano.yaml"
    assert find_config(presets / "ears-debug.yaml") == presets / "ears-debug.yaml"
    with pytest.raises(FileNotFoundError, match=r"ear-nano: neither a file nor a preset; .*ears-debug, ears-nano"):
        find_config("ear-nano")


def test_a_deadline_passes_once_and_for_all(monkeypatch):
    now = 100.0
    monkeypatch.setattr(config_module.time, "monotonic", lambda: now)
    passed, never = deadline(2), deadline(None)
    assert not passed()
    now = 219.9
    assert not passed()
    now = 220.0
    assert passed()
    assert not never()


@pytest.fixture
def claimed(tmp_path):
    """A folder begun with the default settings, and something made there."""
    claim(tmp_path, Config())
    (tmp_path / "lessons").mkdir()
    (tmp_path / "lessons" / "one").write_text("made")
    (tmp_path / "model").write_text("made")
    (tmp_path / "notes.txt").write_text("mine")
    return tmp_path


def test_a_folder_is_claimed_with_all_settings(tmp_path):
    claim(tmp_path / "new" / "run", Config(seed=3))
    assert load_config(Config, tmp_path / "new" / "run" / "config.yaml") == Config(seed=3)


def test_the_same_settings_go_on_in_a_claimed_folder(claimed):
    before = (claimed / "config.yaml").read_bytes()
    claim(claimed, Config(mix={"world": 0.75, "words": 0.25}))
    assert (claimed / "config.yaml").read_bytes() == before
    assert (claimed / "lessons" / "one").exists()


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"seed": 4}, "seed 0, not 4"),
        ({"encoder": Encoder(steps=78)}, "encoder.steps 77, not 78"),
        ({"start": Path("weights")}, "start None, not 'weights'"),
        ({"mix": {"words": 0.25, "world": 0.7}}, "mix.world 0.75, not 0.7"),
        ({"mix": {"words": 0.25}}, "mix.world 0.75, not None"),
        ({"mix": {"words": 0.25, "world": 0.75, "more": 1.0}}, "mix.more None, not 1.0"),
        ({"span": (0.5, 3.0)}, "span [0.5, 2.0], not [0.5, 3.0]"),
        ({"bf16": True}, "bf16 False, not True"),
    ],
)
def test_other_settings_are_refused_with_what_is_different(claimed, changes, difference):
    before = (claimed / "config.yaml").read_bytes()
    with pytest.raises(ValueError, match=r"^[^\n]+$") as error:
        claim(claimed, replace(Config(), **changes))
    expected = f"{claimed} was begun with {difference}: choose another --out, or --fresh to begin anew"
    assert str(error.value) == expected
    assert (claimed / "config.yaml").read_bytes() == before


def test_fresh_begins_anew_and_keeps_what_others_made(claimed):
    claim(claimed, Config(seed=4), fresh=True, made=("lessons", "model", "never"))
    assert sorted(path.name for path in claimed.iterdir()) == ["config.yaml", "notes.txt"]
    assert load_config(Config, claimed / "config.yaml").seed == 4
    claim(claimed, Config(seed=4))
