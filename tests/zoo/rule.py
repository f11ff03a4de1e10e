"""Settings that make most families small: by the names under which their configs keep numbers."""

from __future__ import annotations

from typing import Any

SPECIALS = ["<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<unk>"]
VOCABULARY = 256 + len(SPECIALS)
PAD, BOS, EOS, _, END = range(256, 261)
WIDTH, LAYERS, HEADS, POSITIONS = 32, 2, 4, 512
_NUMBERS: list[tuple[int, str]] = [
    (
        WIDTH,
        "hidden_size d_model n_embd embedding_size embedding_dim word_embed_proj_dim input_embedding_size "
        "output_embedding_size lru_width attention_hidden_size emb_dim",
    ),
    (
        64,
        "intermediate_size ffn_dim decoder_ffn_dim encoder_ffn_dim dim_ff dff d_inner ffn_hidden_size n_inner "
        "feed_forward_size intermediate_size_mlp dense_intermediate_size",
    ),
    (
        LAYERS,
        "num_hidden_layers n_layer n_layers num_layers decoder_layers encoder_layers num_blocks num_decoder_layers "
        "num_encoder_layers num_layers_per_stack depth",
    ),
    (
        HEADS,
        "num_attention_heads n_head n_heads num_heads attention_heads decoder_attention_heads encoder_attention_heads "
        "num_decoder_attention_heads num_encoder_attention_heads swa_num_attention_heads linear_num_value_heads "
        "linear_num_heads",
    ),
    (
        4,
        "num_experts num_local_experts n_routed_experts moe_num_experts mamba_d_state state_size ssm_state_size "
        "mamba_dt_rank time_step_rank laurel_rank d_rel hc_lowrank adapter_rank gated_norm_rank",
    ),
    (
        2,
        "num_key_value_heads num_kv_heads swa_num_key_value_heads num_experts_per_tok num_experts_per_token "
        "num_query_groups linear_num_key_heads moe_k moe_topk n_group num_expert_group o_groups hc_mult "
        "hc_count altup_num_inputs zero_expert_num",
    ),
    (
        1,
        "topk_group n_shared_experts num_shared_experts moe_num_shared_experts first_k_dense_replace num_dense_layers "
        "n_groups mamba_n_groups",
    ),
    (
        8,
        "head_dim v_head_dim qk_rope_head_dim qk_nope_head_dim kv_lora_rank index_head_dim linear_key_head_dim "
        "linear_value_head_dim linear_head_dim swa_head_dim mamba_d_head mamba_n_heads mamba_head_dim mamba_num_heads "
        "kv_channels dim_head d_head chunk_size mamba_chunk_size index_topk query_pre_attn_scalar o_lora_rank "
        "hidden_size_per_layer_input rotary_dim attention_head_size sliding_window window_size sliding_window_size "
        "attention_window_size attention_chunk_size local_attention",
    ),
    (16, "index_n_heads"),  # of few, none may care for a key: equals are then chosen by the number of tokens there are
    (
        16,
        "q_lora_rank moe_intermediate_size shared_expert_intermediate_size shared_intermediate_size "
        "moe_shared_expert_intermediate_size shared_experts_intermediate_size expert_ffn_hidden_size qk_head_dim "
        "router_hidden_size ple_embed_dim",
    ),
    (
        POSITIONS,
        "max_position_embeddings n_positions n_ctx max_seq_len context_length max_target_positions model_max_length",
    ),
    (VOCABULARY, "vocab_size vocab_size_per_layer_input decoder_vocab_size unpadded_vocab_size"),
]
SMALL = {name: value for value, names in _NUMBERS for name in names.split()}
"""Setting by name, where a family has a number under it."""
CAPS = {
    "final_logit_softcapping": 3.0,
    "attn_logit_softcapping": 2.0,
    "logits_soft_cap": 3.0,
    "output_logit_soft_cap": 3.0,
}
"""Soft caps low enough to bend these models' logits, where a family has one."""
IDS = {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD}
OTHER_IDS = "cls_token_id sep_token_id decoder_start_token_id forced_eos_token_id eod_token_id"


def by_rule(default: Any) -> dict[str, Any]:
    """Small settings for a config, out of its defaults; its parts' settings are dicts of their own."""
    own = vars(default)
    small = {k: v for k, v in SMALL.items() if type(own.get(k)) is int}
    small |= {k: v for k, v in CAPS.items() if isinstance(own.get(k), float)}
    small |= {k: EOS for k in OTHER_IDS.split() if type(own.get(k)) is int}
    small |= {k: _kinds(own[k]) for k in ("layer_types", "mlp_layer_types") if isinstance(own.get(k), list)}
    if "kv_lora_rank" in small and "num_key_value_heads" in small:
        small["num_key_value_heads"] = HEADS  # latent attention has as many keys as queries
    for name in default.sub_configs:
        if (part := getattr(default, name, None)) is not None:
            small[name] = by_rule(part)
    return small | (IDS if hasattr(default, "vocab_size") or "text_config" in small else {})


def _kinds(layers: list[str]) -> list[str]:
    """A layer of each of the first two kinds."""
    kinds = list(dict.fromkeys(layers))[:LAYERS]
    return kinds + kinds[-1:] * (LAYERS - len(kinds))
