"""Prompts: templates, clips, and that nothing a person types becomes a special token."""

import numpy as np
import pytest
import torch

from most_core import MostConfig
from most_core.config import TokenTable
from most_core.processing import (
    ASSISTANT,
    BOS,
    DEEPSEEK_CHAT_TEMPLATE,
    EOS,
    PAD,
    SYSTEM,
    USER,
    MostProcessor,
    as_messages,
    check_messages,
    load_tokenizer,
    train_small_tokenizer,
)
from most_core.speech import CtcHead, untrained_encoder

# All 256 bytes have tokens, unlike in tiny(), so that any text survives.
CONFIG = MostConfig.tiny(vocab_size=640, token_table=vars(TokenTable.after(num_text_tokens=600, num_units=32)))
TOKENS = CONFIG.tokens
TEXTS = ["hello there, how are you?", "User: Assistant: be kind and brief"]
WAVE = np.sin(np.arange(6400) * 0.2).astype(np.float32) * 0.5
OTHER = np.sin(np.arange(3200) * 0.05).astype(np.float32) * 0.3


@pytest.fixture(scope="module")
def tokenizer():
    return train_small_tokenizer(TEXTS, CONFIG)


@pytest.fixture(scope="module")
def encoder():
    return untrained_encoder(CONFIG.speech_feature_size, 32, seed=0)


@pytest.fixture(scope="module")
def processor(tokenizer, encoder):
    return MostProcessor(CONFIG, tokenizer, encoder)


@pytest.fixture(scope="module")
def deepseek(encoder):
    tokenizer = train_small_tokenizer(TEXTS, CONFIG)
    tokenizer.chat_template = DEEPSEEK_CHAT_TEMPLATE
    return MostProcessor(CONFIG, tokenizer, encoder)


def text(value):
    return {"type": "text", "text": value}


def audio(value, rate=16000):
    return {"type": "audio", "audio": value, "sampling_rate": rate}


def user(content):
    return {"role": "user", "content": content}


def assistant(content):
    return {"role": "assistant", "content": content}


def spelled(processor, ids):
    """The prompt as one string; runs of frames and units as their count."""
    out, run = "", 0
    for i in [*ids, -1]:
        if TOKENS.is_audio(i):
            run += 1
            continue
        if run:
            out += f"({run})"
            run = 0
        out += processor.tokenizer.decode([i]) if i >= 0 else ""
    return out


def frames(encoder, wave):
    return len(encoder.features(wave))


# -- templates ---------------------------------------------------------------------------------------------------------

CONVERSATION = [
    {"role": "system", "content": "be kind"},
    user("hello"),
    assistant("hi"),
    user([text("how "), text("are you")]),
]


def test_small_template_spells_a_conversation(processor):
    assert spelled(processor, processor.prompt(CONVERSATION).ids) == (
        "<bos><|system|>be kind<|user|>hello<|assistant|>hi<eos><|user|>how are you<|assistant|>"
    )


def test_deepseek_template_spells_a_conversation(deepseek):
    assert spelled(deepseek, deepseek.prompt(CONVERSATION).ids) == (
        "<bos>be kind\n\nUser: hello\n\nAssistant: hi<eos>User: how are you\n\nAssistant:"
    )


def test_deepseek_template_carries_speech(deepseek, encoder):
    n, m = frames(encoder, WAVE), len(encoder.units(OTHER))
    ids = deepseek.prompt([user([audio(WAVE)]), assistant([text("hi"), audio(OTHER)]), user("and?")]).ids
    assert spelled(deepseek, ids) == (
        f"<bos>User: [Wave]({n})[/Wave]\n\nAssistant: hi[Audio]({m})[/Audio]<eos>User: and?\n\nAssistant:"
    )


LEARNED = [
    {"role": "user", "content": [audio(None)]},
    {
        "role": "assistant",
        "content": [{"type": "heard", "text": "hello there"}, text("how are you?"), audio(None)],
    },
    {"role": "user", "content": "be kind"},
    {"role": "assistant", "content": [text("and brief")]},
]


@pytest.mark.parametrize("which", ["processor", "deepseek"])
def test_a_lesson_says_where_the_assistant_speaks(which, request):
    processor = request.getfixturevalue(which)
    ids, replies = processor.lesson(LEARNED)
    said = [processor.tokenizer.decode(ids[start:stop]) for start, stop in replies]
    space = " " if which == "deepseek" else ""
    assert said == [f"{space}hello there[/Heard]how are you?[Audio][/Audio]{EOS}", f"{space}and brief{EOS}"]


@pytest.mark.parametrize("which", ["processor", "deepseek"])
def test_a_lesson_begins_as_the_prompt_does(which, request):
    processor = request.getfixturevalue(which)
    ids, replies = processor.lesson(LEARNED)
    history = [{"role": "user", "content": "be kind"}]
    assert processor.lesson([*history, LEARNED[3]])[0][: len(processor.prompt(history).ids)] == (
        processor.prompt(history).ids
    )
    asked = processor.prompt([{"role": "user", "content": [audio(WAVE)]}]).ids
    assert [token for token in asked if token != TOKENS.frame] == ids[: replies[0][0]]


def test_a_spoken_sentence_follows_its_prompt_without_a_space(deepseek):
    ids, [(start, _)] = deepseek.lesson(
        [
            {"role": "user", "content": "be brief"},
            {"role": "assistant", "content": [audio(None)]},
        ]
    )
    assert ids[start] == TOKENS.audio_start


def test_a_lesson_ends_with_the_assistant(processor):
    with pytest.raises(ValueError, match="end with what the assistant says"):
        processor.lesson(LEARNED[:3])


def test_a_spoken_question_is_a_clip_between_wave_markers(processor, encoder):
    n = frames(encoder, WAVE)
    ids = processor.prompt(as_messages(WAVE)).ids
    assert spelled(processor, ids) == f"<bos><|user|>[Wave]({n})[/Wave]<|assistant|>"
    assert ids.count(TOKENS.frame) == n


def test_text_and_clips_keep_their_order_in_one_turn(processor, encoder):
    n, m = frames(encoder, WAVE), frames(encoder, OTHER)
    ids = processor.prompt([user([text("a"), audio(WAVE), text("b"), audio(OTHER), text("c")])]).ids
    assert spelled(processor, ids) == f"<bos><|user|>a[Wave]({n})[/Wave]b[Wave]({m})[/Wave]c<|assistant|>"


def test_features_of_several_clips_follow_each_other(processor, encoder):
    prompt = processor.prompt([user([audio(WAVE), audio(OTHER)]), assistant("ok"), user([audio(WAVE)])])
    expected = torch.cat([encoder.features(x) for x in (WAVE, OTHER, WAVE)])
    assert torch.equal(prompt.features, expected)
    assert prompt.ids.count(TOKENS.frame) == len(expected)


def test_a_clip_of_the_system_is_heard_too(processor, encoder):
    prompt = processor.prompt([{"role": "system", "content": [audio(OTHER)]}, user("hi")])
    assert prompt.ids.count(TOKENS.frame) == frames(encoder, OTHER)
    assert not prompt.has_speech


def test_what_the_assistant_said_is_units(processor, encoder):
    prompt = processor.prompt([user("hi"), assistant([text("yo"), audio(WAVE)]), user("and?")])
    units = [i - TOKENS.first_unit for i in prompt.ids if TOKENS.is_audio(i)]
    assert units == encoder.units(WAVE).tolist()
    assert TOKENS.frame not in prompt.ids
    assert prompt.features is None
    assert prompt.ids[prompt.ids.index(TOKENS.audio_start) + 1] >= TOKENS.first_unit


def test_only_a_spoken_last_turn_counts_as_speech(processor):
    assert processor.prompt([user([text("x"), audio(WAVE)])]).has_speech
    assert not processor.prompt([user([audio(WAVE)]), assistant("ok"), user("written")]).has_speech


def test_words_are_those_of_the_last_clip_of_a_spoken_turn(tokenizer):
    encoder = untrained_encoder(CONFIG.speech_feature_size, 32, seed=0)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(5, CONFIG.speech_feature_size, generator=generator)
    vocab = {"<pad>": 0, "|": 1, "a": 2, "b": 3, "c": 4}
    encoder.ctc = CtcHead(weight, torch.zeros(5), vocab, encoder.quantizer.layer)
    processor = MostProcessor(CONFIG, tokenizer, encoder)
    prompt = processor.prompt([user([audio(WAVE), audio(OTHER)])])
    assert prompt.words == encoder.words(OTHER) != encoder.words(WAVE)
    assert processor.prompt([user([audio(WAVE)]), assistant("ok"), user("written")]).words == []


def test_other_sampling_rates_are_resampled(processor):
    slow = processor.prompt([user([audio(WAVE[::2], 8000)])])
    assert len(slow.ids) == len(processor.prompt([user([audio(WAVE)])]).ids)


def test_sampling_rate_is_16_khz_unless_given(processor):
    bare = {"type": "audio", "audio": WAVE}
    assert torch.equal(processor.prompt([user([bare])]).features, processor.prompt([user([audio(WAVE)])]).features)


def test_messages_are_not_changed(processor):
    messages = [user([text("<eos>"), audio(WAVE)])]
    processor.prompt(messages)
    assert messages[0]["content"][0] == {"type": "text", "text": "<eos>"}
    assert messages[0]["content"][1]["audio"] is WAVE


# -- prompt injection --------------------------------------------------------------------------------------------------

SPECIAL = [PAD, BOS, EOS, SYSTEM, USER, ASSISTANT, "[Hu5]", "[Hu31]", "[Audio]", "[/Audio]", "[Wave]", "[/Wave]"]
SPECIAL += ["[Frame]", "[/Heard]"]
HARMLESS = [1, 4, 5]  # what the template itself puts around a single user turn


def specials(processor, ids):
    return [i for i in ids if i < 6 or i >= TOKENS.first_unit]


@pytest.mark.parametrize("typed", SPECIAL)
@pytest.mark.parametrize("form", ["string", "part", "cut in two", "nested", "in a system message"])
def test_typed_spellings_never_become_special_tokens(processor, typed, form):
    content = {
        "string": f"a {typed} b",
        "part": [text(f"a {typed} b")],
        "cut in two": [text("a " + typed[:2]), text(typed[2:] + " b")],
        "nested": typed[:2] + typed + typed[2:],
        "in a system message": "hi",
    }[form]
    messages = [user(content)]
    if form == "in a system message":
        messages.insert(0, {"role": "system", "content": typed})
    wanted = HARMLESS if form != "in a system message" else [1, 3, 4, 5]
    assert specials(processor, processor.prompt(messages).ids) == wanted


def test_typed_markers_do_not_swallow_a_real_clip(processor, encoder):
    ids = processor.prompt([user([text("[Wave][/Wave]"), audio(WAVE)])]).ids
    assert ids.count(TOKENS.wave_start) == ids.count(TOKENS.wave_end) == 1
    assert ids.count(TOKENS.frame) == frames(encoder, WAVE)


def test_an_assistants_quoted_marker_is_text_too(processor):
    ids = processor.prompt([user("hi"), assistant("[Audio]<eos>"), user("and?")]).ids
    assert specials(processor, ids) == [1, 4, 5, 2, 4, 5]


def test_deepseek_markers_cannot_be_typed_either(deepseek):
    assert specials(deepseek, deepseek.prompt([user("<eos>[Hu5]<bos>")]).ids) == [1]


def test_typed_spellings_stay_readable(processor):
    ids = processor.prompt([user("say <eos> twice")]).ids
    assert processor.text(ids).replace("\u200d", "") == "say <eos> twice"


@pytest.mark.parametrize("typed", ["{{ bos_token }}", "{% raw %}", "${x}", "<|user", "[Hu99]", "\x00", "\u200d"])
def test_other_odd_text_passes_as_it_is(processor, typed):
    assert processor.text(processor.prompt([user(typed)]).ids) == typed


def test_lone_surrogates_are_replaced(processor):
    assert processor.text(processor.prompt([user("a\ud800b")]).ids) == "a?b"


# -- refused conversations ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "the conversation is empty"),
        ([user("")], r"message 0 \(user\) has no content"),
        ([user([])], "has no content"),
        ([user(None)], "has no content"),
        ([{"role": "user"}], "has no content"),
        ([{"content": "x"}], "message 0 has role None"),
        ([user("x"), {"role": "tool", "content": "x"}], "message 1 has role 'tool': use 'system', 'user' or 'assist"),
        (["hi"], "message 0 is a str"),
        ([user(["hi"])], "has a part str"),
        ([user([{"type": "image", "image": 1}])], r"has a part \['image', 'type'\]"),
        ([user([{"type": "text"}])], "has a part"),
        ([user([{"type": "audio", "url": "x"}])], "has a part"),
        ([user([{"type": "text", "text": None}])], "has text of type NoneType"),
        ([user("hi"), assistant("yo")], "the last message is the assistant's"),
    ],
)
def test_impossible_conversations_are_refused_in_one_line(processor, messages, message):
    with pytest.raises(ValueError, match=message) as error:
        processor.prompt(messages)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=message):
        check_messages(messages)


def test_speech_without_an_encoder_is_refused_in_one_line(tokenizer):
    with pytest.raises(ValueError, match="without a speech encoder"):
        MostProcessor(CONFIG, tokenizer).prompt(as_messages(WAVE))


def test_text_needs_no_encoder(tokenizer, processor):
    assert MostProcessor(CONFIG, tokenizer).prompt(as_messages("hi")).ids == processor.prompt(as_messages("hi")).ids


def test_a_string_is_text_and_never_a_path(tmp_path, processor):
    path = tmp_path / "hello.wav"
    path.write_bytes(b"RIFF")
    assert as_messages(str(path)) == [user(str(path))]


@pytest.mark.parametrize("given", [None, b"abc", 3.0, {"role": "user", "content": "x"}])
def test_other_things_than_text_sound_and_messages_are_refused(given):
    with pytest.raises(ValueError, match="give a text, a waveform array or a list of messages"):
        as_messages(given)


# -- text --------------------------------------------------------------------------------------------------------------

UNICODE = ["hello there", "naïve café", "日本語テキスト", "👩‍👩‍👧 family 🎉", "  two  spaces ", "line\nline", "мир"]


@pytest.mark.parametrize("written", UNICODE)
def test_streamed_pieces_join_to_the_text(processor, written):
    ids = processor.tokenizer.encode(written, add_special_tokens=False)
    stream = processor.text_stream()
    pieces = [stream.push(i) for i in ids]
    assert "".join(pieces) == processor.text(ids) == written
    assert not any("\ufffd" in piece for piece in pieces)


def test_a_character_of_several_tokens_comes_when_it_is_whole(processor):
    ids = processor.tokenizer.encode("🎉", add_special_tokens=False)
    stream = processor.text_stream()
    pieces = [stream.push(i) for i in ids]
    assert len(ids) == 4
    assert pieces == ["", "", "", "🎉"]


def test_random_tokens_never_break_the_stream(processor):
    generator = torch.Generator().manual_seed(0)
    for _ in range(100):
        ids = torch.randint(6, TOKENS.first_unit, (20,), generator=generator).tolist()
        stream = processor.text_stream()
        assert processor.text(ids).startswith("".join(stream.push(i) for i in ids))


def test_units_and_markers_are_not_text(processor):
    ids = processor.tokenizer.encode("hi", add_special_tokens=False)
    assert processor.text([1, *ids, TOKENS.audio_start, TOKENS.first_unit, TOKENS.audio_end, 2]) == "hi"


def test_spelling_names_every_token(processor):
    assert processor.spelling(TOKENS.first_unit + 7) == "[Hu7]"
    assert processor.spelling(TOKENS.heard_end) == "[/Heard]"
    assert processor.spelling(2) == "<eos>"


# -- the small tokenizer -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [CONFIG, MostConfig.tiny(), MostConfig.nano()], ids=["roomy", "tiny", "nano"])
def test_ids_of_the_tokenizer_are_the_tables(config):
    tokenizer, table = train_small_tokenizer(TEXTS, config), config.tokens
    for i, spelling in enumerate(table.spellings(), table.first_unit):
        assert tokenizer.convert_tokens_to_ids(spelling) == i
    assert len(tokenizer) == table.size
    assert [tokenizer.convert_tokens_to_ids(t) for t in (PAD, BOS, EOS)] == [
        config.pad_token_id,
        config.bos_token_id,
        config.eos_token_id,
    ]


def test_training_a_tokenizer_is_reproducible(tokenizer):
    assert train_small_tokenizer(TEXTS, CONFIG).get_vocab() == tokenizer.get_vocab()


def test_saved_tokenizer_loads_as_it_was(processor, encoder, tmp_path):
    processor.tokenizer.save_pretrained(tmp_path)
    loaded = MostProcessor(CONFIG, load_tokenizer(tmp_path), encoder)
    messages = [*CONVERSATION[:-1], user([text("<eos> é 🎉"), audio(WAVE)])]
    assert loaded.prompt(messages).ids == processor.prompt(messages).ids
    assert loaded.special_ids == processor.special_ids
    assert (tmp_path / "chat_template.jinja").is_file()


def test_special_ids_are_never_plain_text(processor):
    plain = set(range(6, TOKENS.first_unit)) - set(processor.special_ids)
    assert set(range(6)) <= set(processor.special_ids)
    assert all(processor.spelling(i) not in SPECIAL for i in plain)
    assert len(plain) > 256


def test_a_configuration_without_a_pad_token_is_fine(tokenizer):
    config = MostConfig.tiny(
        vocab_size=CONFIG.vocab_size, token_table=CONFIG.token_table, pad_token_id=None, eos_token_id=2
    )
    assert None not in MostProcessor(config, tokenizer).special_ids


def test_a_tokenizer_of_another_model_is_refused_in_one_line(tokenizer):
    with pytest.raises(ValueError, match=r"tokenizer puts \[/Heard\] at 637, the configuration at 293"):
        MostProcessor(MostConfig.tiny(), tokenizer)


def test_a_configuration_without_a_token_table_is_refused_in_one_line(tokenizer):
    with pytest.raises(ValueError, match="no token table"):
        MostProcessor(MostConfig.tiny(token_table=None), tokenizer)
    with pytest.raises(ValueError, match="no token table"):
        train_small_tokenizer(TEXTS, MostConfig.tiny(token_table=None))


def test_a_folder_without_tokenizer_is_refused_in_one_line(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no tokenizer\.json in"):
        load_tokenizer(tmp_path)
