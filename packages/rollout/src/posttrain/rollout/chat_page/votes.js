// What a vote becomes: a row of the generic pairs format, which posttrain.data reads as a preference.
// A tie is kept too, with no chosen answer, so that no reader can take it for a preference.

const PLACES = { A: 0, B: 1 };

// `answers`: what stood at A and at B, each {model, served_as, content, finish_reason}. `vote`: "A", "B" or "tie".
export function preferenceRow(prompt, answers, vote, temperature) {
  const tie = vote === "tie";
  return {
    id: `vote-${randomHex(8)}`,
    prompt,
    chosen: tie ? null : answers[PLACES[vote]].content,
    rejected: tie ? null : answers[1 - PLACES[vote]].content,
    chosen_finish_reason: tie ? null : answers[PLACES[vote]].finish_reason,
    rejected_finish_reason: tie ? null : answers[1 - PLACES[vote]].finish_reason,
    tie,
    kind: "chat",
    vote,
    answers,
    temperature,
    voted_at: new Date().toISOString(),
  };
}

export function toJsonLines(rows) {
  return rows.map((row) => JSON.stringify(row) + "\n").join("");
}

function randomHex(bytes) {
  return Array.from(crypto.getRandomValues(new Uint8Array(bytes)), (b) => b.toString(16).padStart(2, "0")).join("");
}

// Which of two models is shown as A, by chance.
export function shuffledPair(pair) {
  return crypto.getRandomValues(new Uint8Array(1))[0] % 2 ? [pair[1], pair[0]] : [pair[0], pair[1]];
}
