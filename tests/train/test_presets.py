"""Every file in train/configs is read by the command that it is for."""

import pytest

from train import encoder, prepare, stages, units, vocoder
from train.config import PRESETS, load_config
from train.data import dialogues, replies, synthesize

COMMAND_OF = {
    "english": synthesize,
    "world": synthesize,
    "check": synthesize,
    "check-dialogues": dialogues,
    "check-replies": replies,
    "dialogues": dialogues,
    "replies": replies,
    "ears": encoder,
    "units": units,
    "vocoder": vocoder,
    "voice": synthesize,
    "lessons": prepare,
    "check-lessons": prepare,
    "stage1": stages,
    "stage2": stages,
}
FILES = sorted(PRESETS.glob("*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])
def test_presets_load(path):
    command = COMMAND_OF.get(path.stem) or COMMAND_OF[path.stem.partition("-")[0]]
    assert load_config(command.Config, path)


@pytest.mark.parametrize("size", ["debug", "nano", "nano-gpu"])
def test_a_size_has_all_the_steps_of_the_recipe(size):
    names = {path.stem for path in FILES}
    assert {f"{part}-{size}" for part in ("english", "world", "ears", "units")} <= names
    ears = load_config(encoder.Config, PRESETS / f"ears-{size}.yaml")
    clusters = load_config(units.Config, PRESETS / f"units-{size}.yaml")
    assert clusters.encoder.parts[1] == size
    assert all(source.path.parts[1] == size for source in [*ears.speech.values(), *clusters.speech.values()])
