"""What the document promises holds for requests that schemathesis makes of it."""

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from served import serving

from cprs_integrations import CPRSEngine
from cprs_integrations.critics.known import KnownCritic


@pytest.fixture(scope="module")
def small():
    with serving(CPRSEngine(critic=KnownCritic({"a": 0.9})), kept_bytes=2**20) as served:
        yield served


@pytest.fixture(scope="module")
def document(small):
    return small.get("/openapi.json").json()


def test_every_route_is_described(document):
    assert document["paths"].keys() == {
        "/", "/healthz", "/readyz", "/metrics", "/v1/compress", "/v1/select", "/qwen_long_compress_server",
        "/liveness", "/readiness",
    }  # fmt: skip
    operations = [operation for methods in document["paths"].values() for operation in methods.values()]
    assert all(operation["description"] for operation in operations)
    schemas = document["components"]["schemas"]
    asked = schemas["CompressRequest"]
    assert asked["required"] == ["documents"]
    assert all(field.get("description") for field in asked["properties"].values())
    assert asked["properties"].keys() == {
        "documents", "query", "instruction", "granularity", "threshold", "max_ratio", "max_tokens", "titles", "protect",
        "stream", "prefilter", "keep",
    }  # fmt: skip
    assert document["paths"]["/v1/compress"]["post"]["responses"].keys() >= {
        "200",
        "400",
        "401",
        "413",
        "422",
        "429",
        "500",
        "503",
    }


@pytest.mark.parametrize("path", ["/v1/compress", "/v1/select", "/qwen_long_compress_server"])
@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode), ids=lambda mode: mode.value)
def test_no_request_makes_a_server_error(small, document, path, mode):
    operation = schemathesis.openapi.from_dict(document)[path]["POST"]
    seen = []

    @settings(
        max_examples=30,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def run(case):
        answer = case.call(base_url=small.url)
        seen.append(answer.status_code)
        case.validate_response(
            answer,
            checks=[
                schemathesis.checks.not_a_server_error,
                schemathesis.checks.status_code_conformance,
                schemathesis.checks.content_type_conformance,
                schemathesis.checks.response_schema_conformance,
            ],
        )

    run()
    assert len(seen) >= 10
