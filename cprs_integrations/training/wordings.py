"""How people ask for a granularity: wordings that train the critic, and wordings kept for judging it."""

from cprs_integrations.instructions import DEFAULT, INSTRUCTIONS

TRAIN = {
    "keyword": (
        INSTRUCTIONS["keywords"],
        "Extract the keywords that answer the question.",
        "only the exact answer words",
        "Give me the short answer span, nothing around it.",
        "names, dates and numbers that answer the query",
        "Pick out the key terms for this search.",
        "Highlight just the phrase that is being asked for.",
        "the entity or value asked for",
        "Copy the answer itself, as few words as possible.",
        "terms and figures only",
        "What matters is the precise expression: mark it and no more.",
        "Return the relevant tokens.",
        "Tag the shortest piece of text that answers.",
        "answer words",
    ),
    "sentence": (
        DEFAULT,
        INSTRUCTIONS["sentences"],
        INSTRUCTIONS["needles"],
        "Extract the sentences that support an answer.",
        "Select the supporting facts for the user's question.",
        "Mark the statements that contain evidence.",
        "Find the lines that state what is asked.",
        "full sentences with the answer",
        "Keep each statement needed to reply to the user.",
        "Quote the passages, one statement at a time, that prove the answer.",
        "Which sentences should I read?",
        "evidence for the question, in complete sentences",
        "Retain whatever facts help; drop the rest.",
        "relevant sentences",
    ),
    "paragraph": (
        INSTRUCTIONS["paragraphs"],
        "Extract the paragraphs about the topic of the question.",
        "whole sections that deal with the query",
        "Keep the complete passage around the answer.",
        "I need the full paragraph, with all its context.",
        "Mark every block of text that is about this subject.",
        "Return entire passages, not single sentences.",
        "the part of the document that treats the question, from its beginning to its end",
        "Select all the text of the relevant section for a summary.",
        "relevant paragraphs",
        "everything the document says on this subject",
        "Give the surrounding discussion too.",
    ),
}

JUDGE = {
    "keyword": ("Underline the term itself.", "bare facts: who, when, how many", "the minimal string that settles it"),
    "sentence": ("Show me each claim that bears on this.", "statements I could cite as proof", "what would you quote?"),
    "paragraph": ("the entire discussion of the matter", "Leave related text around it intact.", "the complete section"),
}

ASKING = {
    "keyword": ("Mark the words that answer: {}", "the exact term for: {}"),
    "sentence": ("Extract the sentences that answer: {}", "Find the statements about: {}", "{}"),
    "paragraph": ("Keep the paragraphs about: {}", "whole sections on: {}"),
}
"""Instructions that carry the question themselves, the query left empty."""
