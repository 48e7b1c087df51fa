import json
import tracemalloc
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from most_core.vocoder import (
    MOST_UNITS_AT_ONCE,
    UnitHifiGan,
    Vocoder,
    VocoderConfig,
    context_reach_units,
    receptive_field_samples,
    receptive_field_units,
    untrained_vocoder,
)

VOCODER = untrained_vocoder(num_units=32, seed=3)
SMALL = {"num_units": 16, "embedding_dim": 8, "upsample_initial_channel": 16}
SHAPES = [
    VocoderConfig(**SMALL),
    VocoderConfig(
        **SMALL,
        upsample_rates=(5, 4, 4, 4),
        upsample_kernel_sizes=(11, 8, 8, 4),
        context_dilations=(),
        context_lookahead=0,
    ),
    VocoderConfig(
        **SMALL,
        upsample_rates=(2, 3),
        upsample_kernel_sizes=(2, 3),
        resblock_kernel_sizes=(1, 7),
        resblock_dilation_sizes=((1,), (1, 3, 5)),
        context_dilations=(1, 3),
        context_kernel_size=2,
        context_lookahead=1,
    ),
]


def random_units(count, num_units=32, seed=0):
    return np.random.default_rng(seed).integers(0, num_units, count)


def stretching_vocoder():
    torch.manual_seed(0)
    config = VocoderConfig(**SMALL, upsample_rates=(2, 2), upsample_kernel_sizes=(4, 4), duration_predictor=True)
    model = UnitHifiGan(config)
    torch.nn.init.normal_(model.duration_predictor.proj.weight, std=0.1)
    torch.nn.init.constant_(model.duration_predictor.proj.bias, 1.0)
    return Vocoder(model)


STRETCHING = stretching_vocoder()


# -- sound -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_an_untrained_vocoder_is_small_and_audible_and_does_not_clip(seed):
    vocoder = untrained_vocoder(num_units=100, seed=seed)
    assert sum(p.numel() for p in vocoder.model.parameters()) < 500_000
    wave = vocoder.synthesize(random_units(50, 100))
    assert wave.dtype == np.float32
    assert wave.std() > 0.01
    assert np.abs(wave).max() < 0.95


@pytest.mark.parametrize("count", [0, 1, 2, 7, 60])
@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
def test_sound_is_exactly_as_long_as_its_units(count, kind):
    assert VOCODER.synthesize(kind(list(random_units(count)))).shape == (640 * count,)


@pytest.mark.parametrize("config", SHAPES)
def test_other_rates_are_exact_too(config):
    wave = Vocoder(UnitHifiGan(config)).synthesize([1, 2, 3])
    assert len(wave) == 3 * config.samples_per_unit


@pytest.mark.parametrize(
    ("units", "words"),
    [
        ([3, 32], r"unit 32 is out of range: .* 0\.\.31"),
        ([-1], r"unit -1 .* 0\.\.31"),
        ([0.5], "float64"),
        ([[1, 2]], r"\(1, 2\)"),
    ],
)
def test_bad_units_are_named(units, words):
    with pytest.raises(ValueError, match=words):
        VOCODER.synthesize(units)


# -- receptive field ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", SHAPES)
def test_the_receptive_field_is_exact(config):
    """Impulses through a network of positive weights show every dependency: none is missed, none is invented."""
    model = UnitHifiGan(config).double()
    for name, parameter in model.named_parameters():
        torch.nn.init.constant_(parameter, 0.0 if name.endswith("bias") else 1 / parameter[0].numel())
    left, right = receptive_field_units(config)
    middle, size, count = left + 2, config.samples_per_unit, 2 * left + right + 5
    surroundings = context_reach_units(config)
    impulses = F.pad(torch.eye(count, dtype=torch.double), surroundings)[:, :, None].expand(
        -1, -1, config.embedding_dim
    )
    with torch.no_grad():
        waves = model.generator(model.context(impulses).mT)
    touched = waves[:, middle * size : (middle + 1) * size].abs().sum(1).nonzero().flatten().tolist()
    assert touched == list(range(middle - left, middle + right + 1))

    heard = waves[middle].nonzero().flatten().tolist()
    back, ahead = receptive_field_samples(config)
    assert (heard[0], heard[-1]) == (middle * size - ahead, (middle + 1) * size - 1 + back)


# -- streams -----------------------------------------------------------------------------------------------------------


def streamed(vocoder, units, cuts, **options):
    stream = vocoder.stream(**options)
    edges = [0, *sorted(cuts), len(units)]
    sounds = [stream.push(units[start:stop]) for start, stop in pairwise(edges)]
    return np.concatenate([*sounds, stream.finish()])


@given(st.integers(0, 60), st.lists(st.integers(0, 60), max_size=12), st.integers(1, 20))
@settings(max_examples=25, deadline=None)
def test_any_chunks_give_the_offline_sound(count, cuts, hop):
    units = random_units(count, seed=count)
    wave = streamed(VOCODER, units, [min(cut, count) for cut in cuts], hop=hop)
    offline = VOCODER.model(torch.from_numpy(units)[None])[0].numpy() if count else np.zeros(0)
    assert wave.shape == offline.shape
    assert np.abs(wave - offline).max(initial=0) < 1e-4


@given(st.integers(0, 40), st.lists(st.integers(0, 40), max_size=12))
@settings(max_examples=25, deadline=None)
def test_streams_with_predicted_durations_too(count, cuts):
    units = random_units(count, 16, seed=count)
    wave = streamed(STRETCHING, units, [min(cut, count) for cut in cuts])
    if not count:
        assert len(wave) == 0
        return
    batch = torch.from_numpy(units)[None]
    durations = STRETCHING.model.durations(batch)[0]
    offline = STRETCHING.model(batch[0].repeat_interleave(durations)[None])[0].numpy()
    assert wave.shape == offline.shape
    assert np.abs(wave - offline).max() < 1e-4


def test_predicted_durations_can_be_left_out():
    units = random_units(30, 16)
    assert len(STRETCHING.synthesize(units)) > 30 * 4
    assert len(STRETCHING.synthesize(units, predict_durations=False)) == 30 * 4
    with pytest.raises(ValueError, match="no duration predictor"):
        VOCODER.synthesize(units, predict_durations=True)


def test_sound_comes_as_soon_as_its_context_is_there():
    _, ahead = receptive_field_samples(VOCODER.config)
    stream, total = VOCODER.stream(hop=1), 0
    for pushed, unit in enumerate(random_units(20), start=1):
        total += len(stream.push([unit]))
        assert total == max(0, 640 * pushed - ahead)


def test_a_hop_waits_but_never_longer_than_what_was_heard():
    stream, total = VOCODER.stream(hop=4), 0
    for unit in random_units(40):
        sound = stream.push([unit])
        assert len(sound) in range(1, 5 * 640) or len(sound) == 0
        if len(sound):
            assert len(sound) >= min(total, 4 * 640)
        total += len(sound)


def test_a_finished_stream_is_closed():
    stream = VOCODER.stream()
    stream.push([1])
    assert len(stream.finish()) == 640
    with pytest.raises(ValueError, match="finished"):
        stream.finish()
    with pytest.raises(ValueError, match="finished"):
        stream.push([1])


def test_a_refused_push_leaves_the_stream_as_it_was():
    units = random_units(12)
    stream = VOCODER.stream()
    sounds = [stream.push(units[:6])]
    with pytest.raises(ValueError, match="out of range"):
        stream.push([1, 99])
    sounds += [stream.push(units[6:]), stream.finish()]
    assert np.abs(np.concatenate(sounds) - VOCODER.synthesize(units)).max() < 1e-4


def test_very_long_speech_is_rendered_in_pieces_of_flat_size(monkeypatch):
    vocoder = Vocoder(UnitHifiGan(SHAPES[2]))
    left, right = receptive_field_units(vocoder.config)
    longest = 0
    render = vocoder.model.sound

    def watched(units):
        nonlocal longest
        longest = max(longest, units.shape[1])
        return render(units)

    monkeypatch.setattr(vocoder.model, "sound", watched)
    wave = vocoder.synthesize(random_units(100_000, 16))
    assert len(wave) == 100_000 * 6
    assert longest <= MOST_UNITS_AT_ONCE + left + right + 1


def test_a_long_stream_keeps_no_more_than_its_context():
    vocoder = Vocoder(UnitHifiGan(SHAPES[2]))
    stream = vocoder.stream()
    tracemalloc.start()
    for unit in random_units(1500, 16):
        stream.push([unit])
    before = tracemalloc.get_traced_memory()[0]
    for unit in random_units(1500, 16):
        stream.push([unit])
    after = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert after - before < 20_000


# -- files -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vocoder", [VOCODER, STRETCHING], ids=["plain", "durations"])
def test_saving_and_loading_keeps_the_sound(vocoder, tmp_path):
    vocoder.save(tmp_path)
    loaded = Vocoder.load(tmp_path)
    assert loaded.config == vocoder.config
    units = random_units(10, 16)
    assert np.array_equal(loaded.synthesize(units), vocoder.synthesize(units))


def test_a_wrong_folder_says_what_is_wrong(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing"):
        Vocoder.load(tmp_path)
    VOCODER.save(tmp_path)
    path = tmp_path / "vocoder" / "config.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "num_units": 33}))
    with pytest.raises(ValueError, match=r"embedding.weight has shape \[32, 32\], .* \[33, 32\]"):
        Vocoder.load(tmp_path)
    path.write_text(json.dumps({**values, "upsample_rate": 3}))
    with pytest.raises(ValueError, match="upsample_rate"):
        Vocoder.load(tmp_path)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"upsample_kernel_sizes": (15, 11, 8, 8)}, "kernel 15 does not fit rate 8"),
        ({"upsample_rates": (8, 5, 4)}, "upsample_rates has 3 entries"),
        ({"resblock_kernel_sizes": (3, 4)}, "kernel 4 is even"),
        ({"upsample_initial_channel": 24}, "multiple of 16"),
        ({"context_dilations": (1, 2), "context_lookahead": 2}, "context_lookahead 2 needs as many context layers"),
        ({"context_kernel_size": 1}, "context_kernel_size 1 cannot look ahead"),
        ({"context_lookahead": -1}, "context_lookahead -1 is not a positive whole number"),
    ],
)
def test_an_impossible_shape_is_refused(values, words):
    with pytest.raises(ValueError, match=words):
        VocoderConfig(**values)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"num_units": "x"}, "num_units 'x' is not a positive whole number"),
        ({"num_units": 0}, "num_units 0 is not"),
        ({"sample_rate": True}, "sample_rate True is not a positive whole number"),
        ({"upsample_rates": None}, "upsample_rates None is not a list of positive whole numbers"),
        ({"upsample_rates": [8, 5, 4, "4"]}, "upsample_rates .* is not a list of positive"),
        ({"resblock_dilation_sizes": [1, 3]}, "resblock_dilation_sizes .* is not a list of lists"),
        ({"duration_predictor": "no"}, "duration_predictor 'no' is not true or false"),
    ],
)
def test_settings_of_a_wrong_type_are_named_with_their_file(tmp_path, values, words):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(values))
    with pytest.raises(ValueError, match=rf"config\.json: {words}") as error:
        VocoderConfig.from_json(path)
    assert "\n" not in str(error.value)
