"""Files into rows: every ending gives the same rows, and every mistake is named with its place."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import subprocess
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from merganser.errors import InputError
from merganser.streams.formats import is_image_source, parse_hub, read_file, read_table

ROWS = [
    {"id": "a1", "input": 'He said "no", twice\nand left', "output": "yes"},
    {"id": "a2", "input": "tab\there, comma, café ✓", "output": "no"},
]


def write(path: Path, text: str) -> Path:
    path.write_bytes(text.encode())
    return path


def write_rows(folder: Path, ending: str) -> Path:
    path = folder / f"rows{ending}"
    if ending == ".json":
        path.write_text(json.dumps(ROWS, ensure_ascii=False), encoding="utf-8")
    elif ending == ".jsonl":
        path.write_text("\n\n".join(json.dumps(row) for row in ROWS) + "\n", encoding="utf-8")
    elif ending == ".parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    else:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, ["id", "input", "output"], delimiter="," if ending == ".csv" else "\t")
            writer.writeheader()
            writer.writerows(ROWS)
    return path


@pytest.mark.parametrize("ending", [".json", ".jsonl", ".csv", ".tsv", ".parquet"])
def test_every_ending_gives_the_same_rows(tmp_path: Path, ending: str) -> None:
    path = write_rows(tmp_path, ending)
    table = read_file(path)
    assert [dict(row) for row in table.rows] == ROWS
    assert table.name == path.name
    assert table.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_relative_paths_start_from_the_base(tmp_path: Path) -> None:
    write_rows(tmp_path, ".json")
    table = read_table("rows.json", tmp_path)
    assert table.shown == "rows.json"
    assert len(table.rows) == 2


def test_line_numbers_count_the_file_s_lines(tmp_path: Path) -> None:
    table = read_file(write(tmp_path / "x.jsonl", '{"a": "1"}\n\n{"a": "2"}\n'), "x.jsonl")
    assert table.where(1) == "x.jsonl, line 3"
    assert read_file(write_rows(tmp_path, ".csv"), "r.csv").where(1) == "r.csv, line 4"


def test_byte_order_mark_and_line_separators_inside_texts(tmp_path: Path) -> None:
    table = read_file(write(tmp_path / "x.jsonl", '\ufeff{"a": "one\u2028two"}\n'))
    assert table.rows[0]["a"] == "one\u2028two"


def test_cells_longer_than_the_csv_module_s_limit(tmp_path: Path) -> None:
    before = csv.field_size_limit()
    long = "x" * (before + 1)
    table = read_file(write(tmp_path / "x.csv", f"input,output\n{long},a\n"))
    assert table.rows[0]["input"] == long
    assert csv.field_size_limit() == before


@pytest.mark.parametrize(
    ("name", "text", "cause"),
    [
        ("x.json", "", "x.json: the file is empty"),
        ("x.csv", " \n", "x.csv: the file is empty"),
        ("x.json", "[]", "x.json: the file has no rows"),
        ("x.csv", "input,output\n", "x.csv: the file has no rows"),
        ("x.json", '[{"a": 1},\n{"a" 2}]', "x.json, line 2: malformed JSON"),
        ("x.json", '{"a": []}', "x.json: holds a dict, not a list"),
        ("x.json", '{"a": 1}\n{"a": 2}\n', "end the file's name in .jsonl"),
        ("x.csv", "a,a\n1,2\n", "x.csv: the header line names 'a' twice"),
        ("x.csv", "a,\n1,2\n", "x.csv: the header line has a column without a name"),
        ("x.tsv", 'a\tb\n1\t"open\n2\tb\n', "x.tsv, line 3: unexpected end of data (in the row that begins in line 2)"),
        ("x.txt", "hello", "x.txt: the ending '.txt' is not one that can be read. Use one of .json, .jsonl, .csv"),
        ("x.parquet", "not parquet", "x.parquet: is not a Parquet file"),
        ("x.json", "[" * 200_000, "x.json"),
        ("x.json", '[{"a": 1},\n{"a": 1, "a": 2}]', "x.json: malformed JSON: the key 'a' stands twice"),
    ],
)
def test_malformed_files_are_named(tmp_path: Path, name: str, text: str, cause: str) -> None:
    path = write(tmp_path / name, text)
    with pytest.raises(InputError) as caught:
        read_file(path, name)
    assert cause in str(caught.value)
    assert caught.value.remedy


def test_a_header_of_very_many_columns_is_linear_work(tmp_path: Path) -> None:
    """Quadratic work takes half a minute."""
    started = time.process_time()
    names = [f"column {number}" for number in range(50_000)]
    path = write(tmp_path / "x.csv", ",".join(names) + "\n" + ",".join("1" * len(names)) + "\n")
    table = read_file(path, "x.csv")
    assert table.text(0, "column 49999") == "1"
    with pytest.raises(InputError, match=r"the fields are 'column 0', .* and 49,980 more\.") as caught:
        table.text(0, "input")
    assert len(str(caught.value)) < 1000
    with pytest.raises(InputError, match="names 'column 7' twice"):
        read_file(write(tmp_path / "y.csv", ",".join([*names, "column 7"]) + "\n"), "y.csv")
    assert time.process_time() - started < 6


def parquet(path: Path, columns: dict[str, object]) -> Path:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


def repeated(value: str, count: int) -> object:
    """A column that stores ``value`` once."""
    import pyarrow

    return pyarrow.DictionaryArray.from_arrays(pyarrow.array([0], pyarrow.int8()).take([0] * count), [value])


def test_parquet_that_stands_for_far_more_than_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("merganser.streams.parquet.BATCH_BYTES", 1 << 20)
    monkeypatch.setattr("merganser.streams.parquet.MOST_BYTES", 1 << 22)
    path = parquet(tmp_path / "long.parquet", {"input": repeated("y" * 100_000, 10_000)})
    assert path.stat().st_size < 20_000  # for a gigabyte
    with pytest.raises(InputError, match="stands for more than 4,194,304 bytes"):
        read_file(path, "long.parquet")
    path = parquet(tmp_path / "many.parquet", {"input": repeated("y", 5_000_001)})
    with pytest.raises(InputError, match="stands for more than 5,000,000 values"):
        read_file(path, "many.parquet")
    path = parquet(tmp_path / "few.parquet", {"input": repeated("y", 10_000), "output": ["x"] * 10_000})
    assert read_file(path).rows[9_999] == {"input": "y", "output": "x"}


@pytest.mark.parametrize(
    ("value", "kind"), [(2**50, "timestamp('ms')"), (2**31 - 1, "date32()"), (1, "timestamp('us', 'Nowhere/City')")]
)
def test_parquet_times_that_python_cannot_hold(tmp_path: Path, value: int, kind: str) -> None:
    import pyarrow

    name, _, arguments = kind[:-1].partition("(")
    arrow_type = getattr(pyarrow, name)(*(part.strip(" '") for part in arguments.split(",") if part))
    path = parquet(tmp_path / "x.parquet", {"ok": ["a"], "when": pyarrow.array([value], arrow_type)})
    with pytest.raises(InputError, match=r"x.parquet: column 'when' \(.*\) cannot be read: .*") as caught:
        read_file(path, "x.parquet")
    assert caught.value.remedy == "Write that column as text."


def test_parquet_with_one_name_for_two_columns(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    columns = [pyarrow.array(["a"]), pyarrow.array(["b"])]
    pyarrow.parquet.write_table(pyarrow.Table.from_arrays(columns, ["input", "input"]), tmp_path / "x.parquet")
    with pytest.raises(InputError, match="has two columns 'input'"):
        read_file(tmp_path / "x.parquet", "x.parquet")


def test_a_pipe_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.jsonl")
    with pytest.raises(InputError, match="cannot be read: it is a pipe, not a file"):
        read_file(tmp_path / "x.jsonl", "x.jsonl")


@pytest.mark.parametrize(
    ("name", "text", "bad"),
    [
        ("x.json", '[{"a": 1}, 7]', "x.json, row 2: is a int"),
        ("x.json", '[{"a": 1}, 7, {"a": 2}, [], 8]', "3 of 5 rows"),
        ("x.jsonl", '{"a": 1}\n{"a": \n', "x.jsonl, line 2: malformed JSON"),
        ("x.jsonl", '{"a": 1}\n[2]\n', "x.jsonl, line 2: is a list"),
        ("x.jsonl", '{"a": 1}\n{"a": 1, "a": 2}\n', "x.jsonl, line 2: malformed JSON: the key 'a' stands twice"),
        ("x.jsonl", '{"b": 1}\n{"a": ' + "1" * 5000 + "}", "line 2: malformed JSON: a number has 5,000 digits"),
        ("x.csv", "a,b\n1,2\n1,2,3\n", "x.csv, line 3: not as many cells as the 2 column names: 3 cells"),
        ("x.tsv", 'a\tb\n1\t"two" words\n1\t2\n', "x.tsv, line 2: '\t' expected after '\"'"),
        ("x.csv", 'a,b\n1,2\n1,"open', "x.csv, line 3: unexpected end of data"),
    ],
)
def test_rows_that_cannot_be_read_leave_the_others(tmp_path: Path, name: str, text: str, bad: str) -> None:
    table = read_file(write(tmp_path / name, text), name)
    table.bad.good = len(table.rows)
    assert bad in table.bad.describe()
    assert len(table.rows) == len(table.places) > 0


def test_bytes_that_are_not_utf8_name_line_and_byte(tmp_path: Path) -> None:
    path = tmp_path / "my latin.csv"
    path.write_bytes("input,output\nok,a\ncafé,b\n".encode("latin-1"))
    table = read_file(path, "latin.csv")
    assert [row["input"] for row in table.rows] == ["ok"]
    assert table.bad.describe() == "latin.csv, line 3: is not UTF-8: byte 0xe9"
    (remedy,) = table.bad.remedies()
    subprocess.run(remedy.split("`")[1], shell=True, check=True)
    converted = read_file(tmp_path / "my latin-utf8.csv")
    assert [row["input"] for row in converted.rows] == ["ok", "café"]
    path.write_bytes("café,output\nok,a\n".encode("latin-1"))
    with pytest.raises(InputError, match=r"latin\.csv, line 1: is not UTF-8: byte 0xe9"):
        read_file(path, "latin.csv")
    rows = path.with_name("rows.json")
    rows.write_bytes(b'[{"a": "ok"}, {"a": "caf\xe9"}]')
    assert read_file(rows, "rows.json").bad.describe() == "rows.json, row 2: is not UTF-8: byte 0xe9"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("ending", [".json", ".jsonl", ".csv", ".tsv"])
def test_a_byte_order_mark_names_the_encoding(tmp_path: Path, ending: str, encoding: str) -> None:
    path = write_rows(tmp_path, ending)
    mark = "" if encoding in ("utf-16", "utf-32") else "\ufeff"
    path.write_bytes((mark + path.read_bytes().decode()).encode(encoding))
    assert [dict(row) for row in read_file(path).rows] == ROWS


def test_utf16_without_a_mark_or_cut_short_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes("input,output\none,two\n".encode("utf-16-le"))
    with pytest.raises(InputError, match="UTF-16 without a byte-order mark") as caught:
        read_file(path)
    subprocess.run(caught.value.remedy.split("`")[1], shell=True, check=True)
    assert [dict(row) for row in read_file(tmp_path / "x-utf8.csv").rows] == [{"input": "one", "output": "two"}]
    path.write_bytes("input,output\none,two\n".encode("utf-16")[:-1])
    with pytest.raises(InputError, match="byte 43 is not UTF-16, which its byte-order mark announces"):
        read_file(path)


@pytest.mark.parametrize(
    "text",
    [
        "input;output\none, or two;a\n",
        '"input";"output"\n"one, or two";a\n',
        "input\toutput\none, or two\ta\n",
        'input,output\n"one, or two",a\n',
        'input,output,"a;b"\n"one, or two",a,c\n',
    ],
)
def test_the_header_of_a_csv_file_tells_its_separator(tmp_path: Path, text: str) -> None:
    (row,) = read_file(write(tmp_path / "x.csv", text)).rows
    assert (row["input"], row["output"]) == ("one, or two", "a")


def test_class_names_of_a_parquet_file(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    # As datasets 4 writes it; labels of -1 are withheld, 2 has no name.
    features = {"label": {"names": ["negative", "positive"], "_type": "ClassLabel"}, "n": {"_type": "Value"}}
    table = pyarrow.table({"text": list("abcde"), "label": [0, 1, -1, 2, None], "n": [0, 1, 0, 1, 0]})
    path = tmp_path / "x.parquet"
    described = json.dumps({"info": {"features": features}})
    pyarrow.parquet.write_table(table.replace_schema_metadata({"huggingface": described}), path)
    read = read_file(path, "x.parquet")
    assert [row["label"] for row in read.rows] == ["negative", "positive", None, None]
    assert [row["n"] for row in read.rows] == [0, 1, 0, 0]
    assert read.places == [1, 2, 3, 5]
    assert "row 4: field 'label' has a class number beyond the 2 names of the file: 2" in read.bad.describe()
    for other in ("{", "[]", '{"info": {"features": {"label": {"_type": "ClassLabel"}}}}', '{"info": 3}'):
        pyarrow.parquet.write_table(table.replace_schema_metadata({"huggingface": other}), path)
        assert [row["label"] for row in read_file(path).rows] == [0, 1, -1, 2, None]


def test_text_in_a_parquet_file_that_is_not_utf8(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    texts = pyarrow.array([b"one", b"caf\xe9", None, b"two"]).view(pyarrow.string())
    pyarrow.parquet.write_table(pyarrow.table({"a": texts}), tmp_path / "x.parquet")
    table = read_file(tmp_path / "x.parquet", "x.parquet")
    assert [table.text(0, "a"), table.value(2, "a"), table.text(3, "a")] == ["one", None, "two"]
    with pytest.raises(InputError, match=r"x\.parquet, row 2: field 'a' is no valid Unicode: it holds the byte 0xe9"):
        table.text(1, "a")


def test_missing_file_names_the_nearest(tmp_path: Path) -> None:
    write(tmp_path / "train.json", "[]")
    with pytest.raises(InputError, match=r"trian\.json: there is no such file\. Did you mean 'train\.json'\?"):
        read_table("trian.json", tmp_path)
    with pytest.raises(InputError, match="is not there either"):
        read_table("nowhere/train.json", tmp_path)
    for name in ("x" * 3000, "x" * 3000 + ".json"):
        assert not is_image_source(tmp_path / name)
        with pytest.raises(InputError):
            read_table(name, tmp_path)
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(InputError, match="cannot be read"):
        read_table("folder.json", tmp_path)


def test_cells_become_texts_or_are_refused(tmp_path: Path) -> None:
    rows = '[{"n": 3, "b": true, "f": 0.5, "e": " ", "l": [1], "m": null, "nan": NaN, "s": " kept "}]'
    table = read_file(write(tmp_path / "x.json", rows), "x.json")
    assert [table.text(0, name) for name in "nbfs"] == ["3", "true", "0.5", " kept "]
    for name, cause in (
        ("e", "field 'e' is empty"),
        ("l", "field 'l' is a list, not a text"),
        ("m", "field 'm' is missing"),
        ("nan", "field 'nan' is missing"),
        ("nam", "no field 'nam': the fields are 'n', 'b', "),
    ):
        with pytest.raises(InputError, match=f"x.json, row 1: .*{cause}"):
            table.text(0, name)
    with pytest.raises(InputError, match=r"row 1: there is no field 'nam'; .*Did you mean 'nan'\?"):
        table.require(["s", "nam"])


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.text(min_size=1), st.text(min_size=1)), min_size=1, max_size=5))
def test_csv_written_by_the_standard_library_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, cells: list[tuple[str, str]]
) -> None:
    cells = [
        (a.replace("\0", "").replace("\r", "") or "x", b.replace("\0", "").replace("\r", "") or "x") for a, b in cells
    ]
    cells = [tuple(c.encode("utf-8", "ignore").decode() or "x" for c in pair) for pair in cells]  # type: ignore[misc]
    path = tmp_path_factory.mktemp("csv") / "x.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("input", "output"), *cells])
    assert [(row["input"], row["output"]) for row in read_file(path).rows] == cells


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        ("hub:owner/name", ("owner/name", None, "validation")),
        ("hub:owner/name:small", ("owner/name", "small", "validation")),
        ("hub:owner/name:test", ("owner/name", None, "test")),
        ("hub:owner/name:train[:100]", ("owner/name", None, "train[:100]")),
        ("hub:owner/name::extra", ("owner/name", None, "extra")),
        ("hub:owner/name:small:train[10%:20%]", ("owner/name", "small", "train[10%:20%]")),
        ("hub:imdb", ("imdb", None, "validation")),
    ],
)
def test_hub_sources(source: str, wanted: tuple[str, str | None, str]) -> None:
    assert parse_hub(source, "validation") == wanted


@pytest.mark.parametrize("source", ["hub:", "hub:a/b/c", "hub:a/b:c:d:e", "hub:a b", "hub:a/b:x[1]:train"])
def test_malformed_hub_sources(source: str) -> None:
    with pytest.raises(InputError, match="hub:owner/name"):
        parse_hub(source, "train")


def test_hub_data_set_read_with_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A data set folder beside the process is what ``datasets`` reads without a network."""
    import datasets

    folder = tmp_path / "owner" / "news"
    folder.mkdir(parents=True)
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["world", "sports"])}
    )
    rows = {"text": ["a war", "a goal", "?"], "label": [0, 1, -1]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / "train.parquet")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    table = read_table("hub:owner/news", tmp_path, "train")
    assert [(row["text"], row["label"]) for row in table.rows] == [
        ("a war", "world"),
        ("a goal", "sports"),
        ("?", None),
    ]
    assert table.sha256 == read_table("hub:owner/news:train", tmp_path, "test").sha256
    with pytest.raises(InputError, match="split 'validation' cannot be loaded"):
        read_table("hub:owner/news", tmp_path, "validation")
    with pytest.raises(InputError, match="hub:owner/absent"):
        read_table("hub:owner/absent", tmp_path, "train")
