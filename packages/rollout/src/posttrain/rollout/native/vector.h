// Vectors of floats as wide as the processor's, and the exponential function of them.
#pragma once

#include <cstdint>

// A tile of TILE rows by COLS vectors of accumulators, with the weights it multiplies, has to fit in the registers.
#if defined(__AVX512F__)
constexpr int LANES = 16, COLS = 4, TILE = 6;
#elif defined(__AVX__)
constexpr int LANES = 8, COLS = 2, TILE = 6;
#else
constexpr int LANES = 4, COLS = 4, TILE = 4;
#endif
constexpr int PANEL = LANES * COLS;  // columns of a packed matrix that lie together

typedef float vec __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

static inline vec load(const float* p) { return *reinterpret_cast<const vec*>(p); }
static inline void store(float* p, vec v) { *reinterpret_cast<vec*>(p) = v; }
static inline vec splat(float s) { return vec{} + s; }
static inline int padded(int n, int to) { return (n + to - 1) / to * to; }

static inline float sum(vec v) {
    float s = 0;
    for (int i = 0; i < LANES; i++) s += v[i];
    return s;
}

// e^x to about 2 units in the last place, up to x = 88. Below -87 it is 0: such a share of a sum cannot be told from
// nothing, and a token of no probability must not be drawn.
static inline vec exponential(vec x) {
    const ivec vanishes = x < splat(-87.0f);
    x = vanishes ? splat(-87.0f) : x;
    x = x < splat(88.0f) ? x : splat(88.0f);
    const vec shift = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
    vec n = (x * splat(1.44269504f) + shift) - shift;
    vec r = x - n * splat(0.693359375f) - n * splat(-2.12194440e-4f);
    vec p = splat(1.9875691500e-4f);
    p = p * r + splat(1.3981999507e-3f);
    p = p * r + splat(8.3334519073e-3f);
    p = p * r + splat(4.1665795894e-2f);
    p = p * r + splat(1.6666665459e-1f);
    p = p * r + splat(5.0000001201e-1f);
    p = p * r * r + r + splat(1.0f);
    ivec e = (__builtin_convertvector(n, ivec) + 127) << 23;
    return vanishes ? vec{} : p * reinterpret_cast<vec&>(e);
}
