# ruff: noqa: E501
"""Chat templates of our own, written after the constructs that public ones use."""

from __future__ import annotations

CHATML = """{%- for message in messages %}
    {%- if loop.first and messages[0]['role'] != 'system' %}
        {{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
    {%- endif %}
    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

LLAMA3 = """{{- bos_token }}
{%- if custom_tools is defined %}
    {%- set tools = custom_tools %}
{%- endif %}
{%- if not tools_in_user_message is defined %}
    {%- set tools_in_user_message = true %}
{%- endif %}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%b %Y") %}
    {%- else %}
        {%- set date_string = "Jul 2024" %}
    {%- endif %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}
    {{- "Environment: ipython\\n" }}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
    {%- endfor %}
{%- endif %}
{{- "Today Date: " + date_string + "\\n\\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
        {{- message['content'] | trim + '<|eot_id|>' }}
    {%- elif message.role == "tool" or message.role == "ipython" %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" }}
        {%- if message.content is mapping or message.content is iterable %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
        {{- "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

MISTRAL = """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
{%- set ns = namespace() %}
{%- set ns.index = 0 %}
{%- for message in loop_messages %}
    {%- if not (message.role == "tool" or (message.tool_calls is defined)) %}
        {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
            {{- raise_exception("roles must alternate user/assistant") }}
        {%- endif %}
        {%- set ns.index = ns.index + 1 %}
    {%- endif %}
{%- endfor %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if tools is not none and (message == user_messages[-1]) %}
            {{- "[AVAILABLE_TOOLS] [" }}{{- tools | tojson }}{{- "][/AVAILABLE_TOOLS]" }}
        {%- endif %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"]|trim + eos_token}}
    {%- else %}
        {{- raise_exception("Only user and assistant roles are supported") }}
    {%- endif %}
{%- endfor %}
"""

GEMMA = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- set first_user_prefix = messages[0]['content'] + '\\n\\n' -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}
    {%- set first_user_prefix = "" -%}
    {%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Conversation roles must alternate user/assistant/user/assistant/...") }}
    {%- endif -%}
    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}
    {{ '<start_of_turn>' + role + '\\n' + (first_user_prefix if loop.first else "") }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}{{ item['text'] | trim }}{%- endfor -%}
    {%- endif -%}
    {{ '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{'<start_of_turn>model\\n'}}
{%- endif -%}
"""

QWEN3 = """{%- if tools %}
    {{- '<|im_start|>system\\n# Tools' }}
    {%- for tool in tools %}{{- "\\n" }}{{- tool | tojson }}{%- endfor %}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and not(
        message.content.startswith('<tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning_content = message.reasoning_content %}
        {%- else %}
            {%- if '</think>' in content %}
                {%- set reasoning_content = content.split('</think>')[0].rstrip('\\n').split(
                    '<think>')[-1].lstrip('\\n') %}
                {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
            {%- endif %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index and reasoning_content %}
            {{- '<|im_start|>assistant\\n<think>\\n' + reasoning_content.strip('\\n') }}
            {{- '\\n</think>\\n\\n' + content.lstrip('\\n') }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""

DEEPSEEK = """{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}
{%- set ns = namespace(is_first=false, is_tool=false, system_prompt='', is_first_sp=true) -%}
{%- for message in messages -%}
    {%- if message['role'] == 'system' -%}
        {%- if ns.is_first_sp -%}
            {%- set ns.system_prompt = ns.system_prompt + message['content'] -%}
            {%- set ns.is_first_sp = false -%}
        {%- else -%}
            {%- set ns.system_prompt = ns.system_prompt + '\\n\\n' + message['content'] -%}
        {%- endif -%}
    {%- endif -%}
{%- endfor -%}
{{ bos_token }}{{ ns.system_prompt }}
{%- for message in messages -%}
    {%- if message['role'] == 'user' -%}
        {%- set ns.is_tool = false -%}{{ '<|User|>' + message['content'] }}
    {%- endif -%}
    {%- if message['role'] == 'assistant' and message['content'] is not none -%}
        {%- set content = message['content'] -%}
        {%- if '</think>' in content -%}{%- set content = content.split('</think>')[-1] -%}
        {%- endif -%}
        {{ '<|Assistant|>' + content + eos_token }}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt and not ns.is_tool -%}{{ '<|Assistant|><think>\\n' }}{%- endif -%}
"""

PHI4 = """{% for message in messages %}
{% if (message['role'] == 'system') %}{{ '<|im_start|>system<|im_sep|>' + message['content'] + '<|im_end|>' }}
{% elif (message['role'] == 'user') %}{{ '<|im_start|>user<|im_sep|>' + message['content'] + '<|im_end|>' }}
{% elif (message['role'] == 'assistant') %}{{ '<|im_start|>assistant<|im_sep|>' }}
{%- generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}
{% endif %}
{% endfor %}
{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}
"""

SMOLLM3 = """{#- defaults -#}
{%- set enable_thinking = true if enable_thinking is not defined else enable_thinking -%}
{%- set reasoning_mode = "/think" if enable_thinking else "/no_think" -%}
{%- if messages[0].role == "system" -%}
    {%- set system_message = messages[0].content -%}
    {%- if "/no_think" in system_message -%}{%- set reasoning_mode = "/no_think" -%}
    {%- elif "/think" in system_message -%}{%- set reasoning_mode = "/think" -%}{%- endif -%}
    {%- set custom = system_message.replace("/no_think", "").replace("/think", "").rstrip() -%}
{%- endif -%}
{{- "<|im_start|>system\\n## Metadata\\n\\n" -}}
{{- "Today: " ~ strftime_now("%d %B %Y") ~ "\\nReasoning Mode: " ~ reasoning_mode ~ "\\n\\n" -}}
{%- if custom is defined and custom | length > 0 -%}{{- custom + "\\n\\n" -}}{%- endif -%}
{%- if xml_tools or python_tools or tools -%}{{- "### Tools\\n\\n" -}}{%- endif -%}
{{- "<|im_end|>\\n" -}}
{%- for message in messages -%}
    {%- set content = message.content if message.content is string else "" -%}
    {%- if message.role == "user" -%}
        {{ "<|im_start|>" + message.role + "\\n" + content + "<|im_end|>\\n" }}
    {%- elif message.role == "assistant" -%}
        {% generation %}
        {%- set shown = content.lstrip("\\n") -%}
        {{ "<|im_start|>assistant\\n" + shown + "<|im_end|>\\n" }}
        {% endgeneration %}
        {{- shown | default("") -}}
    {%- elif message.role == "tool" -%}
        {{ "<|im_start|>" + "user\\n" + content + "<|im_end|>\\n" }}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- "<|im_start|>assistant\\n" + ("" if reasoning_mode == "/think" else "<think>\\n\\n</think>\\n") -}}
{%- endif -%}
"""

MINICPM41 = """{%- macro json_to_python_type(kind) -%}
    {%- set names = {"string": "str", "integer": "int"} -%}
    {%- if names[kind] is defined -%}{{ names[kind] }}{%- else -%}{{ "Any" }}{%- endif -%}
{%- endmacro -%}
{%- macro tool_parser(tools) -%}
    {%- for tool in tools -%}{{ tool.name }}: {{ json_to_python_type(tool.type) }}{%- endfor -%}
{%- endmacro -%}
{%- if tools is defined and tools -%}{{ '<|im_start|>system\\n' ~ tool_parser(tools) }}{%- endif -%}
{%- for message in messages -%}
    {%- set content = message['content'] -%}
    {%- if message['role'] == 'assistant' and '</think>' in content -%}
        {%- set content = content.split('</think>')[-1].lstrip('\\n') -%}
    {%- endif -%}
    {{- '<|im_start|>' + message['role'] + '\\n' + content + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|im_start|>assistant\\n' -}}
    {%- if enable_thinking is defined and enable_thinking is false -%}
        {{- '<think>\\n\\n</think>\\n\\n' -}}
    {%- elif enable_thinking is defined and enable_thinking -%}
        {{- '<think>\\n' -}}
    {%- endif -%}
{%- endif -%}
"""

GRANITE = """{%- set last = messages | map(attribute='role') | list | last %}
{%- if messages[0]['role'] == 'system' %}{%- set head = messages[0]['content'] %}
{%- else %}{%- set head = "Knowledge Cutoff: April 2024." %}
    {%- if tools and documents %}{%- set head = head + " Tools and documents." %}
    {%- elif documents %}{%- set head = head + " Documents." %}{%- endif %}
{%- endif %}
{{- '<|start_of_role|>system<|end_of_role|>' + head + '<|end_of_text|>\\n' }}
{%- if documents is not none %}{%- for d in documents %}{{ d['text'] }}{%- endfor %}{%- endif %}
{%- for message in messages if message.role != 'system' %}
    {%- if loop.index > 99 %}{%- break %}{%- endif %}
    {%- if not message.content %}{%- continue %}{%- endif %}
    {{- '<|start_of_role|>%s<|end_of_role|>' % message['role'] + message['content'] }}
    {{- '<|end_of_text|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt and last != 'assistant' %}
    {{- '<|start_of_role|>' ~ 'assistant' ~ '<|end_of_role|>' }}
{%- endif %}
"""

TOKENS = """{{ bos_token }}{{ eos_token }}{{ unk_token }}{{ pad_token }}{{ sep_token }}{{ image_token }}
{%- if mask_token is defined %}mask{% endif %}{% if cls_token is none %}cls{% endif %}
{{ tools is none }}{{ documents is none }}{{ tools is defined }}{{ nothing is defined }}{{ nothing }}
"""

PYTHON = """{%- set ns = namespace(out='', n=0) %}
{%- for m in messages %}{% set ns.out = ns.out ~ loop.index ~ m.role[0] ~ (loop.cycle('a', 'b')) %}
{%- endfor %}{{ ns.out }}
{{ dict(a=1, b=[1, 2.5, none, true]) | tojson }}{{ {'z': 1, 'a': 'é<'} | tojson(sort_keys=true) }}
{{ [1, {'a': []}] | tojson(indent=2) }}{{ {'a': 1} | tojson(separators=(',', ':')) }}
{{ '%s-%05.2f' % ('x', 3.14159) }}{{ '{0}{b!r:>6}'.format(1, b='c') }}{{ '{a}'.format_map({'a': 2}) }}
{{ messages | map(attribute='role') | unique | join(', ') }}{{ messages | groupby('role') | length }}
{{ 'a,b'.split(',') }}{{ 'abc'[::-1] }}{{ (1, 2) + (3,) }}{{ 7 // 2 }}{{ 2 ** 10 }}{{ -7 % 3 }}
{{ 'x' * 3 }}{{ [1] * 2 }}{{ 'a' in 'abc' }}{{ 1 < 2 < 3 }}{{ [3, 1, 2] | sort }}{{ 5 | string }}
{{ 'a b' | title }}{{ '<b>' | escape }}{{ ('<b>' | safe) ~ '<' }}{{ 'x' | indent(2, true) }}
{{ messages[0].missing }}{{ messages[0].get('missing', 'd') }}{{ missing | default('d') }}
{% set x %}{{ 'captured' | upper }}{% endset %}{{ x }}{% filter upper %}f{% endfilter %}
{%- macro f(a, b='B') %}{{ a }}{{ b }}{{ varargs }}{{ kwargs }}{{ caller() if caller }}{% endmacro %}
{{ f(1) }}{{ f(1, 2, 3, c=4) }}{{ f(*[1, 2]) }}{{ f(**{'a': 5}) }}{% call f(1) %}called{% endcall %}
{%- for a in [[1, [2]], [3]] recursive %}{{ a if a is number else loop(a) }}{% endfor %}
{%- for k, v in {'b': 1, 'a': 2} | dictsort %}{{ k }}{{ v }}{% else %}none{% endfor %}
{%- for x in [] %}{% else %}empty{% endfor %}{% with y = 3 %}{{ y }}{% endwith %}{{ y }}
{{- 'yes' if messages else 'no' }}{{ 'no' if not messages }}{{ 1.0 }}{{ 1e3 }}{{ none }}{{ true }}
{{ [1, 2, 3] | batch(2) | list }}{{ [1, 2] | sum }}{{ 'a\\tb'.expandtabs(4) }}{{ 'ab'.center(6) }}|
{{ 'Ab'.swapcase().encode().decode() }}{{ range(3) | list }}{{ lipsum is defined }}{{ joiner is defined }}
"""

CHAT = {
    "chatml": CHATML,
    "llama3": LLAMA3,
    "mistral": MISTRAL,
    "gemma": GEMMA,
    "qwen3": QWEN3,
    "deepseek": DEEPSEEK,
    "phi4": PHI4,
    "smollm3": SMOLLM3,
    "minicpm4.1": MINICPM41,
    "granite": GRANITE,
    "tokens": TOKENS,
    "python": PYTHON,
}
