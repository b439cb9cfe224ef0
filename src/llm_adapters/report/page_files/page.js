"use strict";
const find = (selector, inside = document) => inside.querySelector(selector);
const all = (selector, inside = document) => [...inside.querySelectorAll(selector)];
const make = (tag, text, name) => {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text; // never as HTML: a completion may contain tags
  if (name) element.className = name;
  return element;
};

// Light or dark: as the system has it, until the button is pressed.
find("#theme").addEventListener("click", () => {
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const now = document.documentElement.dataset.theme || (dark ? "dark" : "light");
  document.documentElement.dataset.theme = now === "dark" ? "light" : "dark";
});

// Every table sorts by any column; empty cells stay last.
const byColumn = (column, sign) => (a, b) => {
  const [x, y] = [a.cells[column], b.cells[column]];
  if (!x.textContent || !y.textContent) return !x.textContent - !y.textContent;
  if (x.dataset.v !== undefined && y.dataset.v !== undefined) return sign * (x.dataset.v - y.dataset.v);
  return sign * x.textContent.localeCompare(y.textContent, undefined, { numeric: true });
};
for (const head of all("thead th")) {
  find("button", head).addEventListener("click", () => {
    const table = head.closest("table");
    const number = head.classList.contains("number");
    const was = head.getAttribute("aria-sort");
    const down = was ? was === "ascending" : number; // numbers begin with the largest
    for (const other of all("th", table)) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const rows = [...table.tBodies[0].rows].sort(byColumn(head.cellIndex, down ? -1 : 1));
    table.tBodies[0].append(...rows);
  });
}

// The table of runs filters by words and by axes.
for (const form of all("form[data-table]")) {
  const rows = [...document.getElementById(form.dataset.table).tBodies[0].rows];
  const filter = () => {
    const words = form.elements.text.value.toLowerCase().split(/\s+/).filter(Boolean);
    const chosen = all("select", form).filter((one) => one.value);
    let count = 0;
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !(
        words.every((word) => text.includes(word)) &&
        chosen.every((one) => row.cells[one.dataset.column].textContent === one.value)
      );
      count += !row.hidden;
    }
    find("output", form).textContent = `${count} of ${rows.length} runs`;
  };
  form.addEventListener("input", filter);
  form.addEventListener("submit", (event) => event.preventDefault());
  filter();
}

// Predictions of one run; the JSON of a run is parsed only when it is opened.
const dialog = find("#predictions"), form = find("form", dialog), PAGE = 25;
const read = (id) => JSON.parse(document.getElementById(id).textContent);
let asked, rows = [], shown = [], from = 0;
const kinds = {
  "": () => true,
  gained: (base, tuned) => base !== "correct" && tuned === "correct",
  lost: (base, tuned) => base === "correct" && tuned !== "correct",
  "both-wrong": (base, tuned) => base !== "correct" && tuned !== "correct",
  "both-right": (base, tuned) => base === "correct" && tuned === "correct",
  unparsed: (base, tuned) => tuned === "unparsed",
  leaked: (base, tuned, leaked) => leaked === true,
};
const answer = (who, completion, read, status) => {
  const box = make("div", undefined, status || "");
  box.append(make("h4", `${who}: ${status || "not asked"}` + (read ? `, read as ${read}` : "")));
  box.append(make("pre", completion === null ? "" : completion));
  box.style.paddingLeft = ".6rem";
  return box;
};
const draw = () => {
  const list = shown.slice(from, from + PAGE).map(([place, completion, given, status, leaked]) => {
    const [set, protocol, row, question, gold, baseText, baseGiven, baseStatus] = asked[place];
    const article = make("article");
    article.append(make("h3", `${set}, ${protocol}, row ${row}` + (leaked ? " – given away by the training data" : "")));
    article.append(make("pre", question), make("p", `Gold answer: ${gold}`));
    const both = make("div", undefined, "answers");
    both.append(answer("Base", baseText, baseGiven, baseStatus), answer("Tuned", completion, given, status));
    article.append(both);
    return article;
  });
  find("#rows").replaceChildren(...list);
  find("output", form).textContent = shown.length
    ? `${from + 1} to ${from + list.length} of ${shown.length} (${rows.length} in all)` : "none";
  find("#before").disabled = from === 0;
  find("#after").disabled = from + PAGE >= shown.length;
};
const choose = () => {
  const { kind, set, text } = form.elements, word = text.value.toLowerCase();
  shown = rows.filter(([place, completion, , status, leaked]) => {
    const row = asked[place];
    return kinds[kind.value](row[7], status, leaked) && (!set.value || `${row[0]}, ${row[1]}` === set.value) &&
      (!word || [row[3], row[4], row[5], completion].some((one) => String(one).toLowerCase().includes(word)));
  });
  from = 0;
  draw();
};
const turn = (by) => { from += by; draw(); dialog.scrollTop = 0; };
for (const button of all("button.open")) {
  button.addEventListener("click", () => {
    asked ??= read("asked");
    rows = read(`run-${button.dataset.run}`);
    find("#run-name").textContent = button.textContent;
    const sets = [...new Set(rows.map(([place]) => `${asked[place][0]}, ${asked[place][1]}`))];
    form.reset();
    form.elements.set.replaceChildren(new Option("all", ""), ...sets.map((name) => new Option(name)));
    choose();
    button.focus();  // what the dialog gives the focus back to; Safari does not focus a button by a click
    dialog.showModal();
    dialog.scrollTop = 0;
  });
}
form.addEventListener("input", choose);
form.addEventListener("submit", (event) => event.preventDefault());
find("#close").addEventListener("click", () => dialog.close());
find("#before").addEventListener("click", () => turn(-PAGE));
find("#after").addEventListener("click", () => turn(PAGE));
