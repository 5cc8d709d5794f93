// What Python hands over: a model's packed weights and the state of each sequence. structs.py mirrors these, field by
// field; all memory is Python's.
#pragma once

#include <cstdint>

struct Linear {
    const float* packed;  // [out / PANEL][in][PANEL], zeros beyond `out`
    const float* bias;    // [out padded to PANEL] or null
    int32_t in, out;
};

struct Layer {
    const float *attention_norm, *mlp_norm;  // [hidden padded to PANEL]
    const float *q_norm, *k_norm;            // [head_dim] or null
    Linear qkv, o, gate_up, down;
};

struct Model {
    int32_t layers, hidden, heads, kv_heads, head_dim, intermediate, vocab, gelu;
    float eps, attention_scale, embedding_scale;
    const float* embedding;   // [vocab][hidden]
    const float *cos, *sin;   // [context][head_dim / 2]
    const float* norm;        // [hidden padded to PANEL]
    Linear head;
    const Layer* layer;
};

// Keys and values of consecutive positions: per layer, keys [kv_heads][head_dim][capacity], then values
// [kv_heads][capacity][head_dim]. `capacity` is a multiple of LANES.
struct Segment {
    float* data;
    int32_t capacity, length;
};

enum State : int32_t { IDLE = 0, RUNNING = 1, ENDED = 2, FULL = 3 };

struct Sequence {
    Segment prefix;          // read only, may be shared with others
    Segment own;
    const double* uniforms;  // [limit] random numbers in [0, 1)
    int32_t* tokens;         // [limit] out: sampled ids
    float* logprobs;         // [limit] out: their log-probabilities
    float* logits;           // [vocab] or null; given, a step leaves the logits here and samples nothing
    float temperature;       // 0: the most probable token
    int32_t token;           // goes in next
    int32_t count, limit;    // sampled so far, at most
    int32_t ignore_end;
    int32_t state;
};
