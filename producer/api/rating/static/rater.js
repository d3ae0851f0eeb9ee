// Rating by keyboard: 1 to 5, or the arrows and t for pairs; Enter submits, u takes the last back.
"use strict";

const form = document.querySelector("form.rating");
const fieldsets = [...document.querySelectorAll("form.rating fieldset")];
const SIDES = { ArrowLeft: "-1", ArrowRight: "1", t: "0", T: "0" };
let isSent = false;

function current() {
  const focused = document.activeElement && document.activeElement.closest("fieldset");
  return focused || fieldsets.find((each) => !each.querySelector(":checked")) || null;
}

function choose(fieldset, value) {
  const radio = fieldset.querySelector(`input[value="${value}"]`);
  if (!radio) return false;
  radio.checked = true;
  const next = fieldsets.find((each) => !each.querySelector(":checked"));
  (next ? next.querySelector("input") : form.querySelector("button[value=submit]")).focus();
  return true;
}

function press(event) {
  if (event.ctrlKey || event.altKey || event.metaKey || event.isComposing) return false;
  if (event.target instanceof HTMLTextAreaElement) return false;
  if (event.key === "u" || event.key === "U") {
    const undo = document.querySelector("button[value=undo]");
    if (undo) undo.click();
    return Boolean(undo);
  }
  if (!form) return false;
  if (event.key === "Enter") {
    if (document.activeElement instanceof HTMLButtonElement) return false;
    form.requestSubmit(form.querySelector("button[value=submit]"));
    return true;
  }
  const isPair = form.dataset.kind === "pairwise";
  const value = isPair ? SIDES[event.key] : event.key;
  const fieldset = value && current();
  return Boolean(fieldset && /^-?[0-9]$/.test(value) && choose(fieldset, value));
}

document.addEventListener("keydown", (event) => {
  if (press(event)) event.preventDefault();
});

document.addEventListener("submit", (event) => {
  // A second Enter while the first one travels would rate the next item unseen.
  if (isSent) event.preventDefault();
  isSent = true;
});

// A page that the browser kept may be an item behind: ask for the present one.
window.addEventListener("pageshow", (event) => {
  if (event.persisted) window.location.reload();
});
