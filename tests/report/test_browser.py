"""The page in headless Chromium: charts drawn, no error, and no sideways scrolling on a phone."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from merganser.report.page import write_report
from merganser.runs.record import RunRecord
from tests.report.conftest import TOPICS, file_url, make_run

PROBE = """<!doctype html><title>probe</title>
<iframe id="phone" src="{page}" style="width:360px;height:700px;border:0"></iframe>
<pre id="found"></pre><script>
onload = () => setTimeout(() => {{
  const page = document.getElementById("phone").contentDocument, root = page.documentElement;
  const say = (name, value) => {{ document.getElementById("found").textContent += name + "=" + value + "\\n"; }};
  say("charts", root.dataset.charts);
  say("width", root.scrollWidth);
  say("failed", !page.getElementById("failed").hidden);
  const texts = [...page.querySelectorAll("svg.chart text")];
  say("smallest", Math.min(...texts.map((text) => {{
    const svg = text.ownerSVGElement, scale = svg.getBoundingClientRect().width / svg.viewBox.baseVal.width;
    return parseFloat(getComputedStyle(text).fontSize) * scale;
  }})));
  say("right", Math.max(...texts.map((text) => text.getBoundingClientRect().right)) <= 361);
  const markers = [...page.querySelectorAll("#merge-chart .marker")], story = page.getElementById("story");
  say("markers", markers.length);
  if (markers.length) {{
    say("tabbable", markers.filter((marker) => marker.getAttribute("tabindex") === "0").length);
    const first = story.textContent;
    markers[0].dispatchEvent(new page.defaultView.KeyboardEvent("keydown", {{ key: "ArrowRight", bubbles: true }}));
    say("walked", story.textContent !== first && story.textContent === markers[1].getAttribute("aria-label"));
    page.getElementById("later").click();
    say("stepped", story.textContent === markers[2].getAttribute("aria-label"));
    const refused = markers.find((marker) => marker.classList.contains("refused"));
    const box = refused.getBoundingClientRect();
    const where = {{ clientX: box.x + box.width / 2, clientY: box.y + box.height / 2, bubbles: true }};
    const view = page.defaultView, told = () => story.textContent === refused.getAttribute("aria-label");
    refused.dispatchEvent(new view.MouseEvent("click", where));
    say("tapped", told() && /was refused and undone/.test(story.textContent));
    markers[0].focus();
    say("focused", story.textContent === markers[0].getAttribute("aria-label"));
    refused.dispatchEvent(new view.PointerEvent("pointermove", {{ ...where, pointerType: "mouse" }}));
    say("hovered", told());
    const choice = page.getElementById("task"), all = page.getElementById("step-chart").innerHTML;
    choice.value = "2"; choice.onchange();
    say("chosen", page.getElementById("step-chart").innerHTML !== all);
    say("letters", [...page.querySelectorAll("#step-chart .marker text")].map((text) => text.textContent).join(""));
  }}
}}, 300);
</script>"""

Browse = Callable[..., str]


def probe(page: Path, chromium: Browse) -> dict[str, str]:
    """What a script that shares the page's origin finds in it, 360 pixels wide."""
    outside = page.with_name("probe.html")
    outside.write_text(PROBE.format(page=page.name), encoding="utf-8")
    dom = chromium(file_url(outside), "--allow-file-access-from-files", "--dump-dom")
    found = re.search(r'<pre id="found">(.*?)</pre>', dom, re.S)
    assert found is not None
    return dict(line.split("=", 1) for line in found[1].strip().splitlines())


def test_charts_are_drawn(run: RunRecord, sequential: RunRecord, tmp_path: Path, chromium: Browse) -> None:
    dom = chromium(file_url(write_report(run, tmp_path / "report.html", [sequential])), "--dump-dom")
    assert 'data-charts="drawn"' in dom
    for chart in ("step-chart", "merge-chart"):
        drawn = re.search(rf'<svg[^>]*id="{chart}"[^>]*>(.*?)</svg>', dom, re.S)
        assert drawn is not None
        assert drawn[1].count("<path") + drawn[1].count("<circle") > 5, chart
        assert "NaN" not in drawn[0]
        assert "Infinity" not in drawn[0]
    curves = re.findall(r'<svg class="chart curve"[^>]*aria-label="(\w+): [^>]*>(.*?)</svg>', dom, re.S)
    assert [name for name, _ in curves] == TOPICS
    assert all("var(--accent)" in drawn and "#" not in re.sub(r'"#m\w+"', "", drawn) for _, drawn in curves)
    story = re.search(r'<p id="story"[^>]*>(.*?)</p>', dom, re.S)
    assert story is not None
    assert story[1].startswith("Merge 1 of reuters, after step 15: it fired early, after 2 alarms")


def test_on_a_phone(run: RunRecord, tmp_path: Path, chromium: Browse) -> None:
    found = probe(write_report(run, tmp_path / "report.html"), chromium)
    assert found["charts"] == "drawn"
    assert found["failed"] == "false"
    assert int(found["width"]) <= 360
    assert float(found["smallest"]) >= 11
    assert found["right"] == "true"
    assert (found["markers"], found["tabbable"]) == ("32", "1")
    assert (found["walked"], found["stepped"], found["chosen"]) == ("true", "true", "true")
    assert (found["tapped"], found["focused"], found["hovered"]) == ("true", "true", "true")
    assert found["letters"] == "EFDEFDET"


@pytest.mark.parametrize(
    "made",
    [
        make_run(["only"], method="single", merging=False, steps=1),
        make_run(TOPICS, method="joint", merging=False, together=True),
        make_run([f"a-task-with-{'a-long-' * 9}name-{i}" for i in range(15)], steps=600, merge_every=40),
        make_run(["averyveryverylongnamewithoutanyplacetobreakitatall" * 2, "<b>&'\"</script>"], command="x" * 300),
    ],
    ids=["one task", "joint", "fifteen tasks", "names"],
)
def test_other_runs_on_a_phone(made: RunRecord, tmp_path: Path, chromium: Browse) -> None:
    found = probe(write_report(made, tmp_path / "report.html"), chromium)
    assert found["charts"] == "drawn"
    assert int(found["width"]) <= 360
    assert float(found["smallest"]) >= 11
    assert found["right"] == "true"


def test_a_damaged_page_says_so(run: RunRecord, tmp_path: Path, chromium: Browse) -> None:
    page = write_report(run, tmp_path / "report.html")
    page.write_text(page.read_text(encoding="utf-8").replace('"tasks":[', '"aufgaben":['), encoding="utf-8")
    dom = chromium(file_url(page), "--dump-dom")
    assert 'data-charts="failed"' in dom
    assert re.search(r'<p class="note" id="failed">', dom)
