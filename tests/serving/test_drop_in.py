"""The wire format of the server that was released with QwenLong-CPRS."""

import json

import pytest
from samples import ANSWER, CAPITALS, QUESTION
from served import BreakingCritic, serving

from cprs_integrations import CPRSEngine

JSON = {"Content-Type": "application/json"}
PATH = "/qwen_long_compress_server"
TEXT = " ".join(CAPITALS)


def request(text=TEXT, query=QUESTION, system="sentences that help to answer the query", **parameters):
    messages = [
        {"role": "system", "content": system},
        {"role": "user", "content": query},
        {"role": "context", "content": text},
    ]
    return {"header": {"request_id": "r-1"}, "payload": {"input": {"messages": messages}, "parameters": parameters}}


def test_a_success_echoes_the_request_and_has_text_usage_and_status(served, engine):
    sent = request()
    answer = served.post(PATH, sent)
    found = answer.json()
    assert answer.status_code == 200
    assert found["header"] == {
        "request_id": "r-1", "status_code": 200, "status_name": "Success", "status_message": "Success", "finished": True,
    }  # fmt: skip
    assert found["payload"].items() >= sent["payload"].items()
    expected = engine.compress(TEXT, QUESTION, instruction="sentences that help to answer the query")
    assert found["payload"]["output"]["text"] == [TEXT[span.start : span.end] for span in expected.documents[0].spans]
    scored = engine.score(TEXT, QUESTION, instruction="sentences that help to answer the query")
    assert found["payload"]["usage"] == {"input_tokens": scored.windows * len(scored.prompt.ids) + len(scored.odds)}


def test_offsets_are_those_of_the_text(served):
    spans = served.post(PATH, request(return_offset=True, complete_sentence=True)).json()["payload"]["output"]["text"]
    assert any(ANSWER in text for text, _, _ in spans)
    assert all(TEXT[start:end].strip() == text for text, start, end in spans)


def test_short_spans_are_left_out(served):
    asked = {"system": "Mark only the names.", "return_offset": True}
    every = served.post(PATH, request(min_keyword_len=0, **asked)).json()["payload"]["output"]["text"]
    longer = served.post(PATH, request(min_keyword_len=6, **asked)).json()["payload"]["output"]["text"]
    assert longer == [span for span in every if served.service.engine.count_tokens(span[0]) > 6]


def test_parameters_may_be_missing_and_others_are_passed_over(served):
    sent = request(chunk_size=3, batch_size=2, split_with_sent=False)
    del sent["payload"]["parameters"]
    assert served.post(PATH, sent).json()["header"]["status_code"] == 200
    assert served.post(PATH, request(chunk_size=3, batch_size=2, split_with_sent=False)).json()["header"]["status_code"] == 200


def without(sent, *keys):
    place = sent
    for key in keys[:-1]:
        place = place[key]
    del place[keys[-1]]
    return sent


def test_what_json_can_hold_comes_back(served):
    sent = request("Lone \ud800 surrogate, Grüße. " + TEXT, mood="\ud801")
    sent["header"] |= {"\ud802": 1e300, "request_id": "\ud803"}
    answer = served.client.post(PATH, content=json.dumps(sent), headers=JSON)
    found = answer.json()
    assert (answer.status_code, found["header"]["status_code"]) == (200, 200)
    assert found["header"].items() >= sent["header"].items()
    assert found["payload"].items() >= sent["payload"].items()


@pytest.mark.parametrize("place", ["header", "payload"])
def test_what_json_cannot_hold_is_refused(served, place):
    sent = request()
    sent[place]["more"] = "?"
    for number in ("1e999", "-1e999", "Infinity", "NaN", "[" * 2_000 + "]" * 2_000):
        answer = served.client.post(PATH, content=json.dumps(sent).replace('"?"', number), headers=JSON)
        assert (answer.status_code, answer.json()["error"]["type"]) == (400, "MalformedRequest")


def test_no_depth_of_nesting_makes_an_error_of_the_server(served):
    sent = request()
    sent["header"]["more"] = "?"
    found = set()
    for depth in range(950, 1_010):
        content = json.dumps(sent).replace('"?"', "[" * depth + "]" * depth)
        found.add(served.client.post(PATH, content=content, headers=JSON).status_code)
    assert found <= {200, 400}


@pytest.mark.parametrize(
    "sent",
    [
        {},
        without(request(), "header"),
        without(request(), "payload"),
        without(request(), "payload", "input"),
        without(request(), "payload", "input", "messages", 2),
        without(request(), "payload", "input", "messages", 0, "role"),
        request(min_keyword_len="4"),
        request(batch_size=0),
        request(text=None),
        request(query="", system=" "),
    ],
)
def test_what_is_no_request_is_a_schema_error_over_http_200(served, sent):
    answer = served.post(PATH, sent)
    found = answer.json()
    assert answer.status_code == 200
    assert (found["header"]["status_code"], found["header"]["status_name"]) == (440, "SchemaError")
    assert found["header"]["status_message"]
    assert found["payload"]["output"] == {"is_match": False}
    assert found["payload"]["usage"] == {"input_tokens": -1, "output_tokens": -1}


def test_what_is_wrong_is_named_with_its_path(served):
    def told(sent):
        return served.post(PATH, sent).json()["header"]["status_message"]

    assert told(request(min_keyword_len="4")) == "payload.parameters.min_keyword_len: Input should be a valid integer"
    assert told(without(request(), "payload", "input", "messages", 1, "role")).startswith("payload.input.messages.1.role:")


def test_wrong_roles_are_told_in_the_words_of_the_released_server(served):
    sent = request()
    sent["payload"]["input"]["messages"].reverse()
    message = served.post(PATH, sent).json()["header"]["status_message"]
    assert message.startswith('Messages should len=3 list, the first role should be "system"')


def test_a_failure_is_a_backend_error_without_the_text():
    with serving(CPRSEngine(critic=BreakingCritic({}))) as served:
        answer = served.post(PATH, request("the secret poison"))
    assert (answer.status_code, answer.json()["header"]["status_code"]) == (200, 500)
    assert answer.json()["header"]["status_name"] == "BackendError"
    assert answer.headers["x-request-id"] in answer.json()["header"]["status_message"]


def test_limits_are_https_own(known):
    with serving(known, token="t", max_body_bytes=100) as served:
        assert served.post(PATH, request()).status_code == 401
        assert served.post(PATH, request(), headers={"Authorization": "Bearer t"}).status_code == 413
