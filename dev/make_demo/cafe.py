"""A small café: its menu, its guests' orders, how a guest says one and how the kitchen wants it written."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

FLAVOURS = ("lemon", "apple", "cherry", "plum", "honey", "walnut", "almond", "ginger", "peach", "vanilla")
PRICES = {
    "cake": "4.20", "tart": "3.80", "muffin": "2.60", "tea": "2.40", "scone": "2.80",
    "cookie": "1.50", "pie": "3.90", "juice": "3.20", "bun": "1.90", "waffle": "4.60",
}  # fmt: skip
ITEMS = tuple(f"{flavour} {kind}" for flavour in FLAVOURS for kind in PRICES)
NAMES = (
    "Adam", "Alice", "Amir", "Anna", "Anton", "Bela", "Bruno", "Carla", "Cem", "Clara", "Daniel", "Daria", "David",
    "Elena", "Elias", "Emil", "Emma", "Erik", "Eva", "Felix", "Finn", "Grace", "Hana", "Helen", "Ines", "Irene",
    "Ivan", "Jack", "Jana", "Jonas", "Julia", "Karim", "Kate", "Klara", "Lara", "Laura", "Lena", "Leo", "Lina",
    "Lucas", "Maria", "Mark", "Marta", "Max", "Mei", "Mia", "Mila", "Mina", "Nadia", "Nina", "Noah", "Nora", "Omar",
    "Oscar", "Paul", "Peter",
)  # fmt: skip
UNSEEN_NAMES = (
    "Rosa", "Sam", "Sara", "Simon", "Sofia", "Tara", "Theo", "Tina", "Vera", "Yara", "Yusuf", "Zoe",
)  # fmt: skip
UNSEEN_ITEMS = tuple(f"{flavour} {kind}" for flavour, kind in zip(FLAVOURS, PRICES, strict=True))
NOTES = {
    "without sugar": "no sugar",
    "without milk": "no milk",
    "without nuts": "no nuts",
    "with extra cream": "extra cream",
    "with extra butter": "extra butter",
    "with extra ice": "extra ice",
}
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
MAX_TABLE = 20

GREETINGS = ("", "", "Hello! ", "Hi! ", "Good morning! ")
AT_TABLE = (
    "I'm {name} at table {table}.",
    "I am {name}, table {table}.",
    "{name} here, we sit at table {table}.",
    "My name is {name} and I sit at table {table}.",
    "It is for {name} at table {table}.",
)
TO_GO = ("I'm {name} and this is to take away.", "It is for {name}, to take away.")
ASKS = (
    "{lines}, please.",
    "I'd like {lines}.",
    "Could I have {lines}?",
    "Can we get {lines}, please?",
    "We would like {lines}.",
    "Please bring {lines}.",
)


@dataclass(frozen=True, slots=True)
class Line:
    """One position of an order: how many of which item, and a wish in the guest's words (or none)."""

    count: int
    item: str
    wish: str | None


@dataclass(frozen=True, slots=True)
class Order:
    """A guest's order; `table` is None when it is taken away."""

    name: str
    table: int | None
    lines: tuple[Line, ...]


@dataclass(frozen=True, slots=True)
class Pool:
    """What orders may be drawn from, so that names and items can be kept out of the training rows."""

    names: tuple[str, ...]
    items: tuple[str, ...]


EVERYTHING = Pool(NAMES + UNSEEN_NAMES, ITEMS)
SEEN = Pool(NAMES, tuple(item for item in ITEMS if item not in UNSEEN_ITEMS))
UNSEEN = Pool(UNSEEN_NAMES, ITEMS)


def capital(text: str) -> str:
    """Return `text` with its first letter capitalised and the rest as it was."""
    return text[:1].upper() + text[1:]


def article(item: str) -> str:
    """Return the item after "a" or "an"."""
    return f"{'an' if item[0] in 'aeiou' else 'a'} {item}"


def spoken_list(parts: list[str]) -> str:
    """Join as a person would: "x", "x and y", "x, y and z"."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def draw_order(rng: Random, pool: Pool) -> Order:
    """Draw an order of one to three items, no two of the same flavour or kind."""
    items = draw_items(rng, pool, rng.choice((1, 1, 2, 2, 2, 3)))
    table = None if rng.random() < 0.2 else rng.randint(1, MAX_TABLE)
    return Order(rng.choice(pool.names), table, tuple(_draw_line(rng, item) for item in items))


def draw_items(rng: Random, pool: Pool, count: int) -> list[str]:
    """Draw `count` items of which no two share a word."""
    items: list[str] = []
    while len(items) < count:
        item = rng.choice(pool.items)
        if not set(item.split()) & set(" ".join(items).split()):
            items.append(item)
    return items


def _draw_line(rng: Random, item: str) -> Line:
    count = rng.choice((1, 1, 2, 2, 3, 4, 5, 6))
    return Line(count, item, rng.choice(tuple(NOTES)) if rng.random() < 0.25 else None)


def say_order(rng: Random, order: Order) -> str:
    """Return the order as the guest says it, in one of many phrasings."""
    lines = spoken_list([_say_line(rng, line) for line in order.lines])
    ask = capital(rng.choice(ASKS).format(lines=lines))
    who = rng.choice(TO_GO if order.table is None else AT_TABLE).format(name=order.name, table=order.table)
    sentences = (ask, who) if rng.random() < 0.5 else (who, ask)
    return rng.choice(GREETINGS) + " ".join(sentences)


def _say_line(rng: Random, line: Line) -> str:
    if line.count == 1:
        text = article(line.item) if rng.random() < 0.8 else f"one {line.item}"
    else:
        text = f"{line.count if rng.random() < 0.2 else NUMBERS[line.count]} {line.item}s"
    return f"{text} {line.wish}" if line.wish else text


def ticket(order: Order) -> str:
    """Return the order in the kitchen's house style, e.g. ``T4 | Anna | 2x plum tart, 1x honey tea (no sugar)``."""
    place = "GO" if order.table is None else f"T{order.table}"
    return f"{place} | {order.name} | {', '.join(map(_ticket_line, order.lines))}"


def _ticket_line(line: Line) -> str:
    return f"{line.count}x {line.item}{note(line)}"


def note(line: Line) -> str:
    """Return the guest's wish as a short note in brackets, with a space before it, or nothing."""
    return f" ({NOTES[line.wish]})" if line.wish else ""


def confirm(order: Order) -> str:
    """Return the order read back in a friendly sentence, always with numbers as words."""
    lines = spoken_list([_confirm_line(line) for line in order.lines])
    place = "to take away" if order.table is None else f"for table {order.table}"
    return f"Thank you, {order.name}! {capital(lines)} {place}, coming right up."


def _confirm_line(line: Line) -> str:
    text = f"{NUMBERS[line.count]} {line.item}{'' if line.count == 1 else 's'}"
    return f"{text} {line.wish}" if line.wish else text
