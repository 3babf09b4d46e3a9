"""Go's text/template as services use it: every construct with what Go makes of it, and every refusal with Go's words."""

from __future__ import annotations

from typing import Any

import pytest

from swarm_agent.objects import templates
from swarm_agent.objects.gotemplate import Fields, TemplateError, expand
from swarm_agent.objects.normalise import normalise
from swarm_agent.objects.records import Node, NodeDescription, Task
from swarm_agent.objects.specs import ContainerSpec, DriverSpec, NodeSpec

DOT = Fields(
    "template.Context",
    {
        "Service": Fields("template.Service", {"Name": "web", "Labels": {"b": "2", "a": "1"}}),
        "N": 3,
        "List": ("x", "y"),
        "Nil": None,
        "F": 1.5,
    },
)


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("plain }} text", "plain }} text"),
        ("{{.Service.Name}}-{{ .N }}", "web-3"),
        ("a {{- 1 -}} b", "a1b"),
        ("a {{-1}} b", "a -1 b"),
        ("a {{/* no }} end */}} b{{- /* x */ -}} c", "a  bc"),
        ("{{$x := 1}}{{if true}}{{$x = 2}}{{$x := 3}}{{end}}{{$x}}", "2"),
        ("{{if .Nil}}a{{else if eq .N 3}}b{{else}}c{{end}}", "b"),
        ('{{if 0}}a{{end}}{{if ""}}b{{end}}{{if .List}}c{{end}}{{if .Service}}d{{end}}', "cd"),
        ("{{range $k, $v := .Service.Labels}}{{$k}}={{$v}};{{end}}", "a=1;b=2;"),
        ("{{range $i, $v := .List}}{{$i}}{{.}}{{$.N}}{{else}}none{{end}}", "0x31y3"),
        ("{{range $v := .List}}{{$v}}{{end}}{{range .Nil}}{{else}}none{{end}}", "xynone"),
        ('{{range .List}}{{if eq . "y"}}{{break}}{{end}}{{.}}{{continue}}z{{end}}', "x"),
        ('{{with index .Service.Labels "a"}}<{{.}}>{{end}}{{with ""}}{{else}}no{{end}}', "<1>no"),
        ("{{with $l := .List}}{{len $l}}{{end}}", "2"),
        ('{{"a" | printf "%s-%s" "b"}}', "b-a"),
        ('{{(index .List 1)}}{{(print "q" | len)}}', "y1"),
        ('{{index .Service.Labels "zz"}}|{{index "abc" 1}}', "|98"),
        ('{{slice "abcdef" 1 3}}{{slice .List 1}}{{slice "ab" }}', "bc[y]ab"),
        ('{{len "héy"}} {{len .Service.Labels}}', "4 2"),
        ('{{and 1 0 (index .List 9)}} {{or 0 "x" (index .List 9)}} {{not 0}} {{0 | or 2}}', "0 x true 2"),
        ('{{eq 1 2 1}}{{ne "a" "b"}}{{lt 1 2.5}}{{le 2 2}}{{gt "b" "a"}}{{ge 1 2}}', "truetruetruetruetruefalse"),
        ('{{print 1 2 "a" 3 true}}|{{println 1 "a"}}', "1 2a3 true|1 a\n"),
        ("{{html \"<a b='c'>&\\\"\"}}", "&lt;a b=&#39;c&#39;&gt;&amp;&#34;"),
        ("{{js \"it's <\\n\"}} {{urlquery \"a b&c/é\"}}", "it\\'s \\u003C\\u000A a+b%26c%2F%C3%A9"),
        ("{{`raw\\n`}}{{\"\\t\\x41\\u00e9\\\"\"}}{{'a'}}", 'raw\\n\tAé"97'),
        ("{{0x1F}} {{1_000}} {{017}} {{1e3}} {{-2.50}}", "31 1000 15 1000 -2.5"),
        ("{{.Nil}}{{nil}}", "<no value><no value>"),
        ("{{.Service}} {{.List}} {{.F}} {{true}}", "{web map[a:1 b:2]} [x y] 1.5 true"),
        ('{{printf "%05d|%-4s|%4s|%+d|% d" 42 "ab" "cd" 5 6}}', "00042|ab  |  cd|+5| 6"),
        ('{{printf "%x %X %#x %o %b %c %U %q" 255 255 255 8 5 65 233 "a\\nb"}}', 'ff FF 0xff 10 101 A U+00E9 "a\\nb"'),
        ('{{printf "%.2f %e %g %8.3f|%t %v %%" 1.5 2.0 0.1 3.14159 true .List}}', "1.50 2.000000e+00 0.1    3.142|true [x y] %"),
        ('{{printf "%.2s %x %T" "abc" "hi" 1}}', "ab 6869 int"),
        ('{{printf "%d" "x"}} {{printf "%s"}} {{printf "a" 1}} {{printf "%"}}', "%!d(string=x) %!s(MISSING) a%!(EXTRA int=1) %!(NOVERB)"),
        ('{{printf "%01999999d" 1}}', "%!(BADWIDTH)%!(EXTRA int=1)"),
    ],
)  # fmt: skip
def test_what_go_makes_of_it(text: str, result: str) -> None:
    assert expand(text, DOT, {}) == result


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{{", "template: expansion:1: unclosed action"),
        ("a\n{{.N", "template: expansion:2: unclosed action"),
        ("{{}}", "missing value for command"),
        ("{{if}}{{end}}", "missing value for if"),
        ("{{if 1}}", "unexpected EOF"),
        ("{{end}}", "unexpected {{end}}"),
        ("{{else}}", "unexpected {{else}}"),
        ("{{if 1}}{{else}}{{else}}{{end}}", "unexpected {{else}}"),
        ("{{break}}", "{{break}} outside {{range}}"),
        ("{{foo}}", 'function "foo" not defined'),
        ("{{$x}}", 'undefined variable "$x"'),
        ("{{if 1}}{{$x := 1}}{{end}}{{$x}}", 'undefined variable "$x"'),
        ("{{.N }", 'unexpected "}" in operand'),
        ('{{"abc}}', "unterminated quoted string"),
        ("{{`abc}}", "unterminated raw quoted string"),
        ("{{/* abc }}", "unclosed comment"),
        ("{{/* abc */ 1}}", "comment ends before closing delimiter"),
        ('{{"\\q"}}', "invalid syntax"),
        ("{{1 | }}", "missing value for command"),
        ("{{1 | 2}}", "non executable command in pipeline"),
        ("{{#}}", "unrecognized character in action: U+0023 '#'"),
        ("{{(1}}", "unexpected"),
        ("{{1)}}", "unexpected"),
        ("{{1.x}}", "bad number syntax"),
        ("{{09}}", "bad number syntax"),
        ('{{define "x"}}{{end}}', "{{define}} is not supported here"),
        ('{{template "x"}}', "{{template}} is not supported here"),
        ("{{" + "(" * 200 + "1" + ")" * 200 + "}}", "max expression depth exceeded"),
        ("{{.Nope}}", 'executing "expansion" at <.Nope>: can\'t evaluate field Nope in type template.Context'),
        ("{{.Service.Labels.zz}}", 'at <.Service.Labels.zz>: map has no entry for key "zz"'),
        ("{{.N.x}}", "can't evaluate field x in type int"),
        ("{{.Nil.x}}", "nil pointer evaluating"),
        ("{{len 3}}", "error calling len: len of type int"),
        ("{{index .List 5}}", "error calling index: index out of range: 5"),
        ('{{index .List "a"}}', "cannot index slice/array with type string"),
        ("{{index .Service.Labels 1}}", "value has type int; should be string"),
        ("{{index nil 1}}", "index of untyped nil"),
        ('{{slice "abc" 2 1}}', "invalid slice index: 2 > 1"),
        ("{{slice 1 2}}", "can't slice item of type int"),
        ('{{eq 1 "a"}}', "incompatible types for comparison"),
        ("{{eq .List .List}}", "non-comparable type"),
        ("{{lt true false}}", "invalid type for comparison"),
        ("{{eq 1}}", "missing argument for comparison"),
        ("{{lt 1}}", "wrong number of args for lt: got 1"),
        ("{{and}}", "wrong number of args for and"),
        ("{{1 2}}", "can't give argument to non-function 1"),
        ("{{.Service.Name 2}}", "Name is not a method but has arguments"),
        ("{{range 3}}{{end}}", "range can't iterate over 3"),
        ("{{range $i, $v = .List}}{{end}}", 'undefined variable "$i"'),
        ("{{printf 1}}", "error calling printf: wrong type for value; expected string; got int"),
        ('{{printf "%c" -1}}', "error calling printf"),
        ('{{$x := printf "%999999d" 1}}{{range .List}}{{print $x $x $x $x $x $x $x $x $x}}{{end}}', "the result is larger than 8 MiB"),
        ('{{$x := printf "%999999d" 1}}{{range .List}}{{print $x $x $x $x $x $x}}{{end}}', "the result is larger than 8 MiB"),
        ('{{printf "%999999d%999999d%999999d%999999d%999999d%999999d%999999d%999999d%999999d" 1}}', "the widths add up to too much"),
    ],
)  # fmt: skip
def test_what_go_says_to_it(text: str, words: str) -> None:
    with pytest.raises(TemplateError) as caught:
        expand(text, DOT, {})
    assert words in str(caught.value)
    assert str(caught.value).startswith("template: expansion:")


# --- in a service --------------------------------------------------------------------------------------------------------
TASK = Task(id="tid", service_id="sid", service_name="web", service_labels={"l": "v"}, revision_id="r", slot=2, node_id="nid")  # fmt: skip
NODE = Node(
    id="nid",
    spec=NodeSpec(labels={"zone": "z1"}),
    description=NodeDescription(hostname="host1", architecture="x86_64", os="linux"),
)


def container(**fields: Any) -> ContainerSpec:
    return normalise({"Image": "i", **fields}, ContainerSpec)


def test_everywhere_it_is_allowed_and_nowhere_else() -> None:
    spec = container(
        Env=["A={{.Service.ID}}.{{.Service.Name}}.{{.Service.Labels.l}}", "{{x}}={{.Task.Slot}}", "PLAIN"],
        Hostname="{{.Node.Hostname}}-{{.Task.ID}}",
        Args=["{{.Task.ID}}"],
        Labels={"x": "{{.Task.ID}}"},
        Mounts=[
            {
                "Type": "volume",
                "Source": "{{.Node.Platform.OS}}-{{.Node.Platform.Architecture}}",
                "Target": "/{{.Task.Name}}",
                "VolumeOptions": {
                    "Labels": {"{{k}}": '{{join "," "a" .Node.ID}}'},
                    "DriverConfig": {"Name": "{{d}}", "Options": {"o": "{{.Node.Labels.zone}}"}},
                },
            },
            {"Type": "tmpfs", "Target": "/t"},
        ],
    )
    done = templates.expanded(spec, templates.context(TASK, NODE))
    assert done.env == ("A=sid.web.v", "{{x}}=2", "PLAIN")
    assert done.hostname == "host1-tid"
    assert (done.args, done.labels) == (("{{.Task.ID}}",), {"x": "{{.Task.ID}}"})
    volume, tmpfs = done.mounts or ()
    assert (volume.source, volume.target) == ("linux-x86_64", "/web.2.tid")
    options = volume.volume_options
    assert options is not None
    assert options.labels == {"{{k}}": "a,nid"}
    assert options.driver_config == DriverSpec(name="{{d}}", options={"o": "z1"})
    assert tmpfs.target == "/t"


def test_a_global_task_has_its_node_for_a_slot() -> None:
    task = Task(id="t", service_id="s", service_name="w", revision_id="r", preset="nid", node_id="nid")
    assert templates.expanded(container(Env=["S={{.Task.Slot}}"]), templates.context(task, NODE)).env == ("S=nid",)  # fmt: skip


def test_at_the_door_nodes_have_whatever_label_is_asked_for() -> None:
    templates.check(container(Env=['Z={{.Node.Labels.zone}}{{index .Node.Labels "x"}}']), "web", {"l": "v"})
    with pytest.raises(TemplateError) as caught:
        templates.check(container(Env=["A=1", "B={{.Service.Labels.l}}"]), "web", {})
    assert 'map has no entry for key "l" (in TaskTemplate.ContainerSpec.Env[1])' in str(caught.value)
    assert caught.value.path == "TaskTemplate.ContainerSpec.Env[1]"
    with pytest.raises(TemplateError):
        templates.expanded(container(Env=["Z={{.Node.Labels.none}}"]), templates.context(TASK, NODE))


def test_payloads_see_what_their_task_references() -> None:
    dot = templates.context(TASK, NODE)
    files = {"s": b"hush\xff"}

    def done(text: bytes) -> bytes:
        return templates.file_expanded(text, dot, ("A=1=2",), files.get, {"c": b"conf"}.get)

    text = b'{{.Task.Slot}} {{env "A"}}{{env "B"}} {{secret "s"}} {{config "c"}} \xfe'
    assert done(text) == b"2 1=2 hush\xff conf \xfe"
    with pytest.raises(TemplateError) as caught:
        done(b'{{secret "c"}}')
    assert "error calling secret: secret target c not found" in str(caught.value)


def test_separators_are_texts() -> None:
    with pytest.raises(TemplateError) as caught:
        templates.expanded(container(Env=['A={{join "," 1}}']), templates.context(TASK, NODE))
    assert "error calling join" in str(caught.value)
