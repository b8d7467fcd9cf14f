"""Records to batches: reading data formats, encoding with a loss mask, packing, padding, order. Arrays are NumPy's."""

from msllm.data.batching import batch_indices, batches, collate, example_length, pack
from msllm.data.encoding import IGNORED, EncodingReport, encode_record, encode_records, trained_count
from msllm.data.formats import Record, parse_record
from msllm.data.loading import load_records, train_validation_split
from msllm.data.mindrecord import read_shards, write_shards
from msllm.data.pretraining import (
    Masking,
    PretrainingData,
    build_pretraining,
    collate_pretraining,
    mask_tokens,
    read_documents,
    vocabulary_checksum,
)
from msllm.data.preview import preview

__all__ = [
    "IGNORED",
    "EncodingReport",
    "Masking",
    "PretrainingData",
    "Record",
    "batch_indices",
    "batches",
    "build_pretraining",
    "collate",
    "collate_pretraining",
    "encode_record",
    "encode_records",
    "example_length",
    "load_records",
    "mask_tokens",
    "pack",
    "parse_record",
    "preview",
    "read_documents",
    "read_shards",
    "train_validation_split",
    "trained_count",
    "vocabulary_checksum",
    "write_shards",
]
