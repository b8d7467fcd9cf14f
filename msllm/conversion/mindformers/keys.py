"""The keys of a MindFormers 1.9.0 run YAML, as its own template has them (mindformers/tools/register/template.py), and
those that earlier releases had."""

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

from msllm.conversion.mindformers.llama_config import SIZES
from msllm.conversion.yaml_files import by_type
from msllm.errors import UserError, nearest


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# What 1.9.0 takes where a YAML leaves a key out.
DEFAULTS: dict[str, dict[str, Any]] = {
    "": {
        "seed": 1,
        "output_dir": "./output",
        "run_mode": None,
        "use_parallel": False,
        "resume_training": False,
        "load_checkpoint": "",
        "load_ckpt_format": "ckpt",
        "auto_trans_ckpt": False,
        "do_eval": False,
        "eval_step_interval": 100,
        "eval_epoch_interval": -1,
        "use_legacy": True,
        "ignore_data_skip": False,
        "data_skip_steps": None,
        "layer_scale": False,
        "layer_decay": 0.65,
        "lr_scale": False,
        "lr_scale_factor": 256,
        "micro_batch_interleave_num": 1,
        "train_precision_sync": None,
        "infer_precision_sync": None,
        "pretrained_model_dir": "",
    },
    "parallel_config": {
        "data_parallel": 1,
        "model_parallel": 1,
        "context_parallel": 1,
        "expert_parallel": 1,
        "pipeline_stage": 1,
        "micro_batch_num": 1,
        "seq_split_num": 1,
        "use_seq_parallel": False,
        "optimizer_shard": None,
        "gradient_aggregation_group": 4,
        "vocab_emb_dp": True,
        "context_parallel_algo": "colossalai_cp",
        "ulysses_degree_in_cp": 1,
        "mem_coeff": 0.1,
    },
    "recompute_config": {
        "recompute": False,
        "select_recompute": False,
        "parallel_optimizer_comm_recompute": False,
        "select_comm_recompute": False,
        "mp_comm_recompute": True,
        "recompute_slice_activation": False,
        "select_recompute_exclude": False,
        "select_comm_recompute_exclude": False,
    },
    "swap_config": {"swap": False, "layer_swap": None, "op_swap": None, "default_prefetch": 1},
    "runner_config": {
        "batch_size": 1,
        "epochs": 1,
        "sink_mode": True,
        "sink_size": 1,
        "gradient_accumulation_steps": 1,
        "num_classes": 1,
        "stop_step": 0,
    },
}
DEFAULTS["parallel"] = {"enable_alltoall": False}
DEFAULTS["parallel.parallel_optimizer_config"] = {"gradient_accumulation_shard": False, "optimizer_level": "level1"}
DEFAULTS["model.model_config"] = {
    "extend_method": "None",
    "scaling_factor": 1.0,
    "qkv_has_bias": False,
    "attn_proj_has_bias": False,
    "qkv_concat": False,
    "use_past": False,
    "offset": 0,
    "pp_interleave_num": 1,
    "tie_word_embeddings": False,
    "input_sliced_sig": False,
}
# Keys whose values say nothing of the model, the data or the optimisation, section by section: they are not reported.
_HOUSEKEEPING = {
    "": _words(
        "base_config print_separate_loss transform_process_num src_strategy_path_or_dir only_save_strategy "
        "load_ckpt_async use_legacy_format balanced_load reshard_worker_num profile profile_communication "
        "profile_memory init_start_profile profile_start_step profile_stop_step profile_rank_ids profile_pipeline "
        "profile_level mstx remote_save_url save_file input_data predict_batch_size adapter_id exclude_cann_cpu "
        "postprocess_use_numpy auto_tune filepath_prefix autotune_per_step metric eval_callbacks monitor_config "
        "remove_redundancy processor trainer train_dataset_task eval_dataset_task msllm"
    ),
    "moe_config": _words(
        "capacity_factor aux_loss_factor num_experts_chosen expert_group_size group_wise_a2a comp_comm_parallel "
        "comp_comm_parallel_degree save_token_distribution cur_layer enable_cold_hot_expert update_step "
        "hot_expert_num cold_token_percent moe_module_name routing_policy norm_topk_prob enable_sdrop "
        "use_fused_ops_topkrouter router_dense_type shared_expert_num use_shared_expert_gating max_router_load "
        "topk_method topk_group n_group first_k_dense_replace moe_intermediate_size routed_scaling_factor "
        "aux_loss_types aux_loss_factors z_loss_factor balance_via_topk_bias topk_bias_update_rate "
        "use_allgather_dispatcher moe_shared_expert_overlap expert_model_parallel use_gating_sigmoid "
        "enable_deredundency npu_nums_per_device use_gmm enable_gmm_safe_tokens use_fused_ops_permute "
        "callback_moe_droprate dispatch_global_max_bs ep_extend_tp"
    ),
    "context": _words(
        "device_id max_device_memory max_call_depth save_graphs save_graphs_path runtime_num_threads "
        "mempool_block_size ascend_config print_file_path save_compile_cache load_compile_cache"
    ),
    "parallel": _words("strategy_ckpt_save_file strategy_ckpt_config device_num global_rank pipeline_stages"),
    "model.model_config": _words(
        "batch_size checkpoint_name_or_path ignore_token_id block_size num_blocks repetition_penalty max_decode_length "
        "max_length max_new_tokens top_k top_p temperature do_sample model_type mindformers_version "
        "pretrained_model_dir stage_num start_stage parallel_decoding_params use_rope_slice fused_rms_norm is_dynamic "
        "llm_backend multiple_of ffn_dim_multiplier"
    ),
    "train_dataset": _words(
        "num_parallel_workers python_multiprocessing numa_enable prefetch_size auto_tune filepath_prefix "
        "autotune_per_step profile batch_size"
    ),
}
_HOUSEKEEPING["callbacks.CheckpointMonitor"] = _words(
    "type prefix directory integrated_save async_save checkpoint_format remove_redundancy save_network_params "
    "save_trainable_params embedding_size use_checkpoint_health_monitor embedding_local_norm_threshold "
    "health_ckpts_record_dir use_legacy_format save_optimizer append_info exception_save"
)
_HOUSEKEEPING["callbacks.MFLossMonitor"] = ("type",)
_HOUSEKEEPING["eval_dataset"] = _HOUSEKEEPING["train_dataset"]
# The other keys that MindFormers knows. Where a section is open, it takes more, which depend on the class in "type".
_KNOWN = {
    "": _words(
        "context parallel parallel_config "
        "moe_config recompute_config swap_config runner_config runner_wrapper model train_dataset "
        "eval_dataset optimizer lr_schedule grouped_lr_schedule callbacks"
    ),
    "moe_config": ("expert_num",),
    "context": _words("mode device_target deterministic jit_config memory_optimize_level enable_sparse"),
    "parallel": _words(
        "parallel_mode full_batch search_mode auto_parallel_search_mode enable_parallel_optimizer gradients_mean "
        "gradient_fp32_sync parameter_broadcast strategy_ckpt_load_file all_reduce_fusion_config "
        "grad_accumulation_step parallel_optimizer_config comm_fusion auto_pipeline pipeline_config dataset_strategy"
    ),
    "parallel.pipeline_config": _words("pipeline_interleave pipeline_scheduler"),
    "parallel.parallel_optimizer_config": _words("parallel_optimizer_threshold optimizer_weight_shard_size"),
    "model": _words("model_config arch pretrained_model_dir generation_config"),
    "model.arch": ("type",),
    "model.model_config": (
        *SIZES,
        *_words(
            "type seq_length compute_dtype layernorm_compute_type softmax_compute_type rotary_dtype "
            "param_init_type residual_dtype embedding_init_type qkv_concat use_past use_flash_attention "
            "use_ring_attention use_attn_mask_compression use_eod_attn_mask_compression parallel_optimizer "
            "fine_grain_interleave pp_interleave_num offset quant_config input_sliced_sig rmsnorm_compute_2d "
            "chunk_prefill calculate_per_token_loss pipeline_stage return_hidden_states parallel_config moe_config "
            "pet_config"
        ),
    ),
    "runner_wrapper": _words(
        "type use_clip_grad max_grad_norm scale_sense local_norm calculate_per_token_loss global_norm_spike_threshold "
        "use_skip_data_by_global_norm print_separate_loss"
    ),
    "optimizer": _words("type betas beta1 beta2 eps learning_rate weight_decay use_fused amsgrad maximize swap"),
    "lr_schedule": _words(
        "type learning_rate lr_end warmup_lr_init warmup_steps warmup_ratio warmup_epochs total_steps num_cycles "
        "decay_steps decay_ratio power"
    ),
    "train_dataset": _words(
        "data_loader input_columns output_columns drop_remainder repeat dynamic_batch eod_reset "
        "eod_token_id tokenizer max_source_length max_target_length seed shuffle mixup_op"
    ),
    "train_dataset.data_loader": _words(
        "type dataset_dir dataset_files shuffle num_samples datasets_type config sizes"
    ),
}
_KNOWN["callbacks.CheckpointMonitor"] = _words("save_checkpoint_steps save_checkpoint_seconds keep_checkpoint_max")
_KNOWN["callbacks.MFLossMonitor"] = ("per_print_times",)
_KNOWN["eval_dataset"], _KNOWN["eval_dataset.data_loader"] = (
    _KNOWN["train_dataset"],
    _KNOWN["train_dataset.data_loader"],
)
_OPEN = (
    "runner_wrapper",
    "optimizer",
    "lr_schedule",
    "train_dataset",
    "eval_dataset",
    "context",
    "parallel",
    "callbacks",
)


def sections(values: Mapping[str, Any], name: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yields the sections of a run YAML whose keys are known, with their paths: "" for the top."""
    known = {*DEFAULTS, *_HOUSEKEEPING, *_KNOWN}
    if name in known:
        yield name, values
    for path, value in _children(values, name):
        if isinstance(value, Mapping) and (path in known or name == "callbacks" or path == "callbacks"):
            yield from sections(value, path)


def check_keys(values: Mapping[str, Any], where: str) -> None:
    """Raises UserError, with the file, the path and the nearest spelling, where a YAML has a key that MindFormers does
    not. In a section that takes more keys, by its type, those that are nearly a known one are such."""
    for name, section in sections(values):
        known = {*DEFAULTS.get(name, ()), *_HOUSEKEEPING.get(name, ()), *_KNOWN.get(name, ())}
        for key in section:
            path = f"{name}.{key}".lstrip(".")
            if key in known or (name.startswith(_OPEN) and not difflib.get_close_matches(str(key), known, 1, 0.8)):
                continue
            raise UserError(
                f"{where}: unknown key {path}{nearest(str(key), known)}; MindFormers 1.9.0 has no such key in "
                f"{name or 'the top level'}: correct it"
            )


def leaves(values: Mapping[str, Any], name: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the path and the value of everything in a YAML that is no mapping and says something of the training:
    what 1.9.0 would take anyway and what is only housekeeping is left out."""
    for path, value in _children(values, name):
        key = path.rpartition(".")[2]
        if key in _HOUSEKEEPING.get(name, ()) or (key in DEFAULTS.get(name, ()) and DEFAULTS[name][key] == value):
            continue
        if isinstance(value, Mapping):
            yield from leaves(value, path)
        else:
            yield path, value


def _children(values: Mapping[str, Any], name: str) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        yield f"{name}.{key}".lstrip("."), by_type(value)
