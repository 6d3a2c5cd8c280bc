"use strict";
// Figures are drawn when they come near the window, in the colours that the reader's system asks for.
let page = JSON.parse(document.getElementById("page-data").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");
const narrow = matchMedia("(max-width: 640px)");
const touch = matchMedia("(pointer: coarse)");
// Pixels.
const PANEL_HEIGHT = 300;
const TITLE_HEIGHT = 32;
const LEGEND_ROW_HEIGHT = 16;
const COLOUR_BAR_DEPTH = 90;
const LEGEND_MARGIN = 100;
const LEGEND_COLUMN_WIDTH = 290;
const WIDE = 1000;
const PAPER_WIDTH = 660; // of a figure between the margins of A4 and of Letter

let isPrinting = false;
const template = () => page.templates[dark.matches && !isPrinting ? "dark" : "light"];

const shownInLegend = (data) => data.filter((trace) => trace.name && trace.showlegend !== false).length;

// Entries of a legend stand in columns; fewer columns than on a wide page make more rows.
function moreLegendRows(entries, width) {
  const rows = (across) => Math.ceil(entries / Math.max(1, Math.floor((across - LEGEND_MARGIN) / LEGEND_COLUMN_WIDTH)));
  return Math.max(0, rows(width) - rows(WIDE));
}

// On a narrow page panels stand in one column, the colour scale below them, and the legend takes rows of its own.
function narrowed(layout, data) {
  const panels = layout.meta?.panels ?? 1;
  layout.height = (panels > 1 ? PANEL_HEIGHT * panels : layout.height) + LEGEND_ROW_HEIGHT * shownInLegend(data);
  if (panels > 1) {
    layout.grid = { ...layout.grid, rows: panels, columns: 1, ygap: 0.35 };
    layout.legend = { y: 1 + TITLE_HEIGHT / layout.height };
  }
  if (layout.coloraxis) {
    const bar = layout.coloraxis.colorbar;
    const y = -COLOUR_BAR_DEPTH / (PANEL_HEIGHT * panels);
    layout.coloraxis.colorbar = { ...bar, orientation: "h", y, yanchor: "top", title: { ...bar.title, side: "top" } };
  }
  return layout;
}

function fitted(plot) {
  const copy = structuredClone(plot.figure.layout);
  const layout = narrow.matches ? narrowed(copy, plot.figure.data) : copy;
  if (isPrinting) layout.width = PAPER_WIDTH;
  const more = moreLegendRows(shownInLegend(plot.figure.data), layout.width ?? plot.clientWidth);
  if (!narrow.matches) layout.height += LEGEND_ROW_HEIGHT * more;
  // What the reader has zoomed into stays when the figure is drawn with newer trials.
  return { ...layout, uirevision: true, template: template(), autosize: !isPrinting, dragmode: touch.matches ? false : "zoom" };
}

function shownTraces(plot) {
  const hasRoom = (trace) => !(narrow.matches && trace.meta === "labels");
  return plot.figure.data.filter(hasRoom);
}

// Drawn anew where the width or the colours change: plotly.js 4.1 misplaces a colour scale that it turns.
function drawAnew(plot, put = Plotly.newPlot) {
  const without = ["select2d", "lasso2d", "autoScale2d"];
  const config = { responsive: true, displaylogo: false, modeBarButtonsToRemove: without };
  return put(plot, shownTraces(plot), fitted(plot), config).then(() => {
    plot.style.minHeight = "";
    plot.isDrawn = true;
    plot.dispatchEvent(new CustomEvent("drawn"));
  });
}

const nextFrame = () => new Promise((resolve) => requestAnimationFrame(() => setTimeout(resolve)));
let drawing = Promise.resolve();

function read(plot) {
  plot.figure ??= JSON.parse(document.getElementById(plot.dataset.figure).textContent);
}

function draw(plot) {
  if (plot.figure) return null;
  read(plot);
  return drawAnew(plot, plot.isDrawn ? Plotly.react : Plotly.newPlot);
}

// One figure after the other, so that the page answers in between.
function drawLater(plot) {
  near.unobserve(plot);
  drawing = drawing.then(() => draw(plot)).catch(console.error).then(nextFrame);
}

const allPlots = () => [...document.querySelectorAll(".plot")];
const near = new IntersectionObserver(
  (entries) => entries.filter((entry) => entry.isIntersecting).forEach((entry) => drawLater(entry.target)),
  { rootMargin: "200px" },
);
const redraw = () => allPlots().filter((plot) => plot.figure).forEach((plot) => drawAnew(plot));
dark.addEventListener("change", redraw);
narrow.addEventListener("change", redraw);
// On paper every figure is there, dark on white, and as wide as paper is.
function forPaper(isOn) {
  isPrinting = isOn;
  allPlots().filter((plot) => plot.offsetParent).forEach(read);
  redraw();
}
addEventListener("beforeprint", () => forPaper(true));
addEventListener("afterprint", () => forPaper(false));
// This script runs before plotly's own, so that the answer below need not wait for it.
addEventListener("DOMContentLoaded", () => allPlots().forEach((plot) => near.observe(plot)));

// --- The answer at each budget --------------------------------------------------------------------------------------

// As budgettune writes durations: 0.25s, 8.1s, 1m30s, 2h05m, 3d04h.
function duration(seconds) {
  if (seconds < 1) return `${Number(seconds.toPrecision(2))}s`;
  if (seconds < 59.95) return `${seconds.toFixed(1)}s`;
  const two = (number) => String(number).padStart(2, "0");
  const pair = (count, size, large, small) => `${Math.floor(count / size)}${large}${two(count % size)}${small}`;
  const minutes = Math.round(seconds / 60);
  if (Math.round(seconds) < 3600) return pair(Math.round(seconds), 60, "m", "s");
  return minutes < 1440 ? pair(minutes, 60, "h", "m") : pair(Math.round(seconds / 3600), 24, "d", "h");
}

function element(tag, text, className) {
  const made = document.createElement(tag);
  made.textContent = text;
  if (className) made.className = className;
  return made;
}

function factList(facts) {
  const list = document.createElement("dl");
  for (const [name, text] of facts) {
    const pair = document.createElement("div");
    pair.append(element("dt", name), element("dd", text));
    list.append(pair);
  }
  return list;
}

function trainCommand(command) {
  const line = element("p", "To train it again and keep the model: ");
  line.append(element("code", command));
  return line;
}

function answerParts(answers, budget) {
  if (!(budget > 0)) return [element("p", "Give a number of seconds above zero.", "headline")];
  const place = answers.findLastIndex((answer) => answer.seconds <= budget);
  const next = answers[place + 1];
  const nextText = next && `${next.text} would take ${duration(next.seconds)} (trial ${next.number}).`;
  const more = next && element("p", nextText);
  if (place < 0) {
    return [element("p", `No finished trial trains within ${duration(budget)}.`, "headline"), more];
  }
  const answer = answers[place];
  const headline = `${answer.text} in ${duration(answer.seconds)}: trial ${answer.number}`;
  return [element("p", headline, "headline"), factList(answer.facts), trainCommand(answer.command), more];
}

function markChoice(plot, view, budget) {
  if (!plot.isDrawn) return;
  const answer = view.answers.findLast((one) => one.seconds <= budget);
  const first = view.answers[0].value;
  const last = view.answers.at(-1).value;
  const at = budget / view.unitSeconds;
  const lines = {
    budget: [[at, at], [first, last]],
    chosen: answer ? [[answer.seconds / view.unitSeconds], [answer.value]] : [[], []],
  };
  for (const [name, [x, y]] of Object.entries(lines)) {
    Plotly.restyle(plot, { x: [x], y: [y] }, plot.data.findIndex((trace) => trace.meta === name));
  }
}

function startBudget(form) {
  const view = () => page.views[form.dataset.view]; // a newer one where the page was renewed
  const [field, slider] = form.querySelectorAll("input");
  const section = form.parentElement;
  const result = section.querySelector(".result");
  const plot = section.querySelector(".plot");
  const ratio = () => view().high / view().low;

  function show() {
    const budget = field.valueAsNumber;
    result.replaceChildren(...answerParts(view().answers, budget).filter(Boolean));
    slider.setAttribute("aria-valuetext", duration(budget || 0));
    if (budget > 0) markChoice(plot, view(), budget);
  }
  function place(budget) {
    const low = view().low;
    slider.value = Math.round((1000 * Math.log(Math.max(budget, low) / low)) / Math.log(ratio()));
  }
  slider.addEventListener("input", () => {
    field.value = Number((view().low * ratio() ** (slider.value / 1000)).toPrecision(3));
    show();
  });
  field.addEventListener("input", () => { if (field.valueAsNumber > 0) place(field.valueAsNumber); show(); });
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("renewed", () => { if (field.valueAsNumber > 0) place(field.valueAsNumber); show(); });
  plot.addEventListener("drawn", show);
  // Rounded up, so that the trial whose time this is still fits.
  field.value = Math.ceil(view().budget * 1000) / 1000;
  place(view().budget);
  form.isStarted = true;
  show();
}

// Take over what stands in the page now, where it did not before: figures, answers, and where the reader was in them.
function renew() {
  page = JSON.parse(document.getElementById("page-data").textContent);
  for (const plot of allPlots()) {
    plot.figure = undefined;
    near.unobserve(plot);
    near.observe(plot);
  }
  for (const form of document.querySelectorAll(".budget")) {
    if (form.isStarted) form.dispatchEvent(new Event("renewed"));
    else startBudget(form);
  }
}

document.querySelectorAll(".budget").forEach(startBudget);
document.addEventListener("change", (event) => {
  if (event.target.id !== "machine") return;
  document.querySelectorAll(".view").forEach((view) => { view.hidden = view.id !== event.target.value; });
  dispatchEvent(new Event("resize")); // figures that were hidden take the width that the page has now
});
