// What agents have put becomes their own.

// R_i grows by a times what X0_i does, and its length is found.
//   slots: (counted,) each once.
//   vectors: (counted, d) what X0 is to be there.
//   capabilities_now, load_now: (counted,) what they can do and how busy they are; null if that stays.
extern "C" __global__ void __launch_bounds__(THREADS)
    say(const i64* slots, u64 counted, const u16* vectors, u64 is_there_now, const u64* capabilities_now,
        const float* load_now, u64 alpha_bits, u16* own, float* residual, float* norm, u8* is_there, u64* capabilities,
        float* load_of) {
    const float alpha = number(alpha_bits);
    for (u64 which = warp_number(); which < counted; which += warp_count()) {
        const u64 slot = slots[which];
        float sum = 0;
        EACH_PART(first) {
            Piece left[PIECES];
            EACH_PIECE(first) {
                const u64 column = first + piece * LANES * V, to = slot * WIDTH + column;
                const u16* from = vectors + which * WIDTH + column;
                const Piece next = load_half(from), before = load_half(own + to);
                left[piece] = load(residual + to);
                for (int number = 0; number < V; number++)
                    left[piece].at[number] += alpha * (next.at[number] - before.at[number]);
                store(residual + to, left[piece]);
                copy_half(own + to, from);
            }
            sum += squares(left, first);
        }
        sum = total(sum);
        if (lane_number()) continue;
        norm[slot] = sqrtf(sum);
        is_there[slot] = is_there_now;
        if (capabilities_now) capabilities[slot] = capabilities_now[which];
        if (load_now) load_of[slot] = load_now[which];
    }
}
