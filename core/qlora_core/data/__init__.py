"""Data files to supervised tokens. The launcher plans with it, so nothing here imports torch or its kin.

``read_data`` reads a file, ``split`` holds rows out, ``ChatTokenizer`` renders and encodes them, and
``describe`` tells a plan what it needs to know of their lengths.
"""

from qlora_core.data.bad_rows import BadRow, BadRows, write_rejected
from qlora_core.data.chat.chat_tokenizer import ChatTokenizer
from qlora_core.data.examples import TokenizedExample, truncate_all
from qlora_core.data.facts import coverage, describe, quantiles, row_lengths
from qlora_core.data.inspection import Inspection, Piece, SetAside, ShownRow, inspect_messages, inspect_rows
from qlora_core.data.lengths.histogram import Bin
from qlora_core.data.lengths.token_counts import TokenCounts
from qlora_core.data.message_rows import jsonl
from qlora_core.data.mixture import read_all
from qlora_core.data.read import read_data
from qlora_core.data.schema import Conversation, DataSet, Message, ReadOptions, parse_fields
from qlora_core.data.split import held_out_rows, split

__all__ = [
    "BadRow",
    "BadRows",
    "Bin",
    "ChatTokenizer",
    "Conversation",
    "DataSet",
    "Inspection",
    "Message",
    "Piece",
    "ReadOptions",
    "SetAside",
    "ShownRow",
    "TokenCounts",
    "TokenizedExample",
    "coverage",
    "describe",
    "held_out_rows",
    "inspect_messages",
    "inspect_rows",
    "jsonl",
    "parse_fields",
    "quantiles",
    "read_all",
    "read_data",
    "row_lengths",
    "split",
    "truncate_all",
    "write_rejected",
]
