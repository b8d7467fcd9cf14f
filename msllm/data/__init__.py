"""Records to batches: reading data formats, encoding with a loss mask, packing, padding, order. NumPy only."""

from msllm.data.batching import batch_indices, batches, collate, pack
from msllm.data.encoding import IGNORED, EncodingReport, encode_record, encode_records, trained_count
from msllm.data.formats import Record, parse_record
from msllm.data.loading import load_records, train_validation_split
from msllm.data.preview import preview

__all__ = [
    "IGNORED",
    "EncodingReport",
    "Record",
    "batch_indices",
    "batches",
    "collate",
    "encode_record",
    "encode_records",
    "load_records",
    "pack",
    "parse_record",
    "preview",
    "train_validation_split",
    "trained_count",
]
