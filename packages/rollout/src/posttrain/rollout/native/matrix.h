// Linear layers, norms and the gate between two of them, each number summed in an order of its own.
#pragma once

#include <cmath>

#include "model.h"
#include "vector.h"

// y[r][0 … PANEL) (+)= bias + x[r] · panel for R rows; each number is one chain of multiply-adds over k.
template <int R>
static void tile(const float* x, int xs, const float* panel, int in, const float* bias, float* y, int ys, bool add) {
    vec acc[R][COLS];
    for (int r = 0; r < R; r++)
        for (int c = 0; c < COLS; c++) acc[r][c] = bias ? load(bias + c * LANES) : vec{};
    for (int k = 0; k < in; k++) {
        vec w[COLS];
#pragma GCC unroll 8
        for (int c = 0; c < COLS; c++) w[c] = load(panel + k * PANEL + c * LANES);
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            vec v = splat(x[r * xs + k]);
#pragma GCC unroll 8
            for (int c = 0; c < COLS; c++) acc[r][c] += v * w[c];
        }
    }
    for (int r = 0; r < R; r++)
        for (int c = 0; c < COLS; c++) {
            float* to = y + r * ys + c * LANES;
            store(to, add ? load(to) + acc[r][c] : acc[r][c]);
        }
}

// y[n][out padded] (+)= x[n][in] · Wᵀ + bias.
static void multiply(const Linear& w, const float* x, int xs, int n, float* y, int ys, bool add = false) {
    const int tiles = (n + TILE - 1) / TILE;
    for (int p = 0; p * PANEL < w.out; p++) {
        const float* panel = w.packed + static_cast<int64_t>(p) * w.in * PANEL;
        const float* bias = w.bias ? w.bias + p * PANEL : nullptr;
        for (int t = 0, row = 0; t < tiles; t++) {
            const int rows = (n - row) / (tiles - t);  // tiles of nearly the same height
            const float* from = x + static_cast<int64_t>(row) * xs;
            float* to = y + static_cast<int64_t>(row) * ys + p * PANEL;
            switch (rows) {
                case 1: tile<1>(from, xs, panel, w.in, bias, to, ys, add); break;
                case 2: tile<2>(from, xs, panel, w.in, bias, to, ys, add); break;
                case 3: tile<3>(from, xs, panel, w.in, bias, to, ys, add); break;
                case 4: tile<4>(from, xs, panel, w.in, bias, to, ys, add); break;
                case 5: tile<5>(from, xs, panel, w.in, bias, to, ys, add); break;
                default: tile<6>(from, xs, panel, w.in, bias, to, ys, add); break;
            }
            row += rows;
        }
    }
}

// y = x / rms(x) * weight, over n numbers in a buffer padded with zeros to a multiple of LANES.
static void rms_norm(const float* x, const float* weight, int n, float eps, float* y) {
    vec squares{};
    for (int i = 0; i < n; i += LANES) squares += load(x + i) * load(x + i);
    const vec scale = splat(1.0f / std::sqrt(sum(squares) / n + eps));
    for (int i = 0; i < n; i += LANES) store(y + i, load(x + i) * scale * load(weight + i));
}

// act[n][intermediate] = f(gate) * up, f the SiLU or the tanh form of the GELU.
static void gate(const Model& m, const float* gate_up, int gs, int n, float* act, int as) {
    const int up = padded(m.intermediate, PANEL);
    for (int r = 0; r < n; r++)
        for (int i = 0; i < m.intermediate; i += LANES) {
            const vec g = load(gate_up + r * gs + i);
            vec s = g;  // both are g times a logistic function: of g, or of 2 · √(2/π) · (g + 0.044715 g³)
            if (m.gelu) s = splat(1.5957691216f) * (g + splat(0.044715f) * g * g * g);
            store(act + r * as + i, g / (splat(1.0f) + exponential(-s)) * load(gate_up + r * gs + up + i));
        }
}
