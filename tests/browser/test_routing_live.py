"""The routing beside the conversation, live: through a real browser, the real app and nano's own routers."""

import base64
import json
import re

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from talk_page import TalkPage

from most_core import RoutingTrace, metrics

QUESTION = "What is the capital of France?"
# Keeps what the socket tells of the routing, and the tables of each turn; lets a test say what the server says.
TELL = """(() => {
  globalThis.told = [];
  const Socket = globalThis.WebSocket;
  globalThis.WebSocket = class extends Socket {
    constructor(...given) {
      super(...given);
      let latest = 0;
      globalThis.comes = (event) =>
        this.dispatchEvent(new MessageEvent("message", {data: JSON.stringify({sequence: latest, ...event})}));
      this.addEventListener("message", ({data}) => {
        const event = JSON.parse(data);
        latest = event.sequence ?? latest;
        if (/^most\\.(routing|record)/.test(event.type)) told.push(event);
      });
    }
  };
})();"""
# Somebody begins to speak, and what was heard so far comes again and again, as often as given.
SPEECH = """(times) => {
  const delta = told.findLast((event) => event.type === "most.routing.delta" && event.first_token === 0);
  const {sequence, ...heard} = delta;
  comes({type: "input_audio_buffer.speech_started", item_id: "item_cough", audio_start_ms: 0});
  for (let n = 0; n < times; n++) comes({...heard, turn_id: "turn_cough", provisional: true});
  return heard.modality.length;
}"""
# A picture of the ribbon's cells as one number a pixel.
PIXELS = """(() => {
  const canvas = document.querySelector(".ribbon-canvas");
  return [...new Uint32Array(canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data.buffer)];
})()"""


def data(page):
    """The numbers that the view carries."""
    found = page.evaluate("({...document.querySelector('.routing').dataset})")
    return {name: int(found[name]) for name in ("tokens", "lost", "outside", "decisions")} | {"state": found["state"]}


def settled(talk):
    """Until the view has shown the exact trace of all that was recorded; its numbers."""
    talk.page.wait_for_timeout(1200)
    return data(talk.page)


def pixels(page):
    return np.array(page.evaluate(PIXELS), np.uint32)


def serious(page):
    """What axe finds serious on the page."""
    found = Axe().run(page).response["violations"]
    return [
        f"{one['id']}: {json.dumps(one['nodes'][0]['html'])[:200]}"
        for one in found
        if one["impact"] in ("serious", "critical")
    ]


def place(talk, hash):
    """Until the page's address says this."""
    talk.until(lambda: talk.page.evaluate("location.hash") == hash)


def trace_of(page, turn=-1):
    """The recorded trace of a turn, from what the socket sent."""
    pieces = page.evaluate("told.filter((event) => event.type === 'most.record.piece')")
    files = {}
    last = [piece for piece in pieces if piece["turn_id"] == pieces[turn]["turn_id"]]
    for piece in last:
        files[piece["of"]] = files.get(piece["of"], b"") + base64.b64decode(piece["data"])
    return RoutingTrace.from_bytes({name: files[name] for name in ("tokens", "routing", "layers")})


@pytest.fixture
def asked(browser_for, app_url):
    """A conversation of two turns, one of sound and one in writing."""
    with browser_for(microphone=False) as page:
        page.add_init_script(TELL)
        talk = TalkPage(page, app_url)
        talk.press("sample")
        talk.wait_turns(1)
        talk.ask(QUESTION)
        talk.wait_turns(2)
        settled(talk)
        yield talk
        assert talk.errors == []


def test_a_spoken_question_is_routed_while_it_is_heard(browser_for, microphone_wav, app_url):
    wav, _ = microphone_wav(["latte.wav"], lead_s=1.5)
    with browser_for(wav) as page:
        page.add_init_script(TELL)
        talk = TalkPage(page, app_url)
        page.evaluate(
            """() => {
              globalThis.seen = [];
              const routing = document.querySelector(".routing");
              const look = () => seen.push({...routing.dataset, words: routing.querySelector("header").innerText});
              new MutationObserver(look).observe(routing, {attributes: true});
            }"""
        )
        talk.press("start")
        talk.wait_turns(1)
        final = settled(talk)
        seen, told = page.evaluate("[seen, told.filter((event) => event.type === 'most.routing.delta')]")
        assert talk.errors == []
    heard = [one for one in seen if one["state"] == "listening"]
    assert heard, "nothing was shown while it was heard"
    assert "provisional" in heard[-1]["words"]
    counts = [int(one["tokens"]) for one in seen]
    assert counts == sorted(counts)
    assert final["tokens"] == sum(len(event["modality"]) for event in told)
    assert (final["lost"], final["outside"]) == (0, 0)
    tokens = sum(len(event["modality"]) for event in told if not event["provisional"])
    assert final["decisions"] == tokens * 5 * 4, "what was provisional is counted no more"
    assert final["state"] == "over"
    assert {kind for event in told for kind in event["modality"]} == {0, 1}


def test_the_figures_are_those_of_the_trace(asked):
    page = asked.page
    trace = trace_of(page)
    found = page.evaluate("({...document.querySelector('.counters').dataset})")
    load = [np.bincount(row.ravel(), minlength=16)[:16] for row in trace.chosen.transpose(1, 0, 2)]
    used = sum(int((row > 0).sum()) for row in load)
    assert (int(found["used"]), int(found["idle"])) == (used, 80 - used)
    for side, name in enumerate(("text", "audio")):
        total, pairs = metrics.kept_from_before(trace.chosen, trace.modality, side)
        assert float(found[name]) == pytest.approx(total / pairs)
        shown = page.inner_text(f'[data-figure="{name}"]')
        assert f"{round(100 * total / pairs)} %" in shown
        assert "chance 50 %" in shown
    assert f"{data(page)['decisions']:,}" in page.inner_text(".leakage")


def test_a_choice_on_the_wrong_side_is_told_in_red(browser_for, app_url):
    with browser_for(microphone=False) as page:
        page.add_init_script(
            """(() => {
              const parse = JSON.parse;
              JSON.parse = (text, ...more) => {
                const event = parse(text, ...more);
                if (event?.type === "most.routing.delta" && event.modality.at(-1) === 0) {
                  const bytes = Uint8Array.from(atob(event.experts), (letter) => letter.charCodeAt(0));
                  bytes[bytes.length - 1] = 15;
                  event.experts = btoa(String.fromCharCode(...bytes));
                }
                return event;
              };
            })()"""
        )
        page.route("**/page/trace", lambda route: route.abort())
        talk = TalkPage(page, app_url, voice=False)
        talk.ask(QUESTION)
        talk.wait_turns(1)
        found = settled(talk)
        assert found["outside"] > 0
        badge = page.locator(".leakage")
        assert badge.get_attribute("data-bad") == "true"
        assert badge.inner_text().startswith(f"{found['outside']} of ")
        assert page.evaluate("getComputedStyle(document.querySelector('.leakage')).color") == "rgb(163, 40, 30)"
        assert "could not be had" in page.inner_text(".routing-note")


def test_the_keyboard_goes_through_tokens_and_layers(asked):
    page = asked.page
    page.focus(".ribbon-stage")
    page.keyboard.press("ArrowLeft")
    last = len(trace_of(page).modality)
    place(asked, f"#turn=2&token={last}&layer=1")
    for key in ("ArrowLeft", "ArrowDown", "ArrowDown"):
        page.keyboard.press(key)
    place(asked, f"#turn=2&token={last - 1}&layer=3")
    said = '[data-live="routing"]'
    asked.until(lambda: f"Turn 2, token {last - 1}" in page.text_content(said))
    trace = trace_of(page)
    chosen = trace.chosen[last - 2, 2].tolist()
    percent = round(100 * float(trace.chosen_probs[last - 2, 2, 0]))
    text = page.text_content(said)
    assert text.endswith(f"layer 3: expert {chosen[0]}, {percent} %, then {chosen[1]}, {chosen[2]}, {chosen[3]}"), text
    assert re.search(r"sound, \d+\.\d\d s", text), text
    page.keyboard.press("Home")
    place(asked, "#turn=1&token=1&layer=3")
    page.keyboard.press("PageDown")
    place(asked, "#turn=2&token=1&layer=3")
    page.keyboard.press("Enter")
    before = pixels(page)
    page.keyboard.press("Shift+ArrowRight")
    page.keyboard.press("Shift+ArrowRight")
    page.wait_for_timeout(300)
    assert (pixels(page) != before).any(), "no span is shaded"
    page.keyboard.press("Escape")
    place(asked, "")
    assert asked.state == "idle"


def test_the_address_is_written_seldom_while_a_key_is_held(asked):
    page = asked.page
    page.evaluate(
        """() => {
          globalThis.written = 0;
          const replace = history.replaceState;
          history.replaceState = function (...given) {
            written += 1;
            return replace.apply(this, given);
          };
        }"""
    )
    page.evaluate(
        """() => {
          const stage = document.querySelector(".ribbon-stage");
          for (let n = 0; n < 20; n++) stage.dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowLeft"}));
        }"""
    )
    place(asked, f"#turn=2&token={len(trace_of(page).modality) - 19}&layer=1")
    assert page.evaluate("written") == 2


def test_a_span_that_grows_by_keys_stays_open(asked):
    page = asked.page
    page.focus(".ribbon-stage")
    shown = '.inspector [role="tab"][aria-selected="true"]'
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Enter")
    assert page.get_attribute(shown, "id") == "inspector-tab-token"
    for key in ("ArrowLeft", "ArrowLeft", "ArrowDown"):
        page.keyboard.press(f"Shift+{key}")
        assert page.get_attribute(shown, "id") == "inspector-tab-span", key
    page.keyboard.press("ArrowLeft")
    assert page.get_attribute(shown, "id") == "inspector-tab-token"


def test_a_cough_leaves_nothing(asked):
    page = asked.page
    page.wait_for_timeout(300)
    before, heading = pixels(page), page.inner_text(".routing-main > h3")
    page.evaluate(SPEECH, 2)
    asked.until(lambda: data(page)["state"] == "listening")
    asked.until(lambda: (pixels(page) != before).any())
    page.evaluate("comes({type: 'input_audio_buffer.speech_stopped', item_id: 'item_cough'})")
    page.evaluate("comes({type: 'most.state', state: 'listening'})")
    asked.until(lambda: data(page)["state"] == "over")
    asked.until(lambda: (pixels(page) == before).all())
    assert page.inner_text(".routing-main > h3") == heading


def test_frozen_what_is_heard_again_counts_once(asked):
    page = asked.page
    asked.press("freeze")
    asked.until(lambda: page.text_content('[data-live="routing"]').startswith("The picture stands still. 0 tokens"))
    tokens = data(page)["tokens"]
    count = page.evaluate(SPEECH, 3)
    asked.until(lambda: data(page)["tokens"] == tokens + 3 * count)
    note = page.locator(".routing-note")
    assert f" {count} tokens came in since" in note.inner_text()
    assert note.get_attribute("role") is None
    page.wait_for_timeout(1200)
    assert "still. 0 tokens" in page.text_content('[data-live="routing"]'), "its number is told once"


def test_the_address_selects_what_is_there(asked):
    page = asked.page
    page.evaluate("location.hash = '#turn=1&token=12&layer=4'")
    page.wait_for_timeout(300)
    page.focus(".ribbon-stage")
    asked.until(lambda: "Turn 1, token 12, sound" in page.text_content('[data-live="routing"]'))
    page.evaluate("location.hash = '#turn=9&token=12&layer=4'")
    page.evaluate("location.hash = '#elsewhere'")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("location.hash") == "#elsewhere", "others' addresses are left alone"


def test_a_click_selects_a_cell_and_a_drag_goes_back(asked):
    page = asked.page
    box = page.locator(".ribbon-canvas").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] - 15)
    label = page.locator(".ribbon-label")
    assert label.is_visible()
    over = label.bounding_box()
    assert over["y"] + over["height"] <= box["y"] + 70, "it covers the cells"
    assert label.inner_text().startswith("Turn 2, token ")
    assert "layer 5: expert" in label.inner_text()
    page.mouse.down()
    page.mouse.up()
    asked.until(lambda: page.evaluate("location.hash").endswith("&layer=5"))
    page.wait_for_timeout(600)  # the inspector comes into sight
    assert page.locator(".inspector > h2").bounding_box()["y"] < page.viewport_size["height"]
    box = page.locator(".ribbon-canvas").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] - 15)
    assert page.locator(".newest").is_hidden()
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] - 5, box["y"] + 60, steps=4)
    page.mouse.up()
    assert page.locator(".newest").is_visible()
    asked.press("newest")
    assert page.locator(".newest").is_hidden()


def test_what_the_mask_hides_is_drawn_when_asked(asked):
    page = asked.page
    before = pixels(page)
    asked.press("ghosts")
    page.wait_for_timeout(300)
    trace = trace_of(page)
    assert (trace.unmasked_experts[..., 0] != trace.chosen[..., 0]).any(), "the mask changes nothing here"
    assert (pixels(page) != before).any()
    asked.press("ghosts")
    page.wait_for_timeout(300)
    assert (pixels(page) == before).all()


def test_frozen_it_stands_still_while_data_comes_in(asked):
    page = asked.page
    asked.press("freeze")
    page.wait_for_timeout(400)
    before, tokens = pixels(page), data(page)["tokens"]
    asked.ask("What day comes after Monday?")
    asked.wait_turns(3)
    after = settled(asked)
    assert after["tokens"] > tokens
    assert (pixels(page) == before).all()
    assert f"{after['tokens'] - tokens} tokens came in since" in page.inner_text(".routing-note")
    asked.press("freeze")
    page.wait_for_timeout(400)
    assert (pixels(page) != before).any()
    assert page.locator(".routing-note").is_hidden()


def test_an_expert_is_chosen_by_keyboard(asked):
    page = asked.page
    page.focus(".banks")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    asked.until(lambda: page.text_content('[data-live="routing"]') == "Layer 2, expert 1, Text's experts")


def test_wide_takes_the_conversations_place_and_gives_it_back(asked):
    page = asked.page
    before = page.locator(".beside").bounding_box()["width"]
    page.focus('[data-action="wide"]')
    page.keyboard.press("Enter")
    page.wait_for_timeout(300)
    assert page.locator(".beside").bounding_box()["width"] > 1.5 * before
    assert page.evaluate("document.activeElement.dataset.action") == "wide"
    page.keyboard.press("Escape")
    page.wait_for_timeout(300)
    assert page.locator(".beside").bounding_box()["width"] == before
    assert page.evaluate("document.activeElement.dataset.action") == "wide"


def test_switched_off_nothing_is_shown_and_it_says_so(browser_for, app_url):
    with browser_for(microphone=False) as page:
        page.add_init_script(TELL)
        talk = TalkPage(page, app_url, routing=False)
        talk.ask(QUESTION)
        talk.wait_turns(1)
        assert settled(talk)["tokens"] == 0
        assert page.evaluate("told.filter((event) => event.type === 'most.routing.delta').length") == 0
        assert "The settings say" in page.inner_text(".routing-note")


def test_a_model_without_experts_gets_one_sentence(browser_for, app_url):
    with browser_for(microphone=False) as page:

        def dense(route):
            facts = route.fetch().json()
            facts["model"]["experts"] = {}
            route.fulfill(json=facts)

        page.route("**/page/facts.json", dense)
        talk = TalkPage(page, app_url)
        assert "This model has no experts" in page.inner_text(".routing")
        talk.ask(QUESTION)
        talk.wait_turns(1)
        assert page.is_visible(".waterfall")
        assert talk.errors == []


def test_a_conversation_that_is_cleared_leaves_no_routing(asked):
    page = asked.page
    page.on("dialog", lambda dialog: dialog.accept())
    page.focus(".ribbon-stage")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Enter")
    assert page.locator(".inspector .hint").first.is_hidden()
    asked.press("clear")
    assert page.locator(".inspector .hint").first.is_visible(), "a token of the deleted conversation is still shown"
    assert settled(asked) == {"tokens": 0, "lost": 0, "outside": 0, "decisions": 0, "state": "waiting"}
    asked.ask(QUESTION)
    asked.wait_turns(1)
    assert settled(asked)["tokens"] > 0


def test_of_an_opened_session_nothing_stays_when_another_comes(asked, tmp_path):
    page = asked.page
    with page.expect_download() as download:
        asked.press("save")
    download.value.save_as(tmp_path / "session.zip")

    def look():
        page.focus(".ribbon-stage")
        page.keyboard.press("ArrowLeft")
        page.keyboard.press("Enter")
        assert hint.is_hidden()

    hint = page.locator(".inspector .hint").first
    look()
    for _ in range(2):
        page.set_input_files("#most-open", tmp_path / "session.zip")
        asked.until(hint.is_visible)
        asked.wait_state("saved")
        assert settled(asked)["decisions"] > 0
        look()
    asked.press("back")
    assert hint.is_visible()
    assert settled(asked)["decisions"] > 0


def test_the_tour_explains_part_by_part(asked):
    page = asked.page
    tour, framed = page.locator(".tour"), page.locator("[data-framed]")
    asked.press("explain")
    seen = []
    while tour.is_visible():
        assert framed.count() == 1
        assert framed.is_visible()
        seen.append(framed.get_attribute("data-part"))
        if len(seen) == 1:
            assert serious(page) == []
        asked.press("tour-next")
    assert seen == ["ribbon", "modality", "banks", "counts", "leakage", "ghosts", "card"]
    assert framed.count() == 0


def test_escape_ends_the_tour_and_the_keyboard_goes_on_where_it_was(asked):
    page = asked.page
    focused = "document.activeElement.dataset.action"
    for inside in (False, True):
        page.focus('[data-action="explain"]')
        page.keyboard.press("Enter")
        assert page.locator(".tour").is_visible()
        if inside:
            page.focus('[data-action="tour-next"]')
        page.keyboard.press("Escape")
        assert page.locator(".tour").is_hidden()
        assert page.locator("[data-framed]").count() == 0
        assert page.evaluate(focused) == "explain"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(browser_for, app_url, scheme):
    with browser_for(microphone=False, color_scheme=scheme, viewport={"width": 1440, "height": 900}) as page:
        talk = TalkPage(page, app_url, voice=False)
        talk.press("sample")
        talk.wait_turns(1)
        page.focus(".ribbon-stage")
        page.keyboard.press("ArrowLeft")
        for action in ("ghosts", "freeze", "wide"):
            talk.press(action)
            page.mouse.move(0, 0)
            page.wait_for_timeout(300)
            assert serious(page) == [], action
