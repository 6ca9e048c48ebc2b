"""Every setting, once: name, type, range, unit, default, help, and whether it is learned or computed.

Three groups, three structs. The **recipe** decides what is learned; the **execution** how this machine
computes it; the **run** where things go and what is reported. The command line, the config file, the
profiles, the plan and the reference in the documentation are all made from the fields below.

A field without a default is *tuned*: a person may set it, and otherwise the planner works it out.
"""

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

Scope = Literal["recipe", "execution", "run"]


class Doc(Struct, frozen=True):
    """What a person is told of a setting. ``group`` orders the help; ``unit`` names the measure.

    ``sentences`` marks a list whose entries may hold commas.
    """

    help: str
    group: str
    unit: str = ""
    sentences: bool = False


Positive = Meta(gt=0)
NotNegative = Meta(ge=0)
MOST_COUNT = 10**9
"""Steps, examples, rows, tokens: more than anybody has, and what every library still takes."""
AtLeastOne = Meta(ge=1, le=MOST_COUNT)
Size = Annotated[int, Meta(ge=1)]
"""Bytes."""
Count = Annotated[int, AtLeastOne]
Threads = Annotated[int, Meta(ge=1, le=1024)]
Natural = Annotated[int, NotNegative]

FIRST_CARD = (0,)
"""``devices`` where nobody chose; a CPU has none."""

READS_DATA = ("data_format", "field", "ignore", "encoding")
"""Settings about how one file of data is written; they say nothing of another."""

BACKEND_GROUP = "qlora_run.backends"
"""The entry-point group through which third parties add backends."""


class Recipe(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is learned. Nothing that adapts to a machine may change any of these."""

    model: Annotated[str, Doc("base model: a folder or a hub id", "model")]
    revision: Annotated[str | None, Doc("branch, tag or commit of a hub model", "model")] = None
    chat_template: Annotated[
        str | None, Doc("chatml, qwen, llama3, gemma, phi or a .jinja file; else the model's own", "model")
    ] = None
    method: Annotated[
        Literal["qlora-4", "qlora-8", "lora", "full"],
        Doc(
            "how the base is held and what is trained; auto: lora where it fits a card, else qlora-4",
            "model",
        ),
    ]
    quant_type: Annotated[Literal["nf4", "fp4"], Doc("4-bit number format of the base", "model")] = "nf4"
    double_quant: Annotated[bool, Doc("quantise the 4-bit scales too", "model")] = True

    data: Annotated[
        tuple[str, ...],
        Meta(min_length=1),
        Doc(
            "training data: a file, folder, pattern or hub set OWNER/NAME; :0.3 or :500 behind it takes a share"
            " (repeatable)",
            "data",
            sentences=True,
        ),
    ] = ("training_data.jsonl",)
    data_format: Annotated[
        Literal["auto", "jsonl", "json", "csv", "parquet"], Doc("file format, if the name does not tell", "data")
    ] = "auto"
    field: Annotated[tuple[str, ...], Doc("a column under another name: messages=mesages (repeatable)", "data")] = ()
    ignore: Annotated[
        tuple[str, ...], Doc("leave out a column or key of messages that could matter (repeatable)", "data")
    ] = ()
    encoding: Annotated[str, Doc("text encoding of the data file", "data")] = "utf-8"
    max_samples: Annotated[Count | None, Doc("use N rows only", "data", "rows")] = None
    sample: Annotated[
        Literal["random", "first"],
        Doc("which rows --max-samples and shares take: drawn by the seed, or the first ones", "data"),
    ] = "random"
    skip_bad_rows: Annotated[bool, Doc("set damaged rows aside in rejected.jsonl", "data")] = False
    system_prompt: Annotated[str | None, Doc("system text for rows that have none", "data")] = None
    loss_on: Annotated[Literal["assistant", "all"], Doc("which tokens are learned", "data")] = "assistant"
    val_size: Annotated[
        float, Meta(ge=0, le=MOST_COUNT), Doc("held-out share (below 1, at most 200 rows) or number of rows", "data")
    ] = 0.05
    max_length: Annotated[int, AtLeastOne, Doc("longest example; longer ones are cut and counted", "data", "tokens")]

    examples_per_step: Annotated[int, AtLeastOne, Doc("examples in one optimizer step", "learning", "examples")] = 16
    epochs: Annotated[float, Meta(gt=0, le=100_000), Doc("passes over the data", "learning")] = 3.0
    max_steps: Annotated[Count | None, Doc("stop after N optimizer steps", "learning", "steps")] = None
    learning_rate: Annotated[float, Meta(gt=0, le=10), Doc("peak learning rate", "learning")] = 2e-4
    lr_scheduler: Annotated[
        Literal[
            "cosine", "linear", "constant", "constant_with_warmup", "cosine_with_restarts", "polynomial", "inverse_sqrt"
        ],
        Doc("shape of the learning rate over the run", "learning"),
    ] = "cosine"
    warmup_ratio: Annotated[float, Meta(ge=0, lt=1), Doc("share of the steps that warm up", "learning")] = 0.03
    warmup_steps: Annotated[Natural | None, Doc("warm up for N steps instead", "learning", "steps")] = None
    weight_decay: Annotated[float, Meta(ge=0, le=10), Doc("AdamW weight decay", "learning")] = 0.0
    max_grad_norm: Annotated[float, Positive, Doc("clip the gradient to this norm", "learning")] = 1.0
    adam_beta1: Annotated[float, Meta(ge=0, lt=1), Doc("AdamW beta 1", "learning")] = 0.9
    adam_beta2: Annotated[float, Meta(ge=0, lt=1), Doc("AdamW beta 2", "learning")] = 0.999
    adam_epsilon: Annotated[float, Positive, Doc("AdamW epsilon", "learning")] = 1e-8
    optimizer: Annotated[Literal["adamw", "adamw-8bit"], Doc("the mathematics of the update", "learning")] = "adamw"
    keep: Annotated[
        Literal["best", "last"], Doc("adapter to keep: lowest held-out loss, or the last step's", "learning")
    ] = "best"
    seed: Annotated[int, Meta(ge=0, lt=2**32), Doc("order of the data and first adapter values", "learning")] = 42

    lora_r: Annotated[int, Meta(ge=1, le=65_536), Doc("rank of the adapter", "adapter")] = 16
    lora_alpha: Annotated[float, Meta(gt=0, le=1e6), Doc("scale of the adapter: alpha / rank", "adapter")] = 32.0
    lora_dropout: Annotated[float, Meta(ge=0, lt=1), Doc("dropout in front of the adapter", "adapter")] = 0.0
    target_modules: Annotated[
        tuple[str, ...], Doc("layers that get an adapter: all-linear, or names: q_proj,v_proj", "adapter")
    ] = ("all-linear",)
    use_rslora: Annotated[bool, Doc("scale by alpha / sqrt(rank) instead", "adapter")] = False
    lora_bias: Annotated[Literal["none"], Doc("biases stay frozen", "adapter")] = "none"


class Execution(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How this machine computes a step. None of these changes what is learned."""

    device: Annotated[Literal["cuda", "cpu", "mps", "xpu"], Doc("what computes", "machine")]
    devices: Annotated[tuple[Natural, ...], Doc("the card that computes, by CUDA's number; one for now", "machine")] = (
        FIRST_CARD
    )
    backend: Annotated[str, Doc("peft, unsloth, or one installed by a plugin", "machine")]
    compute_dtype: Annotated[
        Literal["bfloat16", "float16", "float32"],
        Doc("number format of the arithmetic; adapters are float32", "machine"),
    ]
    vram_budget_bytes: Annotated[Size | None, Doc("most VRAM that the run may take", "memory", "bytes")]
    leave_free_bytes: Annotated[
        Natural | None, Doc("VRAM left to other programs, instead of the usual reserve", "memory", "bytes")
    ] = None
    token_budget: Annotated[int, AtLeastOne, Doc("most tokens in a micro-batch", "memory", "tokens")]
    layers_recomputed: Annotated[
        int, NotNegative, Doc("layers that recompute their activations in backward", "memory", "layers")
    ]
    layers_dequantized: Annotated[
        int, NotNegative, Doc("layers whose 4-bit weights stay in memory in 16 bits, too", "memory", "layers")
    ] = 0
    attention: Annotated[Literal["varlen", "flash", "sdpa"], Doc("attention kernel", "kernels")]
    loss_kernel: Annotated[Literal["chunked", "triton", "logits"], Doc("cross entropy kernel", "kernels")]
    loss_chunk_tokens: Annotated[int, AtLeastOne, Doc("supervised tokens scored at a time", "kernels", "tokens")]
    optimizer_kernel: Annotated[Literal["fused", "plain", "paged"], Doc("implementation of the same AdamW", "kernels")]
    adapter_kernel: Annotated[
        Literal["fused", "plain"], Doc("adapters inside the matrix products, or PEFT's own code", "kernels")
    ]
    dequantize_kernel: Annotated[
        Literal["triton", "bitsandbytes"], Doc("4-bit weights to 16 bits: our kernel, or bitsandbytes' own", "kernels")
    ]
    layer_kernels: Annotated[
        Literal["plain", "liger"],
        Doc("norms, rotary positions and activations: the model's own code, or Liger's and ours", "kernels"),
    ]
    cuda_graphs: Annotated[bool, Doc("launch a whole micro-batch at once", "kernels")]
    workers: Annotated[int, Meta(ge=0, le=256), Doc("data loader processes", "machine", "processes")]
    dataset_workers: Annotated[
        int, Meta(ge=0, le=1024), Doc("threads that tokenise, in this process; 0: one a core", "machine", "threads")
    ]
    pin_memory: Annotated[bool, Doc("page-locked memory for copies to the card", "machine")]
    offload_activations: Annotated[bool, Doc("keep what recomputing layers need in main memory", "memory")] = False
    rematerialize_activations: Annotated[
        bool, Doc("make what norms and activations made again in backward, instead of keeping it", "memory")
    ] = False
    expandable_segments: Annotated[bool, Doc("CUDA allocator that grows its segments", "memory")]
    cpu_threads: Annotated[Threads | None, Doc("threads of the arithmetic on CPU", "machine", "threads")] = None


class Run(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where a run writes and what it reports. Changes neither the learning nor the arithmetic."""

    output: Annotated[str, Doc("folder of the run; else runs/MODEL-N", "output")]
    resume: Annotated[str, Doc("auto, never, or a checkpoint folder", "output")] = "auto"
    overwrite: Annotated[bool, Doc("start over in a folder that holds another run", "output")] = False
    merge: Annotated[bool, Doc("write final_model/ with the adapter merged in", "output")] = False
    read_back: Annotated[bool, Doc("compare what was saved, as plain transformers loads it", "output")] = True
    save_steps: Annotated[
        int, AtLeastOne, Doc("checkpoint every N steps; more often in a short run", "output", "steps")
    ] = 50
    save_total_limit: Annotated[int, AtLeastOne, Doc("checkpoints kept", "output")] = 2
    eval_steps: Annotated[int, AtLeastOne, Doc("measure held-out loss every N steps", "output", "steps")] = 50
    logging_steps: Annotated[int, AtLeastOne, Doc("send metrics to a tracker every N steps", "output", "steps")] = 1
    sample_prompts: Annotated[
        tuple[str, ...], Doc("answer this before and after training (repeatable)", "output", sentences=True)
    ] = ()
    preflight: Annotated[bool, Doc("measure the heaviest step on the card before the first one", "output")] = True
    report_to: Annotated[tuple[str, ...], Doc("trackers: tensorboard, wandb", "output")] = ()
    run_name: Annotated[str | None, Doc("name in the tracker", "output")] = None
    local_dir: Annotated[str | None, Doc("folder that a hub model is stored in", "model")] = None
    cache: Annotated[str | None, Doc("folder for downloaded models", "model")] = None
    trust_remote_code: Annotated[bool, Doc("run Python code that comes with the model", "model")] = False
    allow_recipe_change: Annotated[bool, Doc("take the nearest recipe that fits if this one cannot", "model")] = False


SCOPES: dict[Scope, type[Struct]] = {"recipe": Recipe, "execution": Execution, "run": Run}


def values_of(scope: Struct) -> dict[str, Any]:
    """A settings struct as name -> value."""
    return {name: getattr(scope, name) for name in scope.__struct_fields__}
