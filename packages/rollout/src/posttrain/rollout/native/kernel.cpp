// The forward pass of a Llama-like model and the draw of a token, in fp32, for the CPU that it was compiled on.
//
// A row is one token of one sequence. Rows run together in blocks only so that a weight that has been fetched serves
// many of them: every sum of a row runs in an order of its own, which no other row, block or thread can change. So a
// sequence's bits do not depend on what else runs, and neither does it matter who shares its prompt or when it entered.
//
// Python (kernel.py) owns all memory and mirrors the structs of model.h. Nothing here knows of text, requests or files.

#include <algorithm>
#include <cstdint>
#include <vector>

#include "draw.h"
#include "forward.h"
#include "pool.h"

static Scratch& scratch() {
    static thread_local Scratch s;
    return s;
}

// Up to `steps` tokens for each of n running sequences.
static void advance(const Model& m, Sequence** sequences, int n, const uint8_t* ends, int steps) {
    std::vector<Sequence*> running(sequences, sequences + n);
    std::vector<Row> rows(n);
    std::vector<float> sums(padded(m.vocab, LANES) / LANES);
    for (int step = 0; step < steps && !running.empty(); step++) {
        const int count = static_cast<int>(running.size());
        for (int r = 0; r < count; r++) {
            Sequence& q = *running[r];
            rows[r] = {q.token, q.prefix.length + q.own.length, &q.prefix, &q.own};
        }
        Scratch& s = scratch();
        forward(m, rows.data(), count, s, true);
        for (int r = 0; r < count; r++) {
            Sequence& q = *running[r];
            float* logits = s.logits.data() + static_cast<int64_t>(r) * s.ls;
            q.own.length++;
            if (q.logits) {
                std::copy(logits, logits + m.vocab, q.logits);
                continue;
            }
            const double uniform = q.temperature > 0 ? q.uniforms[q.count] : 0;
            q.token = draw(logits, m.vocab, q.temperature, uniform, sums.data(), q.logprobs + q.count);
            q.tokens[q.count++] = q.token;
            if (ends[q.token] && !q.ignore_end) {
                q.state = ENDED;
            } else if (q.count == q.limit) {
                q.state = FULL;
            }
        }
        running.erase(std::remove_if(running.begin(), running.end(), [](Sequence* q) { return q->state != RUNNING; }),
                      running.end());
    }
}

// ---- what Python calls ---------------------------------------------------------------------------------------------

extern "C" {

void posttrain_layout(int32_t* lanes, int32_t* panel, int32_t* sequence_bytes, int32_t* model_bytes) {
    *lanes = LANES;
    *panel = PANEL;
    *sequence_bytes = sizeof(Sequence);
    *model_bytes = sizeof(Model);
}

// Up to `steps` tokens for the n sequences sequences[index[i]], all RUNNING and with room for them, `block` at a time.
void posttrain_decode(const Model* m, Sequence* sequences, const int32_t* index, int n, const uint8_t* ends, int steps,
                      int block, int threads) {
    std::vector<Sequence*> chosen(n);
    for (int i = 0; i < n; i++) chosen[i] = sequences + index[i];
    const int units = (n + block - 1) / block;
    pool().run(units, threads, [&](int unit) {
        // Blocks of nearly the same size, so that no thread waits for another.
        const int from = static_cast<int64_t>(n) * unit / units, to = static_cast<int64_t>(n) * (unit + 1) / units;
        advance(*m, chosen.data() + from, to - from, ends, steps);
    });
}

// Places the keys and values of n texts of tokens: text i is tokens[starts[i] … starts[i + 1]), written to segments[i],
// which is empty and has room for it. Given, logits [starts[n]][vocab] gets those after every token.
void posttrain_prefill(const Model* m, const int32_t* tokens, const int64_t* starts, int n, Segment* segments,
                       float* logits, int block, int threads) {
    static const Segment nothing{nullptr, 0, 0};
    // Each unit is a run of texts with about as many tokens as the others; its rows stand together in blocks.
    const int units = std::min(n, 4 * threads);
    std::vector<int> first(units + 1, n);
    for (int unit = 0, text = 0; unit < units; unit++) {
        first[unit] = text;
        while (text < n && (starts[text] - starts[0]) * units < (starts[n] - starts[0]) * (unit + 1)) text++;
    }
    pool().run(units, threads, [&](int unit) {
        std::vector<Row> rows;
        int64_t done = starts[first[unit]];
        auto flush = [&] {
            if (rows.empty()) return;
            Scratch& s = scratch();
            forward(*m, rows.data(), static_cast<int>(rows.size()), s, logits != nullptr);
            for (size_t r = 0; logits && r < rows.size(); r++) {
                const float* from = s.logits.data() + static_cast<int64_t>(r) * s.ls;
                std::copy(from, from + m->vocab, logits + (done + static_cast<int64_t>(r)) * m->vocab);
            }
            done += static_cast<int64_t>(rows.size());
            rows.clear();
        };
        for (int text = first[unit]; text < first[unit + 1]; text++) {
            for (int64_t t = starts[text]; t < starts[text + 1]; t++) {
                rows.push_back({tokens[t], static_cast<int32_t>(t - starts[text]), &nothing, segments + text});
                if (static_cast<int>(rows.size()) == block) flush();
            }
        }
        flush();
        for (int text = first[unit]; text < first[unit + 1]; text++)
            segments[text].length = static_cast<int32_t>(starts[text + 1] - starts[text]);
    });
}

// One draw from each row of logits [n][vocab] (overwritten; vocab a multiple of 16), as `decode` draws.
void posttrain_draw(float* logits, int n, int vocab, float temperature, const double* uniforms, int32_t* tokens,
                    float* logprobs) {
    std::vector<float> sums(vocab / LANES + 1);
    for (int r = 0; r < n; r++)
        tokens[r] = draw(logits + static_cast<int64_t>(r) * vocab, vocab, temperature, uniforms ? uniforms[r] : 0,
                         sums.data(), logprobs + r);
}
}
