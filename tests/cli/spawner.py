"""A process that has everything imported and forks a real ``merganser`` process per line of its standard input.

Importing torch and transformers takes longer than the toy runs themselves, and the tests of interruptions need many
processes. Each child is a process of its own that runs the command's entry point and can be killed like any other.

Lines in: ``{"arguments": [...], "out": FILE, "err": FILE, "folder": FOLDER}`` -> a line with the child's number;
``{"wait": NUMBER}`` -> a line with its exit code (negative: the signal that ended it), once it has ended.
"""

from __future__ import annotations

import json
import os
import signal
import sys


def child(order: dict[str, object]) -> int:
    """Become the command; returns its exit code."""
    from merganser.cli import main

    for descriptor, key in ((1, "out"), (2, "err")):
        file = os.open(str(order[key]), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(file, descriptor)
    empty = os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, 0)
    os.chdir(str(order["folder"]))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    arguments = order["arguments"]
    assert isinstance(arguments, list)
    sys.argv = ["merganser", *arguments]
    try:
        main()
    except SystemExit as stopped:
        return stopped.code if isinstance(stopped.code, int) else 0
    return 0


def serve() -> None:
    """Answer orders until standard input ends."""
    import matplotlib
    import scipy.stats
    import torch
    from transformers import AutoModel, AutoTokenizer, Trainer
    from transformers.models.bert import modeling_bert

    import merganser.models.matcher
    import merganser.report
    from merganser.learner import Learner

    assert all((matplotlib, scipy.stats, AutoModel, AutoTokenizer, Trainer, modeling_bert, Learner, merganser.report))
    assert merganser.models.matcher
    torch.set_num_threads(1)
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    for line in sys.stdin:
        order = json.loads(line)
        if "wait" in order:
            status = os.waitpid(order["wait"], 0)[1]
            print(os.waitstatus_to_exitcode(status), file=answers)
            continue
        number = os.fork()
        if number == 0:
            code = 1
            try:
                code = child(order)
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        print(number, file=answers)


if __name__ == "__main__":
    serve()
