// Attention of one row over its keys and values, which may lie in two segments: a prompt's, shared, and its own.
#pragma once

#include <algorithm>
#include <limits>

#include "model.h"
#include "vector.h"

struct Row {
    int32_t token, position;
    const Segment* prefix;
    Segment* own;
};

static float* keys(const Model& m, const Segment& s, int layer, int head) {
    const int64_t part = static_cast<int64_t>(m.kv_heads) * m.head_dim * s.capacity;
    return s.data + 2 * layer * part + static_cast<int64_t>(head) * m.head_dim * s.capacity;
}

static float* values(const Model& m, const Segment& s, int layer, int head) {
    const int64_t part = static_cast<int64_t>(m.kv_heads) * m.head_dim * s.capacity;
    return s.data + (2 * layer + 1) * part + static_cast<int64_t>(head) * s.capacity * m.head_dim;
}

// x[head_dim] turned by its position (Su et al. 2021, in the two-halves form of transformers).
static void rotate(const Model& m, float* x, int position) {
    const int half = m.head_dim / 2;
    const float* c = m.cos + static_cast<int64_t>(position) * half;
    const float* s = m.sin + static_cast<int64_t>(position) * half;
    for (int i = 0; i < half; i++) {
        const float a = x[i], b = x[i + half];
        x[i] = a * c[i] - b * s[i];
        x[i + half] = b * c[i] + a * s[i];
    }
}

// Weighted sum of W vectors of the values at `offset` of each position, for H heads that share them.
template <int H, int W>
static void mix(const Model& m, const Row& row, int layer, int head, int offset, const float* weights, int ws,
                int own_length, const float* scale, float* out) {
    vec acc[H][W] = {};
    int before = 0;
    for (int part = 0; part < 2; part++) {
        const Segment& s = part ? *row.own : *row.prefix;
        const int length = part ? own_length : s.length;
        if (!length) continue;
        const float* v = values(m, s, layer, head) + offset;
        for (int p = 0; p < length; p++, v += m.head_dim) {
            vec value[W];
            for (int w = 0; w < W; w++) value[w] = load(v + w * LANES);
            for (int h = 0; h < H; h++) {
                const vec weight = splat(weights[h * ws + before + p]);
                for (int w = 0; w < W; w++) acc[h][w] += weight * value[w];
            }
        }
        before += length;
    }
    for (int h = 0; h < H; h++)
        for (int w = 0; w < W; w++) store(out + h * m.head_dim + offset + w * LANES, acc[h][w] * splat(scale[h]));
}

// Scores of W vectors of positions for H heads; independent sums, so that they need not wait for each other. Lanes past
// the end of the segment are the caller's to overwrite or mask.
template <int H, int W>
static void score(const Model& m, const Segment& s, const float* k, const float* q, float* scores, int stride) {
    vec acc[H][W] = {};
    for (int d = 0; d < m.head_dim; d++, k += s.capacity) {
        vec key[W];
        for (int w = 0; w < W; w++) key[w] = load(k + w * LANES);
        for (int h = 0; h < H; h++) {
            const vec part = splat(q[h * m.head_dim + d]);
            for (int w = 0; w < W; w++) acc[h][w] += part * key[w];
        }
    }
    for (int h = 0; h < H; h++)
        for (int w = 0; w < W; w++) store(scores + h * stride + w * LANES, acc[h][w]);
}

// H query heads of one row over the keys and values of one head. `scores` holds H * stride floats.
template <int H>
static void attend(const Model& m, const Row& row, int layer, int head, const float* q, float* scores, int stride,
                   float* out) {
    const int own_length = row.position - row.prefix->length + 1;
    const int total = row.position + 1;
    int before = 0;
    for (int part = 0; part < 2; part++) {
        const Segment& s = part ? *row.own : *row.prefix;
        const int length = part ? own_length : s.length;
        if (!length) continue;
        const float* k = keys(m, s, layer, head);
        int p = 0;
        for (; p + LANES < length; p += 2 * LANES) score<H, 2>(m, s, k + p, q, scores + before + p, stride);
        if (p < length) score<H, 1>(m, s, k + p, q, scores + before + p, stride);
        before += length;
    }
    float scale[H];
    for (int h = 0; h < H; h++) {
        float* s = scores + h * stride;
        for (int p = total; p < padded(total, LANES); p++) s[p] = -std::numeric_limits<float>::infinity();
        vec most = load(s);
        for (int p = LANES; p < total; p += LANES) most = load(s + p) > most ? load(s + p) : most;
        float top = most[0];
        for (int i = 1; i < LANES; i++) top = std::max(top, most[i]);
        vec all{};
        for (int p = 0; p < total; p += LANES) {
            const vec e = exponential(load(s + p) - splat(top));
            store(s + p, e);
            all += e;
        }
        scale[h] = 1.0f / sum(all);
    }
    int offset = 0;
    for (; offset + 2 * LANES <= m.head_dim; offset += 2 * LANES)
        mix<H, 2>(m, row, layer, head, offset, scores, stride, own_length, scale, out);
    if (offset < m.head_dim) mix<H, 1>(m, row, layer, head, offset, scores, stride, own_length, scale, out);
}
