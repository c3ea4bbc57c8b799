"use strict";
// A number leads to a row in a folded list: open it.
function unfold() {
  const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  for (let box = target && target.closest("details"); box; box = box.parentElement && box.parentElement.closest("details")) box.open = true;
  if (target) target.scrollIntoView({ block: "center" });
}
addEventListener("hashchange", unfold);
unfold();
// Shade the edge of what is wider than its place, and show the hint above it; folded lists are measured when unfolded.
function hint() {
  for (const box of document.querySelectorAll("div.scroll")) {
    const cut = box.scrollWidth > box.clientWidth + 1;
    const line = box.previousElementSibling;
    box.classList.toggle("cut", cut);
    if (line && line.classList.contains("hint")) line.hidden = !cut;
  }
}
addEventListener("resize", hint);
document.addEventListener("toggle", hint, true);
hint();
// The keyboard goes past the hundreds of scores of a matrix: its name leads to the same cells.
for (const link of document.querySelectorAll(".matrix td a")) link.tabIndex = -1;
