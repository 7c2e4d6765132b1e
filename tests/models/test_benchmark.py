"""The benchmark of QwenLong-CPRS, at a small shape: no GPU is needed to see that it runs."""

import re
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "qwenlong.py"


def test_it_measures_ours_and_the_procedure_of_the_reference():
    asked = [sys.executable, str(SCRIPT), "--shape", "small", "--device", "cpu", "--tokens", "500", "--window", "256"]
    ended = subprocess.run(asked, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    head, *rows = ended.stdout.splitlines()
    assert head.startswith("cpu, torch.float32, matrix product")
    assert [row.split("  ")[0] for row in rows] == ["ours", "reference's procedure"]
    read = [re.findall(r"(\d+) tokens in (\d+) windows", row) for row in rows]
    assert read[0] == read[1]
    assert int(read[0][0][0]) == 500
    assert all(float(re.findall(r"([\d.]+)%", row)[0]) > 0 for row in rows)
