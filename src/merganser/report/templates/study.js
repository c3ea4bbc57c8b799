"use strict";
// A number leads to a row in a folded list: open it.
function unfold() {
  const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  for (let box = target && target.closest("details"); box; box = box.parentElement && box.parentElement.closest("details")) box.open = true;
  if (target) target.scrollIntoView({ block: "center" });
}
addEventListener("hashchange", unfold);
unfold();
for (const line of document.querySelectorAll(".hint")) {
  const box = line.nextElementSibling;
  line.hidden = box.scrollWidth <= box.clientWidth + 1;
}
