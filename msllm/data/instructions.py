"""A small bilingual instruction set built by code, whose answers a rule can check.

Twelve tasks, each asked in English and in Chinese. No set of operands of the held-out part occurs in the
training part, in any language, wording or (where order does not matter) order, so a correct held-out answer
was worked out rather than remembered.
"""

import math
import random
import re
from collections.abc import Callable
from dataclasses import dataclass

LANGUAGES = ("en", "zh")
HELD_OUT = 50  # operand sets a task keeps for the test part

WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
DIGITS = "零一二三四五六七八九"
OPPOSITES = (
    ("big", "small", "大", "小"), ("hot", "cold", "热", "冷"), ("fast", "slow", "快", "慢"), ("high", "low", "高", "低"),
    ("long", "short", "长", "短"), ("new", "old", "新", "旧"), ("bright", "dark", "亮", "暗"), ("hard", "soft", "硬", "软"),
    ("wet", "dry", "湿", "干"), ("rich", "poor", "富", "穷"), ("near", "far", "近", "远"), ("early", "late", "早", "晚"),
    ("strong", "weak", "强", "弱"), ("good", "bad", "好", "坏"), ("true", "false", "真", "假"), ("full", "empty", "满", "空"),
    ("thick", "thin", "厚", "薄"), ("deep", "shallow", "深", "浅"), ("wide", "narrow", "宽", "窄"), ("more", "less", "多", "少"),
)
ADJECTIVES = {
    "red": "红", "white": "白", "black": "黑", "yellow": "黄", "green": "绿", "blue": "蓝", "big": "大", "small": "小",
    "clean": "干净的", "pretty": "漂亮的", "strange": "奇怪的", "cheap": "便宜的", "lovely": "可爱的", "heavy": "沉重的",
}
NOUNS = {
    "cat": "猫", "dog": "狗", "horse": "马", "bird": "鸟", "fish": "鱼", "house": "房子", "car": "汽车", "book": "书",
    "cup": "杯子", "chair": "椅子", "table": "桌子", "flower": "花", "hat": "帽子", "boat": "船", "door": "门", "key": "钥匙",
    "shirt": "衬衫", "box": "盒子", "ball": "球", "lamp": "灯", "tree": "树", "umbrella": "雨伞", "apple": "苹果",
    "island": "岛", "window": "窗户", "picture": "画", "garden": "花园", "river": "河",
    "rabbit": "兔子", "tiger": "老虎", "monkey": "猴子",
}
ANIMALS = ("cat", "dog", "horse", "bird", "fish", "rabbit", "tiger", "monkey")
ANIMALS_ZH = tuple(NOUNS[word] for word in ANIMALS)
OTHER_WORDS = {  # the operands that change with the language of the question
    "larger": "大", "smaller": "小", "even": "偶数", "odd": "奇数", "after": "后", "before": "前",
    **{day: f"星期{name}" for day, name in zip(WEEKDAYS, "一二三四五六日", strict=True)},
    **{en: zh for a, b, c, d in OPPOSITES for en, zh in ((a, c), (b, d))},
}
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

    ``draw`` returns a tuple of English strings; ``show`` turns it into the fields of a wording;
    ``solve`` answers from those fields. A wording is a pair (instruction, input). ``unordered`` marks
    operands that are the same question in any order.
    """

    name: str
    train: int  # operand sets in the training part; each is asked once per language
    draw: Callable[[_Draw], tuple[str, ...]]
    show: Callable[[tuple[str, ...], str], tuple[str, ...]]
    solve: Callable[[tuple[str, ...], str], str]
    en: tuple[tuple[str, str], ...]
    zh: tuple[tuple[str, str], ...]
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


def _words(operands, language):
    return tuple(OTHER_WORDS.get(word, word) if language == "zh" else word for word in operands)


def _nouns(operands, language):
    return (" ".join(NOUNS[word] if language == "zh" else word for word in operands),)


def _opposites(operands, language):
    return (("、" if language == "zh" else ", ").join(_words(operands, language)),)


def _draw_difference(draw):
    small, large = sorted((draw.number(10, 99), draw.number(10, 99)))
    return str(large), str(small)


def _draw_comparison(draw):
    first = draw.number(10, 98)
    near = max(10, min(98, first + draw.number(-9, 9)))  # half the pairs often share their first digit
    second = draw.one((near, draw.number(10, 98)))
    if second == first:
        second = first + 1
    return draw.one(("larger", "smaller")), str(first), str(second)


def _draw_animals(draw):
    count = draw.number(0, 4)
    things = tuple(word for word in NOUNS if word not in ANIMALS)
    words = draw.some(ANIMALS, count) + draw.some(things, draw.number(max(0, 2 - count), 5 - count))
    return draw.some(words, len(words))


def _draw_sortable(draw):
    """Words whose first letters differ: the order is decided there."""
    while True:
        words = draw.some(tuple(NOUNS), 3)
        if len({word[0] for word in words}) == 3:
            return words


def _draw_opposites(draw):
    first, second = draw.some(OPPOSITES, 2)
    return draw.one(first[:2]), draw.one(second[:2])


def _solve_comparison(fields, _):
    return str((max if fields[0] in ("larger", "大") else min)(int(fields[1]), int(fields[2])))


def _solve_next(fields, _):
    number = int(fields[1])
    step = 2 if (number % 2 == 0) == (fields[0] in ("even", "偶数")) else 1
    return str(number + step)


def _solve_weekday(fields, language):
    days = _words(WEEKDAYS, language)
    sign = 1 if fields[1] in ("after", "后") else -1
    return days[(days.index(fields[2]) + sign * int(fields[0])) % 7]


def _solve_opposites(fields, language):
    comma, column = ("、", 2) if language == "zh" else (", ", 0)
    other = {row[column + i]: row[column + 1 - i] for row in OPPOSITES for i in (0, 1)}
    return comma.join(other[word] for word in fields[0].split(comma))


def _solve_count(fields, _):
    return str(sum(word in ANIMALS or word in ANIMALS_ZH for word in fields[0].split()))


def _solve_largest(fields, _):
    return str(max(int(number) for number in re.split("[,、] ?", fields[0])))


TASKS = (
    Task("add", 1000, lambda d: (str(d.number(10, 99)), str(d.number(10, 99))), _words,
         lambda f, _: str(int(f[0]) + int(f[1])),
         (("Add the two numbers.", "{0} + {1}"), ("What is {0} plus {1}?", "")),
         (("计算两个数的和。", "{0} + {1}"), ("{0}加{1}等于多少？", "")), unordered=True),
    Task("subtract", 800, _draw_difference, _words, lambda f, _: str(int(f[0]) - int(f[1])),
         (("Subtract the numbers.", "{0} - {1}"), ("What is {0} minus {1}?", "")),
         (("计算两个数的差。", "{0} - {1}"), ("{0}减{1}等于多少？", ""))),
    Task("compare", 450, _draw_comparison, _words, _solve_comparison,
         (("Which number is {0}?", "{1}, {2}"), ("Which is {0}, {1} or {2}?", "")),
         (("哪个数更{0}？", "{1}、{2}"), ("{1}和{2}哪个更{0}？", "")), unordered=True),
    Task("largest", 450, lambda d: tuple(str(n) for n in d.some(range(10, 100), 3)),
         lambda o, language: (("、" if language == "zh" else ", ").join(o),), _solve_largest,
         (("Find the largest number.", "{0}"), ("Which is the largest of {0}?", "")),
         (("找出最大的数。", "{0}"), ("{0}中最大的是哪个？", "")), unordered=True),
    Task("next", 450, lambda d: (d.one(("even", "odd")), str(d.number(10, 997))), _words, _solve_next,
         (("Find the next {0} number.", "{1}"), ("Which {0} number comes after {1}?", "")),
         (("写出下一个{0}。", "{1}"), ("{1}之后的下一个{0}是几？", ""))),
    Task("numeral", 350, lambda d: (str(d.number(10, 999)),), _words, lambda f, _: chinese_numeral(int(f[0])),
         (("Write the number in Chinese.", "{0}"), ("How is {0} written in Chinese?", "")),
         (("用汉字写出这个数。", "{0}"), ("{0}用汉字怎么写？", ""))),
    Task("weekday", 146, lambda d: (str(d.number(1, 14)), d.one(("after", "before")), d.one(WEEKDAYS)), _words,
         _solve_weekday,
         (("Name the day.", "{0} days {1} {2}"), ("What day is {0} days {1} {2}?", "")),
         (("说出是星期几。", "{2}之{1}{0}天"), ("{2}之{1}{0}天是星期几？", ""))),
    Task("reverse", 450, lambda d: d.some(tuple(NOUNS), d.number(2, 4)), _nouns,
         lambda f, _: " ".join(f[0].split()[::-1]),
         (("Reverse the word order.", "{0}"), ("Say the words backwards.", "{0}")),
         (("把词语倒序排列。", "{0}"), ("把这些词反过来说。", "{0}"))),
    Task("sort", 450, _draw_sortable, lambda o, _: (" ".join(o),), lambda f, _: " ".join(sorted(f[0].split())),
         (("Sort the words.", "{0}"), ("List in alphabetical order.", "{0}")),
         (("按字母顺序排列。", "{0}"), ("给单词排序。", "{0}")), unordered=True),
    Task("count", 450, _draw_animals, _nouns, _solve_count,
         (("Count the animals.", "{0}"), ("How many animals are there?", "{0}")),
         (("数一数动物。", "{0}"), ("这里有几种动物？", "{0}")), unordered=True),
    Task("opposite", 400, _draw_opposites, _opposites, _solve_opposites,
         (("Give the opposites.", "{0}"), ("What is the opposite of {0}?", "")),
         (("写出反义词。", "{0}"), ("{0}的反义词是什么？", "")), unordered=True),
    Task("translate", 300, lambda d: (d.one(tuple(PHRASES)),),
         lambda o, language: (PHRASES[o[0]] if language == "zh" else o[0],),
         lambda f, language: PHRASES_BACK[f[0]] if language == "zh" else PHRASES[f[0]],
         (("Translate into Chinese.", "{0}"), ("How do you say {0} in Chinese?", "")),
         (("翻译成英文。", "{0}"), ("{0}用英文怎么说？", ""))),
)


def generate(seed: int = 0) -> tuple[list[dict], list[dict]]:
    """Builds the instruction set.

    Args:
        seed: the same seed gives the same records on every machine and Python version.

    Returns:
        (train, test): shuffled lists of records {"instruction", "input", "output", "task"}, all str. A training
        operand set is asked once in English and once in Chinese; a held-out one once, the languages in turn.
    """
    draw = _Draw(seed)
    train, test = [], []
    for task in TASKS:
        kept = {}
        while len(kept) < task.train + HELD_OUT:
            operands = task.draw(draw)
            kept.setdefault(_key(task, operands), operands)
        for i, operands in enumerate(kept.values()):
            if i < HELD_OUT:
                test.append(_record(task, operands, LANGUAGES[i % 2], draw))
            else:
                train.append(_record(task, operands, LANGUAGES[i % 2], draw))
    return list(draw.some(train, len(train))), list(draw.some(test, len(test)))


def answer(record: dict) -> str | None:
    """Returns the answer worked out from ``instruction`` and ``input``, or None for a question of no known task."""
    question = f"{record['instruction']}\n{record.get('input', '')}"
    for pattern, task, language in _PATTERNS:
        if match := pattern.fullmatch(question):
            fields = tuple(match[f"f{i}"] for i in range(len(match.groups())))
            try:
                return task.solve(fields, language)
            except (KeyError, ValueError):  # worded like this task, but with operands it does not know
                return None
    return None


def check(record: dict, answered: str) -> bool:
    """Says whether ``answered`` is right for the question of ``record``; its ``output`` is not looked at."""
    expected = answer(record)
    return expected is not None and answered.strip() == expected


def _key(task: Task, operands: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(sorted(operands)) if task.unordered else operands


def _record(task: Task, operands: tuple[str, ...], language: str, draw: _Draw) -> dict:
    fields = task.show(operands, language)
    instruction, text = (part.format(*fields) for part in draw.one(getattr(task, language)))
    return {"instruction": instruction, "input": text, "output": task.solve(fields, language), "task": task.name}


def _pattern(wording: tuple[str, str]) -> re.Pattern:
    text = re.escape("\n".join(wording))
    return re.compile(re.sub(r"\\{(\d)\\}", r"(?P<f\1>.+?)", text))


_PATTERNS = [(_pattern(wording), task, language) for task in TASKS for language in LANGUAGES
             for wording in getattr(task, language)]
