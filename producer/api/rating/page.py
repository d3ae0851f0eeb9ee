"""The HTML that a rater sees. It works without JavaScript; the script only adds keys."""

from html import escape

from turnmill.producer.studies.model import Item, Rater, Standing, Study
from turnmill.producer.studies.rating import MAX_COMMENT_CHARS
from turnmill.producer.studies.texts import Language, Scale, Texts
from turnmill.schemas.turns import Message

_HTML_LANGUAGES: dict[Language, str] = {"en": "en", "zh": "zh-Hans"}


def render(
    rater: Rater,
    item: Item | None,
    standing: Standing,
    texts: Texts,
    language: Language,
    *,
    alert: str = "",
) -> str:
    """Render the item, or the end of the study, below what was wrong with the form."""
    progress = escape(texts.progress.format(done=standing.done, total=standing.total))
    parts = [
        f'<header><h1>{escape(texts.title)}</h1><p role="status">{progress}</p>'
        f"{_languages(language)}</header>",
        "<main>",
        f'<progress max="{max(standing.total, 1)}" value="{standing.done}" '
        f'aria-label="{progress}"></progress>',
    ]
    if alert:
        parts.append(f'<p class="alert" role="alert">{escape(alert)}</p>')
    if item is None:
        ending = texts.closed if rater.study.closed_at else texts.finished
        parts.append(f"<p>{escape(ending)}</p>" + _undo_form(texts, standing))
    else:
        parts += [_conversation(item, texts), _replies(item, texts), _form(rater, item, texts)]
    return document(texts, language, "\n".join([*parts, "</main>"]))


def document(texts: Texts, language: Language, body: str) -> str:
    """Wrap a page's body. Addresses are relative: the API may stand behind a prefix."""
    return f"""<!doctype html>
<html lang="{_HTML_LANGUAGES[language]}">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="robots" content="noindex">
<title>{escape(texts.title)}</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="static/rater.css">
<script src="static/rater.js" defer></script>
</head>
<body>
{body}
</body>
</html>
"""


def _languages(language: Language) -> str:
    if language == "en":
        return '<nav><a href="?lang=zh" lang="zh-Hans" hreflang="zh">中文</a></nav>'
    return '<nav><a href="?lang=en" lang="en" hreflang="en">English</a></nav>'


def _conversation(item: Item, texts: Texts) -> str:
    messages = "".join(_message(message, texts) for message in item.prompt)
    return (
        f'<section aria-labelledby="said"><h2 id="said">{escape(texts.conversation)}</h2>'
        f'<ol class="messages">{messages}</ol></section>'
    )


def _message(message: Message, texts: Texts) -> str:
    names = {"user": texts.user, "assistant": texts.assistant, "tool": texts.tool}
    name = names.get(message.role.value, texts.system)
    return f'<li><p class="who">{escape(name)}</p>{_text(message.text)}</li>'


def _replies(item: Item, texts: Texts) -> str:
    if item.right is None:
        shown = [("reply", texts.reply, item.left)]
    else:
        shown = [("left", texts.left, item.left), ("right", texts.right, item.right)]
    sections = "".join(
        f'<section aria-labelledby="{key}"><h2 id="{key}">{escape(title)}</h2>'
        f"{_text(text)}</section>"
        for key, title, text in shown
    )
    return f'<div class="replies">{sections}</div>'


def _text(text: str) -> str:
    return f'<p class="text" dir="auto">{escape(text)}</p>'


def _form(rater: Rater, item: Item, texts: Texts) -> str:
    study = rater.study
    fieldsets = "".join(_fieldset(study, name, texts) for name in study.dimensions)
    keys = texts.keys_likert if study.kind == "likert" else texts.keys_pairwise
    return (
        f'<form class="rating" method="post" data-kind="{study.kind}" autocomplete="off">'
        f'<input type="hidden" name="item" value="{item.item_id.hex}">{fieldsets}'
        f'<label for="comment">{escape(texts.comment)}</label>'
        f'<textarea id="comment" name="comment" rows="2" maxlength="{MAX_COMMENT_CHARS}">'
        "</textarea>"
        f'<div class="buttons"><button name="action" value="submit">{escape(texts.submit)}</button>'
        f"{_undo_button(texts)}</div>"
        f"<p>{escape(keys)}</p></form>"
    )


def _fieldset(study: Study, dimension: str, texts: Texts) -> str:
    scale = texts.scales[dimension]
    if study.kind == "likert":
        question = scale.question
        choices = [(value, f"{value} – {text}") for value, text in enumerate(scale.anchors, 1)]
    else:
        question = texts.which_is_better
        choices = [(-1, f"← {texts.left}"), (0, texts.tie), (1, f"{texts.right} →")]
    labels = "".join(
        f'<label><input type="radio" name="{dimension}" value="{value}" required> '
        f"{escape(label)}</label>"
        for value, label in choices
    )
    return f"<fieldset><legend>{escape(_legend(scale, question))}</legend>{labels}</fieldset>"


def _legend(scale: Scale, question: str) -> str:
    return f"{scale.name}: {question}"


def _undo_form(texts: Texts, standing: Standing) -> str:
    if not standing.done:
        return ""
    return f'<form method="post"><div class="buttons">{_undo_button(texts)}</div></form>'


def _undo_button(texts: Texts) -> str:
    return f'<button name="action" value="undo" formnovalidate>{escape(texts.undo)}</button>'
