// Talks to the service that the page came from: its list of models, its streamed answers, its votes.
// Knows nothing of what is shown. The key lives in this module and nowhere else.

let key = "";

export class KeyNeeded extends Error {}

export function setKey(value) {
  key = value;
}

async function ask(path, options = {}) {
  const headers = { ...options.headers, ...(key ? { Authorization: `Bearer ${key}` } : {}) };
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The service does not answer. Is it still running?");
  }
  if (response.status === 401) throw new KeyNeeded("The service does not take this key.");
  if (!response.ok) throw new Error(await said(response));
  return response;
}

async function said(response) {
  const text = await response.text();
  try {
    return JSON.parse(text).error.message;
  } catch {
    return `Status ${response.status}: ${text.slice(0, 200)}`;
  }
}

// {models: [{id, name}], votes: a path or null, stored: how many votes there are}
export async function listModels() {
  const list = await (await ask("/v1/models")).json();
  // Of a single model that versions replace one another of, the current one is asked for.
  const id = (entry) => (list.data.length === 1 && entry.root ? entry.root : entry.id);
  const models = list.data.map((entry) => ({ id: id(entry), name: entry.id }));
  return { models, votes: list.votes?.path ?? null, stored: list.votes?.stored ?? 0 };
}

export async function storeVote(path, vote) {
  const headers = { "Content-Type": "application/json" };
  return (await ask(path, { method: "POST", headers, body: JSON.stringify(vote) })).json();
}

// Calls `onText(text so far)` as the answer comes; gives {text, finishReason, model}. An answer that `signal` ends, or
// that breaks off, throws an error with what had come of it in `.text`.
export async function streamAnswer(request, signal, onText) {
  const answer = { text: "", finishReason: null, model: request.model };
  try {
    const response = await ask("/v1/chat/completions", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ ...request, stream: true }),
      signal,
    });
    for await (const event of events(response.body)) {
      if (event.error) throw new Error(event.error.message);
      answer.model = event.model ?? answer.model;
      const choice = event.choices?.[0];
      answer.finishReason = choice?.finish_reason ?? answer.finishReason;
      if (choice?.delta?.content) {
        answer.text += choice.delta.content;
        onText(answer.text);
      }
    }
    if (answer.finishReason === null) throw new Error("The answer broke off.");
  } catch (error) {
    error.text = answer.text;
    throw error;
  }
  return answer;
}

// The JSON of each server-sent event; a line may come in pieces.
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      const data = line.startsWith("data:") ? line.slice(5).trim() : "";
      if (data && data !== "[DONE]") yield JSON.parse(data);
    }
  }
}
