"""The store: sharded OME-Zarr volumes behind a manifest. Sole importer of zarr, tensorstore and s3fs.

record = write_case(root, record, volume, classes, storage)   # objects, then the commit record
manifest = write_manifest(root, header, records)              # in one go
manifests = read_manifests(root)                              # a store is read through its manifests
reader = open_reader(root)
patch = reader.region(record, region)

Training does not write: `write_case` is imported from `hssl_dist.store.writer`.
The format is described in docs/store.md.
"""

from hssl_dist.store.case_lines import CaseColumns, Names, case_columns
from hssl_dist.store.figures import ReadFigures
from hssl_dist.store.manifest import (
    list_datasets,
    read_manifest,
    read_manifests,
    read_quarantine,
    read_records,
    read_whole_manifest,
    recorded_cases,
    release,
    remove_case,
    withdraw,
    write_manifest,
    write_quarantined,
    write_record,
)
from hssl_dist.store.objects import verify
from hssl_dist.store.reader import Reader, StoredForm, open_reader

__all__ = [
    "CaseColumns",
    "Names",
    "ReadFigures",
    "Reader",
    "StoredForm",
    "case_columns",
    "list_datasets",
    "open_reader",
    "read_manifest",
    "read_manifests",
    "read_quarantine",
    "read_records",
    "read_whole_manifest",
    "recorded_cases",
    "release",
    "remove_case",
    "verify",
    "withdraw",
    "write_manifest",
    "write_quarantined",
    "write_record",
]
