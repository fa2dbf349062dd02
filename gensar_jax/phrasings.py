"""Holds ten phrasings of each of GenSAR's six tasks; the first of a task is the paper's (3.3), if
any. Two tasks more are LC-Rec's.

{history}, {query}, {text} and {identifier} are places; a query's place holds <S_Q> and its words.
"""

from __future__ import annotations

from core.errors import UserError

_NRIP = (
    "Below is the user's interaction history: {history}. Please recommend the next item the user "
    "is likely to click.",
    "The user's interaction history is: {history}. Which item should be recommended next?",
    "Given the interaction history {history}, recommend the next item for this user.",
    "Here is what the user searched and clicked: {history}. Recommend an item the user will click.",
    "A user did the following: {history}. Predict the next recommended item the user clicks.",
    "Interaction history: {history}. Next recommendation:",
    "Based on the history {history}, what item would the user click next?",
    "After {history}, which item will the user like? Please recommend it.",
    "Please read the user's history: {history}. Recommend one more item.",
    "The user has interacted with {history}. Choose the next item to recommend.",
)
_NSQP = (
    "Below is the user's interaction history: {history}. Please predict the next query the user "
    "might want to search.",
    "The user's interaction history is: {history}. What will the user search for next?",
    "Given the interaction history {history}, predict the next query of this user.",
    "Here is what the user searched and clicked: {history}. Write the user's next query.",
    "A user did the following: {history}. Predict what the user will search.",
    "Interaction history: {history}. Next query:",
    "Based on the history {history}, which query would the user search next?",
    "After {history}, what might the user look for? Please write the query.",
    "Please read the user's history: {history}. Suggest a query.",
    "The user has interacted with {history}. Guess the next search query.",
)
_NSIP = (
    "Below is the user's interaction history: {history}. The user's search query is {query}. "
    "Please predict the next item the user might click.",
    "The user's interaction history is: {history}. The query is {query}. Which item is clicked?",
    "Given the interaction history {history} and the query {query}, predict the item the user "
    "clicks.",
    "Here is what the user searched and clicked: {history}. Now the user searches {query}. Find "
    "the item.",
    "A user did the following: {history}. For the query {query}, predict the clicked item.",
    "Interaction history: {history}. Query: {query}. Clicked item:",
    "Based on the history {history}, what item would the user click after searching {query}?",
    "After {history}, the user asks for {query}. Which item fits?",
    "Please read the user's history: {history}. Answer the query {query} with an item.",
    "The user has interacted with {history} and searches {query}. Choose the item to show.",
)
_DESC2ID = (
    'Using the provided description "{text}", predict the corresponding item.',
    'Which item is described by "{text}"?',
    'Description: "{text}". Item:',
    'Find the item whose description is "{text}".',
    'Please give the identifier of the item "{text}".',
    'An item is described as "{text}". Predict its identifier.',
    'Name the item that matches the description "{text}".',
    'The description is "{text}". Which item is it?',
    'Translate the description "{text}" into an item.',
    'Given "{text}", write the identifier of the item.',
)
_ID2DESC = (
    "Please provide a description for the item {identifier}.",
    "What is the item {identifier}?",
    "Item: {identifier}. Description:",
    "Describe the item {identifier}.",
    "Write the description of {identifier}.",
    "The identifier of an item is {identifier}. Describe it.",
    "Which description matches the item {identifier}?",
    "Tell me about the item {identifier}.",
    "Translate the item {identifier} into a description.",
    "Given the identifier {identifier}, write what the item is.",
)
_PSEUDO_QUERY = (
    "The search query is {query}. Please predict the item it leads to.",
    "Which item answers the query {query}?",
    "Query: {query}. Item:",
    "Find an item for the query {query}.",
    "A user searches {query}. Predict the clicked item.",
    "Please give the item for the search {query}.",
    "Someone asks for {query}. Which item fits?",
    "Given the query {query}, predict the corresponding item.",
    "For the search {query}, choose the item to show.",
    "Answer the query {query} with an item.",
)
# LC-Rec's fusion of texts and identifiers: the text of the next item, and a history of texts.
_NEXT_TEXT = (
    "The user's interaction history is: {history}. Describe the item to recommend next.",
    "Given the interaction history {history}, write the description of the next item.",
    "Interaction history: {history}. Description of the next item:",
    "Here is what the user clicked: {history}. What is the next item like?",
    "A user did the following: {history}. Tell what the next item is.",
    "Based on the history {history}, describe an item the user would click next.",
    "After {history}, what is the item that the user will like? Describe it.",
    "Please read the user's history: {history}. Describe one more item.",
    "The user has interacted with {history}. Write what to recommend next.",
    "Translate the history {history} into the description of the next item.",
)
_TOLD_HISTORY = (
    "The user clicked items with these descriptions: {history}. Which item is next?",
    "Given the described items {history}, recommend the next item for this user.",
    "Described history: {history}. Next recommendation:",
    "Here are the descriptions of what the user clicked: {history}. Recommend an item.",
    "A user liked what is described here: {history}. Predict the next item.",
    "Based on the descriptions {history}, what item would the user click next?",
    "After items like {history}, which item will the user like? Please recommend it.",
    "Please read what the user clicked: {history}. Recommend one more item.",
    "The user has interacted with items described as {history}. Choose the next item.",
    "Translate the described history {history} into the next item.",
)
# Next recommended item, next query, next searched item, description to identifier and back, and a
# pseudo-query alone (READINGS).
_ALL = {
    "nrip": _NRIP,
    "nsqp": _NSQP,
    "nsip": _NSIP,
    "desc2id": _DESC2ID,
    "id2desc": _ID2DESC,
    "pseudo_query": _PSEUDO_QUERY,
}
TASKS = tuple(_ALL)
_FUSION = {"next_text": _NEXT_TEXT, "told_history": _TOLD_HISTORY}


def phrasings(task: str) -> tuple[str, ...]:
    """Returns the ten templates of a task.

    Raises:
      UserError: no task has that name.
    """
    if task in _FUSION:
        return _FUSION[task]
    if task not in _ALL:
        raise UserError(
            f"expected tasks of {', '.join(TASKS)} in the mixture, found {task!r}; correct the name"
        )
    return _ALL[task]


def texts() -> list[str]:
    """Returns GenSAR's templates without their places, for training pieces that know their words.

    Give as many copies as make their words frequent: beside the 12,101 titles of Amazon Beauty and
    with 4,000 pieces, a template takes 18.1 tokens on average with one copy, 14.1 with 50.
    """
    places = ("{history}", "{query}", "{text}", "{identifier}")
    fixed = []
    for template in sum(_ALL.values(), ()):
        for place in places:
            template = template.replace(place, " ")
        fixed.append(template)
    return fixed
