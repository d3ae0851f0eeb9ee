"""What raters read, in English and Chinese: dimensions, anchors, and the words around them."""

from dataclasses import dataclass
from typing import Literal

Language = Literal["en", "zh"]


@dataclass(frozen=True, slots=True)
class Scale:
    """A dimension: the question, and what each value means, the worst first."""

    name: str
    question: str
    anchors: tuple[str, str, str, str, str]


@dataclass(frozen=True, slots=True)
class Texts:
    """One language."""

    scales: dict[str, Scale]
    title: str
    conversation: str
    user: str
    assistant: str
    system: str
    tool: str
    reply: str
    left: str
    right: str
    tie: str
    which_is_better: str
    comment: str
    submit: str
    undo: str
    progress: str
    finished: str
    closed: str
    incomplete: str
    long_comment: str
    keys_likert: str
    keys_pairwise: str
    invalid_link: str


_EN = Texts(
    scales={
        "fluency": Scale(
            "Fluency",
            "How well is the reply written?",
            (
                "Unreadable: the language is broken.",
                "Hard to read: many mistakes.",
                "Readable with effort: several mistakes or odd phrases.",
                "Reads well: a slip or two.",
                "Reads as a careful person would write it.",
            ),
        ),
        "coherence": Scale(
            "Coherence",
            "Does the reply fit the conversation, and does it hold together?",
            (
                "Has nothing to do with what was said, or contradicts itself throughout.",
                "Misses the point for the most part.",
                "Fits in part, or contains a contradiction.",
                "Fits, with a small gap.",
                "Fits completely and is consistent.",
            ),
        ),
        "informativeness": Scale(
            "Informativeness",
            "Does the reply say what the user needs?",
            (
                "Says nothing of use.",
                "Says little: the user has to ask again.",
                "Says a part of what is needed.",
                "Says most of what is needed.",
                "Says all that is needed, and nothing beside the point.",
            ),
        ),
        "preference": Scale("Preference", "Which reply is better?", ("", "", "", "", "")),
    },
    title="Rating replies",
    conversation="Conversation",
    user="User",
    assistant="Assistant",
    system="Instructions",
    tool="Tool",
    reply="Reply",
    left="Left reply",
    right="Right reply",
    tie="No difference",
    which_is_better="Which reply is better?",
    comment="Comment (optional)",
    submit="Submit",
    undo="Undo the last one",
    progress="{done} of {total} rated",
    finished="Thank you. There is nothing left for you to rate.",
    closed="This study is closed. Thank you.",
    incomplete="Please answer every question.",
    long_comment="The comment is too long. It has at most {most:,} characters.",
    keys_likert="Keys: 1 to 5 rates, Enter submits, u undoes the last one.",
    keys_pairwise="Keys: ← left, → right, t no difference, Enter submits, u undoes the last one.",
    invalid_link="This link is wrong or has expired. Ask the person who sent it for a new one.",
)

_ZH = Texts(
    scales={
        "fluency": Scale(
            "流畅性",
            "这条回复写得通顺吗？",
            (
                "无法阅读：语句完全不通。",
                "很难读懂：错误很多。",
                "费些力气能读懂：有几处错误或别扭的表达。",
                "比较通顺：只有一两处小毛病。",
                "通顺自然，像认真的人写的。",
            ),
        ),
        "coherence": Scale(
            "连贯性",
            "这条回复切合对话吗？前后一致吗？",
            (
                "与对话无关，或通篇自相矛盾。",
                "大部分没有切题。",
                "部分切题，或有一处矛盾。",
                "切题，略有疏漏。",
                "完全切题，前后一致。",
            ),
        ),
        "informativeness": Scale(
            "信息量",
            "这条回复说出了用户需要的内容吗？",
            (
                "没有任何有用的内容。",
                "内容很少，用户必须再问一次。",
                "说出了所需内容的一部分。",
                "说出了大部分所需内容。",
                "说出了全部所需内容，没有多余的话。",
            ),
        ),
        "preference": Scale("偏好", "哪条回复更好？", ("", "", "", "", "")),
    },
    title="回复评分",
    conversation="对话",
    user="用户",
    assistant="助手",
    system="指令",
    tool="工具",
    reply="回复",
    left="左边的回复",
    right="右边的回复",
    tie="没有差别",
    which_is_better="哪条回复更好？",
    comment="备注（可不填）",
    submit="提交",
    undo="撤销上一条",
    progress="已评 {done} / {total}",
    finished="谢谢！没有需要您评分的内容了。",
    closed="本次评测已结束，谢谢！",
    incomplete="请回答每一个问题。",
    long_comment="评语太长，最多 {most} 个字符。",
    keys_likert="按键：1 至 5 评分，回车提交，u 撤销上一条。",
    keys_pairwise="按键：← 左边，→ 右边，t 没有差别，回车提交，u 撤销上一条。",
    invalid_link="链接有误或已过期。请向发送者索取新的链接。",
)

TEXTS: dict[Language, Texts] = {"en": _EN, "zh": _ZH}


def choose_language(wanted: str | None, accepted: str = "") -> Language:
    """Choose by what was asked for, else by an Accept-Language header (RFC 9110, section 12.5.4).

    The language with the greatest weight that we have wins; English where there is none.
    """
    if wanted:
        return "zh" if wanted.lower().startswith("zh") else "en"
    weighted = [(_weight(part), part.strip().lower()[:2]) for part in accepted.split(",")]
    for weight, name in sorted(weighted, key=lambda pair: -pair[0]):
        if weight > 0 and name == "zh":
            return "zh"
        if weight > 0 and name == "en":
            return "en"
    return "en"


def _weight(part: str) -> float:
    _, _, weight = part.partition(";q=")
    try:
        return float(weight) if weight else 1.0
    except ValueError:
        return 0.0
