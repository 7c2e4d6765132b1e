"""Windows, tags, spans and whole answers of the reference server."""

import pytest
import reference_windows as reference
import torch
from published_prompts import PUBLISHED, kept_and_named

from cprs_integrations.critics.qwenlong import QwenLongCritic
from cprs_integrations.reference import ReferenceSpan, clean, smooth, spans

pytestmark = pytest.mark.golden

MODELS = ("model_l28_f32", "model_l24_bf16")
TAGS = "BIOE"


def test_windows_are_those_of_the_reference(read, tokenizer):
    records = read("windows")["windows"]
    outcomes = []
    for record in records:
        head, _ = reference.tokens(tokenizer, reference.header(record["prompt"], record["query"]))
        windows = reference.cut(tokenizer, len(head), record["context"], record["split_with_sent"], record["max_len"])
        assert [window.text for window in windows] == [window["context"] for window in record["windows"]], record["name"]
        for ours, theirs in zip(windows, record["windows"], strict=True):
            assert [list(pair) for pair in ours.offsets] == theirs["offset_mapping"], record["name"]
            assert len(head) == theirs["query_len"]
            assert len(head) + len(reference.tokens(tokenizer, ours.text)[0]) == theirs["model_input_len"]
            outcomes.append(theirs["server_outcome"])
    assert len(records) == 168
    assert {"ok", "padded_with_O", "BackendError"} == set(outcomes)


def test_chinese_is_detected_as_in_the_reference(read):
    for text, expected in read("windows")["detect_chinese"]:
        assert reference.has_chinese(text) is expected


def test_the_critics_prompt_is_the_references_header(read, goldens):
    critic = QwenLongCritic.from_pretrained(goldens / "model_l28_f32", device="cpu", tags=["needle", "fact", "chain"])
    plain = [record for record in read("windows")["headers"] if "<|" not in record["prompt"] + record["query"]]
    assert plain
    for record in plain:
        assert critic.encode_prompt(record["prompt"], record["query"]).tolist() == record["header_ids"]


@pytest.mark.parametrize("word", PUBLISHED)
@pytest.mark.parametrize("model", MODELS)
def test_published_prompts_give_labelled_spans_everywhere(read, goldens, model, word):
    request = read(f"server_{model}")["pipeline"][0]["request"]
    _, query, context = (message["content"] for message in request["payload"]["input"]["messages"])
    documents = [context[: len(context) // 2], context[len(context) // 2 :]]
    answers = kept_and_named(goldens / model, PUBLISHED[word], documents, query, device="cpu")
    (texts, labels), *others = answers
    assert texts
    assert labels == {word}
    assert others == [(texts, labels)] * 2


def test_tags_are_smoothed_and_decoded_as_in_the_reference(read):
    compared = 0
    for sequence in read("tags_spans")["sequences"]:
        assert smooth(sequence["tags"]) == sequence["smoothed"]
        for record in sequence["spans"]:
            found = spans(
                sequence["smoothed"],
                sequence["offsets"],
                sequence["context"],
                min_keyword_len=record["min_keyword_len"],
                complete_sentence=record["complete_sentence"],
            )
            assert shown(found, record["return_offset"]) == record["raw"]
            assert shown(clean(found), record["return_offset"]) == record["cleaned"]
            compared += 1
    assert compared == 86 * 12


def shown(found, with_offsets):
    return [list(span) if with_offsets else span.text for span in found]


def test_spans_are_cleaned_as_in_the_reference(read):
    for record in read("tags_spans")["clean_preds"]:
        given = [ReferenceSpan(*item) if record["return_offset"] else ReferenceSpan(item, 0, 0) for item in record["input"]]
        assert shown(clean(given), record["return_offset"]) == record["output"]


def test_sentences_are_completed_as_in_the_reference(read):
    for record in read("tags_spans")["sentence_completion"]:
        offsets = [(place, place + 1) for place in range(len(record["tags"]))]
        for name, complete in (("plain", False), ("completed", True)):
            found = spans(
                record["tags"],
                offsets,
                record["context"],
                min_keyword_len=record["min_keyword_len"],
                complete_sentence=complete,
            )
            assert shown(found, True) == record[name]


@pytest.mark.parametrize("file", [f"server_{model}" for model in MODELS] + ["server_long_8192"])
def test_the_whole_way_gives_the_answers_of_the_server(read, tokenizer, models, file):
    golden = read(file)
    model = models(golden["model"])
    known, failed = {}, 0
    assert len(golden["pipeline"]) == (1 if file == "server_long_8192" else 76)
    for record in golden["pipeline"]:
        payload = record["request"]["payload"]
        prompt, query, context = (message["content"] for message in payload["input"]["messages"])
        parameters = payload["parameters"]
        head, _ = reference.tokens(tokenizer, reference.header(prompt, query))
        windows = reference.cut(tokenizer, len(head), context, parameters["split_with_sent"], record["max_len_used"])
        assert len(windows) == record["n_windows"]
        found = [_tags(model, known, head + reference.tokens(tokenizer, window.text)[0]) for window in windows]
        if record.get("raw_window_argmax"):  # of a request that fails, those up to the failure
            whole = record["raw_window_argmax"]
            assert found[: len(whole)] == whole
        try:
            tags, offsets = reference.joined(windows, [tags[len(head) :] for tags in found])
        except reference.ReferenceError:
            assert record["response_header"]["status_name"] == "BackendError"
            failed += 1
            continue
        assert record["usage"]["input_tokens"] == len(head) * len(windows) + len(offsets)
        low = set(record.get("low_margin_positions", ()))
        assert len(tags) == len(record["tags"])
        assert [
            place
            for place, pair in enumerate(zip(tags, record["tags"], strict=True))
            if len(set(pair)) > 1 and place not in low
        ] == []
        if tags != record["tags"]:
            tags = record["tags"]  # they differ where they may: what follows is compared on the reference's
        smoothed = smooth(tags)
        assert smoothed == record["smoothed"]
        kept = spans(
            smoothed,
            offsets,
            context,
            min_keyword_len=parameters["min_keyword_len"],
            complete_sentence=parameters["complete_sentence"],
        )
        assert shown(clean(kept), parameters["return_offset"]) == record["output"]["text"], record["name"]
    assert failed == (0 if file == "server_long_8192" else 4)


def _tags(model, known, ids):
    key = tuple(ids)
    if key not in known:
        with torch.inference_mode():
            best = model(torch.tensor([ids])).bi_logits[0].argmax(-1).tolist()
        known[key] = "".join(TAGS[tag] for tag in best)
    return known[key]
