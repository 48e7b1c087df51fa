"""What a conversation brings about, told as OpenAI's Realtime events and our own (`most.*`)."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

import numpy as np

from app import outputs as talk
from app.audio import WIRE_RATE, Resampler, to_pcm16
from app.conversation import Conversation
from app.metrics import Metrics
from app.outputs import Item
from app.realtime.session_settings import Refused, SessionSettings
from app.vad import SAMPLE_RATE

PIECE_S = 0.2  # of sound in one event
PIECE_BYTES = 12_000  # of a record in one event, which slow links take in time; thirds, so that joined base64 is base64
NOTICES = {
    "too short": "The key was held too briefly: hold it while you speak.",
    "muted": "The microphone is muted.",
    "hands-free off": "Hands-free is off: hold the key while you speak.",
    "stopped": "Stopped.",
    "typed": "What was being said is dropped: the typed turn counts.",
}


class RealtimeOutput:
    """One session's way out: `tell` takes what the conversation emits, `send` is called with each event.

    Every event of ours carries the `turn_id` that it is about (0: none) and a `sequence` that rises by one. Sound
    carries its turn, too, so that nobody plays what is of an earlier one.
    """

    conversation: Conversation  # whose output this is: set before the first `tell`

    def __init__(
        self,
        send: Callable[[dict[str, Any]], None],
        metrics: Metrics,
        session_id: str,
        settings: SessionSettings,
        sequence: int = 0,
    ) -> None:
        self._send, self.metrics, self.session_id = send, metrics, session_id
        self.settings = settings  # of the session
        self.reply_settings: SessionSettings | None = None  # of the next reply, where they differ
        self.metadata: dict[str, str] | None = None  # which the client gave the next reply
        self.by_client = False  # who ends a reply
        self.cutting: Item | None = None  # a reply whose end the client tells itself
        self.turns = 0
        self.replies: dict[int, ToldReply] = {}  # the last ones
        self._sequence, self._event = sequence, 0
        self._resampler = Resampler(SAMPLE_RATE, WIRE_RATE)  # of the reply that is being sent

    def tell(self, output: talk.Output) -> None:
        match output:
            case talk.StateChanged(state=state):
                self.ours("most.state", self.conversation.machine.live_turn, state=state.value)
            case talk.Level(level_db=level, threshold_db=threshold, speech=speech):
                self.ours("most.vad", None, level_db=round(level, 1), threshold_db=round(threshold, 1), speech=speech)
            case talk.SpeechStarted(at_ms=at, item_id=name):
                self.event("input_audio_buffer.speech_started", audio_start_ms=round(at), item_id=name)
            case talk.SpeechStopped(at_ms=at, item_id=name):
                self.event("input_audio_buffer.speech_stopped", audio_end_ms=round(at), item_id=name)
            case talk.Dropped(why="nothing heard"):
                told = "nothing was heard that could be committed: append speech first"
                self.error(Refused(told, None, "input_audio_buffer_commit_empty"))
            case talk.Dropped(why=why):
                if why in NOTICES and not (why == "hands-free off" and self.conversation.by_hand):
                    self.ours("most.notice", None, code=why.replace(" ", "_"), message=NOTICES[why])
            case talk.Committed(item=item):
                self.committed(item)
            case talk.Heard(turn=turn, text=piece, provisional=provisional):
                if provisional:
                    self.ours("most.heard", turn, text=piece, provisional=True)
                elif self.settings.transcription:
                    self.event(
                        "conversation.item.input_audio_transcription.delta",
                        item_id=self.replies[turn].hears,
                        content_index=0,
                        delta=piece,
                    )
            case talk.HeardAll(item=item):
                if self.settings.transcription:
                    self.event(
                        "conversation.item.input_audio_transcription.completed",
                        item_id=item.id,
                        content_index=0,
                        transcript=item.transcript,
                        usage={"type": "duration", "seconds": _seconds(item)},
                    )
            case talk.Routed(turn=turn, rows=rows, provisional=provisional):
                self.ours("most.routing.delta", turn, **rows.to_wire(provisional))
            case talk.Playback(turn=turn, action="play", skipped_ms=skipped):
                self.ours("most.playback", turn, action="play", skipped_ms=round(skipped, 2))
            case talk.Playback(turn=turn, action=action):
                self.ours("most.playback", turn, action=action)
            case talk.Timed(turn=turn, stages=stages, total_ms=total):
                listed = [{"name": name, "ms": round(ms, 2)} for name, ms in stages.items()]
                self.ours("most.timings", turn, stages=listed, total_ms=round(total, 2))
                self.metrics.first_sound_s.observe(total / 1000)
            case talk.Removed(item=item):
                self.event("conversation.item.deleted", item_id=item.id)
            case talk.Shortened(item=item, played_ms=ms):
                if item is not self.cutting:
                    self.truncated(item, ms)
            case talk.ReplyStarted(turn=turn, item=item):
                self._start_reply(turn, item)
            case talk.Text(turn=turn, text=piece):
                self.replies[turn].text += piece
                kind = "output_audio_transcript" if self.replies[turn].speaks else "output_text"
                self._of_reply(f"response.{kind}.delta", self.replies[turn], delta=piece)
            case talk.Sound():
                self._send_sound(output)
            case talk.ReplyEnded():
                self._end_reply(output)

    def _start_reply(self, turn: int, item: Item) -> None:
        self.turns += 1
        wishes = self.reply_settings or self.settings
        heard = next((i.id for i in reversed(self.conversation.items.values()) if i.role == "user"), "")
        reply = ToldReply(
            turn, item, heard, wishes.speak, wishes.max_output_tokens, self.metadata, wishes.record, wishes.seed
        )
        self.replies = {k: v for k, v in self.replies.items() if k > turn - 8} | {turn: reply}
        self._resampler = Resampler(SAMPLE_RATE, WIRE_RATE)
        self.event("response.created", response=self._response(reply, "in_progress"), turn_id=turn)
        shown = self.shown(item, status="in_progress", speaks=reply.speaks)
        before = self.before(item)
        self.event("response.output_item.added", response_id=reply.id, output_index=0, item=shown)
        self.event("conversation.item.added", previous_item_id=before, item=shown)
        self._of_reply("response.content_part.added", reply, part=reply.part())

    def _send_sound(self, sound: talk.Sound) -> None:
        self._send_pcm(self.replies[sound.turn], self._resampler.push(sound.pcm))

    def _send_pcm(self, reply: ToldReply, samples: np.ndarray) -> None:
        self.metrics.spoken_s.inc(len(samples) / WIRE_RATE)
        reply.sent_ms += 1000 * len(samples) / WIRE_RATE
        step = round(PIECE_S * WIRE_RATE)
        for start in range(0, len(samples), step):
            data = base64.b64encode(to_pcm16(samples[start : start + step])).decode("ascii")
            self._of_reply("response.output_audio.delta", reply, delta=data, turn_id=reply.turn)

    def _end_reply(self, ended: talk.ReplyEnded) -> None:
        reply = self.replies[ended.turn]
        if reply.speaks and reply.sent_ms and ended.status != "cancelled":
            self._send_pcm(reply, self._resampler.finish())
        if reply.speaks:
            self._of_reply("response.output_audio.done", reply)
            self._of_reply("response.output_audio_transcript.done", reply, transcript=reply.text)
        else:
            self._of_reply("response.output_text.done", reply, text=reply.text)
        self._of_reply("response.content_part.done", reply, part=reply.part())
        shown = self._shown_end(reply, ended)
        self.event("response.output_item.done", response_id=reply.id, output_index=0, item=shown)
        self.event("conversation.item.done", previous_item_id=self.before(ended.item), item=shown)
        if ended.error:
            self.error(Refused(ended.error, None, "response_failed"), kind="server_error")
        if ended.reply is not None:
            self.ours("most.reply", ended.turn, **_told(ended.reply))
        if reply.recorded:
            self._send_record(reply, ended)
        self.metrics.turns.labels(ended.status).inc()
        self.event("response.done", response=self._response(reply, ended.status, ended), turn_id=ended.turn)

    def _send_record(self, reply: ToldReply, ended: talk.ReplyEnded) -> None:
        """What a client keeps of a turn beside what it saw and played: the sound that was heard, and the trace."""
        heard = self.conversation.items.get(reply.hears)
        sound = b"" if heard is None or heard.sound is None else to_pcm16(heard.sound)
        tables = ended.tables or {}
        for name, data in {"user": sound, **tables}.items():
            for start in range(0, len(data), PIECE_BYTES):
                piece = base64.b64encode(data[start : start + PIECE_BYTES]).decode("ascii")
                self.ours("most.record.piece", ended.turn, of=name, data=piece)
        self.ours("most.record", ended.turn, seed=reply.seed, user=bool(sound), tables=bool(tables))

    def _response(self, reply: ToldReply, status: str, ended: talk.ReplyEnded | None = None) -> dict[str, Any]:
        details: dict[str, Any] | None = None
        if ended is not None:
            details = {"type": status}
            if status == "cancelled":
                details["reason"] = "client_cancelled" if self.by_client else "turn_detected"
            elif status == "incomplete":
                details["reason"] = "max_output_tokens"
            elif status == "failed":
                details["error"] = {"type": "server_error", "code": "response_failed", "message": ended.error}
        return {
            "id": reply.id,
            "object": "realtime.response",
            "status": status,
            "status_details": details,
            "output": [] if ended is None else [self._shown_end(reply, ended)],
            "output_modalities": ["audio" if reply.speaks else "text"],
            "conversation_id": f"conv_{self.session_id[5:]}",
            "max_output_tokens": reply.longest or "inf",
            "metadata": reply.metadata,
            "usage": None,
        }

    def _shown_end(self, reply: ToldReply, ended: talk.ReplyEnded) -> dict[str, Any]:
        status = "completed" if ended.status == "completed" else "incomplete"
        return self.shown(ended.item, status=status, speaks=reply.speaks)

    def committed(self, item: Item) -> None:
        """Sound that was appended is an item now."""
        before = self.before(item)
        self.event("input_audio_buffer.committed", item_id=item.id, previous_item_id=before)
        self.announce(item, before)

    def announce(self, item: Item, before: str | None) -> None:
        """There is a new item."""
        shown = self.shown(item)
        self.event("conversation.item.added", previous_item_id=before, item=shown)
        self.event("conversation.item.done", previous_item_id=before, item=shown)

    def truncated(self, item: Item, ms: float) -> None:
        """Only so much of a reply counts as said."""
        self.event("conversation.item.truncated", item_id=item.id, content_index=0, audio_end_ms=round(ms))

    def shown(
        self, item: Item, sound: bool = False, status: str = "completed", speaks: bool | None = None
    ) -> dict[str, Any]:
        """An item in OpenAI's form; its sound only if it is asked for."""
        parts: list[dict[str, Any]] = []
        if status == "in_progress":
            pass
        elif item.role == "assistant":
            if self.settings.speak if speaks is None else speaks:
                parts.append({"type": "output_audio", "transcript": item.transcript})
            else:
                parts.append({"type": "output_text", "text": item.transcript})
        elif item.text:
            parts.append({"type": "input_text", "text": item.text})
        if item.role == "user" and (item.sound is not None or item.transcript):
            part: dict[str, Any] = {"type": "input_audio", "transcript": item.transcript or None}
            if sound and item.sound is not None:
                whole = Resampler(SAMPLE_RATE, WIRE_RATE)
                pcm = to_pcm16(np.concatenate([whole.push(item.sound), whole.finish()]))
                part["audio"] = base64.b64encode(pcm).decode("ascii")
            parts.append(part)
        return {
            "id": item.id,
            "object": "realtime.item",
            "type": "message",
            "status": status,
            "role": item.role,
            "content": parts,
        }

    def before(self, item: Item) -> str | None:
        """The name of the item that this one follows, or will follow."""
        names = list(self.conversation.items)
        at = names.index(item.id) if item.id in self.conversation.items else len(names)
        return names[at - 1] if at else None

    def _of_reply(self, kind: str, reply: ToldReply, **body: Any) -> None:
        self.event(kind, response_id=reply.id, item_id=reply.item.id, output_index=0, content_index=0, **body)

    def ours(self, kind: str, turn: int | None, **body: Any) -> None:
        """One of `most.*`."""
        self._sequence += 1
        self.event(kind, turn_id=turn or 0, sequence=self._sequence, **body)

    def error(self, refused: Refused, event_id: str | None = None, kind: str = "invalid_request_error") -> None:
        """Something could not be done, perhaps what the event of this name asked for."""
        self.metrics.errors.labels(refused.code).inc()
        self.event(
            "error",
            error={
                "type": kind,
                "code": refused.code,
                "message": str(refused),
                "param": refused.param,
                "event_id": event_id,
            },
        )

    def event(self, kind: str, **body: Any) -> None:
        """One of OpenAI's."""
        self._event += 1
        self._send({"type": kind, "event_id": f"event_{self._event}", **body})


class ToldReply:
    """A reply as it was told to the client."""

    def __init__(
        self,
        turn: int,
        item: Item,
        hears: str,
        speaks: bool,
        longest: int | None,
        metadata: dict[str, str] | None,
        recorded: bool,
        seed: int | None,
    ) -> None:
        self.turn, self.item, self.hears, self.speaks = turn, item, hears, speaks
        self.longest, self.metadata, self.recorded, self.seed = longest, metadata, recorded, seed
        self.id = f"resp_{turn}"
        self.text = ""
        self.sent_ms = 0.0

    def part(self) -> dict[str, Any]:
        return {"type": "audio", "transcript": self.text} if self.speaks else {"type": "text", "text": self.text}


def _seconds(item: Item) -> float:
    return 0.0 if item.sound is None else round(len(item.sound) / SAMPLE_RATE, 2)


def _told(reply: Any) -> dict[str, Any]:
    """What is known of a whole reply beside its words and sound."""
    words = [
        {
            "text": word.text,
            "start_ms": round(1000 * word.start_s),
            "end_ms": round(1000 * word.end_s),
            "confidence": round(word.confidence, 3),
        }
        for word in reply.words
    ]
    return {
        "heard": reply.heard,
        "text": reply.text,
        "confidence": round(reply.confidence, 4),
        "finish_reason": reply.finish_reason,
        "words": words,
    }
