// What outlives a reload: the conversation's words, in this tab's own storage alone. Sound on disk would need consent.

const PLACE = "most.earlier";

export function keep(turns) {
  const words = turns
    .filter((turn) => turn.user.text || turn.reply.status)
    .map(({ kind, at, user, reply, timings }) => ({
      kind,
      at,
      timings,
      user: { text: user.text, words: user.words, confidence: user.confidence, file: user.file },
      reply: { ...reply, sound: [], status: ["", "in_progress"].includes(reply.status) ? "lost" : reply.status },
    }));
  try {
    sessionStorage.setItem(PLACE, JSON.stringify(words));
  } catch {
    // full or forbidden: a reload forgets
  }
}

/** The turns of before, for `Turns.restore`. */
export function kept() {
  try {
    return JSON.parse(sessionStorage.getItem(PLACE)) ?? [];
  } catch {
    return []; // nothing readable: begin anew
  }
}
