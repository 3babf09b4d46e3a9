"""From text to a tree."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from swarm_agent.objects.gotemplate.functions import BUILTINS
from swarm_agent.objects.gotemplate.values import TemplateError, unquoted

MAX_DEPTH = 100  # of parentheses and blocks in each other


# --- the tree ------------------------------------------------------------------------------------------------------------
class Operand(NamedTuple):
    """``kind``: constant, dot, variable, function, pipe; ``fields`` follow it, ``.Service.Name`` is a dot with two."""

    kind: str
    value: Any
    fields: tuple[str, ...]
    text: str
    line: int
    column: int


class Pipe(NamedTuple):
    commands: tuple[tuple[Operand, ...], ...]
    declares: tuple[str, ...] = ()
    assigns: bool = False  # ``=`` instead of ``:=``


class Text(NamedTuple):
    text: str


class Action(NamedTuple):
    pipe: Pipe


class Block(NamedTuple):
    word: str  # if, with, range
    pipe: Pipe
    body: tuple[Any, ...]
    otherwise: tuple[Any, ...]


class Jump(NamedTuple):
    word: str  # break, continue


class Template(NamedTuple):
    name: str
    body: tuple[Any, ...]


# --- words ---------------------------------------------------------------------------------------------------------------
class _Token(NamedTuple):
    kind: str
    text: str
    at: int  # in the whole text


_WORDS = re.compile(
    r"""(?P<space>[ \t\r\n]+)
    |(?P<string>"(?:[^"\\\n]|\\.)*"|`[^`]*`)
    |(?P<char>'(?:[^'\\\n]|\\[^\n]+?)')
    |(?P<number>[+-]?\.?\d[\w.]*(?:(?<=[eE])[+-]\d+)?)
    |(?P<field>\.[^\W\d]\w*)
    |(?P<variable>\$\w*)
    |(?P<word>[^\W\d]\w*)
    |(?P<sign>:=|=|\||\(|\)|,|\.)""",
    re.VERBOSE,
)
_COMMENT = re.compile(r"\{\{(?:-[ \t\r\n]+)?/\*")
_KEYWORDS = ("if", "else", "end", "range", "with", "break", "continue", "define", "template", "block")


def parse(text: str, functions: frozenset[str] = frozenset(), name: str = "expansion") -> Template:
    """Raises TemplateError."""
    try:
        return Template(name, _Parser(text, functions | BUILTINS.keys(), name).whole())
    except RecursionError as err:  # pragma: no cover - MAX_DEPTH comes first
        raise TemplateError(f"template: {name}: too deep") from err


class _Parser:
    def __init__(self, text: str, functions: frozenset[str], name: str) -> None:
        self._name = name
        self._functions = functions
        self._text = text
        self._pieces = self._cut()  # texts and actions in turn
        self._next = 0
        self._tokens: list[_Token] = []
        self._token = 0
        self._at = 0
        self._variables = ["$"]
        self._depth = 0
        self._loops = 0

    def _fail(self, what: str, at: int | None = None) -> TemplateError:
        line = self._text.count("\n", 0, self._at if at is None else at) + 1
        return TemplateError(f"template: {self._name}:{line}: {what}")

    # --- pieces ----------------------------------------------------------------------------------------------------
    def _cut(self) -> list[str | list[_Token]]:
        """Text between actions, with what trim markers take away; actions as their words."""
        out: list[str | list[_Token]] = []
        text, at, trim = self._text, 0, False
        while True:
            begin = text.find("{{", at)
            plain = text[at:] if begin < 0 else text[at:begin]
            if trim:
                plain = plain.lstrip(" \t\r\n")
            if begin < 0:
                out.append(plain)
                return out
            inside = begin + 2
            if text[inside : inside + 1] == "-" and text[inside + 1 : inside + 2] in (" ", "\t", "\r", "\n"):
                plain = plain.rstrip(" \t\r\n")
                inside += 1
            out.append(plain)
            tokens, at, trim = self._comment(begin) if _COMMENT.match(text, begin) else self._action(inside)
            out.append(tokens)

    def _comment(self, begin: int) -> tuple[list[_Token], int, bool]:
        end = self._text.find("*/", begin)
        if end < 0:
            raise self._fail("unclosed comment", begin)
        match = re.compile(r"([ \t\r\n]+-)?\}\}").match(self._text, end + 2)
        if match is None:
            raise self._fail("comment ends before closing delimiter", begin)
        return [], match.end(), bool(match[1])

    def _action(self, at: int) -> tuple[list[_Token], int, bool]:
        begin = at
        tokens: list[_Token] = []
        while True:
            closing = re.compile(r"(?:[ \t\r\n]-)?\}\}").match(self._text, at)
            if closing is not None:
                if not tokens:
                    raise self._fail("missing value for command", begin)
                tokens.append(_Token("end", "}}", at))
                return tokens, closing.end(), len(closing[0]) > 2
            match = _WORDS.match(self._text, at)
            if match is None:
                if at >= len(self._text):
                    raise self._fail("unclosed action", begin)
                char = self._text[at]
                if char in "\"`'":
                    raise self._fail({'"': "unterminated quoted string", "`": "unterminated raw quoted string"}.get(char, "unterminated character constant"), at)  # fmt: skip
                if char in "}{":
                    raise self._fail(f'unexpected "{char}" in operand', at)
                raise self._fail(f"unrecognized character in action: U+{ord(char):04X} {char!r}", at)
            kind = match.lastgroup or ""
            word = kind == "word" and match[0] in _KEYWORDS
            tokens.append(_Token("keyword" if word else kind, match[0], at))
            at = match.end()

    # --- blocks ------------------------------------------------------------------------------------------------------
    def whole(self) -> tuple[Any, ...]:
        body, end = self._body(())
        if end:
            raise self._fail(f"unexpected {{{{{end}}}}}")
        return body

    def _body(self, until: tuple[str, ...]) -> tuple[tuple[Any, ...], str]:
        """Nodes up to one of the words, or the end of the text."""
        out: list[Any] = []
        known = len(self._variables)
        while self._next < len(self._pieces):
            piece = self._pieces[self._next]
            self._next += 1
            if isinstance(piece, str):
                if piece:
                    out.append(Text(piece))
                continue
            if not piece:
                continue  # a comment
            self._tokens, self._token, self._at = piece, 0, piece[0].at
            self._skip()
            token = self._peek()
            if token.kind != "keyword":
                out.append(Action(self._pipe("command", ("end",))))
                continue
            self._take()
            if token.text in ("else", "end"):
                if token.text not in until:
                    raise self._fail(f"unexpected {{{{{token.text}}}}}")
                if token.text == "end":
                    self._expect_end("end")
                del self._variables[known:]
                return tuple(out), token.text
            out.append(self._keyword(token.text))
        if until:
            raise self._fail("unexpected EOF", len(self._text))
        return tuple(out), ""

    def _keyword(self, word: str) -> Any:
        if word in ("break", "continue"):
            if not self._loops:
                raise self._fail(f"{{{{{word}}}}} outside {{{{range}}}}")
            self._expect_end(word)
            return Jump(word)
        if word in ("define", "template", "block"):
            raise self._fail(f"{{{{{word}}}}} is not supported here: write the text where it is needed")
        return self._block(word)

    def _block(self, word: str) -> Block:
        self._deeper()
        known = len(self._variables)
        pipe = self._pipe(word, ("end",))
        self._loops += word == "range"
        body, end = self._body(("else", "end"))
        self._loops -= word == "range"
        otherwise: tuple[Any, ...] = ()
        if end == "else":
            self._skip()
            follows = self._peek()
            if follows.kind == "keyword" and follows.text == word and word in ("if", "with"):
                self._take()
                otherwise = (self._block(word),)
            else:
                self._expect_end("else")
                otherwise, _ = self._body(("end",))
        del self._variables[known:]
        self._depth -= 1
        return Block(word, pipe, body, otherwise)

    def _deeper(self) -> None:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise self._fail("max expression depth exceeded")

    # --- pipelines -------------------------------------------------------------------------------------------------
    def _peek(self) -> _Token:
        return self._tokens[self._token]

    def _take(self) -> _Token:
        token = self._tokens[self._token]
        self._token += token.kind != "end"
        return token

    def _skip(self) -> bool:
        spaces = False
        while self._peek().kind == "space":
            self._take()
            spaces = True
        return spaces

    def _expect_end(self, context: str) -> None:
        self._skip()
        if self._peek().kind != "end":
            raise self._unexpected(self._peek(), context)

    def _unexpected(self, token: _Token, context: str) -> TemplateError:
        return self._fail(f'unexpected "{token.text}" in {context}', token.at)

    def _pipe(self, context: str, until: tuple[str, ...]) -> Pipe:
        self._skip()
        declares, assigns = self._declarations(context)
        commands: list[tuple[Operand, ...]] = []
        while True:
            self._skip()
            token = self._peek()
            if token.kind in until or token.text in until:
                if not commands:
                    raise self._fail(f"missing value for {context}", token.at)
                for later in commands[1:]:
                    if later[0].kind in ("constant", "dot") and not later[0].fields:
                        raise self._fail("non executable command in pipeline stage 2", token.at)
                self._take()
                self._variables += [] if assigns else declares
                return Pipe(tuple(commands), declares, assigns)
            commands.append(self._command(context, until))

    def _declarations(self, context: str) -> tuple[tuple[str, ...], bool]:
        """``$x :=``, ``$x =``, and for range ``$i, $x :=``."""
        begin, names = self._token, []
        while self._peek().kind == "variable" and len(self._peek().text) > 1:
            names.append(self._take().text)
            self._skip()
            sign = self._peek().text
            if sign == "," and context == "range" and len(names) == 1:
                self._take()
                self._skip()
                continue
            if sign in (":=", "="):
                self._take()
                if sign == "=":
                    for name in names:
                        self._known(name)
                return tuple(names), sign == "="
            break
        self._token = begin
        return (), False

    def _known(self, name: str) -> None:
        if name not in self._variables:
            raise self._fail(f'undefined variable "{name}"')

    def _command(self, context: str, until: tuple[str, ...]) -> tuple[Operand, ...]:
        operands: list[Operand] = []
        while True:
            spaces = self._skip()
            token = self._peek()
            if token.kind in until or token.text in until:
                break
            if token.text == "|":
                self._take()
                self._skip()
                if self._peek().kind in until or self._peek().text in until or not operands:
                    raise self._fail("missing value for command", token.at)
                break
            if operands and not spaces:
                raise self._unexpected(token, "operand")
            operands.append(self._operand(token, context))
        if not operands:
            raise self._fail("empty command")
        return tuple(operands)

    def _operand(self, token: _Token, context: str) -> Operand:
        self._take()
        kind, value = self._term(token, context)
        fields = [token.text[1:]] if token.kind == "field" else []
        while self._peek().kind == "field":
            if kind == "constant":
                raise self._unexpected(self._peek(), "operand")
            fields.append(self._take().text[1:])
        line = self._text.count("\n", 0, token.at) + 1
        column = token.at - (self._text.rfind("\n", 0, token.at) + 1)
        text = (
            self._text[token.at : self._peek().at]
            if self._peek().kind != "end"
            else self._text[token.at :].partition("}}")[0]
        )
        return Operand(kind, value, tuple(fields), text.strip().removesuffix(" -"), line, column)

    def _term(self, token: _Token, context: str) -> tuple[str, Any]:
        match token.kind:
            case "field":
                return "dot", None
            case "variable":
                self._known(token.text)
                return "variable", token.text
            case "string":
                return "constant", self._string(token)
            case "char":
                return "constant", ord(self._string(token))
            case "number":
                return "constant", self._number(token)
            case "word" if token.text in ("true", "false", "nil"):
                return "constant", {"true": True, "false": False}.get(token.text)
            case "word":
                if token.text not in self._functions:
                    raise self._fail(f'function "{token.text}" not defined', token.at)
                return "function", token.text
        if token.text == ".":
            return "dot", None
        if token.text == "(":
            self._deeper()
            pipe = self._pipe("parenthesized pipeline", (")",))
            self._depth -= 1
            return "pipe", pipe
        raise self._unexpected(token, context)

    def _string(self, token: _Token) -> str:
        if token.text[0] == "`":
            return token.text[1:-1]
        try:
            found = unquoted(token.text)
        except ValueError as err:
            raise self._fail(str(err), token.at) from err
        if token.kind == "char" and len(found) != 1:
            raise self._fail(f"malformed character constant: {token.text}", token.at)
        return found

    def _number(self, token: _Token) -> int | float:
        text = token.text.replace("_", "")
        try:
            if re.fullmatch(r"[+-]?\d+", text):
                return (
                    int(text, 8) if len(text.lstrip("+-")) > 1 and text.lstrip("+-")[0] == "0" else int(text)
                )
            if re.match(r"[+-]?0[xXbBoO]", text):
                return int(text, 0)
            return float(text)
        except ValueError as err:
            raise self._fail(f'bad number syntax: "{token.text}"', token.at) from err
