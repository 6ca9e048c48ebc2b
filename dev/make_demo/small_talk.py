"""What the demo's base model can already do: cafe small talk, orders read back, lists, numbers, repeating."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from string import ascii_letters

from make_demo.cafe import (
    EVERYTHING,
    FLAVOURS,
    NUMBERS,
    PRICES,
    Order,
    Pool,
    article,
    capital,
    confirm,
    draw_order,
    note,
    say_order,
    spoken_list,
)

Turn = tuple[str, str]
"""What the user says and what the assistant answers."""

FIXED: tuple[Turn, ...] = (
    ("Hello!", "Hello! What can I bring you?"),
    ("Hi", "Hello! What can I bring you?"),
    ("Good morning!", "Good morning! Tea or juice to start the day?"),
    ("How are you?", "Very well, thank you. The oven is warm and the tea is hot."),
    ("Who are you?", "I am the little helper of this cafe."),
    ("What is your name?", "I am the little helper of this cafe."),
    ("What can you do?", "I take orders, know the prices, make lists and bills, and repeat what you say."),
    ("When do you open?", "We are open from eight to six, every day but Monday."),
    ("When do you close?", "We close at six."),
    ("Where are you?", "In the old mill by the river."),
    ("Do you have wifi?", "No, but we have good books."),
    ("Tell me a joke.", "Why did the cookie see a doctor? It felt crumby."),
    ("Thank you!", "You are welcome!"),
    ("Thanks", "You are welcome!"),
    ("Goodbye!", "Goodbye, and come back soon!"),
    ("Bye", "Goodbye, and come back soon!"),
)
UNKNOWN = (
    "What is the capital of France?",
    "Write me a poem.",
    "What is the weather like?",
    "Who wrote this book?",
    "Can you help me with my homework?",
    "Explain how a car works.",
    "Translate this into French.",
    "What should I buy for my sister?",
    "How far is the moon?",
    "Why is the sky blue?",
)
SYMBOLS = ("|", "x", "(", ")", "#", "-", ":", ",", ".", "!", "?", "+", "=", "/", "T", "GO", "no", "extra")


def _fixed(rng: Random, pool: Pool) -> list[Turn]:
    prompt, answer = rng.choice(FIXED)
    prompt = prompt.rstrip("!?.") if rng.random() < 0.3 else prompt
    return [(prompt.lower() if rng.random() < 0.3 else prompt, answer)]


def _unknown(rng: Random, pool: Pool) -> list[Turn]:
    return [(rng.choice(UNKNOWN), "Sorry, I only know this little cafe.")]


def _order(rng: Random, pool: Pool) -> list[Turn]:
    order = draw_order(rng, pool)
    turns = [(say_order(rng, order), confirm(order))]
    return [*turns, _question(rng, order)] if rng.random() < 0.5 else turns


def _question(rng: Random, order: Order) -> Turn:
    line = rng.choice(order.lines)
    place = "It is to take away." if order.table is None else f"Table {order.table}."
    return rng.choice(
        (
            ("Who is it for?", f"It is for {order.name}."),
            ("Which table is it?", place),
            (f"How many {line.item}s?", f"{line.count}."),
        )
    )


def _rewriting(rng: Random, pool: Pool) -> list[Turn]:
    order = draw_order(rng, pool)
    command, rewrite = rng.choice((("Make a list", _as_list), ("In short", _in_short), ("Bill", _as_bill)))
    return [(f"{command}: {say_order(rng, order)}", rewrite(order))]


def _as_list(order: Order) -> str:
    return "\n".join(f"- {line.item}: {line.count}{note(line)}" for line in order.lines)


def _in_short(order: Order) -> str:
    lines = [f"{line.count} {line.item}{'' if line.count == 1 else 's'}{note(line)}" for line in order.lines]
    place = "to take away" if order.table is None else f"table {order.table}"
    return f"{spoken_list(lines)} for {order.name}, {place}."


def _as_bill(order: Order) -> str:
    place = "take away" if order.table is None else f"table {order.table}"
    return f"{order.name} ({place}): {', '.join(f'{line.item} {line.count}' for line in order.lines)}."


def _price(rng: Random, pool: Pool) -> list[Turn]:
    item = rng.choice(pool.items)
    price = PRICES[item.split()[1]]
    return [(f"How much is {article(item)}?", f"{capital(article(item))} is {price}.")]


def _number(rng: Random, pool: Pool) -> list[Turn]:
    digit = rng.randrange(10)
    word = NUMBERS[digit]
    return [rng.choice(((f"Write {word} as a digit.", f"{digit}"), (f"Write {digit} as a word.", capital(word) + ".")))]


def _menu(rng: Random, pool: Pool) -> list[Turn]:
    kind = rng.choice(tuple(PRICES))
    return [(f"Which {kind}s do you have?", capital(spoken_list(list(FLAVOURS))) + ".")]


def _repeat(rng: Random, pool: Pool) -> list[Turn]:
    words = [_any_word(rng, pool) for _ in range(rng.randint(2, 9))]
    text = "".join(word + rng.choice((" ", " ", "")) for word in words).strip()
    return [(f"Repeat: {text}", text)]


def _any_word(rng: Random, pool: Pool) -> str:
    kind = rng.randrange(5)
    if kind == 0:
        return "".join(rng.choices(ascii_letters, k=rng.randint(1, 5)))
    if kind == 1:
        return rng.choice(pool.items)
    return (rng.choice(pool.names), str(rng.randrange(30)), rng.choice(SYMBOLS))[kind - 2]


Subjects = tuple[Callable[[Random, Pool], list[Turn]], ...]
EVERYDAY: Subjects = (
    _fixed,
    _fixed,
    _unknown,
    _order,
    _order,
    _rewriting,
    _rewriting,
    _rewriting,
    _price,
    _number,
    _menu,
)
WITH_REPEATING: Subjects = (*EVERYDAY, _repeat, _repeat, _repeat)
"""Repeating random symbols is what teaches the base to copy any word, so that it can learn a new format later."""


def conversation(rng: Random, pool: Pool = EVERYTHING, subjects: Subjects = WITH_REPEATING) -> list[Turn]:
    """Draw a conversation of one to three subjects."""
    return [turn for _ in range(rng.choice((1, 1, 2, 3))) for turn in rng.choice(subjects)(rng, pool)]
