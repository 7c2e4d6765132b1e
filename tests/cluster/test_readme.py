"""What the README shows of Ray is run."""

import json
import re
from pathlib import Path

from samples import CAPITALS

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def test_the_example_runs(cluster, tmp_path, monkeypatch):
    (block,) = re.findall(r"```py\n(.*?)```", README, flags=re.S)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "corpus.jsonl").write_text(json.dumps({"texts": CAPITALS, "question": "Who first climbed Mount Everest?"}))
    found = {"documents": CAPITALS}
    exec(compile(block, "README.md", "exec"), found)
    row = json.loads((tmp_path / "compressed" / "part-000000.jsonl").read_text())
    assert "Hillary" in row["cprs_text"] == found["context"].text
