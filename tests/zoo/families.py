"""All families and kinds of families that the zoo examines, and what each needs beside the rule.

A family is a `model_type` of transformers' causal mapping. A variant is a family with settings: its window shorter or
longer than the texts, a kind of rotary positions, tied embeddings. `VARIANTS` holds all of them, `NOT_TINY` the
families that cannot be made small or that are no language models, each with the reason.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .rule import POSITIONS, VOCABULARY


@dataclass(frozen=True)
class Variant:
    """One tiny model: `Variant("gemma2-short-window", "gemma2", {"sliding_window": 8})`.

    `changes` are settings beside those of the rule; the settings of a part stand in a dict of their own. `refused` is a
    pattern in the line that refuses it, or nothing where it must be right.
    """

    name: str
    kind: str
    changes: dict[str, Any] = field(default_factory=dict)
    refused: str = ""


# --- what single families need --------------------------------------------------------------------

STARTS: dict[str, dict[str, Any]] = {
    "dots3_note": {"text_config": {"num_attention_heads": 4, "num_key_value_heads": 4}},
}
"""Settings without which a family's defaults are refused by its own config."""

ENCODERS = [
    "bert",
    "bert-generation",
    "big_bird",
    "camembert",
    "data2vec-text",
    "electra",
    "ernie",
    "megatron-bert",
    "rembert",
    "roberta",
    "roberta-prelayernorm",
    "roc_bert",
    "roformer",
    "xlm-roberta",
    "xlm-roberta-xl",
    "xmod",
]
"""Families that are causal only where their config says `is_decoder`."""
_DECODER = {"is_decoder": True}
_QSA = {
    "indexer_n_heads": 2,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 8,
    "indexer_budget": 8,
    "indexer_compress_ratio": 4,
}
_BLT_PART = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}
_DOTS = {
    "num_key_value_heads": 4,
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 4,
    "swa_q_lora_rank": 16,
    "swa_kv_lora_rank": 8,
    "swa_head_dim": 16,
    "swa_qk_nope_head_dim": 8,
    "swa_v_head_dim": 8,
}
FAMILIES: dict[str, dict[str, Any]] = {
    **dict.fromkeys([*ENCODERS, "git"], _DECODER),
    "bamba": {"attn_layer_indices": [1]},
    "big_bird": {"is_decoder": True, "attention_type": "original_full"},
    "bigbird_pegasus": {"attention_type": "original_full"},
    "blt": {
        "encoder_hash_byte_group_vocab": 64,
        "encoder_hash_byte_group_size": [3, 4],
        "local_attention_window_len": 8,
        "patcher_config": _BLT_PART,
        "encoder_config": _BLT_PART | {"hidden_size_global": 32},
        "decoder_config": _BLT_PART | {"hidden_size_global": 32},
        "global_config": {k: v for k, v in _BLT_PART.items() if k != "vocab_size"},
    },
    "cohere": {"logit_scale": 0.5},
    "cohere2": {"logit_scale": 0.5},
    "cohere2_moe": {"logit_scale": 0.5},
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 10000.0}}},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
        "ffn_config": {"hidden_size": 32, "ffn_hidden_size": 64, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "deepseek_v2": {"num_experts_per_tok": 2, "first_k_dense_replace": 1},
    "deepseek_v4": {
        "layer_types": ["heavily_compressed_attention", "compressed_sparse_attention"],
        "compress_rates": {"heavily_compressed_attention": 8, "compressed_sparse_attention": 4},
    },
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "first_k_dense_replace": 1},
    "dots3_note": {
        "text_config": _DOTS,
        "vision_config": {"adapter_in_dim": 32, "adapter_out_dim": 32},
        "audio_config": {"adapter_input_size": 32, "adapter_out_dim": 32, "downsample_hidden_size": 8},
    },
    "dots3_note_text": _DOTS,
    "falcon_h1": {"mamba_d_ssm": 64},
    "gemma3n_text": {
        "num_kv_shared_layers": 0,
        "intermediate_size": [64, 64],
        "activation_sparsity_pattern": [0.95, 0.0],
    },
    "got_ocr2": {
        "vision_config": {
            "output_channels": 16,
            "image_size": 32,
            "patch_size": 16,
            "mlp_dim": 32,
            "global_attn_indexes": [1],
        }
    },
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"]},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8},
    "inkling_text": {"logits_mup_width_multiplier": 1.0},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "lfm3": {"num_hidden_layers": 3, "layer_types": ["conv", "full_attention", "sliding_attention"]},
    "llama4": {
        "vision_config": {
            "vision_output_dim": 32,
            "projector_input_dim": 32,
            "projector_output_dim": 32,
            "image_size": 28,
        }
    },
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "minicpm3": {"dim_model_base": 16},
    "minimax": {"block_size": 8},
    "ministral": {"head_dim": 8},
    "mllama": {
        "vision_config": {
            "num_global_layers": 1,
            "intermediate_layers_indices": [0],
            "vision_output_dim": 64,
            "image_size": 28,
            "max_num_tiles": 1,
            "supported_aspect_ratios": [[1, 1]],
        },
        "text_config": {"num_hidden_layers": 3, "cross_attention_layers": [1]},
    },
    "nemotron": {"num_key_value_heads": 2},
    "phi4_multimodal": {
        "vision_config": {"image_size": 28, "crop_size": 28},
        "audio_config": {
            "ext_pw_out_channel": 16,
            "depthwise_separable_out_channel": 16,
            "nemo_conv_channels": 16,
            "input_size": 16,
        },
    },
    "qwen4_exp": {"text_config": _QSA},
    "qwen4_exp_text": _QSA,
    "recurrent_gemma": {"block_types": ["recurrent", "attention"]},
    "reformer": {
        "is_decoder": True,
        "attn_layers": ["local", "local"],
        "axial_pos_shape": [16, 32],
        "axial_pos_embds_dim": [16, 16],
        "local_attn_chunk_length": 8,
        "lsh_attn_chunk_length": 8,
    },
    "roc_bert": {
        "is_decoder": True,
        "pronunciation_embed_dim": 16,
        "pronunciation_vocab_size": VOCABULARY,
        "shape_embed_dim": 16,
        "shape_vocab_size": VOCABULARY,
    },
    "xmod": {"is_decoder": True, "default_language": "en_XX"},
    "zamba": {
        "attention_head_dim": 16,
        "attention_hidden_size": 64,
        "mamba_dt_rank": 4,
        "num_hidden_layers": 4,
        "num_key_value_heads": 4,
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "layer_types": ["linear_attention", "hybrid"] * 2,
    },
    "zamba2": {
        "num_hidden_layers": 4,
        "num_key_value_heads": 4,
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "layer_types": ["linear_attention", "hybrid"] * 2,
        "n_mamba_heads": 4,
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
    },
    "zaya": {"num_experts_per_tok": 1},
}
"""What a family needs beside the rule."""


# --- all of them ----------------------------------------------------------------------------------

WHOLE = {
    "dots3_note": "Dots3NoteForConditionalGeneration",
    "llama4": "Llama4ForConditionalGeneration",
    "mllama": "MllamaForConditionalGeneration",
    "qwen3_5": "Qwen3_5ForConditionalGeneration",
    "qwen3_5_moe": "Qwen3_5MoeForConditionalGeneration",
    "qwen4_exp": "Qwen4ExpForConditionalGeneration",
}
"""Families whose checkpoints hold more than the text part that the causal class reads: the class that writes them."""

NOT_TINY = {
    "emu3": "transformers does not read its checkpoints, whose weights have other names, as a causal model",
    "gemma3n": "its images need the package timm; its text part, gemma3n_text, is here",
    "gemma4_assistant": "drafts for another model, whose hidden states it reads: no language model by itself",
    "gemma4_unified_assistant": "drafts for another model, whose hidden states it reads: no language model by itself",
    "musicgen": "writes sound, several codes at a time; no text",
    "musicgen_melody": "writes sound, several codes at a time; no text",
}
"""Families of the mapping without a variant, and why."""


def _rope(**parameters: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_theta": 10000.0, **parameters}}


_FROM_16 = {"original_max_position_embeddings": 16}
_LONG = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0, 4.0, 8.0, 16.0]}
_YARN = _rope(rope_type="yarn", factor=4.0, **_FROM_16)
_LLAMA3 = _rope(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, **_FROM_16)
_LINEAR = _rope(rope_type="linear", factor=4.0)
_DYNAMIC = _rope(rope_type="dynamic", factor=8.0)
_WIDE = {"sliding_window": POSITIONS}
_AT_16 = {"sliding_window": 16}
"""Between the few tokens on which models are tried at load and those of the texts here."""
_NO_LIMIT = {"original_max_position_embeddings": POSITIONS}

FURTHER: dict[str, dict[str, dict[str, Any]]] = {
    "afmoe": {"wide": _WIDE},
    "apertus": {"llama3": _LLAMA3},
    "bloom": {"post-norm": {"apply_residual_connection_post_layernorm": True}},
    "cohere": {"qk-norm": {"use_qk_norm": True}},
    "cohere2": {"wide": _WIDE, "window-16": _AT_16},
    "deepseek_v2": {"plain-queries": {"q_lora_rank": None}},
    "deepseek_v3": {
        "plain-queries": {"q_lora_rank": None},
        "yarn": _rope(rope_type="yarn", factor=4.0, mscale=1.0, mscale_all_dim=1.0, **_FROM_16),
    },
    "deepseek_v32": {"all-keys": {"index_topk": POSITIONS}, "keys-16": {"index_topk": 16}},
    "exaone4": {"wide": _WIDE},
    "falcon": {
        "alibi": {"alibi": True},
        "new-decoder": {"new_decoder_architecture": True, "num_kv_heads": 2},
        "sequential": {"parallel_attn": False, "bias": True},
    },
    "gemma2": {"wide": _WIDE, "no-caps": {"final_logit_softcapping": None, "attn_logit_softcapping": None}},
    "gemma3": {"wide": {"text_config": _WIDE}},
    "gemma3_text": {
        "wide": _WIDE,
        "window-16": _AT_16,
        "caps": {"final_logit_softcapping": 3.0, "attn_logit_softcapping": 2.0},
    },
    "gemma3n_text": {
        "shared-keys": {
            "num_hidden_layers": 4,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "num_kv_shared_layers": 2,
            "intermediate_size": [64] * 4,
            "activation_sparsity_pattern": [0.95, 0.0] * 2,
        }
    },
    "gemma4_text": {
        "capped": {"final_logit_softcapping": 3.0},
        "experts": {"enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 16},
    },
    "glm_moe_dsa": {"all-keys": {"index_topk": POSITIONS}},
    "gpt2": {
        "untied": {"tie_word_embeddings": False},
        "scaled": {"scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True},
    },
    "gpt_bigcode": {"many-heads": {"multi_query": False}},
    "gpt_neo": {"wide": {"window_size": POSITIONS}},
    "gpt_neox": {"sequential": {"use_parallel_residual": False}, "turned-whole": {"rotary_pct": 1.0}},
    "gpt_oss": {"wide": _WIDE, "window-16": _AT_16, "yarn": _YARN},
    "granite": {
        "scaled": {
            "logits_scaling": 4.0,
            "embedding_multiplier": 2.0,
            "attention_multiplier": 0.3,
            "residual_multiplier": 0.7,
        }
    },
    "granitemoehybrid": {"mamba-only": {"layer_types": ["linear_attention"] * 2}},
    "lfm2": {"attention-only": {"layer_types": ["full_attention"] * 2}},
    "llama": {
        "tied": {"tie_word_embeddings": True},
        "biased": {"attention_bias": True, "mlp_bias": True},
        "many-keys": {"num_key_value_heads": 4},
        "one-key": {"num_key_value_heads": 1},
        "linear": _LINEAR,
        "yarn": _YARN,
        "llama3": _LLAMA3,
        "dynamic": _DYNAMIC,
        "dynamic-crossed": _DYNAMIC | {"max_position_embeddings": 16},
        "longrope": _rope(**_LONG, **_NO_LIMIT),
        "longrope-crossed": _rope(**_LONG, **_FROM_16),
        "few-positions": {"max_position_embeddings": 48},
        "wide-vocabulary": {"vocab_size": VOCABULARY + 59},
    },
    "llama4": {"wide": {"text_config": {"attention_chunk_size": POSITIONS}}},
    "llama4_text": {"wide": {"attention_chunk_size": POSITIONS}, "one-chunk": {"attention_chunk_size": 16}},
    "mamba": {"untied": {"tie_word_embeddings": False}},
    "minicpm3": {"longrope-crossed": _rope(**_LONG, **_FROM_16)},
    "minimax": {"attention-first": {"layer_types": ["linear_attention", "full_attention"]}},
    "ministral": {"wide": _WIDE},
    "minimax_m3_vl_text": {
        "sparse": {
            "layer_types": ["full_attention", "minimax_m3_sparse"],
            "index_n_heads": 2,
            "index_head_dim": 8,
            "index_block_size": 4,
            "index_topk_blocks": 2,
        }
    },
    "mistral": {"wide": _WIDE, "window-16": _AT_16, "no-window": {"sliding_window": None}},
    "mixtral": {"window": {"sliding_window": 8}},
    "modernbert-decoder": {"wide": {"local_attention": POSITIONS}},
    "mpt": {"no-alibi": {"attn_config": {"alibi": False}}},
    "olmo": {"clipped": {"clip_qkv": 1.0}},
    "olmo3": {"wide": _WIDE},
    "opt": {"post-norm": {"do_layer_norm_before": False}, "narrow-words": {"word_embed_proj_dim": 16}},
    "phi": {"qk-norm": {"qk_layernorm": True}},
    "phi3": {
        "window": {"sliding_window": 8},
        "longrope": {
            "rope_parameters": {"rope_theta": 10000.0, **_LONG},
            "original_max_position_embeddings": POSITIONS,
        },
        "longrope-crossed": {
            "rope_parameters": {"rope_theta": 10000.0, **_LONG},
            "original_max_position_embeddings": 16,
        },
        "partial": {"partial_rotary_factor": 0.5},
    },
    "phimoe": {"longrope-crossed": _rope(**_LONG, short_mscale=1.1, long_mscale=1.3, **_FROM_16)},
    "qwen2": {
        "window": {
            "use_sliding_window": True,
            "max_window_layers": 1,
            "layer_types": ["full_attention", "sliding_attention"],
        },
        "yarn": _YARN,
    },
    "qwen2_moe": {"dense-first": {"mlp_only_layers": [0]}},
    "qwen3": {"tied": {"tie_word_embeddings": True}, "yarn": _YARN},
    "qwen3_moe": {"dense-first": {"mlp_only_layers": [0]}},
    "qwen3_next": {"attention-first": {"layer_types": ["full_attention", "linear_attention"]}},
    "reformer": {"hashed": {"attn_layers": ["local", "lsh"], "num_buckets": 4, "hash_seed": 1}},
    "rwkv": {"rescaled": {"rescale_every": 1}},
    "smollm3": {"no-positions": {"no_rope_layers": [1, 0]}},
    "stablelm": {"parallel": {"use_parallel_residual": True, "qk_layernorm": True}},
    "starcoder2": {"window": {"sliding_window": 8}},
    "xglm": {"unscaled": {"scale_embedding": False}},
    "xlm": {"causal": {"causal": True}},
    "xlnet": {"causal": {"attn_type": "uni"}},
}
"""More than one kind of a family: family -> name -> settings."""

REFUSED = {
    **dict.fromkeys(("cpmant", "xlm", "xlnet", *(f"{kind}-encoder" for kind in ENCODERS)), "encoder|ahead"),
    **dict.fromkeys(("reformer", "reformer-hashed"), "gradient"),
    "llama-dynamic-crossed": "positions",
    "mllama": "read back",
    "prophetnet": "logits",
    "rwkv-rescaled": "rescale_every",
}
"""Variants that must be refused, and what the line must say."""


def all_variants() -> list[Variant]:
    """Every family as it is by rule, those further kinds, and the encoders as encoders, by name."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL

    found = {kind: (kind, {}) for kind in CAUSAL if kind not in NOT_TINY}
    found |= {f"{kind}-{name}": (kind, changes) for kind, more in FURTHER.items() for name, changes in more.items()}
    found |= {f"{kind}-encoder": (kind, {"is_decoder": False}) for kind in ENCODERS}
    return [Variant(name, *found[name], REFUSED.get(name, "")) for name in sorted(found)]


VARIANTS = all_variants()
