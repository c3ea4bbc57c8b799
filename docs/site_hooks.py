"""MkDocs hooks: pages generated from the program, and links that lead out of docs/.

* ``commands.md`` is written from the Typer application and ``methods/index.md`` from the table of methods, so neither
  can be out of date.
* Files of the repository that pages link to (examples, sources, results) become pages under ``repository/``, so every
  link also works in the built site.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"(?<=\]\()(?!https?:|mailto:|#)([^)#\s]+)(#[^)\s]*)?(?=\))")
FENCE = re.compile(r"^( *```).*?^\1\s*$", re.MULTILINE | re.DOTALL)
LANGUAGES = {".py": "python", ".yaml": "yaml", ".yml": "yaml", ".sh": "sh", ".json": "json", ".toml": "toml"}
VALUES = {Path: "PATH", int: "NUMBER", float: "NUMBER", str: "TEXT"}
MARKUP = re.compile(r"\[/?(?:bold|dim|italic)\]")

TEN_LINES = """\
from merganser import AnswerSpec, Example, Learner, Task

model = {{"name": "sentence-transformers/all-MiniLM-L6-v2", "kind": "matcher"}}
tasks = {{"weather": {{"It rains.": "wet", "The sun shines.": "dry"}}, "mood": {{"I laugh.": "good", "I cry.": "bad"}}}}
with Learner.open("runs/{name}", model=model, method="{name}", memory={{"minimum_per_label": 1}}) as learner:
    for name, answers in tasks.items():
        examples = [Example(text, label) for text, label in answers.items()]
        learner.learn(Task(name, train=examples, test=examples, spec=AnswerSpec(tuple(answers.values()))))
    print(learner.scores.values)                             # row: after n tasks; column: task
    print(learner.predict(["I smile."], task="mood"))
"""


def ten_lines(name: str) -> str:
    """Return a script that learns two tasks with the method ``name``."""
    return TEN_LINES.format(name=name)


def commands_page() -> str:
    """Return every command and option of ``merganser`` as Markdown."""
    from merganser.cli import app

    parts = [
        "# Commands and options",
        "Generated from the program when this site was built; `merganser COMMAND --help` prints the same.",
        "`merganser --version` prints the version. `--debug`, with any command, shows the traceback of an error. "
        "Exit codes: 0 done, 1 the work failed, 2 the request cannot be met, 130 stopped with Ctrl-C.",
    ]
    group: Any = typer.main.get_command(app)
    for name, command in group.commands.items():
        parameters = [parameter for parameter in command.params if not parameter.hidden]
        usage = ["merganser", name, *(term(parameter) for parameter in parameters if parameter.required)]
        optional = ["[OPTIONS]"] if len(parameters) >= len(usage) - 1 else []
        parts += [f"## `merganser {name}`", f"```\n{' '.join(usage + optional)}\n```", plain(command.help or "")]
        if parameters:
            rows = "\n".join(map(row, parameters))
            parts.append(f"| argument or option | default | meaning |\n|---|---|---|\n{rows}")
    return "\n\n".join(parts) + "\n"


def plain(text: str) -> str:
    """Return help text without Rich markup, its indentation and its form feed."""
    return MARKUP.sub("", re.sub(r"(?m)^ +", "", text.partition("\f")[0])).strip()


def term(parameter: Any) -> str:
    """Return an argument or option as it is typed."""
    value = parameter.metavar or VALUES.get(parameter.type_descriptor.annotation, "VALUE")
    if parameter.param_type_name == "argument":
        return str(parameter.metavar or parameter.name.upper())
    names = " / ".join([*parameter.opts, *parameter.secondary_opts])
    return names if parameter.is_flag else f"{names} {value}"


def row(parameter: Any) -> str:
    """Return one argument or option as a row of the table."""
    default = parameter.default
    shown = f"`{default}`" if isinstance(default, (str, int, float)) and default is not False else ""
    meaning = re.sub(r"([|\[])", r"\\\1", " ".join(plain(parameter.help or "").split()))
    return f"| `{term(parameter)}` | {'required' if parameter.required else shown} | {meaning} |"


def methods_page() -> str:
    """Return the index paper -> method -> ten lines as Markdown."""
    from merganser.methods import BUILT_IN

    parts = [
        "# From a paper to ten lines",
        "Each method is one file and has one page: idea, formula, command line, what it stores, what was measured, and "
        "where it differs from its paper. *P* is the number of trained weights, *p* that of one adapter, *T* that of "
        "tasks.",
        "| method | paper | idea | old examples | stores |\n|---|---|---|---|---|\n"
        + "\n".join(
            f"| [`{name}`]({name}.md) | {paper(method.paper)} | {method.idea} | "
            f"{'all' if method.full_memory else 'a small memory' if method.uses_memory else 'none'} | {method.stores} |"
            for name, method in BUILT_IN.items()
        ),
        "The lines of each method, ready to run. In a file of a run it is `method: NAME`, on the command line "
        "`merganser run STREAM.yaml --out RUN --method NAME`.",
    ]
    for name, method in BUILT_IN.items():
        parts += [f"## {method.title} {{#{name}}}", f"{paper(method.paper)}; [options and formula]({name}.md)"]
        parts.append(f"```python\n{ten_lines(name)}```")
    return "\n\n".join(parts) + "\n"


def paper(source: str) -> str:
    """Return the source with its arXiv number as a link."""
    return re.sub(r"arXiv (\d{4}\.\d{5})", r"[arXiv \1](https://arxiv.org/abs/\1)", source)


def site_path(target: str) -> str:
    """Return the page of the site that shows the repository's file ``target``."""
    if target.startswith("docs/"):
        return target.removeprefix("docs/")
    shown = Path(target).suffix in ("", *LANGUAGES)
    return f"repository/{target}.md" if shown else f"repository/{target}"


def repository_path(page: str) -> str:
    """Return the repository's file that the site's page ``page`` shows."""
    return page.removeprefix("repository/") if page.startswith("repository/") else f"docs/{page}"


def show(target: str) -> str:
    """Return the repository's file or folder ``target`` as Markdown."""
    file = ROOT / target
    if file.is_dir():
        names = sorted(child.name for child in file.iterdir() if child.suffix in LANGUAGES)
        return f"# {target}/\n\n" + "\n".join(f"* [`{name}`]({name})" for name in names) + "\n"
    if file.suffix == ".md":
        return file.read_text(encoding="utf-8")
    return f"# `{target}`\n\n````{LANGUAGES.get(file.suffix, 'text')}\n{file.read_text(encoding='utf-8')}````\n"


def links(source: str, text: str) -> list[str]:
    """Return the repository's paths that the Markdown ``text`` of the file ``source`` links to."""
    folder = posixpath.dirname(source)
    return [posixpath.normpath(posixpath.join(folder, match[1])) for match in LINK.finditer(FENCE.sub("", text))]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages, and a page for every file outside docs/ that pages link to."""
    for uri, content in (("commands.md", commands_page()), ("methods/index.md", methods_page())):
        files.append(File.generated(config, uri, content=content))
    texts = {repository_path(file.src_uri): file.content_string for file in files.documentation_pages()}
    # The navigation names some pages of the repository itself.
    navigation = re.findall(r"repository/(\S+\.md)", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    texts["docs/navigation"] = "".join(f"](../{target})" for target in navigation)
    waiting = [target for source, text in texts.items() for target in links(source, text)]
    while waiting:
        target = waiting.pop()
        if target.startswith("docs/") or files.get_file_from_path(site_path(target)) or not (ROOT / target).exists():
            continue
        if not site_path(target).endswith(".md"):
            files.append(File.generated(config, site_path(target), abs_src_path=str(ROOT / target)))
            continue
        content = show(target)
        files.append(File.generated(config, site_path(target), content=content))
        waiting += links(f"{target}/x" if (ROOT / target).is_dir() else target, content)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links to files of the repository at the pages that show them."""
    source = repository_path(page.file.src_uri)
    listed = source.removesuffix(".md")
    folder = (
        listed
        if page.file.src_uri.startswith("repository/") and (ROOT / listed).is_dir()
        else posixpath.dirname(source)
    )

    def rewritten(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, match[1]))
        if target.startswith("docs/") and source.startswith("docs/"):
            return match[0]
        return posixpath.relpath(site_path(target), posixpath.dirname(page.file.src_uri)) + (match[2] or "")

    pieces, end = [], 0
    for fence in FENCE.finditer(markdown):
        pieces += [LINK.sub(rewritten, markdown[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join(pieces) + LINK.sub(rewritten, markdown[end:])


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn what docstrings take from Sphinx (``:class:`X```, a final ``::``) into plain HTML."""
    html = re.sub(r":(?:attr|class|data|func|meth|mod|obj):(<code>)~?(?:[a-z_]+\.)*(?=[^<]*</code>)", r"\1", html)
    return html.replace("::</p>", ":</p>")
