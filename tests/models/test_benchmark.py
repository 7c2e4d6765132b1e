"""The benchmark of QwenLong-CPRS, at a small shape: no GPU is needed to see that it runs."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import numpy as np

from cprs_integrations import CPRSEngine

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


def test_reading_the_prompt_once_changes_nothing():
    spec = importlib.util.spec_from_file_location("qwenlong_benchmark", SCRIPT)
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    text = benchmark._SENTENCE * 9
    found = []
    for kind in ("ours", "prompt-once"):
        model = benchmark.random_model("small", "cpu", benchmark.torch.float32)
        critic = benchmark.KINDS[kind]([model], benchmark.byte_tokenizer(), window=512, batch_tokens=4096)
        engine = CPRSEngine(critic=critic)
        found.append(engine.score(text, benchmark.QUERY, instruction=benchmark.INSTRUCTION).scores)
        assert sum(critic.lengths) < critic.padded  # windows of several lengths shared a batch
    assert len(found[0]) == 9
    assert np.ptp(found[0]) > 1e-3
    np.testing.assert_allclose(*found, atol=1e-5)
