"""Why the settings that no machine changes are what they are."""

from qlora_profiles.registry import Setting

REASONS = {
    "quant_type": "made for weights that are normally distributed",
    "double_quant": "saves 0.05 bytes a weight and costs next to nothing",
    "data_format": "told by the file's name",
    "loss_on": "learn to answer, not to ask",
    "val_size": "enough to see overfitting, little lost for training",
    "examples_per_step": "steady gradients, and still many steps on small data",
    "epochs": "small data needs a few passes; watch the held-out loss",
    "learning_rate": "usual for LoRA",
    "lr_scheduler": "high at first, gently to zero",
    "warmup_ratio": "the first steps do not overshoot",
    "weight_decay": "an adapter is small enough without",
    "max_grad_norm": "one odd example cannot wreck a step",
    "optimizer": "full precision; an adapter's state is small",
    "seed": "the same order and first values on every machine",
    "lora_r": "enough for most tasks",
    "lora_alpha": "twice the rank, as usual",
    "lora_dropout": "rarely helps, and costs memory",
    "target_modules": "all linear layers learn best",
    "lora_bias": "merges cleanly",
    "resume": "a stopped run goes on by itself",
    "save_total_limit": "one to go on from, one in reserve",
    "eval_steps": "often enough to see it turn",
}


def why_default(setting: Setting) -> str:
    """The reason for a setting's default, or what the setting is."""
    return REASONS.get(setting.name, f"default: {setting.doc.help}")
