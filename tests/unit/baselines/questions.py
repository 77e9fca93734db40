"""Questions with choices, for the baselines of `choice`."""

from lushan.data.splits import Parts
from lushan.records import Example, TaskState

STATE = TaskState()


def question(text: str, choices: list[str], right: int) -> Example:
    """Give an example as the task reads it."""
    extra = {"question": text, "choices": choices}
    return Example(f"{text}{choices}", text, choices[right], extra=extra, labels=())


def parts(train: list[Example], test: list[Example]) -> Parts:
    """Give splits without validation rows."""
    return Parts(train, [], test)
