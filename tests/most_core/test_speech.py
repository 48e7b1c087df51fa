import json
import logging
import time

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import HubertModel

from most_core import speech
from most_core.speech import (
    SAMPLE_RATE,
    CtcHead,
    Quantizer,
    SpeechEncoder,
    check_waveform,
    untrained_encoder,
)
from most_core.word_search import WordModel, WordSearch

TONE = np.sin(np.arange(8000) * 0.1).astype(np.float32) * 0.5


@pytest.fixture(scope="module")
def encoder():
    return untrained_encoder(feature_size=24, num_units=32, seed=1)


# -- waveforms ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given",
    [
        TONE,
        TONE.astype(np.float64),
        torch.from_numpy(TONE),
        torch.from_numpy(TONE).bfloat16(),
        (TONE * 2**15).astype(np.int16),
        (TONE.astype(np.float64) * 2**31).astype(np.int32),
        (TONE * 128 + 128).astype(np.uint8),
        np.stack([TONE, TONE]),
        np.stack([TONE * 1.5, TONE * 0.5], axis=1),
        TONE[None],
        TONE[:, None],
    ],
)
def test_every_kind_of_recording_becomes_the_same_float32_mono(given):
    wave = check_waveform(given, SAMPLE_RATE)
    assert wave.dtype == np.float32
    assert wave.shape == TONE.shape
    assert np.abs(wave - TONE).max() < 0.01


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000, 96000])
def test_resampling_keeps_pitch_level_and_length(rate):
    second = np.sin(2 * np.pi * 440 * np.arange(rate) / rate) * 0.5
    wave = check_waveform(second, rate)
    assert len(wave) == SAMPLE_RATE
    expected = np.sin(2 * np.pi * 440 * np.arange(SAMPLE_RATE) / SAMPLE_RATE) * 0.5
    assert np.abs(wave - expected)[200:-200].max() < 0.01


@pytest.mark.parametrize("scale", [1.01, 3.0, 32767.0, 1e38])
def test_floats_beyond_one_are_divided_by_their_peak(scale):
    wave = check_waveform(TONE * np.float32(2 * scale), SAMPLE_RATE)
    assert np.abs(wave).max() == pytest.approx(1)
    assert np.abs(wave - TONE * 2).max() < 1e-3


@pytest.mark.parametrize(
    ("waveform", "rate", "words"),
    [
        (TONE, 192000, "sampling rate 192000 .* resample to 16000 first"),
        (TONE, 4000, "sampling rate 4000 "),
        (TONE, None, "sampling rate None"),
        (TONE, 16000.5, "sampling rate 16000.5"),
        (TONE[:0], 16000, "empty"),
        (np.zeros((0, 2), np.float32), 16000, "empty"),
        (np.where(np.arange(10) == 3, np.nan, TONE[:10]), 16000, "nan at sample 3"),
        (np.where(np.arange(10) == 3, -np.inf, TONE[:10]), 44100, "-inf at sample 3"),
        (np.zeros((6, 100), np.float32), 16000, r"\(6, 100\)"),
        (np.zeros((1, 1, 100), np.float32), 16000, r"\(1, 1, 100\)"),
        (np.float32(0.5), 16000, r"shape \(\)"),
        (np.zeros(10, np.int64), 16000, "int64 .* int16"),
        (np.array(["a"]), 16000, "full scale"),
    ],
)
def test_a_bad_waveform_says_what_is_wrong(waveform, rate, words):
    with pytest.raises(ValueError, match=words) as error:
        check_waveform(waveform, rate)
    assert "\n" not in str(error.value)


# -- encoder -----------------------------------------------------------------------------------------------------------


def test_25_frames_a_second_of_features_and_varied_units(encoder):
    noise = np.random.default_rng(0).standard_normal(2 * SAMPLE_RATE).astype(np.float32)
    features, units = encoder.features_and_units(noise)
    assert features.dtype == torch.float32
    assert features.shape == (49, 24)  # 2 s, less the context of the first frame
    assert units.dtype == np.int64
    assert units.shape == (49,)
    assert len(set(units)) > 5
    assert torch.equal(features, encoder.features(noise))
    assert np.array_equal(units, encoder.units(noise))
    assert not features.requires_grad


def test_units_are_the_nearest_centroids(encoder):
    features, units = encoder.features_and_units(TONE)
    distances = torch.cdist(features.double(), encoder.quantizer.centroids.double())
    assert np.array_equal(distances.argmin(1).numpy(), units)


@pytest.mark.parametrize("samples", [1, 639, 640, 719, 720, 1359])
def test_sound_shorter_than_two_frames_gives_one(encoder, samples):
    features, units = encoder.features_and_units(TONE[:samples])
    assert features.shape == (1, 24)
    assert units.shape == (1,)
    assert features.isfinite().all()


def test_long_sound_is_heard_by_windows(encoder, monkeypatch):
    monkeypatch.setattr(speech, "WINDOW_S", 2)
    monkeypatch.setattr(speech, "MARGIN_S", 0.2)
    wave = np.random.default_rng(5).uniform(-0.5, 0.5, 7 * 16_000 + 123).astype(np.float32)
    plain = SpeechEncoder(encoder.model, encoder.quantizer, do_normalize=False)
    longest = []
    inside = encoder.model.forward
    monkeypatch.setattr(encoder.model, "forward", lambda x, **more: longest.append(x.shape[1]) or inside(x, **more))
    whole = plain.hidden_states(wave)
    assert max(longest) <= 2 * 16_000 + encoder.first_frame_samples
    frames = (len(wave) - encoder.first_frame_samples) // encoder.samples_per_frame + 1
    assert {len(state) for state in whole} == {frames}
    # Frames 40..80 are the second window's: they hear 35..85
    around = wave[35 * 640 : 84 * 640 + encoder.first_frame_samples]
    for state, alone in zip(whole, plain.hidden_states(around)):
        torch.testing.assert_close(state[40:80], alone[5:45])


def test_normalized_features_do_not_depend_on_loudness(encoder):
    assert torch.allclose(encoder.features(TONE), encoder.features(TONE * 0.1), atol=1e-3)
    plain = SpeechEncoder(encoder.model, encoder.quantizer, do_normalize=False)
    assert not torch.allclose(plain.features(TONE), plain.features(TONE * 0.1), atol=1e-3)


def test_seeds_decide_and_leave_the_global_generator_alone():
    state = torch.get_rng_state()
    first, again, other = (untrained_encoder(12, 8, seed) for seed in (5, 5, 6))
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(first.features(TONE), again.features(TONE))
    assert not torch.equal(first.features(TONE), other.features(TONE))


def test_the_untrained_encoder_is_fast(encoder):
    start = time.perf_counter()
    encoder.units(np.tile(TONE, 20))
    assert time.perf_counter() - start < 10 / 20


@pytest.mark.parametrize("do_normalize", [True, False])
def test_saving_and_loading_keeps_everything(encoder, tmp_path, do_normalize):
    saved = SpeechEncoder(encoder.model, encoder.quantizer, _spelling_head(encoder), do_normalize)
    saved.save(tmp_path)
    loaded = SpeechEncoder.load(tmp_path)
    assert loaded.quantizer.layer == 2
    assert loaded.num_units == 32
    assert torch.equal(loaded.features(TONE), saved.features(TONE))
    assert np.array_equal(loaded.units(TONE), saved.units(TONE))
    assert loaded.words(TONE) == saved.words(TONE)


def test_an_incomplete_or_wrong_folder_says_so(encoder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing"):
        SpeechEncoder.load(tmp_path)
    encoder.save(tmp_path)
    Quantizer(torch.zeros(8, 25), layer=1).save(tmp_path / "units.safetensors")
    with pytest.raises(ValueError, match="25 dimensions, the encoder's hidden states 24"):
        SpeechEncoder.load(tmp_path)
    Quantizer(torch.zeros(8, 24), layer=3).save(tmp_path / "units.safetensors")
    with pytest.raises(ValueError, match="layer 3"):
        SpeechEncoder.load(tmp_path)
    Quantizer(torch.zeros(8, 24), layer=1, rate_hz=50).save(tmp_path / "units.safetensors")
    with pytest.raises(ValueError, match=r"25 frames a second .* 50"):
        SpeechEncoder.load(tmp_path)
    save_file({"centroids": torch.zeros(8, 24)}, tmp_path / "units.safetensors")
    with pytest.raises(ValueError, match="metadata layer"):
        SpeechEncoder.load(tmp_path)
    (tmp_path / "units.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"units\.safetensors"):
        SpeechEncoder.load(tmp_path)


def rewrite(path, change):
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {"format": "pt"})


NORM = "encoder.layer_norm.weight"
POS_CONV = "encoder.pos_conv_embed.conv."


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(NORM), rf"tensor {NORM} is missing"),
        (lambda t: t.update({NORM: torch.ones(25)}), rf"{NORM} has shape \[25\], config.json asks for \[24\]"),
    ],
)
def test_weights_that_do_not_fit_are_named_and_never_drawn_at_random(
    encoder, tmp_path, change, message, monkeypatch, caplog
):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    encoder.save(tmp_path)
    rewrite(tmp_path / "speech_encoder" / "model.safetensors", change)
    with pytest.raises(ValueError, match=message) as error:
        SpeechEncoder.load(tmp_path)
    assert "\n" not in str(error.value)
    assert "LOAD REPORT" not in caplog.text


@pytest.mark.parametrize("name", ["speech_encoder/model.safetensors", "speech_encoder/ctc.safetensors"])
def test_a_truncated_file_is_told_in_one_line(encoder, tmp_path, name):
    SpeechEncoder(encoder.model, encoder.quantizer, _spelling_head(encoder)).save(tmp_path)
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ValueError, match="is damaged or not complete") as error:
        SpeechEncoder.load(tmp_path)
    assert "\n" not in str(error.value)


def test_a_wrong_type_in_the_encoders_configuration_is_told_in_one_line(encoder, tmp_path):
    encoder.save(tmp_path)
    path = tmp_path / "speech_encoder" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "hidden_size": "wide"}))
    with pytest.raises(ValueError, match=r"config\.json describes no HuBERT: .*hidden_size") as error:
        SpeechEncoder.load(tmp_path)
    assert "\n" not in str(error.value)


def test_old_names_and_a_missing_mask_load_as_before(encoder, tmp_path):
    def age(tensors):
        del tensors["masked_spec_embed"]
        tensors[POS_CONV + "weight_g"] = tensors.pop(POS_CONV + "parametrizations.weight.original0")
        tensors[POS_CONV + "weight_v"] = tensors.pop(POS_CONV + "parametrizations.weight.original1")

    encoder.save(tmp_path)
    rewrite(tmp_path / "speech_encoder" / "model.safetensors", age)
    loaded = SpeechEncoder.load(tmp_path)
    assert torch.equal(loaded.features(TONE), encoder.features(TONE))
    assert loaded.model.masked_spec_embed.count_nonzero() == 0


# -- words -------------------------------------------------------------------------------------------------------------

VOCAB = {"<pad>": 0, "|": 1, "a": 2, "b": 3, "c": 4}


def _spelling_head(encoder):
    weight = torch.randn(len(VOCAB), encoder.feature_size, generator=torch.Generator().manual_seed(0))
    return CtcHead(weight, torch.zeros(len(VOCAB)), VOCAB, layer=2)


def test_words_have_their_times_and_confidence():
    head = CtcHead(torch.eye(5) * 10, torch.zeros(5), VOCAB, layer=2)
    ids = [0, 2, 2, 0, 2, 3, 1, 1, 0, 4, 0]
    words = head.words(torch.eye(5)[ids], seconds_per_frame=0.04)
    assert [word.text for word in words] == ["aab", "c"]
    assert [(word.start_s, word.end_s) for word in words] == [(0.04, 0.24), (pytest.approx(0.36), 0.4)]
    assert all(word.confidence == pytest.approx(1, abs=1e-3) for word in words)
    unsure = head.words(torch.eye(5)[ids] * 0.1, seconds_per_frame=0.04)
    assert all(0.2 < word.confidence < 0.7 for word in unsure)


def test_a_head_may_spell_several_letters_a_frame(encoder, tmp_path):
    weight = torch.randn(10, 5, generator=torch.Generator().manual_seed(1))
    hidden = torch.randn(3, 5, generator=torch.Generator().manual_seed(2))
    log_probs = CtcHead(weight, torch.zeros(10), VOCAB, layer=2).log_probs(hidden)
    assert log_probs.shape == (6, 5)
    assert torch.allclose(log_probs[4:], (hidden[2] @ weight.T).view(2, 5).log_softmax(-1), atol=1e-6)
    wide = torch.randn(2 * len(VOCAB), encoder.feature_size, generator=torch.Generator().manual_seed(0))
    SpeechEncoder(encoder.model, encoder.quantizer, CtcHead(wide, torch.zeros(len(wide)), VOCAB, 2)).save(tmp_path)
    loaded = SpeechEncoder.load(tmp_path)
    frames, words = len(loaded.features(TONE)), loaded.words(TONE)
    assert loaded.letter_log_probs(TONE).shape == (2 * frames, len(VOCAB))
    assert words
    assert max(word.end_s for word in words) <= frames * 0.04 + 1e-6


def test_with_a_dictionary_words_are_found_in_the_letters(encoder, tmp_path, monkeypatch):
    singles = np.array([-0.7, -0.7, -99, -0.7, -99], np.float32)  # "cab", "bad", start, end, unknown
    nothing = np.zeros(0, np.float32)
    none = np.zeros(0, np.int64)
    model = WordModel(("cab", "bad"), singles, np.zeros_like(singles), none, nothing, nothing, none, nothing)
    head = CtcHead(torch.eye(5) * 3, torch.zeros(5), VOCAB, layer=2)
    cab, cac = torch.eye(5)[[0, 4, 2, 2, 2, 0, 3, 1, 0]], torch.eye(5)[[0, 4, 2, 4, 0]]
    assert [word.text for word in head.words(cac, 0.04)] == ["cac"]
    head.search = WordSearch(model, VOCAB, "<pad>", "|")
    (word,) = head.words(cab, 0.04)
    assert word.text == "cab"
    assert (word.start_s, word.end_s) == pytest.approx((0.04, 0.28))
    assert [word.text for word in head.words(cac, 0.04)] == ["cab"]

    wide = _spelling_head(encoder)
    wide.search = head.search
    SpeechEncoder(encoder.model, encoder.quantizer, wide).save(tmp_path)
    loaded = SpeechEncoder.load(tmp_path)
    assert loaded.ctc.search.model.words == ("cab", "bad")
    searched = []
    monkeypatch.setattr(loaded.ctc.search, "read", lambda log_probs: searched.append(log_probs) or [])
    assert len(loaded.features(TONE)) == len(loaded.units(TONE))
    assert not searched  # who wants no words does not pay for them
    encoded = loaded.encode(TONE)
    assert encoded.words == encoded.words == []
    assert len(searched) == 1
    (tmp_path / "speech_encoder/words.safetensors").write_bytes(b"cut off")
    with pytest.raises(ValueError, match=r"words\.safetensors is damaged"):
        SpeechEncoder.load(tmp_path)


def test_an_encoder_without_units_loads_where_none_are_needed(encoder, tmp_path):
    SpeechEncoder(encoder.model, encoder.quantizer, _spelling_head(encoder)).save(tmp_path)
    whole = SpeechEncoder.load(tmp_path)
    (tmp_path / "units.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"units\.safetensors is missing"):
        SpeechEncoder.load(tmp_path)
    bare = SpeechEncoder.load(tmp_path, units_needed=False)
    assert bare.words(TONE) == whole.words(TONE)
    assert bare.num_units == 1
    assert set(bare.units(TONE)) == {0}


def test_the_last_state_is_the_normalized_one():
    config = untrained_encoder(24, 8).model.config
    config.do_stable_layer_norm = True
    torch.manual_seed(0)
    model = HubertModel(config)
    top = SpeechEncoder(model, Quantizer(torch.zeros(8, 24), layer=2))
    features = top.features(TONE)
    samples = (torch.from_numpy(TONE) - TONE.mean()) / np.sqrt(TONE.var() + 1e-7)
    with torch.no_grad():
        expected = model(samples[None].float()).last_hidden_state[0]
    assert torch.allclose(features, expected, atol=1e-4)


def test_silence_and_a_missing_head_give_no_words(encoder):
    head = CtcHead(torch.eye(5), torch.zeros(5), VOCAB, layer=2)
    assert head.words(torch.eye(5)[[0, 0, 1, 1, 0]], 0.04) == []
    assert encoder.words(TONE) == []


def test_a_vocabulary_that_does_not_match_its_head_is_refused(encoder, tmp_path):
    SpeechEncoder(encoder.model, encoder.quantizer, _spelling_head(encoder)).save(tmp_path)
    (tmp_path / "speech_encoder" / "vocab.json").write_text(json.dumps({"<pad>": 0, "a": 1}))
    with pytest.raises(ValueError, match=r"vocab\.json must number its 2 characters from 0"):
        SpeechEncoder.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("bias"), "ctc.safetensors lacks the tensor bias"),
        (lambda t: t.pop("weight"), "ctc.safetensors lacks the tensor weight"),
        (
            lambda t: t.update(weight=torch.zeros(5, 23)),
            r"weight \[5, 23\] and bias \[5\], expected \[n characters, 24\]",
        ),
        (lambda t: t.update(bias=torch.zeros(4)), r"weight \[5, 24\] and bias \[4\]"),
        (lambda t: t.update(weight=torch.zeros(6, 24), bias=torch.zeros(6)), r"head's 6 rows"),
    ],
)
def test_a_head_that_does_not_fit_is_refused_at_load(encoder, tmp_path, change, message):
    SpeechEncoder(encoder.model, encoder.quantizer, _spelling_head(encoder)).save(tmp_path)
    rewrite(tmp_path / "speech_encoder" / "ctc.safetensors", change)
    with pytest.raises(ValueError, match=message) as error:
        SpeechEncoder.load(tmp_path)
    assert "\n" not in str(error.value)


def test_a_vocabulary_of_something_else_is_refused(encoder, tmp_path):
    SpeechEncoder(encoder.model, encoder.quantizer, _spelling_head(encoder)).save(tmp_path)
    (tmp_path / "speech_encoder" / "vocab.json").write_text(json.dumps({**VOCAB, "c": "4"}))
    with pytest.raises(ValueError, match="must number its 5 characters"):
        SpeechEncoder.load(tmp_path)


def test_rows_of_one_length_are_heard_as_if_alone(encoder):
    rows = torch.randn(3, 16_000) * torch.tensor([[0.3], [0.1], [0.02]])
    features, units = encoder.encode_rows(rows)
    for row, its_features, its_units in zip(rows, features, units):
        alone = encoder.encode(row)
        torch.testing.assert_close(its_features, alone.features, rtol=1e-4, atol=1e-4)
        assert (its_units.numpy() == alone.units).mean() > 0.95
    with pytest.raises(ValueError, match="rows of 100 samples"):
        encoder.encode_rows(rows[:, :100])
