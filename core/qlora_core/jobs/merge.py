"""``python -m qlora_core.jobs.merge JOB``: merge an adapter, check it, try it."""

import sys
from pathlib import Path
from typing import Any

import msgspec

from qlora_core.data.pipeline import TEMPLATE_DATE
from qlora_core.export.artifacts import BaseRecord
from qlora_core.export.merge import base_of, is_bitsandbytes, merge, read_record
from qlora_core.export.merge_witness import MergeWitness, merged_folder
from qlora_core.export.read_back import KeptRows, ReadBackJob, Reader, greeting, job_file, problem, row_for_weights
from qlora_core.export.readable import saved_chat
from qlora_core.jobs.command import run_command
from qlora_profiles import codec, run_folder
from qlora_profiles.errors import EnvironmentProblem, UserError
from qlora_profiles.jobs import ChatJob, MergeJob
from qlora_profiles.visible import visible


def run_merge(job: MergeJob) -> None:
    """Merge, compare, and answer if asked.

    Raises:
        UserError: as ``export.merge.merge``.
        EnvironmentProblem: the merged model is not the adapted one, or could not be compared as ``validate`` asks.
    """
    target = Path(job.target)
    adapter = target / run_folder.ADAPTER if (target / run_folder.ADAPTER).is_dir() else target
    output = Path(job.output) if job.output else adapter.parent / run_folder.MERGED_MODEL
    reader = Reader(adapter=False)
    try:
        record = read_record(adapter)
        kept = _kept_rows(adapter)
        witness = MergeWitness(row_for_weights(kept.rows), kept.adapter_sums)
        trust = job.trust_remote_code
        loading: dict[str, Any] = {"cache": job.cache, "trust_remote_code": trust}
        merge(adapter, output, job.base, job.dtype, record=record, **loading, witness=witness)
        print(visible(f"merged model: {output}"))
        _say_dequantised(record, job)
        _read_back(reader, kept, witness, record, output, job)
    finally:
        reader.end()
    if job.test_prompt:
        from qlora_core.jobs.chat import chat

        chat(ChatJob(target=str(output), prompt=job.test_prompt, temperature=0.0, trust_remote_code=trust))


def _say_dequantised(record: BaseRecord, job: MergeJob) -> None:
    if is_bitsandbytes(base_of(record, job.base, job.cache)):
        weights = f"its weights are those of {job.base or record.model} in 16 bits, which the adapter was trained on"
        print(f"{weights}; --base ORIGINAL takes those of another form of the same model")


def _kept_rows(adapter: Path) -> KeptRows:
    """Rows that the adapter was trained on, as its run kept them; else one of our own."""
    file = adapter.parent / run_folder.READ_BACK_ROWS
    if file.is_file():
        try:
            return codec.load(file, KeptRows)
        except UserError as error:
            raise UserError(error.message, f"delete {file}: the merge is then checked with a row of our own") from error
    chat = saved_chat(adapter, today=TEMPLATE_DATE)
    today = TEMPLATE_DATE if chat.tells_date else None
    return KeptRows(rows=greeting(chat), adapter_sums={}, stop_id=None, today=today)


def _read_back(
    reader: Reader, kept: KeptRows, witness: MergeWitness, record: BaseRecord, output: Path, job: MergeJob
) -> None:
    """Say that the merged model, as plain transformers loads it, is the adapted one.

    Raises:
        EnvironmentProblem: it is not, or ``job.validate`` wants it known and its logits could not be compared.
    """
    import torch

    asked = ReadBackJob(
        rows=kept.rows,
        folders=[merged_folder(output, witness, record.stop_ids)],
        stop_id=kept.stop_id,
        today=kept.today,
        trust_remote_code=job.trust_remote_code,
        threads=torch.get_num_threads(),
    )
    found = reader.read(asked, job_file(output.parent), known={output.name: witness.faults()})
    if found is not None and found.state == "different":
        raise problem(found)
    if job.validate and not (found and found.state == "same" and found.logits):
        why = "; ".join(found.unchecked) if found else "interrupted"
        raise EnvironmentProblem(f"{output}: written, but it could not be compared ({why})", "qlora-run doctor")
    print(f"checked: {found.words}" if found else "not checked")


def main() -> int:
    """Run the job given as JSON on the command line."""
    return run_command(lambda text: run_merge(msgspec.json.decode(text, type=MergeJob)))


if __name__ == "__main__":
    sys.exit(main())
