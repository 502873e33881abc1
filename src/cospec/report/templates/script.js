"use strict";
document.documentElement.classList.add("js");

const tabs = [...document.querySelectorAll('[role="tab"]')];

function choose(tab) {
  for (const each of tabs) {
    const isChosen = each === tab;
    each.setAttribute("aria-selected", String(isChosen));
    each.tabIndex = isChosen ? 0 : -1;
    document.getElementById(each.getAttribute("aria-controls")).hidden = !isChosen;
  }
}

tabs.forEach((tab, i) => {
  tab.addEventListener("click", () => choose(tab));
  tab.addEventListener("keydown", (event) => {
    const places = { ArrowRight: i + 1, ArrowLeft: i - 1 + tabs.length, Home: 0, End: tabs.length - 1 };
    if (!(event.key in places)) return;
    event.preventDefault();
    const next = tabs[places[event.key] % tabs.length];
    choose(next);
    next.focus();
  });
});
if (tabs.length) choose(tabs[0]);

function open(button, isOpen) {
  button.setAttribute("aria-expanded", String(isOpen));
  document.getElementById(button.getAttribute("aria-controls")).classList.toggle("open", isOpen);
}

for (const trace of document.querySelectorAll(".trace")) {
  const buttons = [...trace.querySelectorAll("button.t")];
  trace.addEventListener("click", (event) => {
    const button = event.target.closest("button.t");
    if (!button) return;
    const isOpen = button.getAttribute("aria-expanded") === "true";
    buttons.forEach((each) => open(each, each === button && !isOpen));
  });
  trace.addEventListener("keydown", (event) => {
    if (event.key === "Escape") buttons.forEach((each) => open(each, false));
  });
}

for (const box of document.querySelectorAll("input[data-in]")) {
  const all = [...document.querySelectorAll(`#${box.dataset.in} > details`)];
  box.addEventListener("input", () => {
    const wanted = box.value.trim().toLowerCase();
    for (const each of all) each.hidden = !each.textContent.toLowerCase().includes(wanted);
    const shown = all.filter((each) => !each.hidden).length;
    box.closest("p").querySelector("output").textContent = wanted && `${shown} of ${all.length}`;
  });
}
