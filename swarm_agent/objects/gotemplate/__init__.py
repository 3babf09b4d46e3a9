"""Go's text/template, as far as services and their files use it: a language without loops that do not end. Pure.

Spoken: actions, pipelines, field chains, variables, ``if``, ``range``, ``with``, ``break``, ``continue``, comments, trim markers and the
builtin functions but ``call``. Not spoken, and refused by name: ``define``, ``template``, ``block``. Values are Python's: text, numbers, truth,
lists, dicts (Go's maps, where a key that is missing is an error) and :class:`Fields` (Go's structs).
"""

from __future__ import annotations

from swarm_agent.objects.gotemplate.functions import Function
from swarm_agent.objects.gotemplate.parser import parse
from swarm_agent.objects.gotemplate.run import run
from swarm_agent.objects.gotemplate.values import BadCall, Fields, TemplateError

__all__ = ["BadCall", "Fields", "Function", "TemplateError", "expand", "parse"]


def expand(text: str, dot: object, functions: dict[str, Function], name: str = "expansion") -> str:
    """``text`` with its actions done; ``dot`` is what ``.`` stands for.

    Raises:
        TemplateError: with Go's words, the line and the action.
    """
    if "{{" not in text:
        return text
    return run(parse(text, frozenset(functions), name), dot, functions)
