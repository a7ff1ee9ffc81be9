"use strict";
// What all pages of a report do: the theme, copying, arrow keys in tables. Each page's own script follows this one.

const $ = (selector) => document.querySelector(selector);

function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value);
  }
  element.append(...children.flat(9).filter((child) => child !== null && child !== ""));
  return element;
}

// --- Copying

function copier(what, label = "Copy") {
  if (!what) return "";
  const button = h("button", { type: "button" }, label);
  button.addEventListener("click", async () => {
    button.textContent = (await copy(what)) ? "Copied" : "Select and copy by hand";
    setTimeout(() => (button.textContent = label), 1500);
  });
  return button;
}

async function copy(what) {
  try {
    await navigator.clipboard.writeText(what);
    return true;
  } catch {
    // Browsers that give pages from files no clipboard still copy what is selected.
    const area = h("textarea", { readonly: "", style: "position:fixed;top:0;opacity:0" });
    area.value = what;
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  }
}

// --- One stop for the tab key in a table; arrows move between its numbers or links

function rove(within) {
  const stops = [...within.querySelectorAll(within.dataset.roving)];
  for (const stop of stops) stop.tabIndex = -1;
  const first = stops.find((stop) => !stop.hidden && !stop.closest("[hidden]"));
  if (first) first.tabIndex = 0;
}

const MOVES = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] };
document.addEventListener("keydown", (event) => {
  const move = MOVES[event.key];
  const within = event.target.closest("[data-roving]");
  if (!move || !within || !event.target.matches(within.dataset.roving)) return;
  const selector = within.dataset.roving;
  let cell = event.target.closest("td, th");
  const own = [...cell.querySelectorAll(selector)];
  let next = move[0] ? own[own.indexOf(event.target) + move[0]] : undefined; // of several in a cell, up and down
  while (!next) {
    const row = within.rows[cell.parentElement.rowIndex + move[0]];
    cell = row?.cells[cell.cellIndex + move[1]];
    if (!cell) return;
    const there = [...cell.querySelectorAll(selector)].filter((stop) => !stop.hidden && !stop.closest("[hidden]"));
    next = move[0] < 0 ? there.at(-1) : there[0];
  }
  event.preventDefault();
  event.target.tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
});

// --- The theme

const themes = ["system", "light", "dark"];
function theme(name) {
  if (name === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = name;
  $("#theme span").textContent = name;
}
function remembered() {
  try {
    return localStorage.getItem("theme");
  } catch {
    return null; // a browser that keeps nothing for files
  }
}
$("#theme").addEventListener("click", () => {
  const next = themes[(themes.indexOf($("#theme span").textContent) + 1) % themes.length];
  theme(next);
  try {
    localStorage.setItem("theme", next);
  } catch {
    // It holds for this visit.
  }
});
if (themes.includes(remembered())) theme(remembered());
$("#theme").hidden = false; // without this script it would do nothing

