"""Corpora on a real cluster: every row as the local engine compresses it, whatever is killed on the way."""

import json
import os
import pickle
import signal
import subprocess
import sys
import time

import pyarrow
import pyarrow.parquet
import pytest
from processes import children
from samples import CAPITALS, QUESTION
from typer.testing import CliRunner

from cprs_integrations.cli import _app
from cprs_integrations.critics.known import KnownCritic
from cprs_integrations.dataset import Summary, compress_dataset, run
from cprs_integrations.dataset.files import COLUMNS, Part, Reader, parts, source_files
from cprs_integrations.dataset.rows import Question, compress_rows
from cprs_integrations.dataset.run import _Task, _Worker
from cprs_integrations.engine import CPRSEngine
from cprs_integrations.errors import ArgumentError, CPRSError, CriticError

ROWS = [
    {"id": number, "texts": [f"Row {number}. {text}" for text in CAPITALS], "names": ["A", None, "", "Peaks"], "ask": QUESTION}
    for number in range(24)
]
LONG_ROWS = [{**row, "texts": row["texts"] * 2, "names": row["names"] * 2} for row in ROWS]
OPTIONS = {"documents": "texts", "titles": "names", "query_column": "ask", "max_ratio": 0.3, "workers": 2, "num_cpus": 0.5}


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_parquet(path, rows):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=10)
    return path


def read_all(folder):
    """The rows of the output, in order, and how many files they are in."""
    found, files = [], sorted(folder.glob("part-*"))
    for path in files:
        if path.suffix == ".jsonl":
            found += [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        else:
            found += pyarrow.parquet.read_table(path).to_pylist()
    return found, len(files)


def check(engine, rows, found):
    """Row by row: what went in, and what the local engine makes of it."""
    assert [{name: row[name] for name in row if name not in COLUMNS} for row in found] == rows
    for row in found:
        expected = engine.compress(row["texts"], row["ask"], titles=row["names"], max_ratio=0.3).to_dict()
        del expected["stats"]["seconds"]
        assert row["cprs_text"] == expected["text"]
        assert row["cprs_documents"] == expected["documents"]
        assert row["cprs_stats"] == expected["stats"]
        assert row["cprs_error"] is None


@pytest.fixture(scope="module")
def done(cluster, tmp_path_factory):
    """A finished run over two files: the folder of its source, and what it came to."""
    folder = tmp_path_factory.mktemp("done")
    write_jsonl(folder / "b.jsonl", ROWS[14:])
    write_jsonl(folder / "a.jsonl", ROWS[:14])
    (folder / "notes.txt").write_text("not of the source")
    return folder, compress_dataset(folder, folder / "out", part_bytes=2_000, **OPTIONS)


def test_every_row_is_as_the_local_engine_compresses_it(engine, done):
    folder, summary = done
    found, files = read_all(folder / "out")
    check(engine, ROWS, found)
    assert files == summary.parts > 4
    original = sum(len(text) for row in ROWS for text in row["texts"])
    assert summary == Summary(24, 0, original, sum(len(row["cprs_text"]) for row in found), files)


def test_the_same_call_again_does_nothing(done):
    folder, summary = done
    before = {path: path.stat().st_mtime_ns for path in (folder / "out").iterdir()}
    assert compress_dataset(folder, folder / "out", part_bytes=2_000, **OPTIONS) == summary
    assert {path: path.stat().st_mtime_ns for path in (folder / "out").iterdir()} == before


def test_another_question_or_source_is_refused(done, tmp_path):
    folder, _ = done
    with pytest.raises(ArgumentError, match=r"another run: options was \{'max_ratio': 0\.3\} and is \{'max_ratio': 0\.5\}"):
        compress_dataset(folder, folder / "out", part_bytes=2_000, **{**OPTIONS, "max_ratio": 0.5})
    with pytest.raises(ArgumentError, match="another run: source was"):
        compress_dataset(folder / "a.jsonl", folder / "out", part_bytes=2_000, **OPTIONS)
    (tmp_path / "thesis.txt").write_text("not of a run")
    with pytest.raises(ArgumentError, match="is not empty, and no run has begun"):
        compress_dataset(folder, tmp_path, **OPTIONS)


def test_the_command_does_the_same_with_parquet(engine, cluster, tmp_path):
    write_parquet(tmp_path / "rows.parquet", ROWS)
    arguments = "--documents texts --titles names --query-column ask --max-ratio 0.3 --num-cpus 0.5 --workers 1".split()
    done = CliRunner().invoke(_app(), ["compress-dataset", str(tmp_path), "-o", str(tmp_path / "out"), *arguments])
    assert done.exit_code == 0, done.output
    assert "24 rows in 3 files, 0 with an error" in done.output
    check(engine, ROWS, read_all(tmp_path / "out")[0])


RUN = """
import sys, ray
from cprs_integrations.dataset import compress_dataset
ray.init(address=sys.argv[1], log_to_driver=False)
compress_dataset(sys.argv[2], sys.argv[3], documents="texts", titles="names", query_column="ask", max_ratio=0.3, workers=1,
                 num_cpus=0.5, part_bytes=1_500)
"""


def test_a_run_that_was_killed_goes_on_where_it_was(engine, cluster, tmp_path):
    source, out = write_jsonl(tmp_path / "rows.jsonl", LONG_ROWS), tmp_path / "out"
    address = cluster.get_runtime_context().gcs_address
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, address, str(source), str(out)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        while not (out / "parts.jsonl").exists() or (out / "parts.jsonl").read_bytes().count(b"\n") < 2:
            assert process.poll() is None
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()
    done = {path: path.stat().st_mtime_ns for path in out.glob("part-*")}
    listed = (out / "parts.jsonl").read_bytes().splitlines()
    with (out / "parts.jsonl").open("ab") as file:
        file.write(b'{"part": 7, "ro')  # killed while it wrote a line
    (out / ".part-000009.jsonl.0").write_text("half a par")
    summary = compress_dataset(source, out, part_bytes=1_500, **OPTIONS)
    found, files = read_all(out)
    assert 2 <= len(listed) < files
    check(engine, LONG_ROWS, found)
    assert summary.rows == 24
    assert not list(out.glob(".part-*"))
    kept = [out / f"part-{json.loads(line)['part']:06d}.jsonl" for line in listed]
    assert [path.stat().st_mtime_ns for path in kept] == [done[path] for path in kept]


def test_a_worker_that_is_killed_loses_nothing(engine, cluster, tmp_path, monkeypatch):
    source, out = write_jsonl(tmp_path / "rows.jsonl", LONG_ROWS), tmp_path / "out"
    killed = []

    def append_and_kill(path, row):
        append(path, row)
        if not killed:
            killed.extend(children("MapWorker")[:1])
            os.kill(killed[0], signal.SIGKILL)

    append = run._append
    monkeypatch.setattr(run, "_append", append_and_kill)
    summary = compress_dataset(source, out, part_bytes=1_500, **{**OPTIONS, "workers": 1})
    assert killed
    assert summary.rows == 24
    check(engine, LONG_ROWS, read_all(out)[0])


def test_bad_rows_are_written_with_their_error_or_stop_the_run(engine, cluster, tmp_path):
    source = tmp_path / "rows.jsonl"
    good = {"texts": "Edmund Hillary climbed Everest. Bread is made of flour.", "extra": "\ud800"}
    lines = [
        json.dumps(good),
        "{broken",
        "",
        json.dumps({"text": "no such column"}),
        json.dumps({"texts": 7}),
        json.dumps({"texts": None}),
        json.dumps(["a", "list"]),
        json.dumps({**good, "cprs_text": "mine"}),
        json.dumps({"texts": []}),
    ]
    source.write_bytes("\n".join(lines).encode() + b"\n\xff\xfe\n")
    options = {"documents": "texts", "query": QUESTION, "workers": 1, "num_cpus": 0.5}
    with pytest.raises(ArgumentError, match=r"rows\.jsonl, row 2: the line is not JSON.*on_error"):
        compress_dataset(source, tmp_path / "raised", **options)
    out = tmp_path / "recorded"
    summary = compress_dataset(source, out, on_error="record", **options)
    assert (summary.rows, summary.failed) == (9, 7)
    found, _ = read_all(out)
    assert found[0]["extra"] == "\ud800"
    assert found[0]["cprs_text"] == engine.compress(good["texts"], QUESTION).text
    assert found[7]["cprs_text"] == ""
    assert found[1]["cprs_line"] == "{broken"
    assert [row["cprs_error"] is None for row in found] == [True, *[False] * 6, True, False]
    for place, told in (
        (1, "ArgumentError: the line is not JSON"),
        (2, "ArgumentError: the row has no column 'texts'; it has text"),
        (3, "ArgumentError: documents must be a str or a sequence of str, not int"),
        (5, "ArgumentError: the line is a JSON list"),
        (6, "ArgumentError: the row has a column 'cprs_text' already"),
        (8, "ArgumentError: the line is not JSON in UTF-8"),
    ):
        assert found[place]["cprs_error"].startswith(told)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"documents": "nothing"}, r"has no column 'nothing'; it has id, texts, names, ask"),
        ({"query": "q"}, "give one of them"),
        ({"query_column": None}, "query and instruction are both empty"),
        ({"on_error": "ignore"}, "on_error must be"),
        ({"workers": 0}, "workers must be"),
        ({"part_bytes": True}, "part_bytes must be"),
        ({"max_ratio": 2.0}, "max_ratio must be"),
        ({"colour": "red"}, "'colour' is no option; there are instruction, granularity"),
        ({"token_counter": lambda text: 1}, "token_counter: .* cannot be written down"),
        ({"num_cpus": 0}, "num_cpus and num_gpus"),
    ],
)
def test_bad_arguments_are_named_before_anything_is_done(tmp_path, change, told):
    source = write_parquet(tmp_path / "rows.parquet", ROWS)
    with pytest.raises(ArgumentError, match=told):
        compress_dataset(source, tmp_path / "out", **{**OPTIONS, **change})
    assert not (tmp_path / "out").exists()


def test_bad_sources_are_named(tmp_path):
    with pytest.raises(ArgumentError, match="no file or folder"):
        source_files(tmp_path / "missing")
    with pytest.raises(ArgumentError, match=r"ends with \.jsonl or \.parquet"):
        source_files(tmp_path)
    write_jsonl(tmp_path / "a.jsonl", ROWS)
    write_parquet(tmp_path / "b.parquet", ROWS)
    with pytest.raises(ArgumentError, match=r"of one kind, .*not \.jsonl, \.parquet"):
        source_files(tmp_path)
    with pytest.raises(ArgumentError, match="another folder than that of the source"):
        compress_dataset(tmp_path / "a.jsonl", tmp_path, **OPTIONS)
    (tmp_path / "b.parquet").write_text("no parquet")
    with pytest.raises(ArgumentError, match="cannot be read as Parquet"):
        compress_dataset(tmp_path / "b.parquet", tmp_path / "out", **OPTIONS)
    taken = write_parquet(tmp_path / "c.parquet", [{**row, "cprs_text": ""} for row in ROWS])
    with pytest.raises(ArgumentError, match="has a column 'cprs_text' already"):
        compress_dataset(taken, tmp_path / "out", **OPTIONS)


@pytest.mark.parametrize("size", [1, 500, 3_000, 10**9])
@pytest.mark.parametrize("make", [write_jsonl, write_parquet])
def test_parts_are_all_rows_in_order_whatever_their_size(tmp_path, make, size):
    path = make(tmp_path / f"rows.{make.__name__.removeprefix('write_')}", ROWS)
    found = list(parts([path, path], size, ["texts"]))
    reader = Reader(["texts"])
    rows = [reader.read(part) for part in found]
    assert [part.number for part in found] == list(range(len(found)))
    assert [value["texts"] for part in rows for value in part.values] == [row["texts"] for row in ROWS] * 2
    assert [number for part in rows for number in part.numbers] == [*range(1, 25), *range(1, 25)]
    assert len(found) == {1: 48, 10**9: 2 if make is write_jsonl else 6}.get(size, len(found))


def test_a_part_that_kills_its_workers_is_given_up(tmp_path):
    source = write_jsonl(tmp_path / "rows.jsonl", ROWS)
    (part,) = parts([source], 10**9, ["texts"])
    (tmp_path / f".{part.output}.tries").write_bytes(b"...")
    worker = _Worker(_Task(Question("texts", QUESTION), None, {}, "record", str(tmp_path)))
    error = pickle.loads(worker(vars(part))["found"])
    assert isinstance(error, CPRSError)
    assert "rows from 1 on: 3 workers died of them" in str(error)
    assert isinstance(part, Part)


def test_a_critic_that_fails_on_one_row_fails_on_that_row_alone():
    class Failing(KnownCritic):
        def score(self, windows):
            for window in windows:
                if "mistake" in window.pieces[0].text:
                    raise ZeroDivisionError
                yield from super().score([window])

    engine = CPRSEngine(critic=Failing({"Hillary": 0.9}))
    rows = [{"texts": text} for text in (CAPITALS[3], "a mistake", CAPITALS[0])]
    found = compress_rows(engine, Question("texts", QUESTION), [*rows, ArgumentError("no row")])
    assert "Hillary" in found[0].text
    assert isinstance(found[1], CriticError)
    assert found[2].text == ""
    assert str(found[3]) == "no row"
