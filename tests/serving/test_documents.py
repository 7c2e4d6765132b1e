"""What the README and docs/deploy.md say of the server holds."""

import re
from dataclasses import fields
from pathlib import Path

from samples import ANSWER, CAPITALS

from cprs_integrations.serving import Settings
from cprs_integrations.serving.settings import PREFIX

ROOT = Path(__file__).parents[2]
SECTION = (ROOT / "README.md").read_text(encoding="utf-8").split("### Serve it")[1].split("\n### ")[0]
DEPLOY = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")


def test_the_examples_run(served):
    command, code = re.findall(r"```\n(.*?)```", SECTION, flags=re.S)
    body = re.search(r"-d '(.*)'", command)[1]
    headers = dict(header.split(": ", 1) for header in re.findall(r'-H "(.*?)"', command))
    answer = served.client.post(re.search(r"http://[^/ ]+(\S+)", command)[1], content=body, headers=headers)
    assert answer.json()["text"] == "Bread is made of flour."
    names = {"documents": list(CAPITALS)}
    exec(code.replace("http://127.0.0.1:8000", served.url), names)
    assert ANSWER in names["context"].text


def test_every_setting_and_its_default_is_told():
    told = dict(re.findall(r"^\| `(CPRS_\w+)` \| (\S+)", DEPLOY, flags=re.M))
    defaults = {PREFIX + known.name.upper(): known.default for known in fields(Settings)}
    assert told == {name: str(value).lower().removesuffix(".0") for name, value in defaults.items()}


def test_every_metric_is_told(served):
    names = set(re.findall(r"^# TYPE (cprs_\w+) ", served.get("/metrics").text, flags=re.M))
    names = {name for name in names if not name.endswith("_created")}
    assert names == set(re.findall(r"`(cprs_\w+)(?:\{[^}]*\})?`", DEPLOY.split("**Metrics**")[1].split("###")[0]))


def test_every_error_is_told():
    sources = "".join(path.read_text() for path in (ROOT / "cprs_integrations" / "serving").glob("*.py"))
    found = set(re.findall(r'Refusal\(\s*(\d{3}), "(\w+)"', sources)) | set(re.findall(r'cls\((422|500), "(\w+)"', sources))
    told = DEPLOY.split("**Errors**")[1].split("\n")[0]
    assert {name for _, name in found} >= {"BodyTooSlow", "QueueFull", "TooLate", "ArgumentError"}
    for status, name in found:
        assert re.search(rf"`{name}`(?: and `\w+`)? {status}", told), (status, name)
