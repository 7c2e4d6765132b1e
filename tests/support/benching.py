"""What the tests of the benchmark share: a quick counter, a set of questions, the two trivial methods."""

import json
import re

from cprs_integrations.evaluation.haystack import Haystack
from cprs_integrations.evaluation.tasks import LOOK_UPS, RULER, load_task

_TOKEN = re.compile(r"\w+|[^\w\s]")

SIZED = (*RULER, *LOOK_UPS, "needle")
HAYSTACK = Haystack.of(None)
TOWNS = ("Arles", "Bruges", "Cadiz", "Delft", "Evora", "Fribourg", "Gouda", "Huesca", "Imola", "Jena", "Kotor", "Lucca")


def count(text):
    return len(_TOKEN.findall(text))


def nothing(item, budget):
    return ""


def everything(item, budget):
    return item.text


def write_questions(folder):
    """Two small sets: one text a question, and two documents a question."""
    single, double = [], []
    for number, town in enumerate(TOWNS):
        first = f"{town} lies on a river. "
        text = first + f"Its mayor is called Number{number}ina. " + "Nothing else is known of the place. " * (3 + number)
        start = text.index(f"Number{number}ina")
        answers = [{"text": f"Number{number}ina", "start": start}]
        row = {"question": f"Who is mayor of {town}?", "title": town, "context": text, "answers": answers, "evidence": None}
        single.append(row)
        other = f"Number{number}ina was born in the year {1900 + number}. She likes to walk."
        documents = [{"title": town, "text": text}, {"title": f"Number{number}ina", "text": other}]
        documents.append({"title": "Weather", "text": f"It rained {number} times in the week before. Then the sun came out."})
        evidence = [{"doc": 0, "spans": [[len(first), start + len(f"Number{number}ina") + 1]]}]
        evidence.append({"doc": 1, "spans": [[0, other.index(".") + 1]]})
        question = f"When was the mayor of {town} born?"
        double.append({"question": question, "documents": documents, "evidence_docs": evidence, "answers": []})
        double[-1]["answer_text"] = [str(1900 + number)] if number else ["yes"]
    for name, rows in (("squad_small", single), ("hotpot_small", double)):
        (folder / f"{name}.jsonl").write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return folder


def make(name, number, tokens, seed, data):
    return load_task(name, HAYSTACK, count, data, 0, 5).item(number, tokens, seed)
