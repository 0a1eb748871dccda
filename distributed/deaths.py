"""Why a worker was lost, in a few words of one line, from what Ray tells and what the worker said last."""

from __future__ import annotations

import re
from pathlib import Path

import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, NodeDiedError

NODE_DEATH = re.compile(r"node has died|node was (preempted|terminated)")
"""In Ray's message; it names a node for every actor that has died."""
PROCESS = re.compile(r"\bpid: (\d+)")
EXIT_CODE = re.compile(r"exits with an exit code ([^\n]+?)\.?(?:\n|$)")
"""In Ray's message; behind `sys.exit(text)` the text."""
LONGEST = 300


def is_nodes_fault(error: BaseException) -> bool:
    """Whether a worker was lost with its node, which says nothing against the shard it ran."""
    return isinstance(error, NodeDiedError) or (
        isinstance(error, ActorDiedError) and NODE_DEATH.search(str(error)) is not None
    )


def reason_of(error: BaseException) -> str:
    """Why a worker was lost. One that could not start tells the last line of its traceback, or of what it printed."""
    text = " ".join(str(error).split())
    if "creation task" in text:
        return f"could not start: {_last_line(str(error))}"
    if "OutOfMemory" in text or "low on memory" in text:
        return "its process was killed for want of memory"
    if is_nodes_fault(error):
        return "its node is gone"
    if isinstance(error, ActorDiedError):
        return "its process died" + (f": {said}" if (said := _last_words(str(error))) else "")
    if isinstance(error, ActorUnavailableError):
        return "it does not answer"
    return text[:LONGEST] or type(error).__name__


def _last_line(text: str) -> str:
    lines = [line for line in map(str.strip, text.splitlines()) if line and not line.startswith(":")]
    return lines[-1][:LONGEST] if lines else ""


def _last_words(text: str) -> str:
    """What a process that died said last: its exit text, or the end of its log where it ran on this machine."""
    if (found := EXIT_CODE.search(text)) is not None:
        return f"exit code {found[1][:LONGEST]}"
    node = getattr(ray._private.worker, "_global_node", None)
    if (found := PROCESS.search(text)) is None or node is None:
        return ""
    try:
        logs = sorted(Path(node.get_logs_dir_path()).glob(f"worker-*-{found[1]}.err"))
        return _last_line(logs[-1].read_text(errors="replace")) if logs else ""
    except OSError:
        return ""
