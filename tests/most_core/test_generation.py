"""The token loop against Hugging Face's generate, the reply grammar, sampling, slots and cancelling."""

import threading
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from most_core import GenerationSettings, MostConfig
from most_core.decoder import LeanDecoder, ModuleDecoder
from most_core.generation import DONE, HEARD, SPEECH, TEXT, ReplyGrammar, Sampler, TokenLoop
from most_core.processing import Prompt

CONFIG = MostConfig.tiny()
TOKENS = CONFIG.tokens
UNIT, FRAME, EOS = TOKENS.first_unit, TOKENS.frame, CONFIG.eos_token_id
PROMPTS = [
    [1, 40, 41, 42],
    [1, 50, TOKENS.audio_start, UNIT, UNIT + 9, UNIT + 31, TOKENS.audio_end, 60],
    [UNIT + 3, UNIT + 4],
]


@pytest.fixture(scope="module")
def loop(model):
    return TokenLoop(LeanDecoder(model, slots=3, context=96))


@pytest.fixture(autouse=True)
def every_slot_comes_back(loop):
    yield
    assert sorted(loop._free) == [0, 1, 2]


def hf(model, prompt, steps, **options):
    ids = torch.tensor([prompt])
    made = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=steps, **options)
    return made[0, len(prompt) :].tolist()


def collect(loop, prompt, chosen=None, **options):
    """(ids, finish reason) of one generation, run to its end."""
    generation = loop.start(prompt, chosen, **options)
    try:
        while loop.step([generation]):
            pass
    finally:
        loop.finish(generation)
    return [token.id for token in generation.tokens], generation.finish_reason


# -- equal to Hugging Face's generate ----------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", PROMPTS, ids=["text", "mixed", "audio"])
def test_greedy_decoding_is_generates_token_for_token(model, loop, prompt):
    [made] = loop.run([prompt], GenerationSettings(max_new_tokens=24))
    assert made == hf(model, prompt, 24, do_sample=False)


def test_greedy_decoding_with_speech_features_is_generates(model, loop):
    features = torch.randn(3, 24, generator=torch.Generator().manual_seed(0))
    ids = [1, TOKENS.wave_start, FRAME, FRAME, FRAME, TOKENS.wave_end, 9]
    [made] = loop.run([Prompt(ids, features)], GenerationSettings(max_new_tokens=12))
    assert made == hf(model, ids, 12, do_sample=False, input_features=features[None])


def test_module_decoder_decodes_as_generate_too(model):
    [made] = TokenLoop(ModuleDecoder(model)).run([PROMPTS[1]], GenerationSettings(max_new_tokens=12))
    assert made == hf(model, PROMPTS[1], 12, do_sample=False)


@pytest.mark.parametrize("penalty", [1.4, 0.7])
def test_repetition_penalty_on_text_is_generates(make_model, penalty):
    """Without a token table every token is text."""
    model, prompt = make_model(seed=5, token_table=None), [1, 40, 41, 42]
    options = GenerationSettings(max_new_tokens=24, repetition_penalty=penalty)
    [made] = TokenLoop(LeanDecoder(model, context=64)).run([prompt], options)
    assert made == hf(model, prompt, 24, do_sample=False, repetition_penalty=penalty)
    assert made != hf(model, prompt, 24, do_sample=False)


def test_repetition_penalty_leaves_units_alone():
    sampler = Sampler(GenerationSettings(repetition_penalty=100.0), [5, UNIT + 2], UNIT)
    logits = torch.zeros(CONFIG.vocab_size)
    logits[5], logits[UNIT + 2] = 3.0, 2.0
    assert sampler.pick(logits, None)[0] == UNIT + 2
    assert sampler.pick(logits, None)[0] == UNIT + 2


def test_repetition_penalty_counts_what_was_just_said():
    sampler = Sampler(GenerationSettings(repetition_penalty=2.0), [], UNIT)
    logits = torch.zeros(CONFIG.vocab_size)
    logits[5], logits[6] = 3.0, 2.0
    assert [sampler.pick(logits, None)[0] for _ in range(2)] == [5, 6]


# -- sampling ----------------------------------------------------------------------------------------------------------


def test_a_seed_makes_sampling_reproducible(loop):
    made = [
        loop.run([PROMPTS[0]], GenerationSettings(max_new_tokens=20, temperature=1.0, seed=seed))[0]
        for seed in (1, 1, 2)
    ]
    assert made[0] == made[1] != made[2]


def test_without_a_seed_every_sample_differs(loop):
    options = GenerationSettings(max_new_tokens=20, temperature=1.0)
    assert loop.run([PROMPTS[0]], options) != loop.run([PROMPTS[0]], options)


def test_sampling_leaves_torchs_global_random_state_alone(loop):
    before = torch.get_rng_state()
    loop.run([PROMPTS[0]], GenerationSettings(max_new_tokens=4, temperature=1.0, seed=1))
    assert torch.equal(torch.get_rng_state(), before)


def slow_support(logits, temperature, top_k, top_p):
    """Ids that may be sampled, and their probabilities, the slow way."""
    probs = dict(enumerate((logits.double() / temperature).softmax(-1).tolist()))
    ranked = sorted(probs, key=lambda i: -probs[i])
    if top_k:
        ranked = ranked[:top_k]
    total = sum(probs[i] for i in ranked)
    kept, mass = [], 0.0
    for i in ranked:
        kept.append(i)
        mass += probs[i] / total
        if mass >= top_p:
            break
    whole = sum(probs[i] for i in kept)
    return {i: probs[i] / whole for i in kept}


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"), [(1.0, 0, 1.0), (0.7, 3, 1.0), (1.0, 0, 0.6), (1.5, 5, 0.7), (1.0, 99, 1e-9)]
)
def test_top_k_and_top_p_sample_what_a_slow_reference_allows(temperature, top_k, top_p):
    logits = torch.tensor([0.3, 2.0, 1.1, -1.0, 0.9, 1.7, -0.2, 0.0])
    expected = slow_support(logits, temperature, top_k, top_p)
    options = GenerationSettings(temperature=temperature, top_k=top_k, top_p=top_p, seed=0)
    sampler = Sampler(options, [], 8)
    picks = [sampler.pick(logits, None)[0] for _ in range(1500)]
    assert set(picks) <= set(expected)
    for token, probability in expected.items():
        assert picks.count(token) / 1500 == pytest.approx(probability, abs=0.06)


def test_top_p_keeps_the_smallest_head_that_reaches_it():
    sampler = Sampler(GenerationSettings(temperature=1.0, top_p=0.5, seed=0), [], 8)
    logits = torch.tensor([0.5, 0.25, 0.25]).log()
    assert {sampler.pick(logits, None)[0] for _ in range(50)} == {0}


@pytest.mark.parametrize("temperature", [1e-300, 1e-40, 1e-3])
def test_tiny_temperature_is_nearly_greedy(temperature):
    sampler = Sampler(GenerationSettings(temperature=temperature, seed=0), [], 8)
    logits = torch.tensor([50.0, 90.0, 70.0])
    bias = torch.tensor([0.0, float("-inf"), 0.0])
    assert [sampler.pick(logits, bias)[0] for _ in range(5)] == [2] * 5


def test_huge_temperature_still_obeys_the_grammar():
    sampler = Sampler(GenerationSettings(temperature=1e30, seed=0), [], 8)
    bias = torch.tensor([0.0, float("-inf"), 0.0])
    assert {sampler.pick(torch.tensor([5.0, 9.0, 1.0]), bias)[0] for _ in range(40)} == {0, 2}


def test_logprob_is_among_the_allowed_tokens_and_before_temperature():
    logits = torch.tensor([1.0, 5.0, 2.0])
    bias = torch.tensor([0.0, float("-inf"), 0.0])
    token, logprob = Sampler(GenerationSettings(temperature=0.01, seed=0), [], 8).pick(logits, bias)
    assert token == 2
    assert logprob == pytest.approx(torch.tensor([1.0, 2.0]).log_softmax(0)[1].item(), abs=1e-6)


# -- batches -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_batch_of_several_equals_each_alone(loop, temperature):
    options = GenerationSettings(max_new_tokens=16, temperature=temperature, seed=4)
    assert loop.run(PROMPTS, options) == [loop.run([prompt], options)[0] for prompt in PROMPTS]


def test_a_generation_that_ends_leaves_the_others_going(loop):
    alone = [collect(loop, PROMPTS[i], GenerationSettings(max_new_tokens=n)) for i, n in ((0, 3), (1, 9))]
    pair = [loop.start(PROMPTS[i], GenerationSettings(max_new_tokens=n)) for i, n in ((0, 3), (1, 9))]
    while loop.step(pair):
        pass
    for generation in pair:
        loop.finish(generation)
    assert [[t.id for t in g.tokens] for g in pair] == [ids for ids, _ in alone]


def test_more_prompts_than_slots_are_refused_in_one_line(loop):
    with pytest.raises(ValueError, match="4 prompts do not fit the decoder's 3 slots"):
        loop.run([[1]] * 4)


# -- how a generation ends ---------------------------------------------------------------------------------------------


def test_length_ends_after_max_new_tokens(loop):
    ids, reason = collect(loop, PROMPTS[0], GenerationSettings(max_new_tokens=5))
    assert (len(ids), reason) == (5, "length")


def test_any_stop_id_ends_with_stop_and_is_returned(loop):
    free, _ = collect(loop, PROMPTS[0], GenerationSettings(max_new_tokens=10))
    stop = free[4]
    ids, reason = collect(loop, PROMPTS[0], GenerationSettings(max_new_tokens=10, stop_ids=(stop,)))
    assert ids == free[: free.index(stop) + 1]
    assert reason == "stop"


def test_a_full_context_ends_with_length_and_not_with_an_error(model, loop):
    small = TokenLoop(LeanDecoder(model, slots=2, context=10))
    ids, reason = collect(small, PROMPTS[0], GenerationSettings(max_new_tokens=50))
    assert reason == "length"
    assert ids == loop.run([PROMPTS[0]], GenerationSettings(max_new_tokens=7))[0]  # 4 + 6 fill it; the 7th is free


def test_a_full_context_of_one_does_not_stop_the_others(model):
    small = TokenLoop(LeanDecoder(model, slots=2, context=10))
    pair = [small.start(PROMPTS[i], GenerationSettings(max_new_tokens=50, stop_ids=(999,))) for i in (1, 2)]
    while small.step(pair):
        pass
    for generation in pair:
        small.finish(generation)
    assert [len(g.tokens) for g in pair] == [3, 9]


def test_eos_ends_a_reply_even_if_other_stop_ids_were_given(loop, monkeypatch):
    picks = iter([(70, 0.0), (EOS, 0.0)])
    monkeypatch.setattr(Sampler, "pick", lambda *_: next(picks))
    options = GenerationSettings(max_new_tokens=60, speak=False, stop_ids=(TOKENS.heard_end,))
    ids, reason = collect(loop, PROMPTS[0], options, grammar=ReplyGrammar(CONFIG, [0, 1], options))
    assert (ids, reason) == ([70, EOS], "stop")


# -- cancelling and slots ----------------------------------------------------------------------------------------------


def test_cancelling_before_the_first_token_makes_none(loop):
    cancel = threading.Event()
    cancel.set()
    assert collect(loop, PROMPTS[0], cancel=cancel) == ([], "cancelled")


def test_cancelling_from_another_thread_stops_within_one_token(loop):
    cancel, made = threading.Event(), []
    generation = loop.start(PROMPTS[0], GenerationSettings(max_new_tokens=80, stop_ids=(999,)), cancel=cancel)
    go, gone = threading.Event(), threading.Event()

    def canceller():
        go.wait(10)
        cancel.set()
        gone.set()

    thread = threading.Thread(target=canceller)
    thread.start()
    for _ in range(5):
        made += loop.step([generation])
    go.set()
    assert gone.wait(10)
    made += loop.step([generation])
    thread.join()
    loop.finish(generation)
    assert len(made) == 5
    assert generation.finish_reason == "cancelled"


@pytest.mark.parametrize(
    ("prompt", "options", "error"),
    [
        ([], {}, ValueError),
        ([1] * 97, {}, ValueError),
        ([1, 999], {}, ValueError),
        ([1], {"knock_out": [(0, 0)]}, ValueError),
        ([1], {"knock_out": [(1,)]}, ValueError),
        ([1], {"settings": GenerationSettings(knock_out_mode="nxt")}, ValueError),
        (["a"], {}, (ValueError, TypeError)),
    ],
)
def test_a_failed_start_gives_its_slot_back(loop, prompt, options, error):
    for _ in range(4):
        with pytest.raises(error):
            loop.start(prompt, **options)
    assert len(loop._free) == 3


def test_finishing_twice_does_not_hand_one_slot_to_two(loop):
    generation = loop.start(PROMPTS[0])
    loop.finish(generation)
    loop.finish(generation)
    assert sorted(loop._free) == [0, 1, 2]


def test_a_fourth_conversation_waits_for_a_free_slot(loop):
    running = [loop.start(PROMPTS[0]) for _ in range(3)]
    started = threading.Event()
    result = []

    def wait_and_run():
        generation = loop.start(PROMPTS[1], GenerationSettings(max_new_tokens=3))
        started.set()
        while loop.step([generation]):
            pass
        loop.finish(generation)
        result.append([token.id for token in generation.tokens])

    thread = threading.Thread(target=wait_and_run)
    thread.start()
    assert not started.wait(0.1)
    loop.finish(running.pop())
    thread.join(10)
    for generation in running:
        loop.finish(generation)
    assert result == loop.run([PROMPTS[1]], GenerationSettings(max_new_tokens=3))


def test_who_waits_for_a_slot_can_be_cancelled(loop):
    running = [loop.start(PROMPTS[0]) for _ in range(3)]
    cancel, result = threading.Event(), []
    thread = threading.Thread(target=lambda: result.append(collect(loop, PROMPTS[1], cancel=cancel)))
    thread.start()
    time.sleep(0.02)
    cancel.set()
    thread.join(5)
    alive = thread.is_alive()
    for generation in running:
        loop.finish(generation)
    thread.join(5)
    assert not alive
    assert result == [([], "cancelled")]


def test_threads_with_their_own_generations_do_not_disturb_each_other(loop):
    options = GenerationSettings(max_new_tokens=12)
    expected = [loop.run([prompt], options)[0] for prompt in PROMPTS]
    results = [[] for _ in PROMPTS]

    def work(i):
        for _ in range(4):
            results[i].append(collect(loop, PROMPTS[i], options)[0])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert results == [[ids] * 4 for ids in expected]


# -- the grammar -------------------------------------------------------------------------------------------------------

SPECIAL = [0, 1, 2]


def permitted(grammar):
    return (grammar.bias() == 0).nonzero().flatten().tolist()


@settings(max_examples=80, deadline=None)
@given(
    data=st.data(), speak=st.booleans(), start=st.sampled_from([HEARD, TEXT]), caps=st.tuples(*[st.integers(1, 4)] * 3)
)
def test_every_random_walk_keeps_the_grammars_promises(data, speak, start, caps):
    heard_cap, text_cap, unit_cap = caps
    options = GenerationSettings(
        speak=speak, max_heard_tokens=heard_cap, max_sentence_tokens=text_cap, max_sentence_units=unit_cap
    )
    grammar = ReplyGrammar(CONFIG, SPECIAL, options, start)
    in_audio, heard, text, units, unsaid = False, 0, 0, 0, False
    hearing = start == HEARD
    for _ in range(40):
        allowed = permitted(grammar)
        assert allowed, "a token must always be allowed"
        kinds = {
            "eos": [EOS],
            "heard end": [TOKENS.heard_end],
            "start": [TOKENS.audio_start],
            "end": [TOKENS.audio_end],
            "units": range(UNIT, UNIT + 32),
            "text": [i for i in range(UNIT) if i not in SPECIAL],
        }
        open_kinds = [kind for kind, ids in kinds.items() if set(ids) & set(allowed)]
        assert set(allowed) == {i for kind in open_kinds for i in kinds[kind]}, "whole kinds, and nothing else"
        kind = data.draw(st.sampled_from(open_kinds))
        token = data.draw(st.sampled_from(list(kinds[kind])))
        if kind == "units":
            assert in_audio
            units += 1
            assert units <= unit_cap
        elif kind == "text":
            assert not in_audio
            if hearing:
                heard += 1
                assert heard <= heard_cap
            else:
                text, unsaid = text + 1, True
                assert text <= text_cap or not speak
        elif kind == "heard end":
            assert hearing
            hearing = False
        elif kind == "start":
            assert speak
            assert unsaid
            assert not in_audio
            in_audio, units, unsaid = True, 0, False
        elif kind == "end":
            assert in_audio
            assert units >= 1
            in_audio, text = False, 0
        else:
            assert not in_audio
            assert not hearing
            assert not (speak and unsaid), "nothing may be left unsaid"
            grammar.advance(token)
            assert grammar.phase == DONE
            return
        grammar.advance(token)


def test_a_spoken_prompt_is_transcribed_first():
    grammar = ReplyGrammar(CONFIG, SPECIAL, GenerationSettings(), HEARD)
    assert set(permitted(grammar)) == {*range(3, UNIT), TOKENS.heard_end}
    grammar.advance(TOKENS.heard_end)
    assert grammar.phase == TEXT


def test_audio_that_the_prompt_began_goes_on_with_a_unit():
    grammar = ReplyGrammar(CONFIG, SPECIAL, GenerationSettings(), SPEECH)
    assert permitted(grammar) == list(range(UNIT, UNIT + 32))
    grammar.advance(UNIT)
    assert permitted(grammar) == [*range(UNIT, UNIT + 32), TOKENS.audio_end]


def test_phases_follow_the_tokens():
    grammar = ReplyGrammar(CONFIG, SPECIAL, GenerationSettings(), HEARD)
    phases = []
    for token in (50, TOKENS.heard_end, 60, TOKENS.audio_start, UNIT, TOKENS.audio_end, 61, TOKENS.audio_start, UNIT):
        phases.append(grammar.phase)
        grammar.advance(token)
    assert phases == [HEARD, HEARD, TEXT, TEXT, SPEECH, SPEECH, TEXT, TEXT, SPEECH]


def test_generations_obey_their_grammar_at_any_temperature(loop):
    options = GenerationSettings(
        max_new_tokens=80, temperature=3.0, seed=1, max_heard_tokens=3, max_sentence_tokens=3, max_sentence_units=3
    )
    generation = loop.start(PROMPTS[0], options, grammar=ReplyGrammar(CONFIG, SPECIAL, options, HEARD))
    replay = ReplyGrammar(CONFIG, SPECIAL, options, HEARD)
    while made := loop.step([generation]):
        for _, token in made:
            assert token.id in permitted(replay)
            assert token.phase == replay.phase
            assert token.logprob <= 0
            replay.advance(token.id)
    loop.finish(generation)
    assert {t.phase for t in generation.tokens} == {HEARD, TEXT, SPEECH}


# -- settings ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_new_tokens", 0),
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_p", float("nan")),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", float("inf")),
        ("max_sentence_tokens", 0),
        ("max_sentence_units", 0),
        ("max_heard_tokens", 0),
        ("seed", 2**70),
    ],
)
def test_impossible_settings_are_refused_by_name_and_value(name, value):
    with pytest.raises(ValueError, match=f"{name} is {value}: it must be ") as error:
        GenerationSettings(**{name: value})
    assert "\n" not in str(error.value)


def test_two_batches_at_once_do_not_wait_for_each_other_for_ever(model):
    loop = TokenLoop(LeanDecoder(model, slots=3))
    prompts = [[5, 6], [7], [8, 9]]
    settings = GenerationSettings(max_new_tokens=8)
    alone = loop.run(prompts, settings)
    results = []
    threads = [threading.Thread(target=lambda: results.append(loop.run(prompts, settings))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert results == [alone] * 4


def test_a_cancelled_prefill_ends_as_cancelled_and_frees_its_slot(model):
    loop, cancel = TokenLoop(LeanDecoder(model)), threading.Event()
    cancel.set()
    generation = loop.start(list(range(3, 40)), cancel=cancel)
    assert generation.finish_reason == "cancelled"
    loop.finish(generation)
    assert loop.run([[5]], GenerationSettings(max_new_tokens=2))


def test_top_p_looks_beyond_its_head_where_the_distribution_is_flat(monkeypatch):
    monkeypatch.setattr("most_core.generation.HEAD", 4)
    logits = torch.zeros(200)
    sampler = Sampler(GenerationSettings(temperature=1.0, top_p=0.9, seed=0), [], 200)
    assert len({sampler.pick(logits, None)[0] for _ in range(300)}) > 100


def test_a_text_reply_is_not_cut_like_a_spoken_sentence():
    options = GenerationSettings(speak=False, max_sentence_tokens=2)
    grammar = ReplyGrammar(CONFIG, SPECIAL, options)
    for _ in range(50):
        assert 70 in permitted(grammar)
        grammar.advance(70)
