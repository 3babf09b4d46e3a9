"""Every command and every option of swarmctl says what it does."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import pytest

from swarm_agent.cli import arguments_parser
from swarm_agent.cli.client import add_command


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """The parser and those of all its commands, however deep."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from parsers(command)


def without_help(root: argparse.ArgumentParser) -> list[str]:
    """Each command, option and argument below ``root`` that the help does not explain."""
    found = []
    for parser in parsers(root):
        if not parser.description:
            found.append(parser.prog)
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                told = {row.dest for row in action._choices_actions if _says(row.help)}
                found += [f"{parser.prog} {name}" for name in action.choices if name not in told]
            elif not _says(action.help):
                found.append(f"{parser.prog} {'/'.join(action.option_strings) or action.dest}")
    return found


def _says(text: str | None) -> bool:
    return bool(text) and text != argparse.SUPPRESS


def test_every_command_and_option_has_help() -> None:
    assert without_help(arguments_parser()) == []


def test_what_lacks_help_is_found() -> None:
    root = argparse.ArgumentParser(prog="root", description="Planted.")
    root.add_argument("--loud", action="store_true")
    root.add_argument("--quiet", action="store_true", help=argparse.SUPPRESS)
    commands = root.add_subparsers()
    commands.add_parser("bare")
    told = add_command(commands, "told", "do something")
    told.add_argument("thing")
    told.add_argument("--how", "-H", help="in which way")
    deeper = told.add_subparsers()
    add_command(deeper, "deep", "do more").add_argument("--far")
    assert without_help(root) == [
        "root --loud",
        "root --quiet",
        "root bare",
        "root bare",
        "root told thing",
        "root told thing deep --far",
    ]


@pytest.mark.parametrize("parser", list(parsers(arguments_parser())), ids=lambda p: p.prog)
def test_help_can_be_printed(parser: argparse.ArgumentParser) -> None:
    """argparse fills in ``%``: a stray one fails only when the help is asked for."""
    assert parser.format_help().startswith(f"usage: {parser.prog} ")


def test_the_help_lists_the_commands(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    with pytest.raises(SystemExit) as done:
        arguments_parser().parse_args(["--help"])
    assert done.value.code == 0
    said = capsys.readouterr().out
    for line in (
        "why          explain why a service is not in its desired state",
        "history      list all kept tasks of a slot",
        "recover      restore a swarm from a backup",
    ):
        assert line in said
