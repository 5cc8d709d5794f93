// How a token is drawn from its logits.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "vector.h"

// The token at `uniform` in the cumulative distribution of softmax(logits / temperature), and its log-probability.
// Temperature 0 takes the first of the most probable and reports at temperature 1. `logits` is overwritten and has room
// up to a multiple of LANES; `sums` holds a float for each vector of them.
static int draw(float* logits, int vocab, float temperature, double uniform, float* sums, float* logprob) {
    for (int i = vocab; i < padded(vocab, LANES); i++) logits[i] = -std::numeric_limits<float>::infinity();
    if (temperature > 0 && temperature != 1) {
        const vec by = splat(temperature);
        for (int i = 0; i < vocab; i += LANES) store(logits + i, load(logits + i) / by);
    }
    vec most = load(logits);
    for (int i = LANES; i < vocab; i += LANES) most = load(logits + i) > most ? load(logits + i) : most;
    float top = most[0];
    for (int i = 1; i < LANES; i++) top = std::max(top, most[i]);
    int token = 0;
    if (temperature == 0)
        while (token < vocab - 1 && logits[token] != top) token++;
    double total = 0;
    for (int i = 0; i < vocab; i += LANES) {
        const vec e = exponential(load(logits + i) - splat(top));
        store(logits + i, e);
        total += sums[i / LANES] = sum(e);
    }
    if (temperature > 0) {
        // First the vector, then the lane. Both add up in the order of `total`, so that the target is always found.
        const double target = uniform * total;
        double before = 0;
        int i = 0;
        while (i + LANES < vocab && before + sums[i / LANES] <= target) before += sums[i / LANES], i += LANES;
        float within = 0;
        for (token = i; token < vocab - 1; token++) {
            within += logits[token];
            if (before + within > target) break;
        }
    }
    *logprob = static_cast<float>(std::log(static_cast<double>(logits[token])) - std::log(total));
    return token;
}
