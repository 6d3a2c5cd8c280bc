"use strict";
// Keeps an open page as it would be if it were loaded now, and asks what to train within the budget of its slider.
const served = JSON.parse(document.getElementById("served").textContent);
// Milliseconds.
const FIRST_PAUSE = 4000;
const LONGEST_PAUSE = 30000;
const PAUSE_WITHOUT_PAGE = 1000;
const RESTING_SLIDER = 500;
const SHORTEST_THOUGHT = 150;
const LOOKS_FOR_FIRST_PAGE = 15; // between two questions for a page that is being made

const isAway = () => document.querySelector(".live");
const sleep = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

async function get(address, signal) {
  const response = await fetch(address, { signal, cache: "no-store", credentials: "same-origin" });
  if (response.ok) return response;
  const refusal = await response.json().catch(() => ({}));
  throw Object.assign(new Error(refusal.reason ?? `the server answers ${response.status}`), { response });
}

// --- A newer page in place of this one ------------------------------------------------------------------------------

// What the reader works with, or what a script has drawn, stays.
const KEPT = ".plot, .budget, .result, .recommendation, .live";

const key = (node) => node.id || node.getAttribute?.("aria-labelledby") || node.dataset?.figure || "";
const alike = (one, other) => one.nodeName === other.nodeName && key(one) === key(other);

function takeAttributes(now, next) {
  const own = now.tagName === "DETAILS" || now.classList.contains("view") ? ["open", "hidden"] : [];
  for (const { name, value } of next.attributes) if (!own.includes(name)) now.setAttribute(name, value);
  for (const { name } of [...now.attributes]) {
    if (!own.includes(name) && !next.hasAttribute(name)) now.removeAttribute(name);
  }
}

// Make a part of the page like another, and touch nothing that is like it already.
function become(now, next) {
  if (now.nodeType !== Node.ELEMENT_NODE) {
    if (now.data !== next.data) now.data = next.data;
    return;
  }
  if (now.matches(KEPT) && next.matches(KEPT)) {
    if (now.matches(".plot")) now.setAttribute("aria-label", next.getAttribute("aria-label"));
    return;
  }
  takeAttributes(now, next);
  const wanted = [...next.childNodes];
  wanted.forEach((child, place) => {
    const old = [...now.childNodes].slice(place);
    const isWantedLater = (node) => key(node) && wanted.slice(place + 1).some((later) => alike(node, later));
    const at = old.findIndex((node, distance) => (key(child) || distance === 0) && alike(node, child));
    if (at >= 0) {
      old.slice(0, at).forEach((node) => node.remove());
      become(old[at], child);
    } else if (old.length && !isWantedLater(old[0])) {
      old[0].replaceWith(document.importNode(child, true));
    } else {
      now.insertBefore(document.importNode(child, true), old[0] ?? null);
    }
  });
  while (now.childNodes.length > wanted.length) now.lastChild.remove();
}

async function takeNewPage() {
  const fresh = new DOMParser().parseFromString(await (await get(served.page)).text(), "text/html");
  const next = JSON.parse(fresh.getElementById("served")?.textContent ?? "{}");
  const scripts = (from) => [...from.querySelectorAll("script[src]")].map((each) => each.getAttribute("src")).join();
  if (scripts(fresh) !== scripts(document)) { // the first page of a study, or the server has been renewed
    location.reload();
    return;
  }
  become(document.querySelector("header"), fresh.querySelector("header"));
  become(document.querySelector("main"), fresh.querySelector("main"));
  document.title = fresh.title;
  const data = document.getElementById("page-data");
  if (data) {
    become(document.querySelector("footer"), fresh.querySelector("footer"));
    data.textContent = fresh.getElementById("page-data").textContent;
    renew();
    startThoughts();
    thoughts.forEach((thought) => thought.again());
  }
  served.mark = next.mark;
}

let looks = 0;
// Return whether something has changed.
async function look() {
  if (!served.api) {
    const before = document.querySelector("main").textContent;
    await takeNewPage();
    return document.querySelector("main").textContent !== before;
  }
  const now = await (await get(`${served.api}/standing`)).json();
  const states = document.querySelector(".states");
  const isNews = states && states.textContent !== now.sentence;
  if (isNews) states.textContent = now.sentence;
  if (now.page !== null && now.page !== served.mark) {
    await takeNewPage();
    return true;
  }
  // A server that was started again makes no page before somebody asks for it; to ask may take seconds.
  if (now.page === null && (served.mark || ++looks % LOOKS_FOR_FIRST_PAGE === 0)) await get(served.page);
  return isNews || now.mark !== served.mark; // trials have ended, and their page is being made
}

const shown = () => new Promise((resolve) => {
  if (!document.hidden) resolve();
  else document.addEventListener("visibilitychange", resolve, { once: true });
});

async function follow() {
  let pause = FIRST_PAUSE;
  while (true) {
    await sleep((served.mark === "" ? PAUSE_WITHOUT_PAGE : pause) * (0.8 + 0.4 * Math.random()));
    await shown(); // nobody asks for a page that nobody sees
    try {
      pause = (await look()) ? FIRST_PAUSE : Math.min(1.5 * pause, LONGEST_PAUSE);
      isAway().textContent = "";
    } catch (error) {
      pause = Math.min(2 * pause, 2 * LONGEST_PAUSE);
      isAway().textContent = `Not up to date: ${error.message}. This page asks again.`;
    }
  }
}

// --- What to train, run or not --------------------------------------------------------------------------------------

const percent = (share, digits) => `${(100 * share).toFixed(digits)}%`;
const valueText = (key, value) => (key === "accuracy" ? percent(value, 2) : String(Number(value.toPrecision(4))));
const valueKey = (choice) => Object.keys(choice).find((key) => `${key}_low` in choice && key !== "seconds");
const settings = (params) =>
  Object.entries(params).map(([name, value]) => `${name.replace(/^params\./, "")} ${value}`).join(", ");
const range = (text, low, high) => `${text} (${low} to ${high})`;

function recommendationParts(answer) {
  const { choice, basis } = answer;
  const key = valueKey(choice);
  const [value, low, high] = [key, `${key}_low`, `${key}_high`].map((name) => valueText(key, choice[name]));
  const time = range(duration(choice.seconds), duration(choice.seconds_low), duration(choice.seconds_high));
  const epochs = `${choice.epochs} epoch${choice.epochs === 1 ? "" : "s"}`;
  const chance = choice.chance_in_time > 0.99 ? "over 99%" : percent(choice.chance_in_time, 0);
  const next = answer.next_trial?.prediction;
  const facts = [
    ["train", `${settings(choice.params) || "the study's settings"}, ${epochs}`],
    ["how sure", `90 of 100 such runs reach ${low} to ${high}`],
    ["time", `${time}, in time with ${chance}`],
    ...(answer.extrapolated.length ? [["beyond what ran", answer.extrapolated.join("; ")]] : []),
    ["to know more", next ? `run ${settings(next.params)}, ${next.epochs} epochs: ${duration(next.seconds)}` :
      "no single trial is likely to change this answer"],
    ["from", `${basis.trials} trials of ${basis.configurations} configurations, ${basis.repeats} repeats`],
    ...answer.notes.map((note) => ["note", note]),
  ];
  const images = answer.judged_on ? ` on ${answer.judged_on} images` : "";
  const headline = `Of all that could be trained in ${duration(answer.budget_seconds)}: ${value} expected${images}`;
  return [element("p", headline, "headline"), factList(facts)];
}

class Thought {
  constructor(place) {
    this.place = place;
    this.view = place.dataset.view;
    this.form = place.parentElement.querySelector(".budget");
    this.form.addEventListener("input", () => this.later(RESTING_SLIDER));
    this.later(0);
  }
  get budget() {
    return this.form.querySelector("input").valueAsNumber;
  }
  later(pause) {
    clearTimeout(this.timer);
    this.asked?.abort();
    this.timer = setTimeout(() => this.ask(), pause);
  }
  again() {
    if (this.isThinking) this.isOld = true;
    else this.later(0);
  }
  async ask() {
    if (!(this.budget > 0) || !this.place.offsetParent) return;
    const asked = (this.asked = new AbortController());
    this.isOld = false; // whether trials have ended since
    this.think(true);
    const device = page.views[this.view]?.machine;
    const query = new URLSearchParams({ budget: `${this.budget}s`, ...(device && { device_name: device }) });
    try {
      const response = await get(`${served.api}/recommend?${query}`, asked.signal);
      const answer = await response.json();
      if (asked.signal.aborted) return;
      this.think(false);
      this.place.replaceChildren(...recommendationParts(answer));
      this.goOn(response); // which may be the answer of before, while a newer one is being made
    } catch (error) {
      if (asked.signal.aborted) return;
      this.think(false);
      this.place.replaceChildren(element("p", `What else could be trained: ${error.message}`, "guide"));
      this.goOn(error.response);
    }
  }
  goOn(response) {
    const wait = Number(response?.headers.get("Retry-After"));
    if (wait || this.isOld) this.later(1000 * wait);
  }
  think(isThinking) {
    this.isThinking = isThinking;
    this.place.setAttribute("aria-busy", isThinking);
    clearTimeout(this.waiting);
    if (!isThinking) return;
    const text = `Thinking about what else could be trained in ${duration(this.budget)} …`;
    this.waiting = setTimeout(() => this.place.replaceChildren(element("p", text, "guide")), SHORTEST_THOUGHT);
  }
}

let thoughts = [];
function startThoughts() {
  thoughts = [...document.querySelectorAll(".recommendation")].map((place) => (place.thought ??= new Thought(place)));
}

if (document.getElementById("page-data")) {
  startThoughts();
  document.addEventListener("change", (event) => {
    if (event.target.id === "machine") thoughts.forEach((thought) => thought.later(0));
  });
}
follow();
