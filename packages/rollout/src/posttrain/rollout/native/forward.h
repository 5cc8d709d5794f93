// One pass of some rows through all layers of a Llama-like model.
#pragma once

#include <algorithm>
#include <vector>

#include "attention.h"
#include "matrix.h"

// Buffers of one thread, kept from call to call.
struct Scratch {
    std::vector<float> x, normed, qkv, mixed, gate_up, act, logits, scores;
    int xs, qs, ms, gs, as, ls;

    void fit(const Model& m, int rows, int context) {
        xs = padded(m.hidden, PANEL);
        qs = padded((m.heads + 2 * m.kv_heads) * m.head_dim, PANEL);
        ms = m.heads * m.head_dim;
        gs = 2 * padded(m.intermediate, PANEL);
        as = padded(m.intermediate, LANES);
        ls = padded(m.vocab, PANEL);
        grow(x, rows * xs), grow(normed, rows * xs), grow(qkv, rows * qs), grow(mixed, rows * ms);
        grow(gate_up, rows * gs), grow(act, rows * as), grow(logits, static_cast<size_t>(rows) * ls);
        grow(scores, 4 * static_cast<size_t>(stride(context)));
    }
    static int stride(int context) { return padded(context, LANES) + 2 * LANES; }
    static void grow(std::vector<float>& buffer, size_t size) {
        if (buffer.size() < size) buffer.resize(size);
    }
};

static void place_keys_and_values(const Model& m, int layer, Row& row, float* qkv) {
    const Layer& w = m.layer[layer];
    const int d = m.head_dim, at = row.position - row.prefix->length;
    float* k = qkv + m.heads * d;
    const float* v = k + m.kv_heads * d;
    for (int h = 0; h < m.heads; h++) {
        float* q = qkv + h * d;
        if (w.q_norm) rms_norm(q, w.q_norm, d, m.eps, q);
        rotate(m, q, row.position);
        for (int i = 0; i < d; i += LANES) store(q + i, load(q + i) * splat(m.attention_scale));
    }
    for (int h = 0; h < m.kv_heads; h++) {
        if (w.k_norm) rms_norm(k + h * d, w.k_norm, d, m.eps, k + h * d);
        rotate(m, k + h * d, row.position);
        float* key = keys(m, *row.own, layer, h) + at;
        float* value = values(m, *row.own, layer, h) + static_cast<int64_t>(at) * d;
        for (int i = 0; i < d; i++) {
            key[static_cast<int64_t>(i) * row.own->capacity] = k[h * d + i];
            value[i] = v[h * d + i];
        }
    }
}

static void attend_row(const Model& m, int layer, const Row& row, const float* q, float* scores, float* out) {
    const int group = m.heads / m.kv_heads, stride = Scratch::stride(row.position + 1);
    for (int kv = 0; kv < m.kv_heads; kv++)
        for (int g = 0; g < group;) {
            const int at = (kv * group + g) * m.head_dim;
            if (group - g >= 4) {
                attend<4>(m, row, layer, kv, q + at, scores, stride, out + at), g += 4;
            } else if (group - g >= 2) {
                attend<2>(m, row, layer, kv, q + at, scores, stride, out + at), g += 2;
            } else {
                attend<1>(m, row, layer, kv, q + at, scores, stride, out + at), g += 1;
            }
        }
}

// Runs n rows through all layers. Keys and values of all rows of a layer are placed before any of them attends, so rows
// of one sequence may stand together, in order. Without `want_logits` the last layer only places its keys and values.
static void forward(const Model& m, Row* rows, int n, Scratch& s, bool want_logits) {
    int longest = 0;
    for (int r = 0; r < n; r++) longest = std::max(longest, rows[r].position + 1);
    s.fit(m, n, longest);
    for (int r = 0; r < n; r++) {
        float* x = s.x.data() + r * s.xs;
        const float* e = m.embedding + static_cast<int64_t>(rows[r].token) * m.hidden;
        for (int i = 0; i < m.hidden; i++) x[i] = e[i] * m.embedding_scale;
        for (int i = m.hidden; i < s.xs; i++) x[i] = 0;
    }
    auto normalise = [&](const float* weight) {
        for (int r = 0; r < n; r++)
            rms_norm(s.x.data() + r * s.xs, weight, m.hidden, m.eps, s.normed.data() + r * s.xs);
    };
    for (int l = 0; l < m.layers; l++) {
        const Layer& w = m.layer[l];
        normalise(w.attention_norm);
        multiply(w.qkv, s.normed.data(), s.xs, n, s.qkv.data(), s.qs);
        for (int r = 0; r < n; r++) place_keys_and_values(m, l, rows[r], s.qkv.data() + r * s.qs);
        if (!want_logits && l == m.layers - 1) return;
        for (int r = 0; r < n; r++)
            attend_row(m, l, rows[r], s.qkv.data() + r * s.qs, s.scores.data(), s.mixed.data() + r * s.ms);
        multiply(w.o, s.mixed.data(), s.ms, n, s.x.data(), s.xs, true);
        normalise(w.mlp_norm);
        multiply(w.gate_up, s.normed.data(), s.xs, n, s.gate_up.data(), s.gs);
        gate(m, s.gate_up.data(), s.gs, n, s.act.data(), s.as);
        multiply(w.down, s.act.data(), s.as, n, s.x.data(), s.xs, true);
    }
    normalise(m.norm);
    multiply(m.head, s.normed.data(), s.xs, n, s.logits.data(), s.ls);
}
