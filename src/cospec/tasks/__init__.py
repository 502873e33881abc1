"""Problems whose answers can be checked: `load_task` gives examples, prompts and scores."""

from cospec.tasks.base import SPLITS, Example, Score, Split, Task
from cospec.tasks.load import TASK_NAMES, load_task
from cospec.tasks.splits import BUNDLED_TRAINING_SEEDS, split_of

__all__ = [
    "BUNDLED_TRAINING_SEEDS",
    "SPLITS",
    "TASK_NAMES",
    "Example",
    "Score",
    "Split",
    "Task",
    "load_task",
    "split_of",
]
