"""Hostile templates: each is refused, soon, by a clear error."""

from __future__ import annotations

import time

import pytest

from liuyi.core.errors import ModelError
from liuyi.model import sandbox
from liuyi.model.chat import render

MESSAGES = [{"role": "user", "content": "hello"}]
DOUBLING = "{%% set ns = namespace(x='a') %%}{%% for i in range(60) %%}%s{%% endfor %%}{{ ns.x }}"

ESCAPES = {
    "class": "{{ ''.__class__.__mro__ }}",
    "globals": "{{ raise_exception.__globals__.os.system('true') }}",
    "init": "{{ cycler.__init__.__globals__ }}",
    "item": "{{ messages['__class__'].__base__ }}",
    "attr filter": "{{ (messages | attr('__class__')).__base__ }}",
    "map attribute": "{{ messages | map(attribute='__class__.__mro__') | list | first }}",
    "format": "{{ '{0.__class__.__mro__}'.format(messages) }}",
    "self": "{{ self._TemplateReference__context.environment }}",
    "append": "{{ messages.append(1) }}",
    "update": "{% set _ = messages[0].update({'a': 1}) %}",
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import 'os' as os %}",
    "lipsum": "{{ lipsum.__globals__ }}",
}
ENDLESS = {
    "loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "macro": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "endless macro": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "recursive loop": (
        "{% for i in range(99999) recursive %}{% if loop.depth < 4 %}{{ loop(range(99999)) }}{% endif %}{% endfor %}"
    ),
    "filters": "{% set x = range(99999) | list %}{% for i in range(99999) %}{% set y = x | sort | list %}{% endfor %}",
}
GIANTS = {
    "times": "{{ 'a' * 10000000000 }}",
    "times, reversed": "{{ 10000000000 * 'a' }}",
    "list times": "{{ [messages] * 10000000000 }}",
    "power": "{{ 9 ** 9 ** 9 }}",
    "doubled by +": DOUBLING % "{% set ns.x = ns.x + ns.x %}",
    "doubled by ~": DOUBLING % "{% set ns.x = ns.x ~ ns.x %}",
    "doubled in a block": DOUBLING % "{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = y %}",
    "doubled in a list": DOUBLING % "{% set ns.x = [ns.x, ns.x] %}",
    "doubled in a tuple": DOUBLING % "{% set ns.x = (ns.x, ns.x) %}",
    "doubled in a dict": DOUBLING % "{% set ns.x = {'a': ns.x, 'b': ns.x} %}",
    "doubled by dict()": DOUBLING % "{% set ns.x = dict(a=ns.x, b=ns.x) %}",
    "squared": DOUBLING.replace("'a'", "9") % "{% set ns.x = ns.x * ns.x %}",
    "ljust": "{{ 'a'.ljust(10000000000) }}",
    "format": "{{ '{:>1000000000}'.format('a') }}",
    "format, nested": "{{ '{:>{w}}'.format('a', w=1000000000) }}",
    "%": "{{ '%1000000000d' % 1 }}",
    "format filter": "{{ '%*d' | format(1000000000, 1) }}",
    "center": "{{ 'a' | center(1000000000) }}",
    "indent": "{{ 'a\nb' | indent(width=1000000000) }}",
    "batch": "{{ [1] | batch(1000000000, 'x') | list }}",
    "tojson": "{{ [1] | tojson(indent=1000000000) }}",
    "replace": "{% set x = 'a' * 1000000 %}{{ x.replace('a', x) }}",
    "replace filter": "{% set x = 'a' * 1000000 %}{{ x | replace('a', x) }}",
    "join": "{% set x = 'a' * 100000 %}{{ x.join(x) }}",
    "join filter": "{% set x = 'a' * 100000 %}{{ x | join(x) }}",
    "output": "{% set x = 'a' * 1000000 %}{% for i in range(99999) %}{{ x }}{% endfor %}",
}


@pytest.mark.parametrize("template", ESCAPES.values(), ids=ESCAPES.keys())
def test_nothing_leads_out_of_the_data(template: str) -> None:
    with pytest.raises(ModelError):
        render(template, MESSAGES)
    assert MESSAGES == [{"role": "user", "content": "hello"}]


@pytest.mark.parametrize("template", {**ENDLESS, **GIANTS}.values(), ids={**ENDLESS, **GIANTS}.keys())
def test_nothing_runs_without_end_or_grows_without_bound(template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "MAX_SECONDS", 0.5)
    began = time.process_time()
    with pytest.raises(ModelError, match="does what it must not"):
        render(template, MESSAGES)
    assert time.process_time() - began < 5


def test_long_conversations_are_no_attack() -> None:
    template = "{% for m in messages %}{{ loop.index ~ m.role + ': ' + m.content }}\n{% endfor %}"
    long = [{"role": "user", "content": "x" * 1000} for _ in range(5000)]
    assert len(render(template, long)) > 5_000_000


def test_no_mark_of_ours_in_what_is_rendered() -> None:
    assert render("{% generation %}a{% endgeneration %}b", MESSAGES) == "ab"
