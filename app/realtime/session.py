"""OpenAI's Realtime events as clients send them, and what they do to a conversation. What comes of it is told by
`output`; how events travel is `sockets`' business."""

from __future__ import annotations

import base64
import binascii
import json
import math
import secrets
from collections.abc import Callable
from typing import Any

import numpy as np

from app.audio import WIRE_RATE, Resampler, from_pcm16
from app.conversation import Conversation
from app.engine import Engine
from app.metrics import Metrics
from app.outputs import Item
from app.realtime.output import RealtimeOutput
from app.realtime.session_settings import Refused, SessionSettings, each, number, only, quoted, switch, text
from app.settings import Settings
from app.vad import SAMPLE_RATE

LONGEST_ID = 200
MOST_ITEMS = 1000  # that a client may put into a conversation
MOST_PARTS = 64  # of one of them
PIECE_S = 1  # of sound is heard at a time: meanwhile, the others wait
ROLES = {"user": ("input_text", "input_audio"), "assistant": ("output_text",), "system": ("input_text",)}


class RealtimeSession:
    """Call `receive` with each event of the client, `microphone` with bytes of sound, `hear_on` until nothing is
    `unheard`, `tick` some twenty times a second and `close` in the end, all on one thread. `send` is called with each
    event for the client, `post` from any thread with what must run on this one. Once `ended` says why, the client is to
    be sent away."""

    def __init__(
        self,
        engine: Engine,
        send: Callable[[dict[str, Any]], None],
        post: Callable[[Callable[[], None]], None],
        settings: Settings,
        metrics: Metrics,
        model: str,
        sequence: int = 0,
    ) -> None:
        self.id = f"sess_{secrets.token_hex(8)}"
        self.limits, self.metrics, self.model, self.ended = settings, metrics, model, ""
        self.settings = SessionSettings(history=settings.history)
        self._usual = engine.most.usual_settings
        self._resampler = Resampler(WIRE_RATE, SAMPLE_RATE)
        self._unheard = np.zeros(0, np.float32)
        self.out = RealtimeOutput(send, metrics, self.id, self.settings, sequence)
        talk = self.settings.talk(self._usual)
        self.conversation = self.out.conversation = Conversation(engine, self.out.tell, post, talk=talk)
        self.out.event("session.created", session=self.settings.to_wire(self.id, model))

    def receive_text(self, message: str) -> None:
        """An event as it came."""
        try:
            event = json.loads(message)
        except (ValueError, RecursionError):
            refused = f"{quoted(message)} is no JSON: send one event as a JSON object"
            self.out.error(Refused(refused, None, "invalid_json"))
            return
        self.receive(event)

    def receive(self, event: Any) -> None:
        """Do what an event asks for; what cannot be done is told as an `error` event."""
        while self.unheard:
            self.hear_on()
        name = event.get("event_id") if isinstance(event, dict) else None
        name = name if isinstance(name, str) and len(name) <= LONGEST_ID else None
        try:
            if not isinstance(event, dict) or not isinstance(event.get("type"), str):
                raise Refused(f"{quoted(event)} is no event: send an object with a type", "type", "invalid_event")
            handler = HANDLERS.get(event["type"])
            if handler is None:
                raise Refused(f"there is no event {quoted(event['type'])}", "type", "unknown_event")
            handler(self, {k: v for k, v in event.items() if k not in ("type", "event_id")})
        except Refused as refused:
            self.out.error(refused, name)
        except ValueError as error:
            self.out.error(Refused(str(error)), name)

    def microphone(self, pcm: bytes) -> None:
        """Sound: 16 bit, 24 kHz, one channel. Refused if it is none, or too much waits to be committed."""
        try:
            samples = from_pcm16(pcm)
        except ValueError as error:
            raise Refused(str(error), "audio") from None
        longest, waiting = self.limits.seconds, self.conversation.recorded_s
        if self.conversation.by_hand and waiting + len(samples) / WIRE_RATE > longest:
            told = f"more than {longest} s of sound wait to be committed: commit or clear it"
            raise Refused(told, "audio", "too_long")
        while self.unheard:
            self.hear_on()
        self.metrics.heard_s.inc(len(samples) / WIRE_RATE)
        self._unheard = samples
        self.hear_on()

    @property
    def unheard(self) -> bool:
        """Some of what was given to `microphone` is not heard yet, because it is long."""
        return len(self._unheard) > 0

    def hear_on(self) -> None:
        """Hear a little of that."""
        piece, self._unheard = np.split(self._unheard, [PIECE_S * WIRE_RATE])
        self.conversation.hear(self._resampler.push(piece))

    def tick(self) -> None:
        """Time has passed."""
        if not self.unheard:
            self.conversation.tick()
        if self.out.turns >= self.limits.turns and not self.conversation.replying and not self.ended:
            self.end(f"the conversation has had its {self.limits.turns} turns: begin another")

    def close(self) -> None:
        """The client is gone."""
        self.conversation.close()

    def end(self, why: str) -> None:
        """The client is to be sent away: why."""
        self.ended = why
        self.out.error(Refused(why, None, "session_ended"))

    # What clients may send, by type

    def _update(self, event: dict[str, Any]) -> None:
        each(event, "session.update", {"session": lambda v, p: None})
        old, new = self.settings, self.settings.updated(event.get("session", {}))
        speech = self.conversation
        self.settings = self.out.settings = new
        speech.talk = new.talk(self._usual)
        if (new.turn_settings(), new.vad_settings()) != (old.turn_settings(), old.vad_settings()):
            speech.tune(new.turn_settings(), new.vad_settings())
        if (new.detection is None) != (old.detection is None):
            speech.turn_by_hand(new.detection is None)
        if new.detection is not None and (new.hands_free != old.hands_free or old.detection is None):
            speech.hands_free(new.hands_free)
        deaf = new.half_duplex or not (new.detection is None or new.detection.interrupt_response)
        if deaf != speech.machine.half_duplex:
            speech.half_duplex(deaf)
        self.out.event("session.updated", session=new.to_wire(self.id, self.model))

    def _append(self, event: dict[str, Any]) -> None:
        each(event, "input_audio_buffer.append", {"audio": lambda v, p: None})
        self.microphone(_decoded(event.get("audio"), "audio"))

    def _commit(self, event: dict[str, Any]) -> None:
        each(event, "input_audio_buffer.commit", {})
        try:
            item = self.conversation.commit()
        except ValueError as error:
            raise Refused(str(error), None, "input_audio_buffer_commit_empty") from None
        if item is not None:
            self.out.committed(item)

    def _clear(self, event: dict[str, Any]) -> None:
        each(event, "input_audio_buffer.clear", {})
        self.conversation.clear()
        self.out.event("input_audio_buffer.cleared")

    def _create_item(self, event: dict[str, Any]) -> None:
        each(event, "conversation.item.create", {"item": lambda v, p: None, "previous_item_id": lambda v, p: None})
        if len(self.conversation.items) >= MOST_ITEMS:
            raise Refused(f"the conversation holds {MOST_ITEMS} items: delete some", "item", "too_many")
        item = self._item(event.get("item"))
        after = event.get("previous_item_id")
        if after not in (None, "root"):
            after = self._known(after, "previous_item_id").id
        self.conversation.add(item, "" if after == "root" else after)
        self.out.announce(item, self.out.before(item))

    def _item(self, given: Any) -> Item:
        """A message that a client puts into the conversation."""
        if not isinstance(given, dict):
            raise Refused(f"item is {quoted(given)}: give an object", "item", "invalid_type")
        only(given.get("type"), "item.type", "message")
        role = only(given.get("role"), "item.role", *ROLES)
        name = given.get("id")
        name = self.conversation.new_id() if name is None else text(name, "item.id", LONGEST_ID)
        if self.conversation.knows(name):
            raise Refused(f"there is an item {quoted(name)} already: choose another id", "item.id", "duplicate")
        parts = given.get("content")
        if not isinstance(parts, list) or not parts:
            raise Refused(f"item.content is {quoted(parts)}: give a list of parts", "item.content", "invalid_type")
        if len(parts) > MOST_PARTS:
            raise Refused(f"item.content has {len(parts)} parts: give at most {MOST_PARTS}", "item.content", "too_long")
        item, room = Item(name, role), self.limits.characters
        if role == "system":
            room -= sum(len(i.text) for i in self.conversation.items.values() if i.role == "system")
        for number_, part in enumerate(parts):
            param = f"item.content[{number_}]"
            if not isinstance(part, dict):
                raise Refused(f"{param} is {quoted(part)}: give an object", param, "invalid_type")
            if only(part.get("type"), f"{param}.type", *ROLES[role]) == "input_audio":
                sound = from_pcm16(_decoded(part.get("audio"), f"{param}.audio"))
                longest = self.limits.seconds
                if not WIRE_RATE / 10 <= len(sound) <= longest * WIRE_RATE:
                    raise Refused(
                        f"{param}.audio lasts {len(sound) / WIRE_RATE:.2f} s: give 0.1 to {longest} s", f"{param}.audio"
                    )
                if item.sound is not None:
                    raise Refused(f"{param} is a second sound: give one an item", param)
                whole = Resampler(WIRE_RATE, SAMPLE_RATE)
                item.sound = np.concatenate([whole.push(sound), whole.finish()])
            else:
                said = text(part.get("text"), f"{param}.text", max(room, 0))
                room -= len(said)
                item.text = f"{item.text} {said}".strip()
        if item.sound is None and not item.text:
            raise Refused("the item says nothing: give it text or sound", "item.content")
        if role == "assistant":
            item.text, item.transcript = "", item.text
        return item

    def _retrieve(self, event: dict[str, Any]) -> None:
        item = self._known(event.get("item_id"), "item_id")
        self.out.event("conversation.item.retrieved", item=self.out.shown(item, sound=True))

    def _delete(self, event: dict[str, Any]) -> None:
        item = self._known(event.get("item_id"), "item_id")
        del self.conversation.items[item.id]
        self.out.event("conversation.item.deleted", item_id=item.id)

    def _truncate(self, event: dict[str, Any]) -> None:
        """The client stopped playing there. Where the reply still plays here, it stops, too."""
        item = self._known(event.get("item_id"), "item_id")
        end_ms = number(event.get("audio_end_ms"), "audio_end_ms", 0, 1e9)
        only(event.get("content_index", 0), "content_index", 0)
        reply = next((r for r in self.out.replies.values() if r.item is item), None)
        if reply is None or not reply.speaks:
            raise Refused(f"item {quoted(item.id)} is no spoken reply of late: truncate one of the last", "item_id")
        if end_ms > reply.sent_ms + 1:
            raise Refused(f"audio_end_ms is {end_ms:g}, but {reply.sent_ms:.0f} ms were sent", "audio_end_ms")
        if self.conversation.machine.live_turn == reply.turn:
            self.out.cutting = item  # its end is told below, as the client knows it
            try:
                self._fall_silent()
            finally:
                self.out.cutting = None
        words = reply.text.split()
        item.transcript = " ".join(words[: math.floor(len(words) * end_ms / max(reply.sent_ms, 1))])
        self.out.truncated(item, end_ms)

    def _respond(self, event: dict[str, Any]) -> None:
        each(event, "response.create", {"response": lambda v, p: None})
        if self.conversation.replying:
            told = "a response is being made already: wait for response.done, or cancel it"
            raise Refused(told, None, "conversation_already_has_active_response")
        given, metadata = event.get("response") or {}, {}
        each(
            given,
            "response",
            {
                **dict.fromkeys(WISHES, lambda v, p: None),
                "metadata": lambda v, p: metadata.update(_metadata(v, p)),
                "conversation": lambda v, p: only(v, p, "auto", None),
                "input": lambda v, p: only(v, p, None),
            },
        )
        wishes = self.settings.updated({name: given[name] for name in WISHES if name in given})
        out, speech = self.out, self.conversation
        out.metadata, out.reply_settings = metadata or None, wishes
        usual, speech.talk = speech.talk, wishes.talk(self._usual)
        try:
            speech.respond()
        finally:
            speech.talk = usual
            out.metadata = out.reply_settings = None

    def _cancel(self, event: dict[str, Any]) -> None:
        each(event, "response.cancel", {"response_id": lambda v, p: text(v, p, LONGEST_ID) if v is not None else None})
        name, live = event.get("response_id"), self.out.replies.get(self.conversation.machine.live_turn or 0)
        if not self.conversation.replying or (name is not None and live is not None and name != live.id):
            told = "there is no response to cancel" if name is None else f"response {quoted(name)} is not being made"
            raise Refused(told, None, "response_cancel_not_active")
        self._fall_silent()

    def _stop(self, event: dict[str, Any]) -> None:
        each(event, "most.stop", {})
        self._fall_silent()

    def _stop_playback(self, event: dict[str, Any]) -> None:
        each(event, "output_audio_buffer.clear", {})
        self._fall_silent()

    def _fall_silent(self) -> None:
        """Because the client wants it."""
        self.out.by_client = True
        try:
            self.conversation.stop()
        finally:
            self.out.by_client = False

    def _press(self, event: dict[str, Any]) -> None:
        self.conversation.press()

    def _release(self, event: dict[str, Any]) -> None:
        self.conversation.release()

    def _mute(self, event: dict[str, Any]) -> None:
        self.conversation.mute(switch(event.get("on"), "on"))

    def _played(self, event: dict[str, Any]) -> None:
        self.conversation.played(
            number(event.get("turn_id"), "turn_id", 0, 1e9, whole=True),
            number(event.get("played_ms"), "played_ms", 0, 1e9),
            ended=switch(event.get("ended", False), "ended"),
            delay_ms=number(event.get("delay_ms", 0), "delay_ms", 0, 60_000),
        )

    def _known(self, name: Any, param: str) -> Item:
        item = self.conversation.items.get(name) if isinstance(name, str) else None
        if item is None:
            raise Refused(f"there is no item {quoted(name)}", param, "item_not_found")
        return item


WISHES = ("instructions", "output_modalities", "max_output_tokens", "audio", "tools", "tool_choice")  # of one reply

HANDLERS: dict[str, Callable[[RealtimeSession, dict[str, Any]], None]] = {
    "session.update": RealtimeSession._update,
    "input_audio_buffer.append": RealtimeSession._append,
    "input_audio_buffer.commit": RealtimeSession._commit,
    "input_audio_buffer.clear": RealtimeSession._clear,
    "conversation.item.create": RealtimeSession._create_item,
    "conversation.item.retrieve": RealtimeSession._retrieve,
    "conversation.item.delete": RealtimeSession._delete,
    "conversation.item.truncate": RealtimeSession._truncate,
    "response.create": RealtimeSession._respond,
    "response.cancel": RealtimeSession._cancel,
    "output_audio_buffer.clear": RealtimeSession._stop_playback,
    "most.press": RealtimeSession._press,
    "most.release": RealtimeSession._release,
    "most.stop": RealtimeSession._stop,
    "most.mute": RealtimeSession._mute,
    "most.playback": RealtimeSession._played,
}


def _decoded(given: Any, param: str) -> bytes:
    if not isinstance(given, str):
        raise Refused(f"{param} is {quoted(given)}: give base64", param, "invalid_type")
    try:
        return base64.b64decode(given, validate=True)
    except (binascii.Error, ValueError):
        raise Refused(f"{param} is {quoted(given)}: this is no base64", param, "invalid_base64") from None


def _metadata(given: Any, param: str) -> dict[str, str]:
    if given is None:
        return {}
    fits = isinstance(given, dict) and len(given) <= 16
    if not fits or not all(isinstance(v, str) and len(k) <= 64 and len(v) <= 512 for k, v in given.items()):
        raise Refused(f"{param} is {quoted(given)}: give at most 16 short strings by name", param)
    return given
