// The page: conversations kept in this browser, shown and continued.

import { blockMap } from "./blocks.js";
import { answer, model } from "./chat.js";
import { element, markdown } from "./markdown.js";

const $ = (id) => document.getElementById(id);
const stored = (key, otherwise) => JSON.parse(localStorage.getItem(key) ?? "null") ?? otherwise;

let settings = stored("settings", {});
let conversations = stored("conversations", []); // {id, messages: [{role, content, thinking, stats}]}
let current = conversations[0]?.id ?? null;
let running = null; // the AbortController of the answer that streams
let window_ = 0; // tokens that the context holds

const conversation = () => conversations.find((each) => each.id === current);

function save() {
  try {
    const kept = (key, value) => (key === "texts" ? undefined : value); // they would fill the storage
    localStorage.setItem("conversations", JSON.stringify(conversations, kept));
  } catch {
    showError("this browser's storage is full: delete a conversation to keep new ones");
  }
}

function showError(text) {
  $("error").textContent = text;
  $("error").hidden = !text;
}

function startConversation() {
  current = crypto.randomUUID();
  conversations.unshift({ id: current, messages: [] });
  show();
  $("text").focus();
}

function showList() {
  const entries = conversations.map(({ id, messages }) => {
    const title = messages[0]?.content.slice(0, 60) || "New conversation";
    const choose = () => {
      stop();
      current = id;
      closeMenu();
      show();
    };
    const remove = () => {
      if (id === current) stop();
      conversations = conversations.filter((each) => each.id !== id);
      if (id === current) current = conversations[0]?.id ?? null;
      save();
      show();
    };
    return element(
      "li",
      {},
      element("button", { onclick: choose, "aria-current": String(id === current) }, title),
      element("button", { onclick: remove, "aria-label": `Delete ${title}` }, "×"),
    );
  });
  $("list").replaceChildren(...entries);
}

function show() {
  showList();
  const messages = conversation()?.messages ?? [];
  $("log").replaceChildren(...messages.map(messageElement));
  $("log").scrollTop = $("log").scrollHeight;
  showMeters(messages.at(-1)?.stats);
}

function messageElement(message, index) {
  const body = element("div", { class: "body" });
  const made = element("article", { class: message.role, "aria-label": message.role }, body);
  if (message.role === "user") {
    body.append(message.content);
    made.append(tools(["Edit", () => edit(index)]));
    return made;
  }
  const thought = element("details", {}, element("summary", {}, "Thinking"), message.thinking ?? "");
  if (message.thinking) made.prepend(thought);
  body.append(...markdown(message.content));
  made.append(
    tools(
      ["Copy", () => navigator.clipboard.writeText(message.content)],
      ["Retry", () => again(index)],
    ),
    element("div", { class: "stats" }, statsText(message.stats)),
  );
  if (message.stats?.blocks) made.append(blockMap(message.stats.blocks));
  return made;
}

function tools(...actions) {
  const buttons = actions.map(([name, act]) => element("button", { onclick: act }, name));
  return element("div", { class: "tools" }, ...buttons);
}

function statsText(stats) {
  if (!stats) return "";
  const { timings, cut } = stats;
  const speed = `${timings.predicted_n} tokens, ${timings.predicted_per_second.toFixed(1)} tokens/s`;
  return cut ? `${speed}; ${cut}` : speed;
}

function showMeters(stats) {
  const timings = stats?.timings;
  const prompt = timings ? timings.prompt_n + timings.cache_n : 0;
  const used = timings ? prompt + timings.predicted_n : 0;
  $("context").value = window_ ? used / window_ : 0;
  $("context-text").textContent = `${used} of ${window_} tokens`;
  $("cached").value = prompt ? timings.cache_n / prompt : 0;
  $("cached-text").textContent = `${timings?.cache_n ?? 0} of ${prompt} tokens`;
  $("speed").textContent = timings ? `${timings.predicted_per_second.toFixed(1)} tokens/s` : "";
}

function edit(index) {
  stop();
  const { messages } = conversation();
  $("text").value = messages[index].content;
  messages.length = index;
  save();
  show();
  $("text").focus();
}

function again(index) {
  stop();
  conversation().messages.length = index;
  continueConversation();
}

function stop() {
  running?.abort();
  running = null;
}

function busy(is) {
  $("send").hidden = is;
  $("stop").hidden = !is;
}

async function continueConversation() {
  const { messages } = conversation();
  const asked = [...messages];
  const message = { role: "assistant", content: "", thinking: "", stats: null };
  messages.push(message);
  showError("");
  show();
  const abort = (running = new AbortController());
  busy(true);
  try {
    for await (const chunk of answer(asked, settings, abort.signal)) {
      take(message, chunk);
      if (messages.at(-1) === message) refresh(message, messages.length - 1);
    }
  } catch (error) {
    if (error.name !== "AbortError") showError(error.message);
  } finally {
    if (running === abort) running = null;
    if (!running) busy(false);
    const nothing = !message.content && !message.thinking && !message.stats; // stopped, or refused
    if (nothing && messages.at(-1) === message) messages.pop();
    save();
    show();
  }
}

function take(message, chunk) {
  const choice = chunk.choices[0];
  message.content += choice?.delta.content ?? "";
  message.thinking += choice?.delta.reasoning_content ?? choice?.delta.reasoning ?? "";
  if (chunk.timings) message.stats = { ...message.stats, timings: chunk.timings };
  if (choice?.block_reads) message.stats = { ...message.stats, blocks: choice.block_reads };
  if (choice?.finish_reason === "length") {
    message.stats = { ...message.stats, cut: "cut off: the limit of tokens is reached" };
  }
}

let waiting = null; // a message is drawn once a frame, however fast its pieces come

function refresh(message, index) {
  if (waiting) return;
  waiting = requestAnimationFrame(() => {
    waiting = null;
    if (conversation()?.messages[index] !== message) return;
    const log = $("log");
    const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 60;
    const open = log.children[index]?.querySelector("details")?.open;
    const made = messageElement(message, index);
    const thought = made.querySelector("details");
    if (thought) thought.open = open ?? false;
    log.children[index]?.replaceWith(made);
    showMeters(message.stats);
    if (atEnd) log.scrollTop = log.scrollHeight;
  });
}

function send(event) {
  event.preventDefault();
  const text = $("text").value.trim();
  if (!text || running) return;
  if (!conversation()) startConversation();
  conversation().messages.push({ role: "user", content: text });
  $("text").value = "";
  save();
  continueConversation();
}

function closeMenu() {
  $("side").classList.remove("open");
  $("menu").setAttribute("aria-expanded", "false");
}

function bindSettings() {
  const form = $("settings").querySelector("form");
  for (const field of form.elements) {
    if (!field.name) continue;
    field.value = settings[field.name] ?? "";
    field.addEventListener("change", () => {
      settings = { ...settings, [field.name]: field.value };
      localStorage.setItem("settings", JSON.stringify(settings));
      if (field.name === "key") readModel();
    });
  }
}

async function readModel() {
  const found = await model(settings, showError);
  if (!found) return;
  $("model").textContent = document.title = found.id;
  window_ = found.max_model_len;
  showError("");
  show();
}

$("new").addEventListener("click", () => {
  stop();
  closeMenu();
  startConversation();
});
$("menu").addEventListener("click", () => {
  const open = $("side").classList.toggle("open");
  $("menu").setAttribute("aria-expanded", String(open));
});
$("open-settings").addEventListener("click", () => $("settings").showModal());
$("form").addEventListener("submit", send);
$("stop").addEventListener("click", stop);
$("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) send(event);
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && running) stop();
});
bindSettings();
show();
readModel();
