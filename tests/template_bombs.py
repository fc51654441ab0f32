"""Chat templates that would run for ever or fill the memory, by what they do it with.

`python tests/template_bombs.py` renders all of them and prints what each took.
"""

from __future__ import annotations

import resource
import sys
import time

from minicpm_mlc.base.errors import TemplateError
from minicpm_mlc.prompt.jinja import compile_template, render_template


def grow(start: str, step: str, times: int = 40) -> str:
    """A template that changes ns.s `times` times, and prints it."""
    return (
        f"{{% set ns = namespace(s={start}) %}}{{% for i in range({times}) %}}"
        f"{{% set ns.s = {step} %}}{{% endfor %}}{{{{ ns.s }}}}"
    )


BIG = "('a' * 4000000)"
WIDE = "('啊' * 4000000)"
LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}"
END = "{% endfor %}{% endfor %}"

BOMBS = {
    "loops": LOOP + END,
    "loop with a filter": "{% for a in range(99999) if range(99999) | select('none') | list %}"
    "{% endfor %}",
    "filtered loops": "{% for a in range(99999) %}{% for b in range(99999) if b < 0 %}" + END,
    "loop that writes": LOOP + "aaaaaaaa" + END,
    "loop that writes a list": "{% set l = range(99999) | list %}{% for a in l %}{{ l }}"
    "{% endfor %}",
    "block that collects": "{% set x %}{% for a in range(99999) %}{{ range(9999) | list }}"
    "{% endfor %}{% endset %}",
    "macro that collects": "{% macro f() %}{% for a in range(99999) %}{{ 'a' * 99999 }}{% endfor %}"
    "{% endmacro %}{% set x = f() %}",
    "recursive loop": "{% for a in [1, 1] recursive %}{{ loop([1, 1]) }}{% endfor %}",
    "macro twice": "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}"
    "{{ f(40) }}",
    "macro for ever": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "caller twice": "{% macro f(n) %}{% if n %}{% call f(n-1) %}{{ caller() }}{{ caller() }}"
    "{% endcall %}{% call f(n-1) %}x{% endcall %}{% endif %}{% endmacro %}"
    "{% call f(40) %}x{% endcall %}",
    "block twice": "{% block a %}{{ self.a() }}{{ self.a() }}{% endblock %}",
    "generation twice": "{% macro f(n) %}{% generation %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}"
    "{% endif %}{% endgeneration %}{% endmacro %}{{ f(40) }}",
    "text plus": grow("'aaaaaaaa'", "ns.s + ns.s"),
    "text concat": grow("'aaaaaaaa'", "ns.s ~ ns.s"),
    "list plus": grow("[1]", "ns.s + ns.s"),
    "tuple plus": grow("(1,)", "ns.s + ns.s"),
    "list of lists": grow("[1]", "[ns.s, ns.s]"),
    "dict of dicts": grow("{}", "{'a': ns.s, 'b': ns.s}"),
    "tuple of tuples": grow("()", "(ns.s, ns.s)"),
    "dict by call": grow("{}", "dict(a=ns.s, b=ns.s)"),
    "views": grow("{}", "dict(a=ns.s.items(), b=ns.s.items())"),
    "lists by sum": grow("[1]", "[ns.s, ns.s] | sum(start=[])"),
    "lists compared": "{% set n = namespace(a=[1], b=[1]) %}{% for i in range(40) %}"
    "{% set n.a = [n.a, n.a] %}{% set n.b = [n.b, n.b] %}{% endfor %}{{ n.a == n.b }}",
    "lists as json": "{% set n = namespace(a=[1]) %}{% for i in range(40) %}"
    "{% set n.a = [n.a, n.a] %}{% endfor %}{{ n.a | tojson }}",
    "namespaces": "{% set n = namespace(l=namespace()) %}{% for i in range(40) %}"
    "{% set n.l = namespace(a=n.l, b=n.l) %}{% endfor %}{{ n.l }}{{ n.l | tojson }}",
    "deep list": grow("[]", "[ns.s]", 99999),
    "power": grow("9 ** 64", "ns.s ** 64", 4),
    "one power": "{{ 9 ** 999999999 }}",
    "product": grow("9 ** 64", "ns.s * ns.s"),
    "number by round": "{{ 1.5 | round(1000000000, 'ceil') }}",
    "number by negative round": "{{ 1 | round(-1000000000) }}",
    "number to bytes": "{{ (1).to_bytes(9999999999, 'big') | length }}",
    "number of hex digits": "{{ ('f' * 4000000) | int(base=16) }}",
    "percent": "{{ ('%2000000000d' % 1) | length }}",
    "percent precision": "{{ ('%.2000000000f' % 1) | length }}",
    "percent star": "{{ ('%*d' % (2000000000, 1)) | length }}",
    "percent many": "{{ ('%s' * 99999) % (('a' * 99999),) }}",
    "percent names": "{{ ('%(a)s' * 99999) % {'a': 'a' * 99999} }}",
    "percent of bytes": "{{ ('%2000000000d'.encode() % 1) | length }}",
    "format filter": "{{ '%2000000000d' | format(1) | length }}",
    "format": "{{ '{:2000000000}'.format(1) | length }}",
    "format of bits": "{{ '{:{w}}'.format(1, w=2000000000) | length }}",
    "format many": "{{ ('{0}' * 999999).format('a' * 999999) | length }}",
    "format map": "{{ '{a:2000000000}'.format_map({'a': 1}) | length }}",
    "format of markup": "{{ ('{:2000000000}' | safe).format(1) | length }}",
    "zfill": "{{ 'a'.zfill(2000000000) | length }}",
    "center": "{{ 'a'.center(2000000000) | length }}",
    "ljust": "{{ 'a'.ljust(2000000000) | length }}",
    "rjust of bytes": "{{ 'a'.encode().rjust(2000000000) | length }}",
    "expandtabs": "{{ ('\t' * 9999).expandtabs(2000000) | length }}",
    "center filter": "{{ 'a' | center(2000000000) | length }}",
    "indent filter": "{{ 'a' | indent(2000000000, true) | length }}",
    "indent by text": "{{ ('\n' * 99999) | indent('a' * 99999) | length }}",
    "json indent": "{{ [[[1]]] | tojson(indent=2000000000) | length }}",
    "json separators": "{{ range(9999) | list | tojson(separators=('a' * 99999, ':')) | length }}",
    "json of wide text": "{{ " + WIDE + " | tojson(ensure_ascii=true) | length }}",
    "join filter": "{{ range(99999) | join('a' * 99999) | length }}",
    "join method": "{{ ('a' * 99999).join('a' * 99999) | length }}",
    "replace filter": "{{ ('a' * 99999) | replace('a', 'a' * 99999) | length }}",
    "replace method": "{{ ('a' * 99999).replace('a', 'a' * 99999) | length }}",
    "replace nothing": "{{ ('a' * 99999).replace('', 'a' * 99999) | length }}",
    "translate": "{{ ('a' * 99999).translate({97: 'a' * 99999}) | length }}",
    "repetition": "{{ 'a' * 99999999999 }}",
    "list repetition": "{{ ([1] * 99999999999) | length }}",
    "repetition of lists": "{{ [['a' * 99999] * 9999] * 9999 }}",
    "lipsum": "{{ lipsum(n=100000, html=false) | length }}",
    "lipsum words": "{{ lipsum(n=1, min=999999999, max=1000000000) | length }}",
    "batch": "{{ 'a' | batch(2000000000, 'x') | list | length }}",
    "slice": "{{ 'a' | slice(2000000000) | list | length }}",
    "wordwrap": "{{ " + BIG + " | wordwrap(1) | length }}",
    "striptags": "{{ ('<!---->' * 500000) | striptags | length }}",
    "urlize": "{{ ('a.com ' * 600000) | urlize | length }}",
    "title": "{{ ('a ' * 2000000) | title | length }}",
    "pprint": "{{ range(99999) | list | pprint | length }}",
    "escapes": "{{ ('<' * 4000000) | escape | length }}",
    "urlencode": "{{ " + WIDE + " | urlencode | length }}",
    "characters": "{{ " + WIDE + " | list | length }}",
    "characters sorted": "{{ " + WIDE + " | sort | length }}",
    "characters as arguments": "{{ cycler(*" + WIDE + ") }}",
    "words": "{{ ('啊b ' * 1300000).split() | length }}",
    "lines": "{{ ('啊b\n' * 1300000).splitlines() | length }}",
    "pieces": "{{ ('啊bc,' * 1000000).split(',') | length }}",
    "search from the end": "{{ " + BIG + ".rfind('a' * 1000000 + 'b' + 'a' * 1000000) }}",
    "strip of many": "{{ " + BIG + ".strip('b' * 2000000 + 'a') | length }}",
    "trim of many": "{{ " + BIG + " | trim('b' * 2000000 + 'a') | length }}",
    "idna": "{{ ('啊' * 400000).encode('idna') | length }}",
    "punycode": "{{ ('啊' * 400000).encode('punycode') | length }}",
    "unicode escapes": "{{ " + WIDE + ".encode('unicode_escape') | length }}",
    "names of characters": "{{ ('啊' * 999999).encode('ascii', 'namereplace') | length }}",
    "strftime": "{{ strftime_now('%2000000000Y') | length }}",
    "strftime long": "{{ strftime_now('%A' * 2000000) | length }}",
    "variables": "".join(f"{{% set v{i} = {WIDE} ~ {i} %}}" for i in range(99)),
    "sorted by a list of attributes": "{{ range(9) | sort(attribute='a,' * 2000000) }}",
    "joined by attributes": "{{ range(9) | join(attribute='a.' * 2000000) }}",
    "lipsum of texts": "{{ lipsum(n='a', max=4000000000) }}",
    "tabs by a text": "{{ ('\t' * 4000000).expandtabs('a' * 1000) }}",
    "indent by a list": "{{ ('\n' * 4000000) | indent([1] * 100) }}",
    "text in every line": "{{ ('a ' * 10000) | wordwrap(1, true, 'b' * 30000) | length }}",
    "text in every link": "{{ ('a.co ' * 9000) | urlize(rel='b' * 30000) | length }}",
    "slices": "{% set l = range(99999) | list %}"
    + "".join(f"{{% set s{i} = l[:] %}}" for i in range(5000)),
    "arguments handed on": "{% macro f() %}{{ f(*varargs) }}{% endmacro %}{{ f(*range(99999)) }}",
    "keywords handed on": "{% macro f() %}{{ f(**kwargs) }}{% endmacro %}{% set d = dict.fromkeys("
    "range(99999) | map('string')) %}{{ f(**d) }}",
    "arguments kept by filters": "{% set l = range(99999) | list %}"
    + "".join(f"{{% set g{i} = l | map('default', *l) %}}" for i in range(2500)),
    "namespaces of many names": "{% set d = dict.fromkeys(range(99999) | map('string')) %}"
    + "".join(f"{{% set n{i} = namespace(d) %}}" for i in range(3000)),
    "chain of namespaces": "{% set ns = namespace(g=1) %}{% for i in range(99999) %}"
    "{% for j in range(99) %}{% set ns.g = namespace(g=ns.g) %}{% endfor %}{% endfor %}",
    "chain of generators": "{% set ns = namespace(g=[1]) %}{% for i in range(99999) %}"
    "{% set ns.g = ns.g | select %}{% endfor %}{{ ns.g | list }}",
    "chain of batches": "{% set ns = namespace(g=range(3)) %}{% for i in range(99999) %}"
    "{% set ns.g = ns.g | batch(1) %}{% endfor %}{% for x in ns.g %}{% endfor %}",
    "chain of fillings": "{% set ns = namespace(g=[1]) %}{% for i in range(99999) %}"
    "{% set ns.g = [] | batch(1, fill_with=ns.g) %}{% endfor %}",
    "lists of numbers": "".join(
        f"{{% set l{k} = [] %}}{{% for i in range(150) %}}"
        f"{{% set l{k} = l{k} + [9 ** 9999 + i] %}}{{% endfor %}}"
        for k in range(300)
    )
    + "{{ 9 ** 99999 }}",
    "attribute path": "{{ range(99999) | map(attribute='a.' * 999999) | list | length }}",
    "filters in a loop": "{% set t = 'ab' * 999999 %}{% for i in range(99999) %}"
    "{% set x = t.upper() %}{% endfor %}",
    "comparisons in a loop": "{% set a = " + BIG + " %}{% set b = 'a' * 4000000 %}"
    "{% for i in range(99999) %}{% if a == b %}{% endif %}{% endfor %}",
    "output in a loop": "{% for i in range(9999) %}{{ 'a' * 9999 }}{% endfor %}",
    "autoescape": "{% autoescape true %}{% set x %}{% for i in range(9999) %}"
    "{{ '<' * 400000 }}{% endfor %}{% endset %}{% endautoescape %}",
    "a long error": "{{ raise_exception('a' * 4000000) }}",
    "map to texts": "{{ range(99999) | map('center', 99999) | list | length }}",
    "sorted again and again": "{% set l = range(99999) | list %}{% for i in l %}"
    "{% set x = l | sort(reverse=true) %}{% endfor %}",
    "generator of generators": "{% set l = range(9999) | map('list') %}{% for i in range(9999) %}"
    "{% for j in range(9999) | batch(1) %}{% endfor %}{% endfor %}",
}


def peak_mb() -> float:
    """The most memory that this process has used."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 / 2**10)


def explode(source: str) -> tuple[str, float]:
    """(what it was refused for, seconds of processor time); "" where the template was rendered."""
    start = time.process_time()
    try:
        render_template(compile_template(source, "it"), "it", messages=[])
        refused = ""
    except TemplateError as error:
        refused = str(error)
    return refused, time.process_time() - start


def main() -> None:
    """A line for each: seconds, growth of the peak in MB, what it was refused for."""
    explode("{{ 'a'.center(3) }}")
    begin = peak_mb()
    for name, source in BOMBS.items():
        refused, seconds = explode(source)
        print(f"{seconds:6.2f} s {peak_mb() - begin:6.0f} MB  {name}: {refused[:90]}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
