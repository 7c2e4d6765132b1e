import hashlib
import json
import multiprocessing
import os
import pickle
import subprocess
import sys

import numpy as np
import onnxruntime
import pytest
from samples import CAPITALS, QUESTION

from cprs_integrations import CPRSEngine
from cprs_integrations.critics import load_critic
from cprs_integrations.critics.base import Critic
from cprs_integrations.critics.mini import SHIPPED, MiniCritic
from cprs_integrations.windows import Prompt


def test_it_has_the_protocol_and_a_calibrated_threshold(engine):
    assert isinstance(engine.critic, Critic)
    assert 0 < engine.critic.threshold < 1


def test_the_hashes_in_the_folder_are_those_of_its_files():
    config = json.loads((SHIPPED / "config.json").read_text())
    for name, digest in config["files"].items():
        assert hashlib.sha256((SHIPPED / name).read_bytes()).hexdigest() == digest
    assert sum(path.stat().st_size for path in SHIPPED.iterdir()) < 35_000_000


def test_the_shipped_folder_has_a_model_card():
    card = (SHIPPED / "README.md").read_text()
    for heading in ("## Data", "## Figures", "## Limits", "Licence"):
        assert heading in card


def test_engines_of_a_process_share_one_critic_and_other_options_get_another():
    assert CPRSEngine.from_pretrained().critic is load_critic() is CPRSEngine().critic
    assert load_critic(threads=1) is not load_critic()
    assert load_critic("mini", threads=1) is load_critic("mini", threads=1)


def test_probabilities_come_row_by_row_for_the_scored_tokens_alone(engine):
    critic = engine.critic
    prompt = Prompt("i", "q", critic.encode_prompt("i", "q"))
    windows = list(_windows(engine, prompt))
    answers = list(critic.score(windows))
    assert len(answers) == len(windows) > 1
    for window, scores in zip(windows, answers, strict=True):
        assert scores.bioe.shape == (len(window.rows), 4)
        assert np.allclose(scores.bioe.sum(axis=1), 1, atol=1e-5)


def test_many_threads_answer_what_one_does_in_the_same_order(engine):
    alone, together = load_critic(threads=1), load_critic(threads=3)
    windows = list(_windows(engine, Prompt("i", "q", alone.encode_prompt("i", "q")))) * 12
    lengths = {len(window.rows) for window in windows}
    assert (alone.threads, together.threads) == (1, 3)
    assert len(lengths) > 1
    for one, other in zip(alone.score(windows), together.score(windows), strict=True):
        assert np.array_equal(one.bioe, other.bioe)


def _windows(engine, prompt):
    from cprs_integrations.windows import Piece, pack

    pieces = [Piece(0, number, text, engine.critic.encode([text]).ids) for number, text in enumerate(list(CAPITALS) * 8)]
    return pack(pieces, prompt, engine.critic.limits.room(prompt), engine.critic.limits.margin, engine.critic.separator)


def test_a_window_scores_the_same_whatever_is_scored_beside_it(engine):
    prompt = Prompt("i", QUESTION, engine.critic.encode_prompt("i", QUESTION))
    windows = list(_windows(engine, prompt))
    together = [scores.bioe.tobytes() for scores in engine.critic.score(windows)]
    alone = [next(engine.critic.score([window])).bioe.tobytes() for window in windows]
    assert together == alone


def test_windows_are_read_a_few_ahead_and_no_further(engine):
    read = []

    def endless():
        prompt = Prompt("i", "q", engine.critic.encode_prompt("i", "q"))
        windows = list(_windows(engine, prompt))
        while True:
            read.append(1)
            yield windows[0]

    answers = engine.critic.score(endless())
    next(answers)
    assert len(read) <= 4 * (os.cpu_count() or 1)
    answers.close()


def test_the_prompt_is_classify_instruction_separator_query_separator(engine):
    ids = engine.critic.encode_prompt("a", "b [SEP]").tolist()
    assert ids[0] == 101
    assert [place for place, token in enumerate(ids) if token == 102] == [2, len(ids) - 1]


def _texts_in_child(queue, engine):
    engines = (engine, CPRSEngine.from_pretrained())
    queue.put([engine.compress(CAPITALS, QUESTION, max_ratio=0.3).text for engine in engines])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning")
def test_a_reader_is_sent_with_memory_that_cannot_be_written_and_encodes_as_before(engine):
    engine.critic.encode(["Mount Everest is high."])
    buffers = []
    sent = pickle.dumps(engine.critic.reader(), protocol=5, buffer_callback=buffers.append)
    reader = pickle.loads(sent, buffers=[bytes(buffer.raw()) for buffer in buffers])
    for text in ("Mount Everest is high.", "words that nobody asked it before: zyzzyva, Zürich, [SEP], 山"):
        found, expected = reader.encode([text]), engine.critic.encode([text])
        assert all(
            np.array_equal(getattr(found, name), getattr(expected, name)) for name in ("ids", "starts", "ends", "counts")
        )


def test_it_works_after_a_fork(engine):
    expected = engine.compress(CAPITALS, QUESTION, max_ratio=0.3).text
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_texts_in_child, args=(queue, engine))
    child.start()
    assert queue.get(timeout=60) == [expected, expected]
    child.join(60)
    assert child.exitcode == 0


def test_neither_torch_nor_a_framework_is_imported():
    code = (
        "import sys; from cprs_integrations import CPRSEngine; CPRSEngine.from_pretrained().compress('A b. C d.', 'q');"
        "print(sorted({'torch', 'transformers', 'langchain_core', 'llama_index', 'pydantic'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_nothing_is_asked_of_the_network():
    code = (
        "import socket\n"
        "def refuse(*a, **k): raise AssertionError('network')\n"
        "socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse\n"
        "from cprs_integrations import CPRSEngine\n"
        "print(len(CPRSEngine.from_pretrained().compress(['Paris is in France.'], 'Where is Paris?').documents))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"


def test_the_session_runs_on_the_cpu_with_one_thread_a_call():
    assert MiniCritic.from_pretrained().session.get_providers() == ["CPUExecutionProvider"]
    assert isinstance(MiniCritic.from_pretrained().session, onnxruntime.InferenceSession)
