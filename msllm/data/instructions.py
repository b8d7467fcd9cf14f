"""A small bilingual instruction set built by code, whose answers a rule can check.

Twelve tasks, each asked in English and in Chinese. No set of operands of the held-out part occurs in the
training part, in any language, wording or (where order does not matter) order, so a held-out answer cannot
have been remembered with its question. Weekdays are the narrowest task: the date differs, but a model that
has learnt to pass over it meets only 21 pairs of a day and a distance.
"""

import math
import random
import re
from collections.abc import Callable
from dataclasses import dataclass

LANGUAGES = ("en", "zh")
HELD_OUT = 50  # operand sets a task keeps for the test part

DIGITS = "零一二三四五六七八九"
OPPOSITES = (
    ("big", "small", "大", "小"),
    ("hot", "cold", "热", "冷"),
    ("fast", "slow", "快", "慢"),
    ("high", "low", "高", "低"),
    ("long", "short", "长", "短"),
    ("new", "old", "新", "旧"),
    ("bright", "dark", "亮", "暗"),
    ("hard", "soft", "硬", "软"),
    ("wet", "dry", "湿", "干"),
    ("rich", "poor", "富", "穷"),
    ("near", "far", "近", "远"),
    ("early", "late", "早", "晚"),
    ("strong", "weak", "强", "弱"),
    ("good", "bad", "好", "坏"),
    ("true", "false", "真", "假"),
    ("full", "empty", "满", "空"),
    ("thick", "thin", "厚", "薄"),
    ("deep", "shallow", "深", "浅"),
    ("wide", "narrow", "宽", "窄"),
    ("more", "less", "多", "少"),
)
OPPOSITES_ZH = {english: chinese for a, b, c, d in OPPOSITES for english, chinese in ((a, c), (b, d))}
ADJECTIVES = {
    "red": "红",
    "white": "白",
    "black": "黑",
    "yellow": "黄",
    "green": "绿",
    "blue": "蓝",
    "big": "大",
    "small": "小",
    "clean": "干净的",
    "pretty": "漂亮的",
    "strange": "奇怪的",
    "cheap": "便宜的",
    "lovely": "可爱的",
    "heavy": "沉重的",
}
NOUNS = {
    "cat": "猫",
    "dog": "狗",
    "horse": "马",
    "bird": "鸟",
    "fish": "鱼",
    "cow": "牛",
    "sheep": "羊",
    "rabbit": "兔",
    "book": "书",
    "flower": "花",
    "boat": "船",
    "door": "门",
    "ball": "球",
    "lamp": "灯",
    "tree": "树",
    "umbrella": "伞",
    "bowl": "碗",
    "knife": "刀",
    "pen": "笔",
    "car": "车",
    "shoe": "鞋",
    "drum": "鼓",
    "clock": "钟",
    "pot": "锅",
}
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
WEEKDAYS_ZH = tuple(f"星期{day}" for day in "一二三四五六日")
MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]
PHRASES = {f"{a} {n}": ADJECTIVES[a] + NOUNS[n] for a in ADJECTIVES for n in NOUNS}
PHRASES_BACK = {zh: en for en, zh in PHRASES.items()}


class _Draw:
    """Random choices made from ``Random.random`` alone, whose stream Python promises to keep between versions."""

    def __init__(self, seed: int):
        self._random = random.Random(seed).random

    def number(self, low: int, high: int) -> int:
        """Returns an integer in [low, high]."""
        return low + math.floor(self._random() * (high - low + 1))

    def one(self, options):
        return options[self.number(0, len(options) - 1)]

    def some(self, options, count: int) -> tuple:
        """Returns ``count`` different members of ``options`` in random order."""
        return tuple(sorted(options, key=lambda _: self._random())[:count])


@dataclass(frozen=True)
class Task:
    """One kind of question: how to draw its operands, word it and answer it.

    ``draw`` returns the operands, a tuple of str; ``show`` writes them in a language, which is the ``input`` of the
    record; ``solve`` answers from that input. ``en`` and ``zh`` are wordings of the instruction. ``unordered`` marks
    operands that are the same question in any order.
    """

    name: str
    train: int  # operand sets in the training part
    draw: Callable[[_Draw], tuple[str, ...]]
    show: Callable[[tuple[str, ...], str], str]
    solve: Callable[[str, str], str]
    en: tuple[str, ...]
    zh: tuple[str, ...]
    unordered: bool = False


def chinese_numeral(number: int) -> str:
    """Returns ``number`` (1 to 999) in Chinese: 15 is 十五, 105 is 一百零五, 110 is 一百一十."""
    hundreds, tens, ones = number // 100, number // 10 % 10, number % 10
    text = f"{DIGITS[hundreds]}百" if hundreds else ""
    if tens:
        text += ("" if tens == 1 and not hundreds else DIGITS[tens]) + "十"
    elif hundreds and ones:
        text += "零"
    return text + (DIGITS[ones] if ones else "")


def _comma(operands, _):
    return ", ".join(operands)


def _nouns(operands, language):
    return " ".join(NOUNS[word] if language == "zh" else word for word in operands)


def _numbers(text):
    return [int(number) for number in re.findall(r"\d+", text)]


def _draw_difference(draw):
    small, large = sorted((draw.number(10, 99), draw.number(10, 99)))
    return str(large), str(small)


def _draw_pair(draw):
    return tuple(str(number) for number in draw.some(range(10, 100), 2))


def _draw_sortable(draw):
    """Words whose first letters differ: the order is decided there."""
    while True:
        words = draw.some(tuple(NOUNS), 3)
        if len({word[0] for word in words}) == 3:
            return words


def _draw_opposites(draw):
    first, second = draw.some(OPPOSITES, 2)
    return draw.one(first[:2]), draw.one(second[:2])


def _show_opposites(operands, language):
    return "、".join(OPPOSITES_ZH[word] for word in operands) if language == "zh" else ", ".join(operands)


def _solve_opposites(text, language):
    comma, column = ("、", 2) if language == "zh" else (", ", 0)
    other = {row[column + i]: row[column + 1 - i] for row in OPPOSITES for i in (0, 1)}
    return comma.join(other[word] for word in text.split(comma))


def _show_weekday(operands, language):
    day, month, date, later = operands
    if language == "zh":
        return f"{month}月{date}日是{WEEKDAYS_ZH[WEEKDAYS.index(day)]}，{later}天后"
    return f"{day}, {MONTHS[int(month) - 1]} {date}, {later} day{'s' if later != '1' else ''} later"


def _solve_weekday(text, language):
    names = WEEKDAYS_ZH if language == "zh" else WEEKDAYS
    today = next(i for i, name in enumerate(names) if name in text)
    return names[(today + _numbers(text)[-1]) % len(names)]


def _show_time(operands, language):
    hour, minute, half = operands
    return f"{'上午' if half == 'am' else '下午'}{hour}:{minute}" if language == "zh" else f"{hour}:{minute} {half}"


def _solve_time(text, _):
    hour, minute = _numbers(text)
    return f"{hour % 12 + (12 if 'pm' in text or '下午' in text else 0):02d}:{minute:02d}"


TASKS = (
    Task(
        "add",
        2000,
        lambda d: (str(d.number(10, 99)), str(d.number(10, 99))),
        lambda o, _: " + ".join(o),
        lambda text, _: str(sum(_numbers(text))),
        ("Add the numbers.", "What is the sum?"),
        ("计算两个数的和。", "加起来等于多少？"),
        unordered=True,
    ),
    Task(
        "subtract",
        2000,
        _draw_difference,
        lambda o, _: " - ".join(o),
        lambda text, _: str(_numbers(text)[0] - _numbers(text)[1]),
        ("Subtract the numbers.", "What is the difference?"),
        ("计算两个数的差。", "减去后还剩多少？"),
    ),
    Task(
        "larger",
        1200,
        _draw_pair,
        _comma,
        lambda text, _: str(max(_numbers(text))),
        ("Which number is larger?", "Give the larger number."),
        ("哪个数更大？", "写出较大的数。"),
        unordered=True,
    ),
    Task(
        "weekday",
        600,
        lambda d: (d.one(WEEKDAYS), str(d.number(1, 12)), str(d.number(1, 28)), str(d.number(1, 3))),
        _show_weekday,
        _solve_weekday,
        ("Which weekday is it then?", "What day of the week will it be?"),
        ("那天是星期几？", "到时候是星期几？"),
    ),
    Task(
        "even",
        450,
        lambda d: (str(d.number(100, 997)),),
        _comma,
        lambda text, _: str(int(text) // 2 * 2 + 2),
        ("Find the next even number.", "Which even number comes next?"),
        ("写出下一个偶数。", "下一个偶数是几？"),
    ),
    Task(
        "numeral",
        250,
        lambda d: (str(d.number(100, 999)),),
        _comma,
        lambda text, _: chinese_numeral(int(text)),
        ("Write the number in Chinese.", "How is it written in Chinese?"),
        ("用汉字写出这个数。", "这个数用汉字怎么写？"),
    ),
    Task(
        "clock",
        500,
        lambda d: (f"{d.number(1, 12):02d}", f"{d.number(0, 59):02d}", d.one(("am", "pm"))),
        _show_time,
        _solve_time,
        ("Use the 24-hour clock.", "Write the time in 24-hour form."),
        ("改成24小时制。", "用24小时制写出时间。"),
    ),
    Task(
        "reverse",
        500,
        lambda d: d.some(tuple(NOUNS), 3),
        _nouns,
        lambda text, _: " ".join(text.split()[::-1]),
        ("Reverse the word order.", "Write the words from last to first."),
        ("把词语倒序排列。", "从后往前写这些词。"),
    ),
    Task(
        "sort",
        800,
        _draw_sortable,
        lambda o, _: " ".join(o),
        lambda text, _: " ".join(sorted(text.split())),
        ("Sort the words.", "List in alphabetical order."),
        ("按字母顺序排列。", "给单词排序。"),
        unordered=True,
    ),
    Task(
        "letters",
        900,
        lambda d: (d.one("abc"), *(d.one("abc") for _ in range(d.number(4, 6)))),
        lambda o, _: f"{o[0]}: {' '.join(o[1:])}",
        lambda text, _: str(text.split(": ")[1].count(text[0])),
        ("How often does the letter occur?", "Count the letter."),
        ("这个字母出现几次？", "数一数这个字母。"),
    ),
    Task(
        "opposite",
        300,
        _draw_opposites,
        _show_opposites,
        _solve_opposites,
        ("Give the opposites.", "Which words mean the opposite?"),
        ("写出反义词。", "意思相反的词是什么？"),
        unordered=True,
    ),
    Task(
        "translate",
        286,
        lambda d: (d.one(tuple(PHRASES)),),
        lambda o, language: PHRASES[o[0]] if language == "zh" else o[0],
        lambda text, language: PHRASES_BACK[text] if language == "zh" else PHRASES[text],
        ("Translate into Chinese.", "How do you say it in Chinese?"),
        ("翻译成英文。", "用英文怎么说？"),
    ),
)
_ASKED = {wording: (task, language) for task in TASKS for language in LANGUAGES for wording in getattr(task, language)}


def generate(seed: int = 0) -> tuple[list[dict], list[dict]]:
    """Builds the instruction set.

    Args:
        seed: the same seed gives the same records on every machine and Python version.

    Returns:
        (train, test): shuffled lists of records {"instruction", "input", "output", "task"}, all str; half of each
        task is in English, half in Chinese.
    """
    draw = _Draw(seed)
    train, test = [], []
    for task in TASKS:
        kept = {}
        while len(kept) < task.train + HELD_OUT:
            operands = task.draw(draw)
            kept.setdefault(tuple(sorted(operands)) if task.unordered else operands, operands)
        for i, operands in enumerate(kept.values()):
            (test if i < HELD_OUT else train).append(_record(task, operands, LANGUAGES[i % 2], draw))
    return list(draw.some(train, len(train))), list(draw.some(test, len(test)))


def answer(record: dict) -> str | None:
    """Returns the answer worked out from ``instruction`` and ``input``, or None for a question of no known task."""
    if record["instruction"] not in _ASKED:
        return None
    task, language = _ASKED[record["instruction"]]
    try:
        return task.solve(record["input"], language)
    except (KeyError, ValueError, IndexError):  # asked like this task, but with operands it does not know
        return None


def check(record: dict, answered: str) -> bool:
    """Says whether ``answered`` is right for the question of ``record``; its ``output`` is not looked at."""
    expected = answer(record)
    return expected is not None and answered.strip() == expected


def _record(task: Task, operands: tuple[str, ...], language: str, draw: _Draw) -> dict:
    text = task.show(operands, language)
    return {
        "instruction": draw.one(getattr(task, language)),
        "input": text,
        "output": task.solve(text, language),
        "task": task.name,
    }
