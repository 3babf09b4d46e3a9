"""Doing what a tree says."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from swarm_agent.objects.gotemplate.functions import BUILTINS, MAX_TEXT, Function
from swarm_agent.objects.gotemplate.parser import Action, Block, Jump, Operand, Pipe, Template, Text
from swarm_agent.objects.gotemplate.values import BadCall, Fields, TemplateError, shown, truth, type_name

_LAZY = ("and", "or")
_NOTHING: Any = object()


class _Left(Exception):
    """Out of a round of a range."""

    def __init__(self, word: str) -> None:
        self.word = word


def run(template: Template, dot: object, functions: dict[str, Function]) -> str:
    """Raises TemplateError."""
    runner = _Run(template.name, {**BUILTINS, **functions}, dot)
    runner.walk(template.body, dot)
    return "".join(runner.out)


class _Run:
    def __init__(self, name: str, functions: dict[str, Function], root: object) -> None:
        self._name = name
        self._functions = functions
        self._variables: list[tuple[str, Any]] = [("$", root)]
        self.out: list[str] = []
        self._size = 0

    def _fail(self, at: Operand, what: str) -> TemplateError:
        place = f'template: {self._name}:{at.line}:{at.column}: executing "{self._name}" at <{at.text}>'
        return TemplateError(f"{place}: {what}")

    def walk(self, body: tuple[Any, ...], dot: object) -> None:
        known = len(self._variables)
        for node in body:
            match node:
                case Text(text):
                    self._write(text)
                case Action(pipe):
                    value = self._pipe(pipe, dot)
                    if not pipe.declares:
                        self._write("<no value>" if value is None else shown(value))
                case Block():
                    self._block(node, dot)
                case Jump(word):
                    raise _Left(word)
        del self._variables[known:]

    def _write(self, text: str) -> None:
        self._size += len(text)
        if self._size > MAX_TEXT:
            raise TemplateError(f"template: {self._name}: the result is larger than {MAX_TEXT >> 20} MiB")
        self.out.append(text)

    def _block(self, block: Block, dot: object) -> None:
        known = len(self._variables)
        if block.word == "range":
            self._range(block, dot)
        else:
            value = self._pipe(block.pipe, dot)
            inner = value if block.word == "with" else dot
            if truth(value):
                self.walk(block.body, inner)
            else:
                self.walk(block.otherwise, dot)
        del self._variables[known:]

    def _range(self, block: Block, dot: object) -> None:
        pipe = block.pipe._replace(declares=(), assigns=False)
        value = self._pipe(pipe, dot)
        if isinstance(value, Mapping):
            rounds = [(key, value[key]) for key in sorted(value)]
        elif isinstance(value, list | tuple):
            rounds = list(enumerate(value))
        elif value is None:
            rounds = []
        else:
            raise self._fail(block.pipe.commands[0][0], f"range can't iterate over {shown(value)}")
        for key, item in rounds:
            known = len(self._variables)
            names = block.pipe.declares
            for name, what in zip(names, (key, item)[2 - len(names) :], strict=True):
                self._set(name, what, new=not block.pipe.assigns)
            try:
                self.walk(block.body, item)
            except _Left as left:
                if left.word == "break":
                    break
            finally:
                del self._variables[known:]
        if not rounds:
            self.walk(block.otherwise, dot)

    # --- values ------------------------------------------------------------------------------------------------------
    def _set(self, name: str, value: Any, *, new: bool) -> None:
        if new:
            self._variables.append((name, value))
            return
        for i in range(len(self._variables) - 1, -1, -1):
            if self._variables[i][0] == name:
                self._variables[i] = (name, value)
                return

    def _pipe(self, pipe: Pipe, dot: object) -> Any:
        value = _NOTHING
        for command in pipe.commands:
            value = self._command(command, dot, value)
        for name in pipe.declares:
            self._set(name, value, new=not pipe.assigns)
        return value

    def _command(self, command: tuple[Operand, ...], dot: object, last: Any) -> Any:
        first, *rest = command
        if first.kind == "function":
            return self._fields(first, self._call(first, rest, dot, last))
        if rest or last is not _NOTHING:
            if first.fields:
                raise self._fail(first, f"{first.fields[-1]} is not a method but has arguments")
            raise self._fail(first, f"can't give argument to non-function {first.text}")
        return self._value(first, dot)

    def _call(self, at: Operand, arguments: list[Operand], dot: object, last: Any) -> Any:
        function = self._functions[at.value]
        extra = [] if last is _NOTHING else [last]
        if at.value in _LAZY:
            return self._lazy(at, arguments, dot, extra)
        values = [self._value(a, dot) for a in arguments] + extra
        try:
            inspect.signature(function).bind(*values)
        except TypeError:
            raise self._fail(at, f"wrong number of args for {at.value}: got {len(values)}") from None
        try:
            found = function(*values)
        except (BadCall, ValueError, OverflowError) as err:
            raise self._fail(at, f"error calling {at.value}: {err}") from err
        if isinstance(found, str) and len(found) > MAX_TEXT:
            raise self._fail(at, f"the result is larger than {MAX_TEXT >> 20} MiB")
        return found

    def _lazy(self, at: Operand, arguments: list[Operand], dot: object, extra: list[Any]) -> Any:
        """``and`` and ``or`` look no further than they must."""
        if not arguments and not extra:
            raise self._fail(at, f"wrong number of args for {at.value}: want at least 1 got 0")
        value: Any = None
        for argument in arguments:
            value = self._value(argument, dot)
            if truth(value) == (at.value == "or"):
                return value
        return extra[0] if extra else value

    def _value(self, operand: Operand, dot: object) -> Any:
        match operand.kind:
            case "constant":
                return operand.value
            case "dot":
                value = dot
            case "variable":
                value = next(v for n, v in reversed(self._variables) if n == operand.value)
            case "pipe":
                value = self._pipe(operand.value, dot)
            case _:
                value = self._call(operand, [], dot, _NOTHING)
        return self._fields(operand, value)

    def _fields(self, operand: Operand, value: Any) -> Any:
        for field in operand.fields:
            if isinstance(value, Fields):
                if field not in value.fields:
                    raise self._fail(operand, f"can't evaluate field {field} in type {value.type}")
                value = value.fields[field]
            elif isinstance(value, Mapping):
                if field not in value:
                    raise self._fail(operand, f'map has no entry for key "{field}"')
                value = value[field]
            elif value is None:
                raise self._fail(operand, f"nil pointer evaluating interface {{}}.{field}")
            else:
                raise self._fail(operand, f"can't evaluate field {field} in type {type_name(value)}")
        return value
