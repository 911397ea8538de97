"""The prompt as a chat template of transformers, for tools that know nothing of this package."""

from macaw_lit.data.preprocess import Preprocessor

_TEMPLATE = """\
{%- macro words(message) -%}
{%- if message['content'] is string -%}
{{- message['content'] -}}
{%- else -%}
{%- for part in message['content'] if part['type'] == 'text' -%}{{- part['text'] -}}{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{%- macro inline(message) -%}
{%- if layout == 'inline' and message['content'] is not string -%}
{%- for part in message['content'] if part['type'] in blocks -%}{{- blocks[part['type']] -}}{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{{- bos -}}
{%- if layout == 'prefix' -%}
{%- for kind, block in blocks.items() -%}
{%- set found = namespace(any=false) -%}
{%- for message in messages if message['content'] is not string -%}
{%- for part in message['content'] if part['type'] == kind -%}
{%- set found.any = true -%}{{- block -}}
{%- endfor -%}
{%- endfor -%}
{%- if missing == 'zeros' and not found.any -%}{{- block -}}{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- set system = messages[0]['role'] == 'system' -%}
{%- if system -%}{{- inline(messages[0]) -}}{{- words(messages[0]) -}}{%- else -%}{{- header -}}{%- endif -%}
{%- for message in (messages[1:] if system else messages) -%}
{%- if message['role'] != ('assistant' if loop.index0 % 2 else 'user') -%}
{{- raise_exception('roles must be [system] user (assistant user)*, not ' ~ message['role'] ~ ' here') -}}
{%- endif -%}
{%- if message['role'] == 'user' -%}
{{- instruction -}}{{- inline(message) -}}{{- words(message) -}}{{- response -}}
{%- else -%}
{{- inline(message) -}}{{- answer -}}{{- words(message) -}}{{- eos -}}
{%- endif -%}
{%- endfor -%}
"""


def chat_template(preprocess: Preprocessor) -> str:
    """Jinja that renders messages to the text of a row: control tokens, a pad token per slot, header, turns.

    The text is the row that `preprocess` makes, control tokens written out, with three limits: a control token that a
    user types is one, the sound of a video is a part of its own, and an Alpaca `input` has no message to stand in.
    """
    prompt, token = preprocess.prompt, preprocess.tokenizer.convert_ids_to_tokens
    blocks = {}
    for kind in preprocess.order:
        if kind in preprocess.specs:
            opening, closing = preprocess.delimiters[kind]
            slots = token(preprocess.pad) * preprocess.specs[kind].num_tokens
            blocks[kind] = token(opening) + slots + token(closing)
    values = {
        "bos": token(preprocess.bos),
        "eos": token(preprocess.eos),
        "header": prompt.header,
        "instruction": prompt.instruction,
        "response": prompt.response,
        "answer": prompt.answer,
        "layout": preprocess.layout,
        "missing": preprocess.missing,
    }
    named = "".join(f"{{%- set {name} = {_literal(value)} -%}}\n" for name, value in values.items())
    pairs = ", ".join(f"{_literal(kind)}: {_literal(block)}" for kind, block in blocks.items())
    return f"{named}{{%- set blocks = {{{pairs}}} -%}}\n{_TEMPLATE}"


def _literal(text: str) -> str:
    """`text` as a string of Jinja, which reads Python's escapes."""
    return '"' + text.encode("unicode_escape").decode("ascii").replace('"', '\\"') + '"'
