// The chat page: a conversation with one model, or with two that answer blind and are voted on.
//
// All text of models and people is put in as text, never as HTML. With two models a question's answers stand side by
// side as A and B, which is which by chance; a vote shows the names, and the conversation goes on from the better one.

import { KeyNeeded, listModels, setKey, storeVote, streamAnswer } from "/chat/stream.js";
import { preferenceRow, shuffledPair, toJsonLines } from "/chat/votes.js";

const at = (id) => document.getElementById(id);
const LABELS = ["A", "B"];

const state = {
  models: [],
  votesPath: null,
  history: [], // messages without the system message
  open: null, // the latest question while it waits for a vote: {question, answers, prompt, cards, bar}
  running: null, // AbortController of the answers that are coming
  unsaved: [], // votes that only this page has
};

function element(tag, className = "", text = "") {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text) made.textContent = text;
  return made;
}

function announce(text) {
  at("status").textContent = text;
}

// --- models and key ---------------------------------------------------------------------------------------------

async function start() {
  try {
    const listed = await listModels();
    Object.assign(state, { models: listed.models, votesPath: listed.votes });
    showStored(listed.stored);
    fillSelects();
    at("message").focus();
  } catch (error) {
    if (error instanceof KeyNeeded) askForKey();
    else at("empty-hint").textContent = error.message;
  }
}

function askForKey(note = "") {
  if (note) at("key-note").textContent = note;
  if (!at("key-dialog").open) at("key-dialog").showModal();
}

at("key-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  setKey(at("key").value);
  at("key").value = "";
  try {
    await listModels();
  } catch (error) {
    if (error instanceof KeyNeeded) return askForKey(error.message);
  }
  at("key-dialog").close();
  if (!state.models.length) await start();
});

function fillSelects() {
  const options = () => state.models.map(({ id, name }) => Object.assign(element("option", "", name), { value: id }));
  at("first").replaceChildren(...options());
  const none = Object.assign(element("option", "", "No second model"), { value: "" });
  at("second").replaceChildren(none, ...options());
  at("second").value = state.models.length > 1 ? state.models[1].id : "";
  showModels();
}

function chosenModels() {
  return [at("first").value, at("second").value].filter(Boolean);
}

function nameOf(id) {
  return state.models.find((model) => model.id === id)?.name ?? id;
}

function showModels() {
  const names = chosenModels().map(nameOf);
  at("models").textContent = names.join(" · ");
  const two = "Two models answer side by side, unnamed. Vote for the better answer to see who was who.";
  const one = names.length ? `You talk to ${names[0]}.` : "";
  at("empty-hint").textContent = names.length > 1 ? two : one;
}

// --- the conversation -------------------------------------------------------------------------------------------

function newChat() {
  state.running?.abort();
  state.history = [];
  state.open = null;
  at("log").replaceChildren(at("empty"));
  at("empty").hidden = false;
  announce("New conversation");
  at("message").focus();
}

async function send(question) {
  settleWithoutVote();
  at("empty").hidden = true;
  const models = chosenModels();
  const shown = models.length > 1 ? shuffledPair(models) : models;
  const system = at("system").value.trim();
  const head = system ? [{ role: "system", content: system }] : [];
  const prompt = [...head, ...state.history, { role: "user", content: question }];
  const temperature = at("temperature").valueAsNumber;
  const round = element("section", "round");
  const cards = shown.map((_, place) => answerCard(shown.length > 1 ? LABELS[place] : nameOf(shown[0])));
  const row = element("div", shown.length > 1 ? "answers two" : "answers");
  row.append(...cards.map((card) => card.box));
  const asked = element("div", "question");
  asked.append(element("span", "hidden", "You: "), element("p", "text", question));
  round.append(asked, row);
  at("log").append(round);
  round.scrollIntoView({ block: "end" });

  busy(new AbortController());
  announce(shown.length > 1 ? "Two answers are coming" : "The answer is coming");
  const { signal } = state.running;
  const answers = await Promise.all(
    shown.map((model, place) => {
      const request = { model, messages: prompt };
      if (!Number.isNaN(temperature)) request.temperature = temperature;
      if (at("max-tokens").value) request.max_tokens = at("max-tokens").valueAsNumber;
      return oneAnswer(request, signal, cards[place]);
    }),
  );
  busy(null);
  if (!round.isConnected) return; // a new conversation began meanwhile
  finish({ question, prompt, answers, cards, round, shown, temperature });
}

// {text, finishReason, model, error}: finishReason "stopped" where a person ended it, error where it failed.
async function oneAnswer(request, signal, card) {
  try {
    const answer = await streamAnswer(request, signal, (text) => showText(card, text));
    if (answer.finishReason === "length") mark(card, "Cut at the longest answer or the end of the context");
    if (answer.finishReason === "content_filter") mark(card, "Withheld by the server", true);
    showText(card, answer.text);
    return answer;
  } catch (error) {
    const stopped = error.name === "AbortError";
    if (error instanceof KeyNeeded) askForKey(error.message);
    mark(card, stopped ? "Stopped" : error.message, !stopped);
    return { text: error.text, finishReason: stopped ? "stopped" : null, error: stopped ? null : error };
  } finally {
    card.box.classList.remove("coming");
    card.box.removeAttribute("aria-busy");
  }
}

function finish(turn) {
  const { answers, cards, question } = turn;
  const usable = answers.findIndex((answer) => !answer.error && answer.text);
  if (usable < 0 && at("message").value === "") {
    at("message").value = question; // so that it can be sent again
    grow();
  }
  if (answers.length === 1) {
    if (usable === 0) keep(question, answers[0].text);
    announce(answers[0].error ? `Failed: ${answers[0].error.message}` : answers[0].text);
  } else if (voteless(answers)) {
    cards.forEach((card, place) => reveal(card, LABELS[place], nameOf(turn.shown[place])));
    if (usable >= 0) keep(question, answers[usable].text);
    turn.round.append(element("p", "hint vote-hint", voteless(answers)));
    announce(voteless(answers));
  } else {
    offerVote(turn);
  }
  turn.round.scrollIntoView({ block: "end" });
}

// Why two answers are not voted on; nothing where they are.
function voteless(answers) {
  const complete = answers.every((answer) => !answer.error && ["stop", "length"].includes(answer.finishReason));
  if (!complete) return "Not both answers are complete, so there is nothing to vote on.";
  return answers[0].text === answers[1].text ? "Both said the same, so there is nothing to vote on." : "";
}

function keep(question, answer) {
  state.history.push({ role: "user", content: question }, { role: "assistant", content: answer });
}

function answerCard(title) {
  const box = element("article", "answer coming");
  box.setAttribute("aria-busy", "true");
  box.setAttribute("aria-label", `Answer ${title}`);
  const heading = element("h2", "", title);
  const text = element("p", "text");
  box.append(heading, text);
  return { box, heading, text };
}

function showText(card, text) {
  const log = at("log");
  const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 80;
  card.text.textContent = text;
  if (atEnd) log.scrollTop = log.scrollHeight;
}

function mark(card, text, failed = false) {
  card.box.append(element("p", failed ? "mark failed" : "mark", text));
}

// --- votes ------------------------------------------------------------------------------------------------------

function offerVote(turn) {
  const bar = element("div", "vote");
  bar.setAttribute("role", "group");
  bar.setAttribute("aria-label", "Which answer is better?");
  for (const [vote, text] of [["A", "A is better"], ["tie", "Tie"], ["B", "B is better"]]) {
    const button = element("button", "", text);
    button.type = "button";
    button.dataset.vote = vote;
    button.addEventListener("click", () => castVote(vote));
    bar.append(button);
  }
  const hint = element("p", "hint vote-hint", "");
  hint.append(
    element("span", "keys", "Keys: Esc, then A, T or B."),
    element("span", "", "Without a vote the conversation goes on from A."),
  );
  turn.round.append(bar, hint);
  state.open = { ...turn, bar };
  announce(`Answer A: ${turn.answers[0].text}. Answer B: ${turn.answers[1].text}. Which is better?`);
}

async function castVote(vote) {
  const turn = state.open;
  if (!turn || turn.casting) return;
  turn.casting = true;
  const answers = turn.answers.map(({ text, finishReason, model }, place) => {
    return { model: nameOf(turn.shown[place]), served_as: model, content: text, finish_reason: finishReason };
  });
  const row = preferenceRow(turn.prompt, answers, vote, turn.temperature);
  try {
    if (state.votesPath) showStored((await storeVote(state.votesPath, row)).stored);
    else keepInPage(row);
  } catch (error) {
    turn.casting = false; // the vote can be cast again
    if (error instanceof KeyNeeded) askForKey(error.message);
    turn.round.querySelector(".vote-hint").textContent = `The vote is not stored: ${error.message}`;
    return announce(`The vote is not stored: ${error.message}`);
  }
  if (state.open !== turn) return; // a new conversation began meanwhile
  settle(vote === "B" ? 1 : 0);
  const [first, second] = turn.shown.map(nameOf);
  LABELS.forEach((label, place) => vote === label && turn.cards[place].box.classList.add("better"));
  announce(`Vote stored: ${vote === "tie" ? "a tie" : `${vote} is better`}. A was ${first}, B was ${second}.`);
  at("message").focus();
}

// The conversation goes on from one of the answers, and the names are shown.
function settle(place) {
  const turn = state.open;
  state.open = null;
  keep(turn.question, turn.answers[place].text);
  turn.bar.remove();
  turn.round.querySelector(".vote-hint").remove();
  turn.cards.forEach((card, index) => reveal(card, LABELS[index], nameOf(turn.shown[index])));
}

function settleWithoutVote() {
  if (state.open) settle(0);
}

function reveal(card, label, name) {
  card.heading.textContent = `${label} · ${name}`;
  card.box.setAttribute("aria-label", `Answer ${label}, ${name}`);
}

function showStored(count) {
  at("stored").textContent = state.votesPath && count ? `${count} ${count === 1 ? "vote" : "votes"} stored` : "";
}

let fileUrl = "";
function keepInPage(row) {
  state.unsaved.push(row);
  URL.revokeObjectURL(fileUrl);
  fileUrl = URL.createObjectURL(new Blob([toJsonLines(state.unsaved)], { type: "application/jsonl" }));
  const link = at("download");
  Object.assign(link, { href: fileUrl, download: "votes.jsonl", hidden: false });
  link.textContent = `Save ${state.unsaved.length} ${state.unsaved.length === 1 ? "vote" : "votes"}`;
}

// --- keys and buttons -------------------------------------------------------------------------------------------

function busy(controller) {
  state.running = controller;
  at("send").hidden = Boolean(controller);
  at("stop").hidden = !controller;
}

function grow() {
  const box = at("message");
  box.style.height = "auto";
  box.style.height = `${box.scrollHeight + 2}px`;
}

at("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  const question = at("message").value.trim();
  if (!question || state.running || state.open?.casting) return;
  if (!state.models.length) return start();
  at("message").value = "";
  grow();
  send(question);
});
at("message").addEventListener("input", grow);
at("message").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  at("composer").requestSubmit();
});
document.addEventListener("keydown", (event) => {
  if (at("key-dialog").open || event.ctrlKey || event.altKey || event.metaKey) return;
  if (event.key === "Escape") {
    if (state.running) state.running.abort();
    else state.open?.bar.querySelector("button").focus();
  } else if (state.open && !event.target.closest("input, textarea, select")) {
    const vote = { a: "A", t: "tie", b: "B" }[event.key.toLowerCase()];
    if (vote) castVote(vote);
  }
});
at("stop").addEventListener("click", () => state.running?.abort());
at("new").addEventListener("click", newChat);
at("settings").addEventListener("submit", (event) => event.preventDefault());
at("settings-button").addEventListener("click", () => {
  const shown = at("settings").toggleAttribute("hidden");
  at("settings-button").setAttribute("aria-expanded", String(!shown));
  if (!shown) at("system").focus();
});
for (const id of ["first", "second"]) at(id).addEventListener("change", showModels);
at("download").addEventListener("click", () => (state.unsaved.saved = state.unsaved.length));
window.addEventListener("beforeunload", (event) => {
  if (state.unsaved.length > (state.unsaved.saved ?? 0)) event.preventDefault();
});

start();
