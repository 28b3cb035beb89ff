"""The ledger: what was proposed and what came of it. The only truth of a run; everything else is rebuilt from it.

``proposals/NNNNN.json`` is written before a plan is started, ``records/ID.parquet`` as each variant is known. Both
appear whole or not at all, and neither is ever changed. A proposal whose records are not all there is unfinished: the
next start runs it again, with the same plan under the same number.
"""

import io
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from search.memory_ledger import LedgerError, MemoryLedger, Proposal
from search.records import Record, from_row, schema, to_row
from spaces.draw import Draw
from spaces.plan import Plan
from trainers.storage import Storage


class Ledger(MemoryLedger):
    """The ledger of one run. One process writes; any number may read."""

    def __init__(self, storage: Storage, *, metric: str) -> None:
        self._storage = storage
        self._records_in = storage.child("records")
        self._proposals_in = storage.child("proposals")
        self.metric = metric
        super().__init__(proposals=self._read_proposals(), records=self._read_records())

    def propose(self, proposal: Proposal) -> None:
        """Write a proposal down. It must be new."""
        self._check_new(proposal)
        self._proposals_in.write_json(f"{proposal.number:05d}.json", _proposal_to_json(proposal))
        super().propose(proposal)

    def append(self, record: Record) -> None:
        """Write a record. One that is there already stays as it is."""
        if record.record_id in self:
            return
        table = pa.Table.from_pylist([to_row(record, self.metric)], schema=schema(self.metric))
        self._records_in.write(f"{record.record_id}.parquet", _to_parquet(table))
        super().append(record)

    def predictions(self, record_id: str) -> list[int]:
        """Label index that the variant predicts for each validation row; empty for one that is not complete."""
        return list(self._read_row(f"{record_id}.parquet")["predictions"] or ())

    def table(self, records: Sequence[Record] | None = None) -> pa.Table:
        """Records as one table, without predictions."""
        rows = [to_row(record, self.metric) for record in (self.records if records is None else records)]
        for row in rows:
            del row["predictions"]
        return pa.Table.from_pylist(rows, schema=schema(self.metric, predictions=False))

    def _read_records(self) -> list[Record]:
        rows = (self._read_row(name) for name in self._records_in.names(".parquet") if not name.startswith("."))
        return [replace(from_row(row, self.metric), predictions=()) for row in rows]

    def _read_row(self, name: str) -> dict[str, Any]:
        try:
            rows = pq.ParquetFile(io.BytesIO(self._records_in.read(name))).read().to_pylist()
        except (pa.ArrowInvalid, OSError) as error:
            raise LedgerError(self._unreadable(self._records_in, name, error)) from error
        if len(rows) != 1 or self.metric not in rows[0]:
            raise LedgerError(self._unreadable(self._records_in, name, f"expected one row with column {self.metric}"))
        return dict(rows[0])

    def _read_proposals(self) -> list[Proposal]:
        found = []
        for name in self._proposals_in.names(".json"):
            if not name.startswith("."):
                try:
                    found.append(_proposal_from_json(self._proposals_in.read_json(name)))
                except (ValueError, KeyError, TypeError) as error:
                    raise LedgerError(self._unreadable(self._proposals_in, name, error)) from error
        return found

    def _unreadable(self, storage: Storage, name: str, why: object) -> str:
        return f"{storage.shown}/{name} cannot be read ({why}); delete it: what it stood for is then done again"


def _to_parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def write_table(table: pa.Table, storage: Storage, name: str) -> None:
    """Write ``table`` as the Parquet file ``name``, all at once."""
    storage.write(name, _to_parquet(table))


def read_table(storage: Storage, name: str) -> pa.Table:
    """Read the Parquet file ``name``."""
    return pq.ParquetFile(io.BytesIO(storage.read(name))).read()


def _proposal_to_json(proposal: Proposal) -> dict[str, Any]:
    found = {
        "number": proposal.number,
        "strategy": proposal.draw.strategy,
        "params": dict(proposal.draw.params),
        "plan": json.loads(proposal.draw.plan.to_json()),
        "variants": [list(variant) for variant in proposal.variants],
    }
    return found if proposal.resumes is None else found | {"resumes": proposal.resumes}


def _proposal_from_json(value: dict[str, Any]) -> Proposal:
    draw = Draw(strategy=value["strategy"], params=value["params"], plan=Plan.model_validate(value["plan"]))
    variants = tuple((str(precision), str(target)) for precision, target in value["variants"])
    return Proposal(number=value["number"], draw=draw, variants=variants, resumes=value.get("resumes"))
