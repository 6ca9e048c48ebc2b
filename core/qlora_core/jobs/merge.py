"""``python -m qlora_core.jobs.merge JOB``: merge an adapter, check it, try it."""

import sys
from pathlib import Path
from typing import Any

import msgspec

from qlora_core.export.merge import load_adapted, merge, read_record
from qlora_core.jobs.command import run_command
from qlora_profiles import run_folder
from qlora_profiles.errors import EnvironmentProblem
from qlora_profiles.jobs import ChatJob, MergeJob
from qlora_profiles.visible import visible

TOLERANCE = 0.02
"""Largest relative difference of logits: rounding the sum to 16 bits makes some."""


def run_merge(job: MergeJob) -> None:
    """Merge; then compare and answer if asked.

    Raises:
        UserError: as ``export.merge.merge``.
        EnvironmentProblem: the merged model's logits are not the adapter's.
    """
    target = Path(job.target)
    adapter = target / run_folder.ADAPTER if (target / run_folder.ADAPTER).is_dir() else target
    output = Path(job.output) if job.output else adapter.parent / run_folder.MERGED_MODEL
    merge(adapter, output, job.base, job.dtype, cache=job.cache, trust_remote_code=job.trust_remote_code)
    print(visible(f"merged model: {output}"))
    if job.validate:
        _validate(adapter, output, job)
    if job.test_prompt:
        from qlora_core.jobs.chat import chat

        trust = job.trust_remote_code
        chat(ChatJob(target=str(output), prompt=job.test_prompt, temperature=0.0, trust_remote_code=trust))


def _validate(adapter: Path, output: Path, job: MergeJob) -> None:
    """Refuse a merged model whose logits are not the adapted model's."""
    loading: dict[str, Any] = {"dtype": "auto", "trust_remote_code": job.trust_remote_code}
    adapted = load_adapted(adapter, read_record(adapter), job.base, cache=job.cache, **loading)
    apart = difference(adapted, _plain(output, loading))
    if apart > TOLERANCE:
        raise EnvironmentProblem(
            f"{output}: its logits are {apart:.1%} from the adapter's; do not use it", "qlora-run doctor"
        )
    print(f"checked: logits differ by {apart:.2%} (rounding)")


def difference(adapted: Any, merged: Any) -> float:
    """Relative distance of two models' logits on a fixed row of tokens."""
    import torch

    ids = torch.arange(5, 37)[None] % adapted.config.get_text_config().vocab_size
    with torch.inference_mode():
        a, b = (m.eval()(input_ids=ids).logits.float() for m in (adapted, merged))
    return float((a - b).norm() / a.norm())


def _plain(folder: Path, loading: dict[str, Any]) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(str(folder), **loading)


def main() -> int:
    """Run the job given as JSON on the command line."""
    return run_command(lambda text: run_merge(msgspec.json.decode(text, type=MergeJob)))


if __name__ == "__main__":
    sys.exit(main())
