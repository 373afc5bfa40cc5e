"use strict";
(() => {
  const root = document.documentElement;
  const button = document.getElementById("theme");
  const system = window.matchMedia("(prefers-color-scheme: dark)");

  // A page opened from a file may be denied storage; the toggle works without memory then.
  const remembered = () => {
    try { return localStorage.getItem("reparam-theme"); } catch { return null; }
  };
  const remember = (theme) => {
    try { localStorage.setItem("reparam-theme", theme); } catch { /* not kept */ }
  };
  const isDark = () => (root.dataset.theme || (system.matches ? "dark" : "light")) === "dark";
  const show = () => {
    button.textContent = isDark() ? "Light" : "Dark";
    button.setAttribute("aria-pressed", String(isDark()));
    button.setAttribute("aria-label", isDark() ? "Switch to light colours" : "Switch to dark colours");
  };

  if (["dark", "light"].includes(remembered())) root.dataset.theme = remembered();
  button.hidden = false;
  button.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    remember(root.dataset.theme);
    show();
  });
  system.addEventListener("change", show);
  show();

  for (const figure of document.querySelectorAll(".switched")) {
    const choices = [...figure.querySelectorAll(".choice")];
    const inputs = [...figure.querySelectorAll(".switch input")];
    const choose = (wanted) => choices.forEach((choice, index) => { choice.hidden = index !== wanted; });
    inputs.forEach((input, index) => input.addEventListener("change", () => choose(index)));
    if (choices.length > 1) figure.querySelector(".switch").hidden = false;
    choose(Math.max(0, inputs.findIndex((input) => input.checked)));
    figure.classList.add("live");
  }

  const key = (row, column) => {
    const cell = row.cells[column];
    const raw = cell.dataset.sort ?? cell.textContent.trim();
    const number = Number(raw);
    return raw !== "" && Number.isFinite(number) ? number : raw;
  };
  const compare = (a, b) =>
    typeof a === "number" && typeof b === "number"
      ? a - b
      : String(a).localeCompare(String(b), "en", { numeric: true });

  for (const table of document.querySelectorAll("table.sortable")) {
    const headers = [...table.tHead.rows[0].cells];
    headers.forEach((header, column) => {
      const control = document.createElement("button");
      control.type = "button";
      control.append(...header.childNodes);
      header.append(control);
      control.addEventListener("click", () => {
        const down = header.getAttribute("aria-sort") === "ascending";
        headers.forEach((other) => other.removeAttribute("aria-sort"));
        header.setAttribute("aria-sort", down ? "descending" : "ascending");
        const rows = [...table.tBodies[0].rows];
        rows.sort((a, b) => (down ? -1 : 1) * compare(key(a, column), key(b, column)));
        table.tBodies[0].append(...rows);
      });
    });
  }
})();
