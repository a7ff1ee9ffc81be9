// The page's behaviour: details of a cell, filters, links, where a number comes from. Data is data: all text goes through textContent.

const data = JSON.parse(document.getElementById("data").textContent);
const text = (n) => (n === undefined ? "" : data.strings[n]);
const LARGEST = 1.7e308;

function svg(tag, attributes, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

const count = (n) => n.toLocaleString("en-US");
function ratio(r) {
  if (r === null || r === undefined) return "";
  if (r >= LARGEST) return "∞";
  // Which side of 1 it is on must be seen.
  if (Math.abs(r - 1) < 1e-3) return ((r <= 1 ? Math.floor(1000 * r) : Math.ceil(1000 * r)) / 1000).toFixed(3);
  return r < 1000 ? r.toFixed(3) : r.toExponential(1);
}
const figures3 = (x) => (x === null ? "" : Math.abs(x) >= LARGEST ? "∞" : x !== 0 && (Math.abs(x) >= 1e4 || Math.abs(x) < 1e-3) ? x.toExponential(1) : String(+x.toPrecision(3)));
const value = (x) => (typeof x !== "number" ? String(x ?? "") : Number.isInteger(x) && Math.abs(x) < 1e15 ? count(x) : figures3(x));

function number(shown, key, run) {
  return h("button", { type: "button", class: "n", "data-k": key, "data-r": run }, shown);
}

function verdict(n) {
  const name = data.verdicts[n];
  return h("span", { class: `v ${name}` }, h("span", { "aria-hidden": "true" }, data.signs[name]), ` ${name}`);
}

function table(head, rows, label) {
  const made = h("table", { "data-roving": ".n" },
    h("thead", {}, h("tr", {}, head.map((name) => h("th", { scope: "col" }, name)))),
    h("tbody", {}, rows.map((row) => h("tr", {}, row.map((cell, n) => n === 0 ? h("th", { scope: "row" }, cell) : h("td", numeric(cell) ? { class: "r" } : {}, cell))))));
  rove(made);
  return h("div", { class: "scroll", role: "group", "aria-label": label, tabindex: "0" }, made);
}
const numeric = (cell) => typeof cell === "number" || (cell instanceof Element && cell.matches(".n"));

// --- Where a number comes from

const source = $("#source");
let pinned = false;

function origin(element) {
  const figure = element.closest("figure");
  if (figure) {
    const mark = element.querySelector(":scope > title");
    const told = mark ? mark.textContent : [...figure.querySelectorAll("figcaption > *")].map((part) => part.textContent).join(": ");
    return { told, file: "", runs: [+figure.dataset.r] };
  }
  const [told, file] = data.sources[element.dataset.k] ?? ["", ""];
  const cell = element.dataset.i === undefined ? null : data.cells[element.dataset.i];
  const run = element.dataset.r ?? cell?.r;
  const every = () => [...new Set(data.cells.map((c) => c.r))];
  return { told, file, runs: run === undefined ? every() : [+run] };
}

function show(element, pin = false) {
  const { told, file, runs } = origin(element);
  const lines = runs.slice(0, 3).map((n) => {
    const run = data.runs[n];
    const seed = run.seed === null ? "" : `seed ${run.seed}, `;
    const torch = run.environment.torch ? `, torch ${run.environment.torch}` : "";
    return h("div", { class: "line" }, h("code", {}, run.command || run.kind), copier(run.command), h("span", { class: "from" }, `${seed}run ${run.id}${torch}`));
  });
  const more = runs.length > 3 ? h("p", { class: "from" }, `and ${runs.length - 3} more runs`) : "";
  source.replaceChildren(h("p", {}, told), ...lines, more, file ? h("p", { class: "from" }, `defined in ${file}`) : "");
  source.hidden = false;
  pinned = pin;
  const at = element.getBoundingClientRect();
  const left = Math.max(8, Math.min(at.left, innerWidth - source.offsetWidth - 8));
  const below = at.bottom + 6 + source.offsetHeight < innerHeight;
  source.style.left = `${left}px`;
  source.style.top = `${Math.max(8, below ? at.bottom + 6 : at.top - source.offsetHeight - 6)}px`;
  element.setAttribute("aria-describedby", "source");
}

function hide() {
  source.hidden = true;
  pinned = false;
  document.querySelectorAll("[aria-describedby=source]").forEach((element) => element.removeAttribute("aria-describedby"));
}

const SOURCED = ".n, .matrix a, figure svg use, figure svg g:has(> title), figure td.r > span";
let waiting = 0;
document.addEventListener("pointerover", (event) => {
  if (event.pointerType === "touch") return;
  clearTimeout(waiting);
  if (source.contains(event.target)) return;
  const element = event.target.closest(SOURCED);
  if (element) waiting = setTimeout(show, 250, element);
  else if (!pinned && !source.hidden) waiting = setTimeout(hide, 300);
});
document.addEventListener("focusin", (event) => {
  if (event.target.matches(SOURCED) && event.target.matches(":focus-visible")) show(event.target);
  else if (!source.contains(event.target)) hide();
});
document.addEventListener("scroll", () => pinned || hide(), { passive: true });
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") hide();
});
document.addEventListener("click", (event) => {
  const element = event.target.closest(SOURCED);
  if (element && !element.matches("a")) show(element, true);
  else if (!source.contains(event.target)) hide();
});

// --- The address: #/torch/Adam/foreach?dtype=float32

const filters = $("#filters");
// A subject's link says its name: torch:Adam[foreach] is /torch/Adam/foreach.
function place(subject) {
  const [, family, name, mode] = /^([^:]*):?([^[]*)\[?(.*?)\]?$/s.exec(subject);
  const parts = [family, name, mode];
  while (parts.length > 1 && !parts.at(-1)) parts.pop();
  return parts.map((part) => "/" + encodeURIComponent(part)).join("");
}
const places = new Map(data.cells.map((cell, n) => [place(cell.s), n]));

function address() {
  const [path, query = ""] = location.hash.slice(1).split("?");
  try {
    const parts = path.split("/").slice(1).map((part) => "/" + encodeURIComponent(decodeURIComponent(part)));
    return { path: parts.join(""), query: new URLSearchParams(query) };
  } catch {
    return { path: "", query: new URLSearchParams() };
  }
}

function chosen() {
  return Object.fromEntries([...new FormData(filters)].filter(([, picked]) => picked));
}

function link(path) {
  const query = new URLSearchParams(chosen()).toString();
  return `#${path}${query ? `?${query}` : ""}`;
}

function follow() {
  const { path, query } = address();
  if (location.hash && !location.hash.startsWith("#/")) return; // a section of the page
  for (const select of filters.elements) {
    if (!select.name) continue;
    const wanted = query.get(select.name) ?? "";
    select.value = [...select.options].some((option) => (option.value || "") === wanted) ? wanted : "";
  }
  filter();
  open(places.get(path), path);
}

addEventListener("hashchange", follow);
filters.addEventListener("change", () => {
  history.replaceState(null, "", link(address().path || "/"));
  follow();
});
filters.addEventListener("reset", () => setTimeout(() => filters.dispatchEvent(new Event("change"))));
document.addEventListener("click", (event) => {
  const anchor = event.target.closest('a[href^="#/"]');
  if (!anchor || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  location.hash = link(anchor.getAttribute("href").slice(1).split("?")[0]);
});

// --- Filters

const matrix = $(".matrix");
let filtered = false;

function matches(cell, { optimizer, dtype, feature, verdict: wanted }) {
  return (!optimizer || cell.l === optimizer)
    && (!dtype || (cell.t ?? []).includes(data.dtypes.indexOf(dtype)))
    && (!feature || (cell.f ?? []).some(([n, lives]) => data.features[n] === feature && lives))
    && (!wanted || data.verdicts[cell.v] === wanted);
}

function filter() {
  const picked = chosen();
  const any = Object.keys(picked).length > 0;
  if (!matrix || (!any && !filtered)) return;
  filtered = any;
  const used = new Set([0]);
  let shown = 0;
  for (const row of matrix.tBodies[0].rows) {
    let some = false;
    for (const anchor of row.querySelectorAll("a")) {
      anchor.hidden = !matches(data.cells[anchor.dataset.i], picked);
      if (anchor.hidden) continue;
      some = true;
      shown += 1;
      used.add(anchor.closest("td").cellIndex);
    }
    row.hidden = !some;
  }
  for (const row of matrix.rows) for (const cell of row.cells) cell.hidden = !used.has(cell.cellIndex);
  $("#shown").textContent = any ? `${shown} of ${data.cells.length} subjects` : "";
  rove(matrix);
}

// --- The details of a cell

const panel = $("#cell");
let current;

function open(n, path) {
  for (const anchor of document.querySelectorAll(".matrix a[aria-current]")) anchor.removeAttribute("aria-current");
  const known = path && path !== "/";
  if (n === undefined) {
    panel.hidden = !known;
    panel.replaceChildren(known ? h("p", { class: "missing" }, `There is no subject ${decodeURIComponent(path.slice(1))} in this report.`) : "");
    if (current !== undefined) $(`.matrix a[data-i="${current}"]`)?.focus({ preventScroll: true });
    current = undefined;
    return;
  }
  $(`.matrix a[data-i="${n}"]`).setAttribute("aria-current", "true");
  panel.replaceChildren(...details(data.cells[n], n));
  panel.hidden = false;
  if (current !== n) {
    panel.scrollIntoView();
    $("#cell-h").focus({ preventScroll: true });
  }
  current = n;
}

function details(cell, n) {
  const { dtype } = chosen();
  const parts = [
    heading(cell, n), summary(cell), divergences(cell, dtype), checks(cell),
    h("div", { class: "pair" }, distribution(cell, dtype), h("div", {}, fields(cell), features(cell))), errors(cell, dtype), notes(cell),
  ];
  return parts.filter((part) => part);
}

function heading(cell, n) {
  const row = [...document.querySelectorAll(".matrix a")].map((anchor) => +anchor.dataset.i).filter((i) => data.cells[i].l === cell.l);
  const at = row.indexOf(n);
  const step = (i, told) => (row[i] === undefined ? "" : h("a", { href: `#${place(data.cells[row[i]].s)}` }, `${told}${data.cells[row[i]].s}`));
  return h("div", { class: "title" }, h("h2", { id: "cell-h", tabindex: "-1" }, cell.s), verdict(cell.v),
    h("span", { class: "steps" }, step(at - 1, "← "), step(at + 1, "→ "), h("a", { href: "#/" }, "Close")));
}

function summary(cell) {
  const facts = data.counts.map((name, i) => [name, name === "seconds" ? (cell.n[i] ?? 0).toFixed(1) : count(cell.n[i]), name]);
  const names = { traces: "lives", lives: "calls of step()", steps: "steps of parameters" };
  return h("div", {},
    h("dl", { class: "counts" },
      cell.w === undefined ? "" : h("div", {}, h("dt", {}, data.verdicts[cell.v] === "known" ? "worst r, known left out" : "worst r"), h("dd", {}, number(ratio(cell.w), "worst_ratio", cell.r))),
      facts.map(([name, shown, key]) => h("div", {}, h("dt", {}, names[name] ?? name), h("dd", {}, number(shown, key, cell.r))))),
    h("p", {}, `Held to the reference of ${cell.l}. `, cell.i === undefined ? "" : `Worst r: ${text(cell.i)}.`),
    cell.e === undefined ? "" : h("p", { class: "unknown" }, `Unknown because: ${text(cell.e)}`));
}

function divergences(cell, dtype) {
  const all = (cell.d ?? []).filter((d) => !dtype || d.t.includes(dtype));
  if (!all.length) return "";
  const cases = all.map((d) => {
    const name = Array.isArray(data.checks[d.c]) ? data.checks[d.c][0] : String(d.c);
    const safe = /^https?:\/\//.test(d.u);
    return h("details", { class: "case", ...(d.k ? {} : { open: "" }) },
      h("summary", {}, d.k ? h("span", { class: "v known" }, `${data.signs.known} known`) : h("span", { class: "v fail" }, "✕ new"), ` ${name}: ${text(d.x)}`, d.k ? h("span", { class: "entry" }, ` ${d.k}`) : ""),
      h("div", {},
        d.h ? h("p", {}, `Not its own: a fault of ${d.h}.`) : "",
        d.k ? h("p", {}, d.k.startsWith("expected: ") ? "Of a check that is expected to fail, and no failure. " : "Known issue: ", safe ? h("a", { href: d.u, rel: "noreferrer" }, d.k) : h("code", {}, d.k), d.a === undefined ? "" : `: ${text(d.a)}`) : "",
        h("p", {}, "In ", number(count(d.n), "found_in", cell.r), d.n === 1 ? " life" : " lives", d.w === null ? "" : [", r ", number(ratio(d.w), "ratio", cell.r)], `; ${d.t.join(", ")}.`),
        (d.l ?? []).length ? h("ul", { class: "life" }, d.l.map((n) => h("li", {}, text(n)))) : "",
        h("div", { class: "line" }, h("code", {}, d.y), copier(d.y)),
        text(d.z) ? [h("div", { class: "line" }, h("span", {}, "Script, of its own:"), copier(text(d.z), "Copy script")), h("pre", { tabindex: "0" }, text(d.z))] : h("p", { class: "told" }, "Its life and script are in report.json.")));
  });
  return h("section", { "aria-label": "Divergences" }, h("h3", {}, `Divergences: ${all.filter((d) => !d.k).length} new, ${all.filter((d) => d.k).length} known`), cases);
}

const each = (values, n) => (Array.isArray(values) ? values[n] : values);

function checks(cell) {
  const [names, verdicts, planned, ran, looked, unsupported, worst] = cell.q;
  const rows = data.asked[names].map((check, n) => {
    const [name, question] = data.checks[check];
    const numbers = [[planned, "planned"], [ran, "ran"], [looked, "looked"], [unsupported, "unsupported"]];
    const r = worst[n];
    return [name, verdict(each(verdicts, n)), ...numbers.map(([of, key]) => number(count(each(of, n)), key, cell.r)), r === undefined ? "" : number(ratio(r), "seen_ratio", cell.r), question];
  });
  return h("section", { "aria-label": "Checks" }, h("h3", {}, "Checks"), table(["check", "verdict", "planned", "ran", "looked at", "unsupported", "worst r", "question"], rows, "Checks"));
}

// How the classes of r are called.
const classes = () => ["0", ...data.edges.slice(1).map((edge, n) => `${data.edges[n].toFixed(2)} < r ≤ ${edge.toFixed(2)}`), "> 1"];

function distribution(cell, dtype) {
  const all = (cell.h ?? []).filter(([, d]) => !dtype || data.dtypes[d] === dtype);
  if (!all.length) return "";
  const sum = (counts) => counts.reduce((a, b) => a + b, 0);
  const rows = all.map(([field, d, counts]) => {
    const last = counts.findLastIndex((n) => n > 0);
    return [data.fields[field], data.dtypes[d], number(count(sum(counts)), "ratios", cell.r), bars(counts), last < 0 ? "" : classes()[last]];
  });
  const numbers = h("details", { class: "data" }, h("summary", {}, "As numbers"));
  numbers.addEventListener("toggle", () => {
    if (numbers.querySelector("table")) return;
    numbers.append(table(["field", "dtype", ...classes()], all.map(([field, d, counts]) => [data.fields[field], data.dtypes[d], ...counts.map((n) => number(count(n), "ratios", cell.r))]), "Distribution of r as numbers"));
  });
  return h("section", { "aria-label": "Distribution of r" }, h("h3", {}, "Distribution of r"), h("p", { class: "told" }, "Above 1 are the elements of divergences, of known ones too."), table(["field", "dtype", "elements", "r from 0 to above 1", "largest class"], rows, "Distribution of r"), numbers);
}

function bars(counts) {
  // Heights are logarithmic: one element must be seen beside a million.
  const most = Math.log1p(Math.max(...counts));
  const made = svg("svg", { class: "bars", viewBox: "0 0 132 22", role: "img", "aria-label": "elements in each class of r, logarithmic; the numbers are below" });
  counts.forEach((n, i) => {
    if (!n) return;
    const height = Math.max(1.5, (21 * Math.log1p(n)) / most);
    const title = svg("title", {}, `r ${classes()[i]}: ${count(n)} elements`);
    made.append(svg("rect", { x: i * 6, y: 22 - height, width: 5, height, class: i === counts.length - 1 ? "above" : "within" }, title));
  });
  return made;
}

function fields(cell) {
  if (!cell.m) return "";
  const rows = cell.m.map(([field, elements, undetermined, worst]) => [data.fields[field], number(count(elements), "elements", cell.r), number(count(undetermined), "undetermined", cell.r), worst === null ? "" : number(ratio(worst), "worst_ratio", cell.r)]);
  return h("section", { "aria-label": "Fields" }, h("h3", {}, "Fields"), table(["field", "elements", "undetermined", "worst r"], rows, "Fields"));
}

function features(cell) {
  if (!cell.f) return "";
  return h("section", { "aria-label": "Features" }, h("h3", {}, "Lives with"), h("ul", { class: "features" }, cell.f.map(([n, lives]) => h("li", {}, `${data.features[n]} `, number(count(lives), "features", cell.r)))));
}

function errors(cell, dtype) {
  const all = (cell.g ?? []).filter(([own]) => !dtype || own === dtype);
  if (!all.length) return "";
  const rows = all.map(([own, elements, ulps, where, r, there, run]) => [own, number(count(elements), "certificate", run), ulps === null ? "" : number(figures3(ulps), "certificate", run), r === null ? "" : number(ratio(r), "certificate", run),
    h("details", {}, h("summary", {}, "witnesses"), h("p", {}, `Most ulps: ${text(where) || "none"}`), h("p", {}, `Largest r: ${text(there) || "none"}`))]);
  return h("section", { "aria-label": "Largest known errors" }, h("h3", {}, "Largest known errors, by the certificate"), table(["dtype", "elements", "ulps", "r", ""].map((name) => name || "where"), rows, "Largest known errors"));
}

function notes(cell) {
  if (!cell.o) return "";
  return h("section", { "aria-label": "Notes" }, h("h3", {}, "Notes"), h("ul", { class: "notes" }, cell.o.map((n) => h("li", {}, text(n)))));
}

// --- Tables behind plots, when they are opened

for (const holder of document.querySelectorAll("[data-f]")) {
  holder.closest("details").addEventListener("toggle", () => {
    if (holder.firstChild) return;
    const [, head, rows] = data.figures[holder.dataset.f];
    const told = rows.map((row) => row.map((cell) => (typeof cell === "number" ? h("span", {}, value(cell)) : value(cell))));
    const made = table(head, told, holder.closest("figure").querySelector("h3").textContent);
    for (const span of made.querySelectorAll("td > span")) span.parentElement.className = "r";
    holder.append(made);
  });
}

// Links of the matrix are told whole where they stand without their row and column.
for (const anchor of document.querySelectorAll(".matrix a")) {
  anchor.dataset.k = "worst_ratio";
  const cell = data.cells[anchor.dataset.i];
  anchor.setAttribute("aria-label", `${cell.s}: ${anchor.textContent.replace(/^\S+ /, "").replace("+", "known issues beside it: ")}`);
}
if (matrix) rove(matrix);
follow();
document.documentElement.dataset.ready = Math.round(performance.now());
