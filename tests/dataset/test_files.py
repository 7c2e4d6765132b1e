"""Parts of a Parquet file: what reading them costs, whoever reads which of them."""

import contextlib
import io
import random

import pyarrow
import pyarrow.parquet
import pytest

from cprs_integrations.dataset.files import Reader, parts

ROWS = 2_000


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """One row group, as Parquet's writers make them of so few rows."""
    chance = random.Random(1)
    rows = [
        {"number": n, "kind": "abc"[n % 3], "texts": [chance.randbytes(1_000).hex() for _ in range(2)]} for n in range(ROWS)
    ]
    path = tmp_path_factory.mktemp("dataset") / "rows.parquet"
    table = pyarrow.Table.from_pylist(rows)
    table = table.set_column(1, "kind", table["kind"].dictionary_encode())
    pyarrow.parquet.write_table(table, path, data_page_size=20_000, use_dictionary=["kind"])
    assert pyarrow.parquet.ParquetFile(path).num_row_groups == 1
    return path


class Counting(io.FileIO):
    """A file that notes how much each call reads."""

    def __init__(self, path, sizes):
        super().__init__(path)
        self.sizes = sizes

    def read(self, size=-1):
        data = super().read(size)
        self.sizes.append(len(data))
        return data


@pytest.fixture
def sizes(monkeypatch):
    """Of all reads of Parquet files."""
    sizes, opened = [], pyarrow.parquet.ParquetFile
    with contextlib.ExitStack() as files:
        monkeypatch.setattr(
            pyarrow.parquet,
            "ParquetFile",
            lambda path, **options: opened(files.enter_context(Counting(path, sizes)), **options),
        )
        yield sizes


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_read_a_row_group_once_each_whatever_its_parts(source, sizes, workers):
    found = list(parts([source], 160_000, ["texts"]))
    assert len(found) > 40
    readers = [Reader(["texts"]) for _ in range(workers)]
    numbers = [value["number"] for part in found for value in readers[part.number % workers].read(part).table.to_pylist()]
    assert numbers == list(range(ROWS))
    assert sum(sizes) < (workers + 0.5) * source.stat().st_size


def test_a_part_is_the_same_whoever_reads_it_and_when(source):
    found = list(parts([source], 160_000, ["texts"]))
    reader = Reader(["texts"])
    in_order = [reader.read(part).table for part in found]
    for number in (len(found) - 1, 7, 8, 3, 3, 20):
        assert reader.read(found[number]).table.equals(in_order[number], check_metadata=True)
        assert Reader(["texts"]).read(found[number]).table.equals(in_order[number], check_metadata=True)


def test_no_row_group_is_in_memory_as_a_whole(source):
    reader, before = Reader(["texts"]), pyarrow.total_allocated_bytes()
    held = []
    for part in parts([source], 160_000, ["texts"]):
        rows = reader.read(part)
        held.append(pyarrow.total_allocated_bytes() - before)
        assert rows.numbers[0] == part.first
    assert 0 < max(held) < source.stat().st_size / 2
