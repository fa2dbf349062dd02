"use strict";
// Composes a history and shows what the server makes of it. Every text of data is set as text
// (textContent), never as markup.

const SHOWN = 10;
const EVENTS_EXPLAINED = 5;
const byId = (id) => document.getElementById(id);

const state = {
  model: null,
  user: null,
  // {kind: "click", item, title} or {kind: "search", query, clicked: [{item, title}]}, oldest first
  events: [],
  steps: null,
  explains: true,
  open: new Set(), // items whose reasons are shown
  answer: null,
  own: null, // ranks at the model's own K, to compare with
};

function make(tag, properties = {}, ...children) {
  const { data, aria, ...rest } = properties;
  const node = Object.assign(document.createElement(tag), rest);
  for (const [name, value] of Object.entries(data || {})) node.dataset[name] = value;
  for (const [name, value] of Object.entries(aria || {})) node.setAttribute(`aria-${name}`, value);
  node.append(...children.filter((child) => child !== null));
  return node;
}

// A title in its own direction, and its id where there is none.
const named = ({ item, title }) => make("bdi", { textContent: title || item });
const signed = (value, digits = 2) => (value < 0 ? "−" : "+") + Math.abs(value).toFixed(digits);
const plural = (count, what) => `${count.toLocaleString("en")} ${what}${count === 1 ? "" : "s"}`;

function problem(text) {
  byId("problem").hidden = !text;
  byId("problem").textContent = text || "";
}

async function ask(path, question, signal) {
  const options = question && {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(question),
    signal,
  };
  let response;
  try {
    response = await fetch(path, options || { signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server does not answer. Is it still running?");
  }
  const answer = await response.json().catch(() => ({ error: `HTTP ${response.status}` }));
  if (!response.ok) throw new Error(answer.error);
  return answer;
}

// The keys of `clicks` and `searches` are places in the question; `given` of an answer names them.
function asked() {
  const question = { clicks: [], searches: [] };
  for (const event of state.events) {
    if (event.kind === "click") question.clicks.push(event.item);
    else question.searches.push({ query: event.query, clicked: event.clicked.map((c) => c.item) });
  }
  if (state.user) question.user = state.user;
  return question;
}

function placesOfEvents() {
  const counts = { click: 0, search: 0 };
  return state.events.map((event) => `${event.kind}-${counts[event.kind]++}`);
}

// Draws anew what `draw` fills, and gives the focus back to what has the same key.
function redraw(parent, draw) {
  const focused = parent.contains(document.activeElement) && document.activeElement.dataset.key;
  parent.replaceChildren(...draw());
  if (!focused) return;
  const again = [...parent.querySelectorAll("[data-key]")].find((n) => n.dataset.key === focused);
  (again || byId(parent.id === "history" ? "history-title" : "recommended-title")).focus();
}

function button(text, key, label, act, className = "plain") {
  const node = make("button", { type: "button", className, data: { key }, onclick: act });
  node.append(text);
  if (label) node.setAttribute("aria-label", label);
  return node;
}

function drawHistory() {
  const empty = !state.events.length;
  byId("history-empty").hidden = !empty;
  byId("suggestions").hidden = !empty;
  byId("clear").hidden = empty;
  const places = placesOfEvents();
  redraw(byId("history"), () =>
    state.events.map((event, number) => {
      const isClick = event.kind === "click";
      const text = make("div");
      if (isClick) text.append(named(event));
      else {
        text.append("Searched ", make("strong", {}, make("bdi", { textContent: event.query })));
        for (const clicked of event.clicked) {
          text.append(make("span", { className: "quiet" }, " → ", named(clicked)));
        }
      }
      text.append(make("span", { className: "amount", hidden: true }));
      const what = isClick ? event.title || event.item : `search ${event.query}`;
      const remove = button("✕", `remove-${number}`, `Remove ${what}`, () => {
        state.events.splice(number, 1);
        changed();
      });
      const sort = make("span", { className: "sort", textContent: isClick ? "●" : "⌕" });
      sort.setAttribute("aria-hidden", "true");
      return make("li", { className: "event", data: { place: places[number] } }, sort, text, remove);
    }),
  );
}

// Marks in the history what moved an item.
function highlight(because) {
  const moved = new Map();
  for (const one of (because && because.moved) || []) {
    if (one.given !== undefined) moved.set(`${one.kind}-${one.given}`, one);
  }
  for (const node of byId("history").children) {
    const one = moved.get(node.dataset.place);
    const shown = Boolean(one && Math.abs(one.score) >= 0.005);
    node.classList.toggle("moving", shown);
    node.classList.toggle("down", shown && one.score < 0);
    const amount = node.querySelector(".amount");
    amount.hidden = !shown;
    amount.textContent = shown ? told(one) : "";
  }
}

function told(one) {
  const rank = one.rank === 0 ? "same rank" : `${plural(Math.abs(one.rank), "rank")} ${one.rank > 0 ? "up" : "down"}`;
  return `${signed(one.score)} score, ${rank}`;
}

function describe(one) {
  if (one.kind === "search") {
    const text = make("span", {}, "Search ", make("strong", {}, make("bdi", { textContent: one.query || "" })));
    if (one.given === undefined) text.append(make("span", { className: "quiet" }, " (of the log)"));
    return text;
  }
  const own = state.events.find((event) => event.item === one.item);
  const text = make("span", {}, "Click on ", named(own || { item: one.item }));
  if (one.given === undefined) text.append(make("span", { className: "quiet" }, " (of the log)"));
  return text;
}

function reasons(item) {
  const { moved, rank_by_step: ranks } = item.because;
  const box = make("div", { className: "why" });
  if (!moved.length) {
    box.append(make("p", { className: "quiet" }, "There is no history: this is what the model recommends to anyone."));
  } else {
    const most = Math.max(...moved.map((one) => Math.abs(one.score)), 1e-9);
    box.append(
      make("h3", { textContent: "What moved it" }),
      make(
        "ul",
        {},
        ...moved.slice(0, EVENTS_EXPLAINED).map((one) => {
          const bar = make("span", { className: one.score < 0 ? "bar down" : "bar" });
          bar.style.width = `${Math.max(3, (100 * Math.abs(one.score)) / most)}%`;
          const text = make("div", {}, describe(one), make("span", { className: "amount", textContent: ` ${told(one)}` }));
          return make("li", {}, text, make("span", { aria: { hidden: "true" } }, bar));
        }),
      ),
    );
  }
  if (ranks && ranks.length > 1) {
    const now = state.steps;
    box.append(
      make("h3", { textContent: "Rank after each reasoning step" }),
      make(
        "ol",
        { className: "steps" },
        ...ranks.map((rank, k) => make("li", { className: k === now ? "now" : "", textContent: `K=${k}: ${rank}` })),
      ),
    );
  }
  return box;
}

function change(item, rank) {
  if (!state.own || state.steps === state.own.steps) return null;
  const before = state.own.ranks.get(item.item);
  const node = make("span", { className: "change" });
  if (before === undefined) {
    node.classList.add("up");
    node.textContent = "new";
    node.title = `Not among the first ${SHOWN} at K = ${state.own.steps}`;
  } else if (before === rank) node.textContent = "=";
  else {
    node.classList.add(before > rank ? "up" : "down");
    node.textContent = `${before > rank ? "▲" : "▼"}${Math.abs(before - rank)}`;
    node.title = `Rank ${before} at K = ${state.own.steps}`;
  }
  return node;
}

function drawRecommended() {
  const items = state.answer.items;
  redraw(byId("recommended"), () =>
    items.map((item, place) => {
      const rank = place + 1;
      const open = state.open.has(item.item);
      const pick = button(named(item), `pick-${item.item}`, null, () => {
        state.events.push({ kind: "click", item: item.item, title: item.title });
        changed();
      }, "pick");
      pick.title = "Click it, as a shopper would";
      if (item.title) pick.append(make("span", { className: "quiet", textContent: item.item }));
      const why = button("Why", `why-${item.item}`, `Why ${item.title || item.item}`, () => {
        if (open) state.open.delete(item.item);
        else state.open.add(item.item);
        drawRecommended();
        highlight(open ? null : item.because);
      });
      why.setAttribute("aria-expanded", String(open));
      why.hidden = !item.because;
      const score = item.probability === undefined ? item.score.toFixed(2) : `${(100 * item.probability).toFixed(item.probability < 0.1 ? 1 : 0)}%`;
      const numbers = make(
        "div",
        { className: "numbers" },
        change(item, rank),
        make("span", { className: "score", textContent: score, title: `score ${item.score.toFixed(3)}` }),
        why,
      );
      const row = make("div", { className: "item" }, make("span", { className: "rank", textContent: rank }), pick, numbers);
      if (open && item.because) row.append(reasons(item));
      const line = make("li", { data: { item: item.item } }, row);
      line.addEventListener("mouseenter", () => highlight(item.because));
      line.addEventListener("focusin", () => highlight(item.because));
      return line;
    }),
  );
}

function drawSteps() {
  const most = state.model.max_steps;
  byId("reasoning").hidden = !most;
  if (!most) return;
  byId("steps").value = state.steps;
  byId("steps-told").textContent = `${state.steps} of ${most}`;
  const own = state.own ? state.own.steps : most;
  byId("steps-note").textContent =
    state.steps === own
      ? "Move the slider to see how each step of reasoning changes the ranking."
      : `Arrows compare with K = ${own}.`;
}

function skipped(answer) {
  const parts = [];
  if (answer.skipped_items) parts.push(plural(answer.skipped_items, "unknown item"));
  if (answer.skipped_words) parts.push(plural(answer.skipped_words, "unknown word"));
  if (answer.skipped_events) parts.push(plural(answer.skipped_events, "later event"));
  return parts.length ? ` · skipped ${parts.join(", ")}` : "";
}

let underWay = null;

// Asks twice: for the ranking at once, then for the reasons, which cost more.
async function recommend() {
  if (underWay) underWay.abort();
  const mine = (underWay = new AbortController());
  const list = byId("recommended");
  list.classList.add("busy");
  const question = { ...asked(), k: Math.min(SHOWN, state.model.max_k) };
  try {
    const most = state.model.max_steps;
    if (most && (!state.own || state.own.of !== JSON.stringify(question))) {
      const own = await ask("recommend", { ...question, reasoning_steps: most }, mine.signal);
      const ranks = new Map(own.items.map((item, place) => [item.item, place + 1]));
      state.own = { of: JSON.stringify(question), steps: most, ranks };
    }
    if (most) question.reasoning_steps = state.steps;
    const began = performance.now();
    state.answer = await ask("recommend", question, mine.signal);
    const took = Math.round(performance.now() - began);
    byId("status").textContent = `${plural(state.answer.items.length, "item")} in ${took} ms${skipped(state.answer)}`;
    byId("user-note").textContent = !state.user ? "" : state.answer.known_user
      ? `The model knows user ${state.user}; what is below comes after.`
      : `The model does not know ${state.user}: taken for someone new.`;
    drawSteps();
    drawRecommended();
    problem("");
    list.classList.remove("busy");
    if (state.explains) {
      try {
        state.answer = await ask("recommend", { ...question, because: true }, mine.signal);
      } catch (error) {
        if (error.name === "AbortError") throw error;
        state.explains = false; // not every method can say why
        return;
      }
      drawRecommended();
      const [first] = state.answer.items.filter((item) => state.open.has(item.item));
      if (first) highlight(first.because);
    }
  } catch (error) {
    if (error.name !== "AbortError") problem(error.message);
  } finally {
    if (underWay === mine) list.classList.remove("busy");
  }
}

let waiting = 0;

function changed() {
  drawHistory();
  clearTimeout(waiting);
  waiting = setTimeout(recommend, 60);
}

// A typed query becomes a search of the history; a clicked result, an item clicked in it.
async function search(event) {
  event.preventDefault();
  const query = byId("query").value.trim();
  if (!query) return;
  const searches = state.model.tasks.includes("search");
  try {
    const found = searches
      ? await ask("search", { ...asked(), query, k: Math.min(SHOWN, state.model.max_k) })
      : await ask(`items?q=${encodeURIComponent(query)}`);
    const entry = { kind: "search", query, clicked: [] };
    state.events.push(entry);
    drawResults(entry, found.items.slice(0, SHOWN), searches);
    byId("query").value = "";
    changed();
    problem("");
  } catch (error) {
    problem(error.message);
  }
}

function drawResults(entry, items, byModel) {
  byId("results").hidden = false;
  byId("results-title").replaceChildren("Results for ", make("bdi", { textContent: entry.query }));
  byId("results-note").textContent = !items.length
    ? "No item matches these words; the search counts all the same."
    : byModel
      ? "Ranked by the model. Click what a shopper would click."
      : "Found by title. Click what a shopper would click.";
  byId("results-list").replaceChildren(
    ...items.map((item) => {
      const pick = button(named(item), `result-${item.item}`, null, () => {
        if (!state.events.includes(entry)) state.events.push(entry);
        if (!entry.clicked.some((other) => other.item === item.item)) entry.clicked.push(item);
        changed();
      }, "pick");
      if (item.title) pick.append(make("span", { className: "quiet", textContent: item.item }));
      return make("li", {}, make("div", { className: "item" }, pick));
    }),
  );
}

async function suggest() {
  const { items } = await ask("items");
  const step = Math.max(1, Math.floor(items.length / 6));
  byId("suggestions").replaceChildren(
    ...items.filter((_, place) => place % step === 0).slice(0, 6).map((item) =>
      make("li", {}, button(named(item), `suggestion-${item.item}`, null, () => {
        state.events.push({ kind: "click", ...item });
        changed();
        byId("history-title").focus();
      }, "")),
    ),
  );
}

async function begin() {
  try {
    state.model = await ask("model");
  } catch (error) {
    byId("model").textContent = "The model is not ready.";
    problem(`${error.message} Trying again.`);
    setTimeout(begin, 1000);
    return;
  }
  problem("");
  const { model } = state;
  byId("model").textContent = `${model.name} · ${plural(model.catalogue_size, "item")}`;
  if (model.max_steps) {
    state.steps = model.max_steps;
    byId("steps").max = model.max_steps;
    byId("steps-marks").replaceChildren(
      ...Array.from({ length: model.max_steps + 1 }, (_, k) => make("option", { value: k })),
    );
  }
  await suggest().catch(() => {});
  drawHistory();
  if (model.tasks.includes("recommend")) recommend();
  else byId("recommendations").hidden = true;
}

byId("search").addEventListener("submit", search);
byId("clear").addEventListener("click", () => {
  state.events = [];
  state.open.clear();
  byId("results").hidden = true;
  changed();
  byId("query").focus();
});
byId("steps").addEventListener("input", () => {
  state.steps = Number(byId("steps").value);
  drawSteps();
  clearTimeout(waiting);
  waiting = setTimeout(recommend, 60);
});
byId("take-user").addEventListener("click", () => {
  state.user = byId("user").value.trim() || null;
  changed();
});
byId("recommended").addEventListener("mouseleave", () => highlight(null));
begin();
