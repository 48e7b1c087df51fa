"""The inspector in a real browser: what it shows against the model's own routers, and every file that it gives."""

import base64
import contextlib
import io
import json
import zipfile
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
import soundfile
import torch
from axe_playwright_python.sync_playwright import Axe
from PIL import Image

import most_core
from app.audio import WIRE_RATE, from_pcm16, resampled, to_pcm16
from app.page import exact_trace
from most_core import RoutingTrace
from most_core.metrics import report
from most_core.processing import as_messages
from most_core.replay import features_of, importance, scored
from most_core.router import choose_experts

HALF = 2**-10  # what half precision keeps of a probability
EVIL = "${alert(1)}</script><img src=x onerror=alert(1)>"
INSPECT = """<!doctype html><html lang="en"><title>inspector</title>
<link rel="stylesheet" href="/page/static/page.css">
<body><main class="talk" style="display: block; height: auto; padding: 16px"></main>"""

# Builds an inspector of the given turns beside nothing else, and keeps what it asks of the page.
BUILD = """async ({facts, turns}) => {
  const from = (name) => import(`/page/static/${name}`);
  const [{learn}, {Routing}, {Inspector}, {bytesOf}] = await Promise.all(
    ["words.js", "routing/rows.js", "routing/inspector.js", "turns.js"].map(from));
  learn(facts.words);
  const pcm = (text) => new Int16Array(bytesOf(text).buffer);
  const routing = new Routing();
  const list = turns.map(({tables, user, reply, trace, delta, ...turn}) => {
    const made = {
      ...turn,
      tables: tables && Object.fromEntries(Object.entries(tables).map(([name, text]) => [name, bytesOf(text)])),
      user: {...user, sound: user.sound ? pcm(user.sound) : null},
      reply: {...reply, sound: reply.sound ? [pcm(reply.sound)] : []},
    };
    if (trace) routing.give(made, trace);
    if (delta) routing.take({type: "most.routing.delta", sequence: 1, ...delta}, made);
    return made;
  });
  const asked = (globalThis.asked = {played: [], selected: [], experts: [], brushed: [], said: [], files: []});
  const does = {
    play: async (pcm, rate) => void asked.played.push({pcm: Array.from(pcm), rate}),
    stop: () => {},
    settings: () => ({temperature: 0, seed: null}),
    turns: () => list,
    select: (selection) => asked.selected.push(selection && {...selection, turn: selection.turn.number}),
    selectExpert: (expert) => asked.experts.push(expert),
    brush: (span) => asked.brushed.push(span),
    say: (text) => asked.said.push(text),
    off: (experts) => (asked.off = experts),
    about: () => ({model: facts.model, versions: facts.versions}),
    download: async (blob, name) => {
      const {base64Of} = await from("turns.js");
      asked.files.push({name, type: blob.type, data: base64Of(new Uint8Array(await blob.arrayBuffer()))});
    },
  };
  globalThis.list = list;
  globalThis.routing = routing;
  globalThis.inspector = new Inspector(facts, routing, does);
  document.querySelector("main").append(inspector.element);
}"""


@pytest.fixture(scope="module")
def most():
    return most_core.load("assets/nano")


@pytest.fixture(scope="module")
def spoken(most):
    """(waveform, its answer with a trace)."""
    wave = from_pcm16(to_pcm16(soundfile.read("assets/samples/animal.wav", dtype="float32")[0]))
    return wave, most.answer(wave, record_routing=True)


def in_base64(data):
    return base64.b64encode(data).decode()


def turn_of(number, wave, reply, **more):
    """A turn that is over, as the page has it."""
    sound = to_pcm16(resampled(reply.waveform, reply.sample_rate, WIRE_RATE))
    return {
        "number": number,
        "kind": "spoken",
        "seed": None,
        "tables": {name: in_base64(data) for name, data in reply.trace.to_bytes().items()},
        "trace": exact_trace.exact(reply.trace),
        "user": {"text": reply.heard, "words": [], "sound": in_base64(to_pcm16(wave)), "file": None},
        "reply": {"text": reply.text, "status": "completed", "sound": in_base64(sound), "skipped_ms": 0},
        **more,
    }


@pytest.fixture
def open_inspector(browser_for, app_url):
    """`with open_inspector(turns, ...) as page:` a page with nothing but the inspector of these turns."""

    @contextlib.contextmanager
    def opened(turns, **context):
        with browser_for(microphone=False, **context) as page:
            page.errors = []
            page.on("pageerror", lambda error: page.errors.append(str(error)))
            page.on("dialog", lambda dialog: (page.errors.append(f"dialog {dialog.message}"), dialog.dismiss()))
            page.route("**/inspect.html", lambda route: route.fulfill(body=INSPECT, content_type="text/html"))
            page.goto(f"{app_url}/inspect.html")
            if context.get("color_scheme") == "dark":
                page.evaluate("document.body.classList.add('dark')")
            facts = page.evaluate("fetch('/page/facts.json').then((answer) => answer.json())")
            page.evaluate(BUILD, {"facts": facts, "turns": turns})
            yield page
            assert page.errors == []

    return opened


def select(page, token, layer=0, turn=0):
    page.evaluate("([t, token, layer]) => inspector.show({turn: list[t], token, layer})", [turn, token, layer])


def numbers(page, where, *names):
    """Of every element there, these data attributes as numbers."""
    return page.eval_on_selector_all(
        where, "(all, names) => all.map((one) => names.map((name) => Number(one.dataset[name])))", list(names)
    )


def saved(page, kind):
    """(name, bytes) of a file that the inspector gives."""
    before = page.evaluate("asked.files.length")
    page.click("#inspector-tab-export")
    page.click(f'[data-action="export-{kind}"]')
    page.wait_for_function("(before) => asked.files.length > before", arg=before)
    file = page.evaluate("asked.files.at(-1)")
    return file["name"], base64.b64decode(file["data"])


def own_routers(most, wave, trace):
    """The model's own routers over the trace's tokens in one forward: (p [T, L, E], chosen [T, L, K])."""
    prompt = most.processor.prompt(as_messages(wave, 16_000))
    logits = []
    gates = [layer.mlp.gate for layer in most.model.model.layers if hasattr(layer.mlp, "gate")]
    hooks = [gate.register_forward_hook(lambda _, __, output: logits.append(output[0])) for gate in gates]
    with torch.inference_mode():
        ids = torch.tensor(trace.id.astype(np.int64))[None]
        most.model.model(ids, input_features=prompt.features[None])
    for hook in hooks:
        hook.remove()
    probs = [one.float().softmax(-1) for one in logits]
    modality = torch.tensor(trace.modality.astype(np.int64))
    picks = [choose_experts(p, gate.allowed(modality), most.config)[1] for p, gate in zip(probs, gates)]
    return torch.stack(probs, 1).numpy(), torch.stack(picks, 1).numpy()


def test_a_tokens_card_shows_what_the_models_own_routers_gave(open_inspector, most, spoken):
    wave, reply = spoken
    trace, k = reply.trace, most.config.num_experts_per_tok
    probs, picks = own_routers(most, wave, trace)
    groups = most.config.expert_groups()
    heard = next(t for t in range(trace.num_tokens) if trace.modality[t])
    said = next(t for t in range(trace.num_tokens) if not np.isnan(trace.logprob[t]))
    unit = trace.num_tokens - 3
    with open_inspector([turn_of(1, wave, reply)]) as page:
        for token, layer in [(0, 0), (heard, 1), (said, 4), (unit, 2)]:
            select(page, token, layer)
            p, group = probs[token, layer], groups[layer][trace.modality[token]]
            shown = numbers(page, ".bars tr[data-expert]", "expert", "probability")
            own = sorted(group, key=lambda expert: -p[expert])[:8]
            assert [int(expert) for expert, _ in shown] == own
            assert [share for _, share in shown] == pytest.approx([p[e] for e in own], rel=HALF, abs=1e-6)
            chosen = numbers(page, ".bars tr[data-chosen]", "expert")
            assert {int(expert) for (expert,) in chosen} == set(picks[token, layer].tolist())
            q = np.sort(p[group] / p[group].sum())[::-1]
            ((confidence, *_),) = numbers(page, ".token-card [data-confidence]", "confidence")
            ((margin,),) = numbers(page, ".token-card [data-margin]", "margin")
            ((removed,),) = numbers(page, ".token-card [data-removed]", "removed")
            ((entropy,),) = numbers(page, ".token-card [data-entropy]", "entropy")
            assert confidence == pytest.approx(q[0] - q[1], abs=2 * HALF)
            assert margin == pytest.approx(q[k - 1] - q[k], abs=2 * HALF)
            assert removed == pytest.approx(1 - p[group].sum(), abs=1e-4)
            assert entropy == pytest.approx(-(q * np.log(q)).sum(), abs=1e-3)
            unmasked = numbers(page, ".unmasked li", "expert", "probability")
            free = np.argsort(-p, kind="stable")[:k]
            assert {int(expert) for expert, _ in unmasked} == set(free.tolist())
            assert [share for _, share in unmasked] == pytest.approx(p[free].tolist(), rel=HALF, abs=1e-6)
            outside = numbers(page, ".unmasked li[data-outside]", "expert")
            assert {int(expert) for (expert,) in outside} == set(free.tolist()) - set(group)
            everywhere = page.eval_on_selector_all(
                ".layers button",
                "(all) => all.map((b) => [...b.querySelectorAll('[data-expert]')]"
                ".map((one) => Number(one.dataset.expert)))",
            )
            assert [set(one) for one in everywhere] == [set(row.tolist()) for row in picks[token]]
            assert str(trace.id[token]) == page.get_attribute(".token-card [data-id]", "data-id")
        assert float(page.get_attribute(".token-card [data-removed]", "data-removed")) > 0


def test_before_a_turn_is_over_its_card_says_that_it_is_approximate(open_inspector, spoken):
    wave, reply = spoken
    live = {**turn_of(1, wave, reply), "trace": None, "delta": reply.trace.to_wire(), "tables": None}
    with open_inspector([live]) as page:
        assert "Click a cell" in page.inner_text(".inspector .hint:not([hidden])")
        select(page, 60, 2)
        assert "Approximate until the turn is over" in page.inner_text(".token-card")
        shown = numbers(page, ".bars tr[data-expert]", "expert", "probability")
        chosen, given = reply.trace.chosen[60, 2], reply.trace.chosen_probs[60, 2]
        assert [int(expert) for expert, _ in shown] == chosen.tolist()
        assert [share for _, share in shown] == pytest.approx(given.tolist(), abs=0.5 / 255)
        assert page.locator(".token-card [data-margin]").count() == 0
        assert page.locator(".token-card [data-id]").count() == 0
        page.evaluate(
            "(trace) => { routing.give(list[0], trace); inspector.changed(list[0]); }", exact_trace.exact(reply.trace)
        )
        assert "Approximate" not in page.inner_text(".token-card")
        assert len(numbers(page, ".bars tr[data-expert]", "expert")) == 8


def test_the_arrows_move_through_layers_and_tokens(open_inspector, spoken):
    wave, reply = spoken
    with open_inspector([turn_of(1, wave, reply)]) as page:
        select(page, 50, 0)
        page.focus('.layers [aria-current="true"]')
        for key, token, layer in [
            ("ArrowDown", 50, 1),
            ("End", 50, 4),
            ("ArrowDown", 50, 4),
            ("ArrowUp", 50, 3),
            ("ArrowRight", 51, 3),
            ("ArrowLeft", 50, 3),
            ("Home", 50, 0),
        ]:
            page.keyboard.press(key)
            assert page.evaluate("asked.selected.at(-1)") == {"turn": 1, "token": token, "layer": layer}
            assert page.evaluate("document.activeElement.dataset.layer") == str(reply.trace.layers[layer])
        page.click(".bars tr[data-expert] button")
        first = int(reply.trace.experts[50, 0, 0])
        assert page.evaluate("asked.experts") == [{"layer": int(reply.trace.layers[0]), "expert": first}]
        assert page.inner_text(".expert-card h3") == f"layer {reply.trace.layers[0]}, expert {first}"


def test_an_experts_card_counts_what_it_took_and_plays_it(open_inspector, most, spoken):
    wave, reply = spoken
    trace, layer = reply.trace, 1
    audio = trace.modality == 1
    counts = np.bincount(trace.chosen[audio][:, layer].ravel(), minlength=16)
    expert = int(counts.argmax())
    number = int(trace.layers[layer])
    with open_inspector([turn_of(1, wave, reply)]) as page:
        page.evaluate("(expert) => inspector.showExpert(expert)", {"layer": number, "expert": expert})
        assert page.get_attribute(".expert-card .side", "data-side") == "audio"
        assert "Frequency is not importance" in page.inner_text(".expert-card")
        ((chosen, tokens, chance),) = numbers(page, ".expert-card [data-chosen]", "chosen", "tokens", "chance")
        assert (chosen, tokens, chance) == (counts[expert], audio.sum(), 4 / 8)
        mine = audio & (trace.chosen[:, layer] == expert).any(1)
        for other, both, lift in numbers(page, ".partners tbody tr", "expert", "both", "lift"):
            beside = (trace.chosen[mine][:, layer] == other).any(1).sum()
            assert both == beside
            assert lift == pytest.approx(beside / mine.sum() / (counts[int(other)] / audio.sum()))
        assert numbers(page, ".partners", "chance") == [[pytest.approx(3 * 8 / (4 * 7))]]
        assert "× 0.86" in page.inner_text(".partners caption")
        taken = np.where(trace.chosen[:, layer] == expert, trace.chosen_probs[:, layer], 0).max(1)
        best = int(np.where(audio, taken, 0).argmax())
        clips = numbers(page, ".clips li", "token", "probability")
        assert clips[0] == [best, pytest.approx(float(taken[best]))]
        assert [share for _, share in clips] == sorted((share for _, share in clips), reverse=True)
        page.locator('[data-action="clip"]').first.click()
        (played,) = page.evaluate("asked.played")
        heard = trace.role[best] == "user"
        assert played["rate"] == (16_000 if heard else WIRE_RATE)
        sound = base64.b64decode(turn_of(1, wave, reply)["user" if heard else "reply"]["sound"])
        samples = np.frombuffer(sound, "<i2")
        middle = (trace.start_s[best] + trace.end_s[best]) / 2
        start = max(round((middle - 0.12) * played["rate"]), 0)
        end = round((middle + 0.12) * played["rate"])
        assert played["pcm"] == samples[start:end].tolist()
        page.click('[data-action="clips"]')
        all_clips = page.evaluate("asked.played.at(-1)")
        assert all_clips["rate"] == WIRE_RATE
        assert len(all_clips["pcm"]) == pytest.approx(len(clips) * (0.24 + 0.25) * WIRE_RATE, rel=0.05)
        # An expert of text tells which words it leads.
        page.evaluate("(layer) => inspector.showExpert({layer, expert: 2})", number)
        assert page.get_attribute(".expert-card .side", "data-side") == "text"
        led = (trace.chosen[:, layer, 0] == 2) & ~audio
        texts, often = np.unique(trace.text[led].astype(str), return_counts=True)
        listed = page.eval_on_selector_all(
            ".likes li", "(all) => all.map((one) => [one.querySelector('bdi').textContent, Number(one.dataset.count)])"
        )
        assert all(dict(zip(texts, often))[text] == count for text, count in listed)
        assert len(listed) == min(8, len(texts))


def test_clips_fit_a_reply_whose_quiet_beginning_was_left_out(open_inspector, spoken):
    wave, reply = spoken
    trace, quiet = reply.trace, 2400  # samples
    turn = turn_of(1, wave, reply)
    sound = base64.b64decode(turn["reply"]["sound"])
    turn["reply"] |= {"sound": in_base64(sound[2 * quiet :]), "skipped_ms": 1000 * quiet / WIRE_RATE}
    said = (trace.role == "assistant") & (trace.modality == 1)
    with open_inspector([turn]) as page:
        for expert in range(8, 16):
            page.evaluate("(expert) => inspector.showExpert({layer: 2, expert})", expert)
            for at, (token,) in enumerate(numbers(page, ".clips li", "token")):
                if not said[int(token)]:
                    continue
                page.locator('[data-action="clip"]').nth(at).click()
                middle = (trace.start_s[int(token)] + trace.end_s[int(token)]) / 2
                start = max(round((middle - 0.12) * WIRE_RATE), quiet)
                whole = np.frombuffer(sound, "<i2")[start : round((middle + 0.12) * WIRE_RATE)]
                assert page.evaluate("asked.played.at(-1).pcm") == whole.tolist()
        assert page.evaluate("asked.played.length") > 5


def test_a_span_is_counted_as_python_counts_it(open_inspector, most, spoken):
    wave, reply = spoken
    start, end = 20, 90  # the last one included
    part = reply.trace.slice(start, end + 1)
    k, size = 4, 8
    with open_inspector([turn_of(1, wave, reply)]) as page:
        page.evaluate(
            "([from, to]) => inspector.showSpan({from: {turn: list[0], token: from}, to: {turn: list[0], token: to}})",
            [start, end],
        )
        audio = part.modality == 1
        ((texts, sounds),) = numbers(page, ".span-card [data-text]", "text", "audio")
        assert (texts, sounds) == ((~audio).sum(), audio.sum())
        ((outside, decisions),) = numbers(page, ".span-card [data-outside]", "outside", "decisions")
        assert (outside, decisions) == (0, part.chosen.size)
        ((used, idle),) = numbers(page, ".span-card [data-used]", "used", "idle")
        seen = sum(len(np.unique(part.chosen[:, row])) for row in range(part.chosen.shape[1]))
        assert (used, idle) == (seen, 5 * 16 - seen)
        for modality in (0, 1):
            where = f'.span-side[data-modality="{modality}"]'
            mine = part.modality == modality
            pairs = np.flatnonzero(mine[1:] & mine[:-1])
            shares = [
                len(set(a) & set(b)) / k
                for pair in pairs
                for a, b in zip(part.chosen[pair + 1].tolist(), part.chosen[pair].tolist())
            ]
            ((kept,),) = numbers(page, f"{where} [data-persistence]", "persistence")
            assert kept == pytest.approx(np.mean(shares))
            q = part.probs[mine].astype(np.float32)
            q = q / (1 - part.removed_mass[mine])[..., None]
            ((confidence,),) = numbers(page, f"{where} [data-confidence]", "confidence")
            assert confidence == pytest.approx((q[..., 0] - q[..., 1]).mean(), abs=1e-5)
            ((removed,),) = numbers(page, f"{where} [data-removed]", "removed")
            assert removed == pytest.approx(part.removed_mass[mine].mean(), abs=1e-5)
            ((entropy,),) = numbers(page, f"{where} [data-entropy]", "entropy")
            assert entropy == pytest.approx((part.entropy[mine] / np.log(size)).mean(), abs=1e-5)
            for row, (_, cv, chance) in enumerate(numbers(page, f"{where} tbody tr", "layer", "cv", "chance")):
                group = most.config.expert_groups()[row][modality]
                loads = np.bincount(part.chosen[mine][:, row].ravel(), minlength=16)[group]
                assert cv == pytest.approx(loads.std() / loads.mean())
                assert chance == pytest.approx(np.sqrt((size - k) / (k * mine.sum())))
            idle, effective = numbers(page, f"{where} tbody tr", "idleChance", "effectiveChance")[0]
            assert idle == pytest.approx(size * (1 - k / size) ** mine.sum())
            assert effective == pytest.approx(size * np.exp(-((size - k) / (k * mine.sum())) / 2))
        page.click('[data-action="clear-span"]')
        assert page.evaluate("asked.brushed") == [None]
        assert page.get_attribute(".span-card", "data-tokens") == str(reply.trace.num_tokens)


@pytest.fixture(scope="module")
def evil(spoken):
    """A turn whose every text wants to be more than text, and its trace."""
    wave, reply = spoken
    texts = reply.trace.text.copy()
    texts[[0, 60, 61]] = [EVIL, EVIL, "\0\x1b\ud800 "]
    trace = replace(reply.trace, text=texts)
    turn = turn_of(1, wave, replace(reply, trace=replace(trace, text=np.where(texts == texts[61], "?", texts))))
    turn["trace"]["tokens"]["text"] = texts.tolist()
    turn["user"] |= {"text": EVIL, "file": EVIL}
    turn["reply"] |= {"text": EVIL}
    return turn, trace


def test_text_stays_text_in_the_page(open_inspector, evil):
    turn, _ = evil
    answer = {
        "text": f"{EVIL} more",
        "heard": EVIL,
        "finish_reason": "stop",
        "sound": "",
        "tokens": [{"token": 60, "text": EVIL, "modality": 0, "logprob": -0.1, "without": -2.5}],
        "lost": {"text": -2.4, "audio": None, "total": -2.4},
    }
    with open_inspector([turn]) as page:
        select(page, 60)
        assert page.inner_text(".token-name") == EVIL
        page.click("#inspector-tab-table")
        assert page.locator('[data-row="1-60"] bdi').inner_text() == EVIL
        page.route("**/page/knock_out", lambda route: route.fulfill(json=answer))
        lead = int(page.locator('[data-row="1-60"] [data-expert]').first.get_attribute("data-expert"))
        page.evaluate("(expert) => inspector.showExpert({layer: 1, expert})", lead)
        assert EVIL in page.inner_text(".likes")
        page.click('[data-action="knock-out-expert"]')
        page.click('[data-action="knock-out"]')
        page.wait_for_selector(".compared")
        assert page.inner_text('[data-side="without_them"] .said') == f"{EVIL} more"
        assert page.inner_text(".per-token th bdi") == EVIL
        assert EVIL in page.get_attribute(".changes", "aria-label")
        # What is wrong with a request is text, too.
        page.route(
            "**/page/knock_out", lambda route: route.fulfill(status=400, json={"error": {"message": f"no {EVIL}"}})
        )
        page.click('[data-action="knock-out"]')
        page.wait_for_selector(".knock-out .status[data-problem]")
        assert page.inner_text(".knock-out .status") == f"It did not work: no {EVIL}"
        assert page.locator(".inspector img, .inspector script").count() == 0


def test_pictures_hold_the_numbers_and_text_stays_text(open_inspector, evil):
    turn, trace = evil
    with open_inspector([turn]) as page:
        select(page, 60)
        name, data = saved(page, "png")
        assert name == "most-routing-turn-1.png"
        picture = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        assert picture.shape[1] > 2000
        assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 50
        assert (picture[0, 0] == 255).all()  # light, whatever the page is
        name, data = saved(page, "svg")
        assert name == "most-routing-turn-1.svg"
        svg = ElementTree.fromstring(data.decode("utf-8"))
        assert svg.tag == "{http://www.w3.org/2000/svg}svg"
        texts = [text.text for text in svg.iter("{http://www.w3.org/2000/svg}text")]
        titles = [title.text for title in svg.iter("{http://www.w3.org/2000/svg}title")]
        assert f"{EVIL} → {EVIL}" in texts
        assert titles.count(EVIL) == 2
        assert f"leakage 0 of {trace.chosen.size} decisions" in " ".join(texts)
        middle = [t for t in svg.iter("{http://www.w3.org/2000/svg}text") if t.get("text-anchor") == "middle"]
        numbers_shown = [int(text.text) for text in middle][6:]  # after those of the legend
        assert numbers_shown == trace.chosen[:, :, 0].ravel().tolist()
        assert {element.tag.split("}")[1] for element in svg.iter()} <= {"svg", "rect", "path", "text", "title"}


def test_the_page_that_is_exported_needs_nothing_else(open_inspector, evil, tmp_path):
    turn, trace = evil
    with open_inspector([turn]) as page:
        page.evaluate("inspector.showSpan({from: {turn: list[0], token: 50}, to: {turn: list[0], token: 80}})")
        name, data = saved(page, "html")
        assert name == "most-routing-turn-1-tokens-51-81.html"
        (tmp_path / name).write_bytes(data)
        asked = []
        page.on("request", lambda request: asked.append(request.url))
        page.add_init_script(
            "globalThis.heard = []; const start = AudioBufferSourceNode.prototype.start;"
            "AudioBufferSourceNode.prototype.start = function (...a) {"
            "  heard.push([this.buffer.length, this.buffer.sampleRate]); return start.apply(this, a); };"
        )
        page.goto((tmp_path / name).as_uri())
        page.wait_for_selector(".token-card")
        assert page.title() == "Routing of most-nano, turn 1"
        assert page.inner_text(".moment-turn p:first-of-type bdi") == EVIL
        # The first token; then the one at which people point.
        first = numbers(page, ".bars tr[data-expert]", "expert", "probability")
        assert [int(expert) for expert, _ in first] == trace.experts[50, 0].tolist()
        assert [share for _, share in first] == trace.probs[50, 0].astype(float).tolist()
        for _ in range(10):
            page.click('[data-keep="after"]')
        assert page.inner_text(".token-name") == EVIL
        box = page.locator("canvas").bounding_box()
        place = page.evaluate(
            "import('most/routing/drawing.js').then(({cellAt}) => typeof cellAt)"
        )  # the modules are in the file
        assert place == "function"
        seen = set()
        for y in range(110, 260, 10):
            page.mouse.move(box["x"] + 84 + 24 * 5 + 10, box["y"] + y)
            seen.add(page.inner_text(".token-head + dl dd"))
        assert any(f"token 56 of {trace.num_tokens}" in text for text in seen)
        for who in ("user", "assistant"):
            page.click(f'[data-action="play-{who}"]')
        sounds = [base64.b64decode(turn[side]["sound"]) for side in ("user", "reply")]
        assert page.evaluate("heard") == [[len(sounds[0]) // 2, 16_000], [len(sounds[1]) // 2, WIRE_RATE]]
        assert page.locator("img").count() == 0
        assert {url.split(":")[0] for url in asked} <= {"file", "data"}
        assert [url for url in asked if url.startswith("file")] == [(tmp_path / name).as_uri()]


def test_a_page_without_voices_is_exported_before_the_turn_is_over(open_inspector, spoken, tmp_path):
    wave, reply = spoken
    live = {**turn_of(1, wave, reply), "trace": None, "delta": reply.trace.to_wire(), "tables": None}
    with open_inspector([live]) as page:
        page.click("#inspector-tab-export")
        page.click('.exports input[type="checkbox"]')
        assert page.locator('[data-action="export-parquet"]').is_disabled()
        name, data = saved(page, "html")
        (tmp_path / name).write_bytes(data)
        page.goto((tmp_path / name).as_uri())
        page.wait_for_selector(".token-card")
        assert "Approximate" in page.inner_text(".token-card")
        assert page.locator('[data-action^="play"]').count() == 0
        first = numbers(page, ".bars tr[data-expert]", "expert")
        assert [int(expert) for (expert,) in first] == reply.trace.chosen[0, 0].tolist()


def test_numbers_and_tables_read_back_as_they_were(open_inspector, spoken, evil):
    wave, reply = spoken
    second, trace = evil
    with open_inspector([turn_of(1, wave, reply), {**second, "number": 2}]) as page:
        page.click("#inspector-tab-export")
        page.check('.exports input[value="conversation"]')
        name, data = saved(page, "json")
        assert name == "most-routing-conversation-turns-1-2.json"
        given = json.loads(data)
        assert given["format"] == "most-routing"
        assert given["model"]["name"] == "most-nano"
        assert [turn["turn"] for turn in given["turns"]] == [1, 2]
        turn = given["turns"][1]
        assert turn["user"] == turn["file"] == EVIL
        assert turn["leakage"] == {"outside": 0, "decisions": trace.chosen.size}
        assert turn["report_of_turn"] == json.loads(json.dumps(report(trace)))
        assert [token["text"] for token in turn["tokens"]] == trace.text.tolist()
        assert [token["id"] for token in turn["tokens"]] == trace.id.tolist()
        for place in (0, 40, 100):
            for row, layer in enumerate(turn["tokens"][place]["layers"]):
                assert layer["layer"] == trace.layers[row]
                assert layer["chosen"] == trace.chosen[place, row].tolist()
                assert layer["chosen_probs"] == trace.chosen_probs[place, row].tolist()
                assert layer["ranked"] == trace.experts[place, row].tolist()
                assert layer["ranked_probs"] == trace.probs[place, row].tolist()
                assert layer["unmasked"] == trace.unmasked_experts[place, row].tolist()
                assert layer["unmasked_probs"] == trace.unmasked_probs[place, row].tolist()
                assert layer["removed"] == trace.removed_mass[place, row]
                assert layer["entropy"] == trace.entropy[place, row]
        name, data = saved(page, "parquet")
        assert name == "most-routing-conversation-turns-1-2-parquet.zip"
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            assert archive.testzip() is None
            tables = ("tokens", "routing", "layers")
            read = RoutingTrace.from_bytes({table: archive.read(f"turn-01.{table}.parquet") for table in tables})
            assert len(archive.namelist()) == 6
        for column, values in vars(reply.trace).items():
            if isinstance(values, np.ndarray):
                np.testing.assert_array_equal(getattr(read, column), values)
        assert read.model_hash == reply.trace.model_hash


def test_the_table_is_read_and_used_by_keys_alone(open_inspector, spoken):
    wave, reply = spoken
    trace = reply.trace
    with open_inspector([turn_of(1, wave, reply)]) as page:
        page.focus("#inspector-tab-token")
        for _ in range(3):
            page.keyboard.press("ArrowRight")
        assert page.evaluate("document.activeElement.id") == "inspector-tab-table"
        assert "Tokens 1 to 50 of" in page.inner_text(".table-place")
        assert page.locator(".table-twin caption").count() == 1
        heads = page.eval_on_selector_all(".table-twin th[scope=col]", "(all) => all.map((th) => th.textContent)")
        assert heads[0] == "Token"
        assert heads[-1] == f"Layer {trace.layers[-1]}"
        page.focus('[data-action="table-next"]')
        page.keyboard.press("Enter")
        assert "Tokens 51 to 100 of" in page.inner_text(".table-place")
        row = page.locator('[data-row="1-60"]')
        tops = row.locator("[data-expert]").evaluate_all("(all) => all.map((one) => Number(one.dataset.expert))")
        assert tops == trace.chosen[60, :, 0].tolist()
        shares = row.locator("[data-expert]").evaluate_all("(a) => a.map((one) => Number(one.dataset.probability))")
        assert shares == trace.chosen_probs[60, :, 0].astype(float).tolist()
        row.locator("button").focus()
        page.keyboard.press("Enter")
        assert page.evaluate("asked.selected.at(-1)") == {"turn": 1, "token": 60, "layer": 0}
        assert row.locator('[aria-current="true"]').count() == 1
        assert page.evaluate("document.activeElement.closest('[data-row]').dataset.row") == "1-60"
        page.click("#inspector-tab-token")
        assert page.get_attribute(".token-card", "data-token") == "60"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [340, 1000])
def test_axe_finds_nothing_serious(open_inspector, spoken, scheme, width):
    wave, reply = spoken
    viewport = {"width": width, "height": 900}

    def violations(page):
        found = Axe().run(page).response["violations"]
        return [f"{v['id']}: {v['nodes'][0]['html'][:200]}" for v in found if v["impact"] in ("serious", "critical")]

    with open_inspector([turn_of(1, wave, reply)], color_scheme=scheme, viewport=viewport) as page:
        assert violations(page) == []
        select(page, 60, 2)
        page.click(".formulas summary")
        assert violations(page) == []
        for expert in (2, 12):
            page.evaluate("(expert) => inspector.showExpert({layer: 2, expert})", expert)
            assert violations(page) == []
        for tab in ("span", "table", "export"):
            page.click(f"#inspector-tab-{tab}")
            assert violations(page) == []
            wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
            assert wide <= 0


@pytest.mark.parametrize("mode", ["next", "zero"])
def test_a_knock_out_shows_what_the_model_says_without_its_experts(open_inspector, most, spoken, mode):
    wave, reply = spoken
    turn, layer = turn_of(1, wave, reply), int(reply.trace.layers[1])
    texts = reply.trace.chosen[reply.trace.modality == 0][:, 1]
    first, second = np.bincount(texts.ravel()).argsort()[::-1][:2].tolist()
    off = [(layer, first), (layer, second)]
    with open_inspector([turn]) as page:
        for _, expert in [*off, (layer, 12)]:
            page.evaluate("(expert) => inspector.showExpert(expert)", {"layer": layer, "expert": expert})
            page.click('[data-action="knock-out-expert"]')
        page.locator('[data-action="switch-on"]').last.click()
        assert numbers(page, ".knock-out .chips li", "layer", "expert") == [[layer, first], [layer, second]]
        assert page.evaluate("asked.off") == [[layer, first], [layer, second]]
        page.select_option("#inspector-mode", mode)
        page.click('[data-action="knock-out"]')
        page.wait_for_selector(".compared", timeout=60_000)
        without = most.answer(wave, knock_out=off, settings=replace(most.usual_settings, knock_out_mode=mode))
        assert page.inner_text('[data-side="with_all"] .said') == reply.text
        assert page.inner_text('[data-side="without_them"] .said') == without.text
        marked = page.locator(".compared :is(del, ins)").all_inner_texts()
        assert bool(marked) == (without.text != reply.text)
        assert page.evaluate("asked.said.at(-1)") == f"Without them: {without.text}"
        features = features_of(most, wave)
        plain = scored(most, reply.trace, features)
        gone = scored(most, reply.trace, features, knock_out=off, mode=mode, like=plain)
        shown = np.array(numbers(page, ".per-token tbody tr", "token", "logprob", "without"))
        assert shown[:, 0].tolist() == plain.place.tolist()
        np.testing.assert_allclose(shown[:, 1], plain.logprob, atol=1e-4)
        np.testing.assert_allclose(shown[:, 2], gone.logprob, atol=1e-4)
        lost = plain.logprob - gone.logprob
        assert np.abs(lost).max() > 0.01
        audio = reply.trace.modality[plain.place] == 1
        ((total, text, sound),) = numbers(page, "[data-total]", "total", "text", "audio")
        assert (total, text, sound) == pytest.approx(
            (lost.sum(), lost[~audio].mean(), lost[audio].mean()), rel=1e-3, abs=1e-3
        )
        assert page.locator(".changes rect").count() == len(lost)
        for side, wanted in [("with_all", turn["reply"]["sound"]), ("without_them", None)]:
            page.click(f'[data-action="play-{side}"]')
            played = page.evaluate("asked.played.at(-1)")
            own = to_pcm16(resampled(without.waveform, without.sample_rate, WIRE_RATE))
            sound = np.frombuffer(own if wanted is None else base64.b64decode(wanted), "<i2")
            assert played["rate"] == WIRE_RATE
            assert len(played["pcm"]) == len(sound)
            np.testing.assert_allclose(played["pcm"], sound, atol=2)


def test_the_experts_that_mattered_are_told_and_can_be_looked_at(open_inspector, most, spoken):
    wave, reply = spoken
    with open_inspector([turn_of(1, wave, reply)]) as page:
        page.click("#inspector-tab-expert")
        assert page.locator('[data-action="knock-out"]').is_disabled()  # nothing is off
        page.click('[data-action="importance"]')
        page.wait_for_selector(".importance", timeout=60_000)
        shown = numbers(page, ".importance tbody tr", "layer", "expert", "estimate", "exact")
        wanted = [e for e in importance(most, reply.trace, features_of(most, wave), count=15) if e.exact is not None]
        wanted = sorted(wanted, key=lambda effect: -abs(effect.exact))[:5]
        assert [row[:2] for row in shown] == [[effect.layer, effect.expert] for effect in wanted]
        for row, effect in zip(shown, wanted):
            assert row[2:] == pytest.approx([effect.estimate, effect.exact], rel=1e-3, abs=1e-3)
        page.click(".importance tbody button")
        assert page.evaluate("asked.experts") == [{"layer": wanted[0].layer, "expert": wanted[0].expert}]
        page.click('[data-action="knock-out-expert"]')
        assert page.locator('[data-action="knock-out"]').is_enabled()


def test_a_knock_out_that_fails_or_is_cancelled_says_so(open_inspector, spoken):
    wave, reply = spoken
    deaf = turn_of(1, wave, reply)
    deaf["user"]["sound"] = None
    with open_inspector([deaf]) as page:
        page.evaluate("inspector.showExpert({layer: 2, expert: 3})")
        page.click('[data-action="knock-out-expert"]')
        page.click('[data-action="knock-out"]')
        page.wait_for_selector(".knock-out .status[data-problem]", timeout=60_000)
        assert "give the sound that was heard" in page.inner_text(".knock-out .status")
        page.route("**/page/knock_out", lambda route: None)  # no answer ever comes
        page.click('[data-action="knock-out"]')
        assert page.get_attribute(".knock-out", "aria-busy") == "true"
        assert page.inner_text(".knock-out .status") == "The model answers again …"
        assert page.locator('[data-action="knock-out"]').is_disabled()
        page.click('[data-action="cancel"]')
        page.wait_for_selector('.knock-out[aria-busy="false"]')
        assert page.inner_text(".knock-out .status") == "Cancelled."
        assert page.locator('[data-action="knock-out"]').is_enabled()
        page.context.set_offline(True)
        page.unroute("**/page/knock_out")
        page.click('[data-action="knock-out"]')
        page.wait_for_selector(".knock-out .status[data-problem]")
        assert "the server does not answer" in page.inner_text(".knock-out .status")


def test_without_any_trace_the_inspector_says_so(open_inspector):
    with open_inspector([]) as page:
        assert "Click a cell" in page.inner_text(".inspector .hint:not([hidden])")
        page.click("#inspector-tab-expert")
        assert "There is no answer yet" in page.inner_text(".knock-out .status")
        page.click("#inspector-tab-span")
        assert "Nothing has been said yet" in page.inner_text("#inspector-panel-span .hint")
        page.click("#inspector-tab-table")
        assert "Tokens 0 to 0 of 0" in page.inner_text(".table-place")
        page.click("#inspector-tab-export")
        assert page.locator(".exports .button:not(:disabled)").count() == 0


def test_of_a_conversation_that_is_over_nothing_stays(open_inspector, spoken):
    wave, reply = spoken
    with open_inspector([turn_of(1, wave, reply)]) as page:
        select(page, 60, 2)
        page.click("#inspector-tab-table")
        page.evaluate("globalThis.old = document.querySelector('[data-row=\"1-60\"] button')")
        page.evaluate("inspector.showExpert({layer: 2, expert: 3})")
        page.click('[data-action="knock-out-expert"]')
        late = []
        page.route("**/page/knock_out", lambda route: late.append(route))
        page.click('[data-action="knock-out"]')
        page.wait_for_function("() => document.querySelector('.knock-out').ariaBusy === 'true'")
        page.evaluate("routing.clear(); globalThis.gone = list.splice(0); inspector.forget();")
        assert page.evaluate("[inspector.selection, inspector.expert, inspector.span]") == [None, None, None]
        assert page.evaluate("asked.off") == []
        assert page.locator(".knock-out .chips [data-expert]").count() == 0
        assert page.locator("#inspector-turn option").count() == 0
        assert page.get_attribute(".knock-out", "aria-busy") == "false"
        assert "There is no answer yet" in page.inner_text(".knock-out .status")
        assert page.inner_text(".expert-card") == page.inner_text(".knock-out-result") == ""
        # A row that is still in somebody's hands leads nowhere.
        page.evaluate("old.click()")
        assert page.evaluate("inspector.selection") is None
        assert page.evaluate("asked.selected") == []


def test_a_turn_that_is_gone_leaves_every_panel(open_inspector, spoken):
    wave, reply = spoken
    with open_inspector([turn_of(1, wave, reply), turn_of(2, wave, reply)]) as page:
        for tab in ("table", "span", "export"):
            page.click(f"#inspector-tab-{tab}")
            page.evaluate("inspector.changed(null)")
        page.click("#inspector-tab-table")
        page.evaluate("inspector.show({turn: list[1], token: 3, layer: 0})")
        page.evaluate("routing.forget(list[1]); list.pop(); inspector.changed(null);")
        assert page.evaluate("inspector.selection") is None
        assert f"of {reply.trace.num_tokens}, page" in page.inner_text(".table-place")
        assert page.locator('[data-row^="2-"]').count() == 0


def test_the_table_stays_on_its_page_and_is_told_only_as_people_turn_it(open_inspector, spoken):
    wave, reply = spoken
    with open_inspector([turn_of(1, wave, reply)]) as page:
        page.click("#inspector-tab-table")
        select(page, 10)
        page.click('[data-action="table-next"]')
        assert page.evaluate("asked.said") == [page.inner_text(".table-place")]
        page.focus("#inspector-tab-table")
        page.evaluate("inspector.changed(list[0])")
        page.wait_for_timeout(900)
        assert "Tokens 51 to 100 of" in page.inner_text(".table-place")
        assert len(page.evaluate("asked.said")) == 1
        select(page, 11)
        assert "Tokens 1 to 50 of" in page.inner_text(".table-place")


def test_what_is_held_or_open_stays_while_a_turn_goes_on(open_inspector, spoken):
    wave, reply = spoken
    live = {**turn_of(2, wave, reply), "trace": None, "delta": reply.trace.to_wire(), "tables": None}
    with open_inspector([turn_of(1, wave, reply), live]) as page:
        page.click("#inspector-tab-span")
        page.click("#inspector-panel-span summary")
        page.evaluate("globalThis.before = document.querySelector('.span-card'); inspector.changed(list[1]);")
        page.wait_for_timeout(900)
        assert page.evaluate("before.isConnected && before.contains(document.activeElement)")
        page.focus("#inspector-tab-span")
        page.wait_for_function("() => !before.isConnected")
        assert page.evaluate("document.querySelector('#inspector-panel-span details').open")


def test_history_is_counted_once_where_turns_are_unknown(open_inspector):
    first = {"user": 4, "assistant": 6}
    roles = [role for role, count in {"system": 2, **first}.items() for _ in range(count)]
    cases = [
        ([*roles, *["user"] * 3, *["assistant"] * 5], 12),
        ([*roles, *["user"] * 3], 12),  # interrupted before a word was said
        (roles, 2),
        (["assistant"], 0),
        ([], 0),
    ]
    with open_inspector([]) as page:
        found = page.evaluate(
            """async (all) => {
              const {ownFrom} = await import("/page/static/routing/telling.js");
              return all.map((role) => ownFrom({role, turn: role.map(() => null)}));
            }""",
            [roles for roles, _ in cases],
        )
    assert found == [start for _, start in cases]


@pytest.mark.parametrize(("shares", "confidence"), [([51, 0], 1), ([0, 0], None)])
def test_a_group_of_which_bytes_leave_nothing_has_no_wild_confidence(open_inspector, shares, confidence):
    with open_inspector([]) as page:
        found = page.evaluate(
            """async (shares) => {
              const {choiceOf} = await import("/page/static/routing/telling.js");
              const {Rows} = await import("/page/static/routing/rows.js");
              const rows = new Rows([1], 2);
              const bytes = (...values) => btoa(String.fromCharCode(...values));
              rows.push({modality: [0], role: ["user"], text: ["a"], start_ms: [null], end_ms: [null],
                experts: bytes(0, 1), weights: bytes(...shares), unmasked: bytes(2, 3), removed: bytes(255)});
              return choiceOf(rows, {groups: [{text: [0, 1], audio: [2, 3]}]}, 0, 0).confidence;
            }""",
            shares,
        )
    assert found == confidence


@pytest.mark.parametrize(("seed", "temperature", "told"), [(None, 0, "there is no seed"), (7, 0.8, "with seed 7")])
def test_an_answer_is_drawn_again_only_with_a_seed(open_inspector, spoken, seed, temperature, told):
    wave, reply = spoken
    answer = {"text": "b", "heard": "", "finish_reason": "stop", "sound": "", "tokens": []}
    answer["lost"] = {"text": None, "audio": None, "total": 0}
    asked = []

    def answered(route):
        asked.append(route.request.post_data_json)
        route.fulfill(json=answer)

    with open_inspector([turn_of(1, wave, reply, seed=seed)]) as page:
        page.evaluate("inspector._knockOut._does.settings = () => ({temperature: 0.8, seed: null})")
        page.route("**/page/knock_out", answered)
        page.evaluate("inspector.showExpert({layer: 2, expert: 3})")
        page.click('[data-action="knock-out-expert"]')
        page.click('[data-action="knock-out"]')
        page.wait_for_selector(".compared")
        assert told in page.inner_text(".knock-out-result")
    assert (asked[0]["seed"], asked[0]["temperature"]) == (seed, temperature)


def test_a_picture_that_nobody_could_read_is_not_made(open_inspector, spoken):
    wave, reply = spoken
    delta = reply.trace.to_wire()
    with open_inspector([{**turn_of(1, wave, reply), "trace": None, "delta": delta, "tables": None}]) as page:
        page.evaluate(
            """(delta) => {
              for (let i = 2; i < 60; i++) {
                const first_token = routing.of(list[0]).length;
                routing.take({type: "most.routing.delta", sequence: i, ...delta, first_token}, list[0]);
              }
            }""",
            delta,
        )
        page.click("#inspector-tab-export")
        page.click('[data-action="export-png"]')
        page.wait_for_function("() => document.querySelector('.exports .status').textContent")
        assert "choose a span, or the drawing (SVG)" in page.inner_text(".exports .status")
        assert page.evaluate("asked.files") == []


def test_the_steps_of_an_exported_page_lead_through_all_turns(open_inspector, spoken, tmp_path):
    wave, reply = spoken
    last = reply.trace.num_tokens - 1
    with open_inspector([turn_of(1, wave, reply), turn_of(2, wave, reply)]) as page:
        page.evaluate(
            "([from, to]) => inspector.showSpan({from: {turn: list[0], token: from}, to: {turn: list[1], token: to}})",
            [last, 5],
        )
        name, data = saved(page, "html")
        (tmp_path / name).write_bytes(data)
        page.goto((tmp_path / name).as_uri())
        page.wait_for_selector(".token-card")
        assert f"token {last + 1} of {last + 1}, turn 1" in page.inner_text(".token-card")
        page.click('[data-keep="after"]')
        assert "turn 2" in page.inner_text(".token-head + dl dd")
        page.click('[data-keep="before"]')
        assert "turn 1" in page.inner_text(".token-head + dl dd")
        assert page.locator('[data-keep="before"]').is_disabled()
