import hypothesis
import schemathesis
from hypothesis import HealthCheck
from schemathesis.checks import not_a_server_error
from serving_support import served

from cprs_integrations import CPRSEngine
from cprs_integrations.critics.known import KnownCritic


def test_nothing_that_the_document_describes_makes_a_server_error():
    with served(CPRSEngine(KnownCritic({"a": 0.5}))) as (url, _):
        schema = schemathesis.openapi.from_url(url + "/openapi.json")

        asked = [operation.ok() for operation in schema.get_all_operations()]
        assert {operation.path for operation in asked} >= {
            "/v1/compress",
            "/v1/select",
            "/qwen_long_compress_server",
            "/metrics",
        }
        for operation in asked:

            @hypothesis.seed(0)
            @hypothesis.given(case=operation.as_strategy())
            @hypothesis.settings(max_examples=25, deadline=None, database=None, suppress_health_check=list(HealthCheck))
            def check(case):
                case.call_and_validate(checks=[not_a_server_error])

            check()
