import hashlib
import json

import numpy as np
import pytest

import most_core
from most_core.config import MostConfig
from most_core.model import MostForCausalLM
from most_core.processing import train_small_tokenizer
from most_core.speech import untrained_encoder
from most_core.vocoder import untrained_vocoder
from train import __main__ as cli
from train.data.made_up import write_made_up
from train.export import data_of

SHAPE = MostConfig.tiny()


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Folders as the trainings leave them, of random weights that fit together; read only."""
    folder = tmp_path_factory.mktemp("parts")
    MostForCausalLM(SHAPE).save_pretrained(folder / "model")
    train_small_tokenizer(["a few words"], SHAPE).save_pretrained(folder / "model")
    untrained_encoder(SHAPE.speech_feature_size, SHAPE.tokens.num_units).save(folder / "ears")
    untrained_vocoder(SHAPE.tokens.num_units).save(folder / "mouth")
    write_made_up(folder / "lessons" / "asr", "asr", SHAPE, rows=3)
    return folder


def export(parts, out, *settings, options=()):
    named = [f"model={parts}/model", f"ears={parts}/ears", f"mouth={parts}/mouth"]
    return cli.main(["export", "--out", str(out), *options, "--set", *named, *settings])


def test_what_is_exported_hears_answers_and_speaks(parts, tmp_path, capsys):
    assert export(parts, tmp_path / "model", "title=Little", f"lessons=[{parts}/lessons]") == 0
    reply = most_core.load(tmp_path / "model", device="cpu").answer(np.zeros(8000, np.float32))
    assert len(reply.units) * 640 == len(reply.waveform) > 0
    card = (tmp_path / "model" / "README.md").read_text()
    assert "# Little" in card
    assert "4 text experts and 4 audio experts in each of 2 layers, of which a token meets 2, and 1 shared" in card
    assert "| asr | made up | none | 3 |" in card
    assert "MB; talk to it" in capsys.readouterr().out


def test_it_tells_how_to_make_its_data_again(tmp_path):
    source, lessons = tmp_path / "speech", tmp_path / "lessons"
    shard = {"rows": 3, "seconds": 1800.0, "sha256": "ab"}
    generator = {"command": "prepare", "location": "/some/where/barista"}
    for folder, made in ((source, generator), (lessons / "asr", {"sources": [str(source)]})):
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text(json.dumps({"generator": made, "shards": [shard, shard]}))
    assert data_of([lessons]) == {
        str(source): {
            "lessons": ["asr"],
            "generator": {"command": "prepare", "location": "barista"},
            "rows": 6,
            "hours": 1.0,
            "sha256": hashlib.sha256(b"abab").hexdigest(),
        }
    }
    (source / "manifest.json").unlink()
    with pytest.raises(FileNotFoundError, match="keep what lessons are of"):
        data_of([lessons])


def test_replies_are_cut_after_what_the_export_says(parts, tmp_path, capsys):
    assert export(parts, tmp_path / "model", "longest_reply=3") == 0
    most = most_core.load(tmp_path / "model", device="cpu")
    reply = most.answer("hello", record_routing=True)
    assert reply.finish_reason == "length"
    assert np.isfinite(reply.trace.logprob).sum() == 2  # the last token is never routed
    assert export(parts, tmp_path / "other", "longest_reply=0") == 2
    assert "longest_reply is 0" in capsys.readouterr().err


def test_without_a_mouth_it_only_writes(parts, tmp_path):
    assert export(parts, tmp_path / "model", "mouth=null") == 0
    assert not (tmp_path / "model" / "vocoder").exists()
    assert len(most_core.load(tmp_path / "model", device="cpu").answer("hello").waveform) == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["model=nowhere"], "nowhere has no model.safetensors: train it first"),
        (["ears=nowhere"], "nowhere has no units.safetensors: train it first"),
        (["mouth=nowhere"], "nowhere has no vocoder: train it first, or say mouth=null"),
    ],
)
def test_missing_parts_are_named(parts, tmp_path, capsys, settings, message):
    assert export(parts, tmp_path / "model", *settings) == 2
    assert capsys.readouterr().err.strip() == f"error: {message}"
    assert not (tmp_path / "model").exists()


def test_parts_that_do_not_fit_leave_nothing(parts, tmp_path, capsys):
    untrained_encoder(SHAPE.speech_feature_size + 8, SHAPE.tokens.num_units).save(tmp_path / "ears")
    assert export(parts, tmp_path / "out" / "model", f"ears={tmp_path}/ears") == 2
    assert "they do not belong together" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_is_there_is_replaced_only_when_asked(parts, tmp_path, capsys):
    assert export(parts, tmp_path / "model", "title=One") == 0
    assert export(parts, tmp_path / "model", "title=Two") == 2
    assert "exists already" in capsys.readouterr().err
    assert "# One" in (tmp_path / "model" / "README.md").read_text()
    assert export(parts, tmp_path / "model", "title=Two", options=["--fresh"]) == 0
    assert "# Two" in (tmp_path / "model" / "README.md").read_text()


def test_what_does_not_fit_replaces_nothing(parts, tmp_path, capsys):
    assert export(parts, tmp_path / "model", "title=One") == 0
    untrained_encoder(SHAPE.speech_feature_size + 8, SHAPE.tokens.num_units).save(tmp_path / "ears")
    assert export(parts, tmp_path / "model", f"ears={tmp_path}/ears", options=["--fresh"]) == 2
    assert "# One" in (tmp_path / "model" / "README.md").read_text()
    assert export(parts, tmp_path, options=["--fresh"]) == 2
    assert "is no model: --fresh replaces an earlier export only" in capsys.readouterr().err


def test_a_dry_run_shows_the_card_alone(parts, tmp_path, capsys):
    assert export(parts, tmp_path / "model", options=["--dry-run"]) == 0
    assert "## Figures" in capsys.readouterr().out
    assert not (tmp_path / "model").exists()
