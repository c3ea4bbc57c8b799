"""The page as a document: what it says, that it is whole, and that nothing in a run can break out of it."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path

import pytest

from merganser.errors import InputError, RunError
from merganser.files import atomic
from merganser.report.names import run_title
from merganser.report.page import embedded_json, render, write_report
from merganser.report.sections import standfirst
from merganser.runs.checksums import sealed_text
from merganser.runs.record import RunRecord, ScoresFile
from tests.report.conftest import TOPICS, make_run, one_score

NASTY = """<b>&"x'</script><!--${{7*7}}"""
VOID = {"meta", "link", "br"}


class Page(HTMLParser):
    """Text, cells by row, attributes and scripts of a page; fails on tags that do not nest."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.own: list[str] = []
        self.text = ""
        self.scripts: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            if dict(attrs).get("class") == "own":
                self.own.append("")
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] == ["script"]:
            self.scripts[-1] += data
        elif "style" not in self.open:
            self.text += data
            if "td" in self.open or "th" in self.open:
                self.rows[-1][-1] += data


def test_metrics_with_definitions_and_the_baseline(run: RunRecord, sequential: RunRecord) -> None:
    text = " ".join(Page(render(run, [sequential])).text.split())
    # OP by hand: aim (.78+.78+.78+.78+.90)/5 = .804; sequential (.30+.42+.54+.66+.90)/5 = .564.
    for numbers in ("80.4 ± 1.1 ?56.4 ± 1.1 ?\\+24.0", "−7.5 ± 0.4 ?−37.5 ± 0.4 ?\\+30.0"):
        assert re.search(numbers, text)
    assert re.search("80.4 ?± 1.1 ?AimMerging ?56.4 ?± 1.1 ?Sequential fine-tuning", text)
    assert "encoder learned 5 tasks, one after another, with AimMerging in 1 min 40 s and 28 merges (4 more" in text
    for metric in run.scores.summary:
        assert metric.definition in text


def score_rows(page: Page) -> list[list[str]]:
    """The head and the rows of the score matrix."""
    start = next(place for place, row in enumerate(page.rows) if row[1:2] == ["change since learned"])
    width = len(page.rows[start])
    return [row for row in page.rows[start:] if len(row) == width]


def test_matrix_has_a_number_in_every_cell_and_marks_own_rows(run: RunRecord) -> None:
    page = Page(render(make_run(TOPICS, references=True)))
    matrix = score_rows(page)
    assert matrix[0][3:5] == ["0 before training", "1 after newsgroups"]
    assert matrix[0][-1] == "learned alone"
    # By hand: .78 - .90; noise 1.96 times the root of .9 x .1 / 200 + .78 x .22 / 200, without answers.
    assert matrix[1][:3] == ["newsgroupsaccuracy, n = 200", "▼ −12.0", "7.1"]
    assert matrix[1][3:] == ["10.0", "90.0 (just learned)", "87.0", "84.0", "81.0", "78.0", "92.0"]
    assert matrix[5][1:3] == ["new", "–"]
    assert [len(row) for row in matrix] == [10] * 6
    assert len(page.own) == 5
    html = render(run)
    assert html.count('class="future"') == 1 + 2 + 3 + 4 + 5  # entries before the diagonal, round 0 included
    assert html.count('<td class="loss" style="--d:0.12">') == 4  # three points of 25


def test_tasks_learned_together_share_a_column() -> None:
    page = Page(render(make_run(TOPICS, method="joint", merging=False, together=True)))
    assert score_rows(page)[0][-1] == "1 after 5 tasks together"
    assert len(page.own) == 5
    assert "Learned 5 tasks together: " in page.text


def test_ledger_memory_and_cost_are_in_tables(run: RunRecord) -> None:
    page = Page(render(run))
    ledger = [row for row in page.rows if len(row) == 8]
    assert len(ledger) == 1 + 32
    assert ledger[1][:7] == ["reuters", "1", "15", "E early", "2", "8 → 12", "0.6 / 0.4"]
    assert ledger[3][3] == "D due, refused"
    assert ["reuters", "300", "6", "6", "2.0 %", "100 %", "2.47 kB", "per label", "2 × 3"] in page.rows
    assert ["all tasks", "1,500", "30", "30", "2.0 %", "100 %", "18.5 kB", "", ""] in page.rows
    assert re.search(r"memory 6\.17 kB, weights 2\.4 MB; 2\.41 MB .* 2\.4 MB ", " ".join(page.text.split()))
    # (1 + 2 + .25 + .75) of 20 seconds per task were spent on merging, .25 on its arithmetic.
    whole = next(row for row in page.rows if row[0] == "whole run")
    assert whole[1:] == [
        "1 min 40 s", "50.0 s", "5.0 s", "10.0 s", "1.2 s", "3.8 s", "0.50 s", "20.0 s", "9.5 s", "20 %",
        "600", "9,600", "3,200", "9,600", "5,000",
    ]  # fmt: skip


def test_memory_over_its_budget_is_shown(run: RunRecord) -> None:
    run.tasks[1].memory = run.tasks[1].memory.model_copy(update={"examples": 9})
    assert "150 % over budget" in " ".join(Page(render(run)).text.split())


def test_command_versions_config_and_seed(run: RunRecord) -> None:
    text = Page(render(run)).text
    for part in ("merganser run stream.yaml --out runs/example", "Seed 42", "threshold_factor: 2.0", "2.9.0", "r: 8"):
        assert part in text


def test_nothing_is_loaded_from_anywhere(run: RunRecord, sequential: RunRecord) -> None:
    html = render(run, [sequential])
    page = Page(html)
    for tag, attributes in page.tags:
        for name in ("src", "href", "srcset", "action", "data", "poster"):
            target = attributes.get(name)
            assert target is None or target.startswith(("#", "data:,")), (tag, name, target)
    assert "http:" not in html
    assert "https:" not in html
    assert "url(" not in html
    assert "@import" not in html
    policy = next(a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none';")
    assert "script-src 'sha256-" in policy


def test_names_from_the_run_stay_text() -> None:
    run = make_run([NASTY, "plain"], method=NASTY, path=NASTY, command=NASTY)
    run.tasks[0].source = {NASTY: NASTY}
    run.tasks[0].memory = run.tasks[0].memory.model_copy(update={"sampler": NASTY})
    run.tasks[0].method_bytes = run.tasks[1].method_bytes = {NASTY: 5}
    run.info.versions[NASTY] = NASTY
    run.info.config["stream"] = {"name": NASTY}
    run.scores.metrics[NASTY] = NASTY
    run.scores.summary[0] = run.scores.summary[0].model_copy(update={"definition": NASTY})
    html = render(run, [run])
    page = Page(html)
    plain = make_run(["first", "plain"])
    plain.tasks[0].source = {"train": "file"}
    assert [tag for tag, _ in page.tags].count("b") == [tag for tag, _ in Page(render(plain, [plain])).tags].count("b")
    assert len(page.scripts) == 2
    data = json.loads(page.scripts[0])
    assert data["tasks"][0]["name"] == NASTY
    labels = [attributes["aria-label"] for _, attributes in page.tags if attributes.get("class") == "chart curve"]
    assert [str(label).rpartition(": ")[0] for label in labels] == [NASTY, "plain"]
    options = re.findall(r"<option value=\"0\">(.*?)</option>", html)
    assert options == ["1 · &lt;b&gt;&amp;&#34;x&#39;&lt;/script&gt;&lt;!--${{7*7}}"]
    assert page.text.count(NASTY) > 10


def test_a_hundred_thousand_merges_fit_into_a_page(run: RunRecord) -> None:
    first = run.merges[1].model_copy(update={"step": 1})
    last = first.model_copy(update={"merge": 50_000, "step": 9_000})
    signals = run.signals["reuters"]
    run.merges = []
    for task in ("reuters", "tweets"):
        run.merges += [first.model_copy(update={"task": task})] * 49_999 + [last.model_copy(update={"task": task})]
        run.signals[task] = [
            signals[n % 100].model_copy(update={"step": n, "interval": 8 + n % 2}) for n in range(1, 9_001)
        ]
    html = render(run)
    page = Page(html)
    assert len(html.encode()) < 1_500_000  # a page may have 3 MB
    assert "This run has 100,000 merges." in page.text
    assert "show 1,002 of them: of each task every 100th, beginning with its first, and its last" in page.text
    assert "Merges (ledger): 1,002 of 100,000" in page.text
    data = json.loads(page.scripts[0])
    assert [task["merges"] for task in data["tasks"]][1:3] == [50_000, 50_000]
    assert page.text.count("Merge 50000 of tweets, after step 9,000") == 1


def test_a_configuration_of_many_labels_is_shortened(run: RunRecord) -> None:
    labels = [f"label {number}" for number in range(120_000)]
    run.info.config = {"stream": {"tasks": [{"name": "t", "labels": labels}, {"labels": dict.fromkeys(labels, "x")}]}}
    html = render(run)
    assert len(html.encode()) < 400_000
    assert html.count("label 199\n") + html.count("label 199:") == 2
    assert "label 200" not in html
    assert html.count("... and 119,800 more") == 2


def test_the_path_in_a_command_is_quoted() -> None:
    page = Page(render(make_run(["a", "b"], path="my runs/$(rm -rf x)")))
    assert "merganser report 'my runs/$(rm -rf x)' --tables FOLDER" in page.text


def test_embedded_json_survives_and_refuses_nan() -> None:
    value = {"a": "</script><!-- & \u2028 é"}
    text = str(embedded_json(value))
    assert not set(text) & set("<>&\u2028\u2029")
    assert json.loads(text) == value
    with pytest.raises(ValueError, match="JSON"):
        embedded_json({"x": float("nan")})


@pytest.mark.parametrize(
    "made",
    [
        make_run(["only"], method="single", merging=False),
        make_run(TOPICS, method="sequential", merging=False),
        make_run([f"task {i}" for i in range(15)], steps=12, merge_every=5),
    ],
    ids=["one task", "no merges", "fifteen tasks"],
)
def test_other_shapes_of_runs(made: RunRecord) -> None:
    page = Page(render(made))
    assert len(page.own) == len(made.tasks)
    assert [attributes.get("class") for _, attributes in page.tags].count("chart curve") == len(made.tasks)


def test_a_run_that_has_only_its_first_row(run: RunRecord) -> None:
    run.tasks, run.merges, run.signals = [], [], {}
    run.scores = ScoresFile(tasks=["a"], metrics={"a": "f1"}, rows=[run.scores.rows[0]])
    run.scores.rows[0].scores = {"a": one_score(0.25)}
    page = Page(render(run))
    assert page.own == []
    assert score_rows(page)[1][-1] == "25.0"
    assert "Nothing was learned yet." in page.text


def test_scores_that_were_not_measured_are_dashes(run: RunRecord) -> None:
    del run.scores.rows[0].scores["tweets"]
    del run.scores.rows[1].scores["tweets"]
    page = Page(render(run))
    assert score_rows(page)[3][3:6] == ["–", "–", "14.0"]


def test_baseline_of_another_stream_is_refused(run: RunRecord) -> None:
    with pytest.raises(InputError, match=r"'runs/example' learned other tasks than 'runs/example': a instead of news"):
        render(run, [make_run(["a"])])
    other = make_run(TOPICS)
    other.tasks[2].fingerprint = "f" * 64
    with pytest.raises(InputError, match="learned task 'tweets' from other data"):
        render(run, [other])


def test_write_report_replaces_whole_files(run: RunRecord, tmp_path: Path) -> None:
    out = tmp_path / "new" / "page.html"
    assert write_report(run, out) == out
    first = out.read_text(encoding="utf-8")
    assert first == sealed_text(render(run).encode()).decode()
    run.info.seed = 7
    write_report(run, out)
    assert "Seed 7" in out.read_text(encoding="utf-8")
    assert [file.name for file in out.parent.iterdir()] == ["page.html"]
    assert out.stat().st_mode & 0o400


def test_places_that_cannot_be_written(run: RunRecord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="is a folder, not a file"):
        write_report(run, tmp_path)
    (tmp_path / "file").write_text("kept")
    with pytest.raises(InputError, match=r"Cannot create '.*file'"):
        write_report(run, tmp_path / "file" / "report.html")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic.os, "replace", full)
    with pytest.raises(RunError, match="The disk is full while writing file"):
        write_report(run, tmp_path / "file")
    assert (tmp_path / "file").read_text() == "kept"
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def luminance(colour: tuple[float, ...]) -> float:
    """Relative luminance of an sRGB colour in [0, 255] (WCAG 2.2)."""
    linear = [c / 255 / 12.92 if c / 255 <= 0.04045 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: tuple[float, ...], two: tuple[float, ...]) -> float:
    low, high = sorted((luminance(one), luminance(two)))
    return (high + 0.05) / (low + 0.05)


def test_colours_reach_wcag_aa_in_light_and_dark() -> None:
    css = resources.files("merganser.report").joinpath("templates", "report.css").read_text(encoding="utf-8")
    schemes = [match for match in re.findall(r":root \{(.*?)\}", css, re.S) if "--ink" in match]
    assert len(schemes) == 2
    for scheme in schemes:
        named = dict(re.findall(r"--(\w+): #([0-9a-f]{6});", scheme))
        colour = {name: tuple(int(code[i : i + 2], 16) for i in (0, 2, 4)) for name, code in named.items()}
        most = int(re.search(r"--heat-most: (\d+)%", scheme)[1]) / 100  # type: ignore[index]
        hottest = tuple(most * a + (1 - most) * p for a, p in zip(colour["accent"], colour["paper"], strict=True))
        for text, ground in (("ink", "paper"), ("quiet", "paper"), ("accent", "paper"), ("quiet", "raised")):
            assert contrast(colour[text], colour[ground]) >= 4.5, (text, ground)
        assert contrast(colour["ink"], hottest) >= 4.5


def test_a_model_is_named_as_a_person_names_it(run: RunRecord) -> None:
    for given, shown in (
        ("google/flan-t5-small", "flan-t5-small learned"),
        ("/home/someone/models/encoder", "encoder learned"),
        ("/lib/all_minilm_l6_v2/model", "all_minilm_l6_v2 learned"),
        ("/cache/models--google--flan-t5-small/snapshots/0123", "flan-t5-small learned"),
    ):
        run.info.config["model"] = {"name": given, "kind": "matcher"}
        assert standfirst(run).startswith(shown)


@pytest.mark.parametrize(
    ("heading", "shown"),
    [
        ("# all-MiniLM-L6-v2\nThis maps texts", "all-MiniLM-L6-v2"),
        ("---\nlicense: mit\n# a comment\n---\n\n# Model Card for acme/Support-7B\n## Use", "Support-7B"),
        ("# Our model of all the support texts", "gt_encoder"),
        ("no heading", "gt_encoder"),
    ],
)
def test_a_model_in_a_folder_is_named_by_its_card(run: RunRecord, tmp_path: Path, heading: str, shown: str) -> None:
    folder = tmp_path / "gt_encoder" / "model"
    folder.mkdir(parents=True)
    (folder / "README.md").write_text(heading)
    run.info.config["model"] = {"name": str(folder), "kind": "matcher"}
    assert standfirst(run).startswith(f"{shown} learned")


def test_a_run_is_named_as_a_person_names_it(run: RunRecord) -> None:
    assert run_title(run) == "five topics"
    run.info.config["stream"] = {"name": "support-products"}
    assert run_title(run) == "Support products"
    del run.info.config["stream"]
    for path, title in (
        ("out/demo-run/aim", "Demo run"),
        ("runs/2026-03-claims_v2", "2026-03-claims_v2"),
        ("/home/someone/BGB tests", "BGB tests"),
        ("work/run", "newsgroups to grimm"),
    ):
        assert run_title(run.model_copy(update={"path": path})) == title


def test_dates_are_written_out(run: RunRecord) -> None:
    html = render(run)
    assert html.count("2 January 2026, 03:04 UTC") == len(run.tasks)
    assert "2026-01-02T" not in html.partition('id="run-data"')[0]
