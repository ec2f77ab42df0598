// Search, history, lists and paths. Whatever comes from the catalog or a model is set as text, never as markup.
"use strict";

const SEARCH_PAUSE = 150; // milliseconds after the last key
const state = { models: [], maxK: 100, history: [], excluded: [], token: null, asked: 0, found: [], selected: -1 };
const at = (id) => document.getElementById(id);

// An element with attributes and children; strings become text, functions listeners of "click".
function element(name, attributes, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (typeof value === "function") made.addEventListener(key, value);
    else if (value !== false) made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

const nameOf = (item) => item.title || String(item.item_id);
const same = (one, other) => one.item_id === other.item_id;
const percent = (share) => (share >= 0.0005 ? `${(100 * share).toFixed(1)} %` : "< 0.1 %");

// Answer of the server as JSON; an Error with its sentence where it refuses.
async function ask(path, body) {
  const headers = state.token === null ? {} : { Authorization: `Bearer ${state.token}` };
  const options = body === undefined ? { headers } : {
    method: "POST", headers: { ...headers, "Content-Type": "application/json" }, body: JSON.stringify(body),
  };
  let answer;
  try {
    answer = await fetch(path, options);
  } catch {
    throw new Error("The server does not answer.");
  }
  if (answer.status === 401) at("token-form").hidden = false;
  const content = await answer.json();
  if (!answer.ok) throw new Error(content.detail);
  return content;
}

function say(error) {
  at("message").hidden = !error;
  at("message").textContent = error ? error.message : "";
}

async function start() {
  try {
    const told = await ask("models");
    state.models = told.models;
    state.maxK = told.max_k;
    at("k").max = told.max_k;
    at("token-form").hidden = true;
    say(null);
  } catch (error) {
    return say(error);
  }
  at("lists").replaceChildren(...state.models.map((model) => element("article", { class: "panel list" },
    element("div", { class: "row" }, element("h2", {}, model.model), element("span", { class: "badge", hidden: "" })),
    element("p", { class: "about" }, `${model.kind}, ${model.num_items.toLocaleString("en")} items, version ${model.version}`),
    element("ol", {}))));
  await refresh();
}

// What changed is shown, and every model is asked again.
async function refresh() {
  closePath();
  showChips("history", state.history);
  showChips("excluded", state.excluded);
  at("no-history").hidden = state.history.length > 0;
  at("clear").hidden = state.history.length + state.excluded.length === 0;
  at("excluded-box").hidden = state.excluded.length === 0;
  const asked = ++state.asked;
  const left = at("hide-history").checked ? state.history : [];
  const request = {
    history: state.history.map((item) => item.item_id),
    exclude: [...left, ...state.excluded].map((item) => item.item_id),
    k: Math.min(state.maxK, Math.max(1, Math.round(Number(at("k").value)) || 1)),
  };
  const lists = [...at("lists").children];
  lists.forEach((list) => list.classList.add("stale"));
  let fault = null;
  await Promise.all(state.models.map(async (model, place) => {
    try {
      const answer = await ask("recommend", { ...request, model: model.model });
      if (asked === state.asked) showList(lists[place], model, answer);
    } catch (error) {
      fault = error;
    }
  }));
  if (asked === state.asked) say(fault);
}

function showChips(id, items) {
  at(id).replaceChildren(...items.map((item, place) => element("li", {},
    element("span", { title: nameOf(item) }, nameOf(item)),
    element("button", { class: "quiet", "aria-label": `Remove ${nameOf(item)}`, click: () => {
      items.splice(place, 1);
      refresh();
    } }, "×"))));
}

function showList(list, model, answer) {
  const badge = list.querySelector(".badge");
  badge.hidden = false;
  badge.classList.toggle("certified", answer.certified);
  badge.textContent = answer.certified ? "✓ certified" : "not certified";
  badge.title = answer.certified ? "No other item scores higher." : "The search may have missed a better item.";
  const scores = answer.items.map((item) => item.score ?? 0);
  const [low, high] = [Math.min(...scores), Math.max(...scores)];
  const share = (item) => item.probability ?? (high > low ? (item.score - low) / (high - low) : 1);
  const names = answer.items.map(nameOf);
  const most = Math.max(...answer.items.map(share), 1e-12);
  list.querySelector("ol").replaceChildren(...answer.items.map((item, place) => {
    const score = item.probability === null ? item.score?.toFixed(3) ?? "–" : percent(item.probability);
    const title = model.has_paths
      ? element("button", { class: "title", title: "Show its path, token by token", click: () => showPath(model, item) }, nameOf(item))
      : element("span", { class: "title" }, nameOf(item));
    if (names.indexOf(nameOf(item)) !== names.lastIndexOf(nameOf(item))) title.append(element("span", { class: "id" }, ` ${item.item_id}`));
    return element("li", { class: "item" },
      element("span", { class: "place" }, String(place + 1)),
      title,
      element("span", { class: "score", title: `score ${item.score}` }, score),
      element("span", { class: "actions" },
        element("button", { class: "quiet", "aria-label": `Add ${nameOf(item)} to the history`, title: "Add to the history", click: () => add(item) }, "+"),
        element("button", { class: "quiet", "aria-label": `Exclude ${nameOf(item)}`, title: "Exclude from all lists", click: () => exclude(item) }, "⊘")),
      element("span", {}),
      element("progress", { class: "bar", max: most, value: share(item), "aria-hidden": "true" }));
  }));
  if (!answer.items.length) list.querySelector("ol").append(element("li", { class: "hint" }, "No item is left."));
  list.classList.remove("stale");
}

function add(item) {
  state.history.push(item);
  state.excluded = state.excluded.filter((other) => !same(other, item));
  refresh();
}

function exclude(item) {
  if (!state.excluded.some((other) => same(other, item))) state.excluded.push(item);
  refresh();
}

// The path of an item: a column for each token, with what else could have stood there.
async function showPath(model, item) {
  const asked = state.asked;
  try {
    const request = { model: model.model, history: state.history.map((event) => event.item_id), item_id: item.item_id };
    const answer = await ask("path", request);
    if (asked !== state.asked) return;
    say(null);
    at("path-title").textContent = `How ${model.model} spells “${nameOf(item)}”`;
    at("path-score").textContent = `log P = ${answer.score.toFixed(4)}: the product of ${answer.steps.length} choices is ${percent(Math.exp(answer.score))}.`;
    at("steps").replaceChildren(...answer.steps.map(stepColumn));
    at("path").hidden = false;
    at("path").scrollIntoView({ behavior: "smooth", block: "nearest" });
  } catch (error) {
    say(error);
  }
}

function stepColumn(step, place) {
  const forced = step.num_children === 1;
  const column = element("li", { class: forced ? "step forced" : "step" },
    element("h3", {}, forced ? "no choice" : `1 of ${step.num_children.toLocaleString("en")}`),
    choice(step, true), ...step.others.map((other) => choice(other, false)));
  column.style.setProperty("--place", place);
  return column;
}

function choice(option, taken) {
  const visible = option.token.replaceAll("\n", "⏎").replaceAll(" ", "␣");
  const share = option.num_children === 1 ? [] : [element("span", {}, percent(option.probability)),
    element("progress", { max: 1, value: option.probability, "aria-hidden": "true" })];
  return element("div", { class: taken ? "choice taken" : "choice" }, element("code", { title: visible }, visible), ...share);
}

function closePath() {
  at("path").hidden = true;
}

// The search box: a list below it, by mouse or by arrow keys.
let pause = null;
function searchSoon() {
  clearTimeout(pause);
  pause = setTimeout(search, SEARCH_PAUSE);
}

async function search() {
  const query = at("query").value;
  try {
    const answer = await ask(`items?limit=12&query=${encodeURIComponent(query.slice(0, 200))}`);
    if (query !== at("query").value) return;
    showFound(answer.items);
    say(null);
  } catch (error) {
    say(error);
  }
}

function showFound(items) {
  state.found = items;
  state.selected = items.length ? 0 : -1;
  const entries = items.map((item, place) => element("li", { role: "option", id: `found-${place}`, mousedown: (event) => {
    event.preventDefault(); // the box keeps the focus
    choose(place);
  } }, element("span", {}, nameOf(item)), element("span", { class: "id" }, String(item.item_id))));
  at("found").replaceChildren(...(entries.length ? entries : [element("li", { class: "none" }, "No item has these words.")]));
  openFound(true);
  markSelected();
}

function openFound(open) {
  at("found").hidden = !open;
  at("query").setAttribute("aria-expanded", String(open));
}

function markSelected() {
  [...at("found").children].forEach((entry, place) => entry.setAttribute("aria-selected", String(place === state.selected)));
  const entry = at(`found-${state.selected}`);
  if (entry) {
    at("query").setAttribute("aria-activedescendant", entry.id);
    entry.scrollIntoView({ block: "nearest" });
  }
}

function choose(place) {
  if (!state.found[place]) return;
  at("query").value = "";
  openFound(false);
  add(state.found[place]);
}

at("query").addEventListener("input", searchSoon);
at("query").addEventListener("focus", searchSoon);
at("query").addEventListener("blur", () => openFound(false));
at("query").addEventListener("keydown", (event) => {
  const steps = { ArrowDown: 1, ArrowUp: -1 };
  if (event.key in steps && state.found.length) {
    state.selected = (state.selected + steps[event.key] + state.found.length) % state.found.length;
    markSelected();
    event.preventDefault();
  } else if (event.key === "Enter" && !at("found").hidden) {
    choose(state.selected);
  } else if (event.key === "Escape") {
    openFound(false);
  }
});
at("clear").addEventListener("click", () => {
  state.history = [];
  state.excluded = [];
  refresh();
});
at("k").addEventListener("change", refresh);
at("hide-history").addEventListener("change", refresh);
at("close-path").addEventListener("click", closePath);
at("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  state.token = at("token").value;
  start();
});
start();
