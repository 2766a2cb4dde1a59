// Sweeps that pass on what some rows have, one after another without the host: what is to be done is counted on the
// device, and a kernel that finds nothing ends at once.
//
// A sweep is `pass_on`, `pull` and `take`. The first is preceded by `select_rows`, which lists the rows that are long,
// and `take`.

struct Sweep {
    u64 reached;  // rows whose R has changed, listed
    u64 taken;    // of these the rows that are passed on, above the number of their parts in 32 bits
    u64 edges;    // to who hears those
    u64 ran;      // they have been passed on
    u64 ahead;    // of the first one: edges to who hears the rows that are listed
    u64 longest;  // of the last one of several: the bits of the length of the longest row of R
};

// What a list has no room for is not passed on, and is not lost: R anew from Z has it.
__device__ static inline bool is_cheap(u64 rows, u64 edges, u64 limit, u64 rows_room) {
    return rows && rows + edges < limit && rows <= rows_room;
}

// The rows of R that are longer than epsilon.
extern "C" __global__ void __launch_bounds__(THREADS)
    select_rows(const float* norm, u64 rows, u64 epsilon_bits, const u64* count, i32* reached, Sweep* sweep) {
    const float epsilon = number(epsilon_bits);
    for (u64 begin = warp_number() * LANES; begin < rows; begin += warp_count() * LANES) {
        const u64 row = begin + lane_number();
        const bool is_over = row < rows && norm[row] > epsilon;
        if (!__ballot_sync(EVERY_LANE, is_over)) continue;
        append(is_over, (i32)row, reached, &sweep->reached);
        const u64 edges = total(is_over ? count[row] : (u64)0);
        if (!lane_number()) atomicAdd(&sweep->ahead, edges);
    }
}

__device__ static inline void take_row(float* left, float* blend, float* copy) {
    EACH_PART(first) {
        Piece taken[PIECES], blended[PIECES];
        EACH_PIECE(first) {
            taken[piece] = load(left + first + piece * LANES * V);
            blended[piece] = load(blend + first + piece * LANES * V);
        }
        EACH_PIECE(first) {
            const u64 column = first + piece * LANES * V;
            for (int number = 0; number < V; number++) blended[piece].at[number] += taken[piece].at[number];
            store(blend + column, blended[piece]);
            store(left + column, Piece());
            if (copy) store(copy + column, taken[piece]);
        }
    }
}

// Of the rows that are listed, those that are longer than epsilon: Z += R, R = 0, and a copy of R to be passed on.
//   is_first: `select_rows` has listed them, and says what they would cost.
//   reached: (sweep->reached,).
//   is_reached: of each row, whether it is in that list; not set by `select_rows`.
//   frontier: (rows_room,) the rows taken.
//   place: of each row that is in `frontier`, where; of others it means nothing.
//   parts: (parts_room,) what `pass_on` goes along: the number of the row in `frontier`, and above it that of the part.
//   passed: (rows_room, WIDTH) the copy.
extern "C" __global__ void __launch_bounds__(THREADS)
    take(Sweep* sweep, u64 is_first, u64 epsilon_bits, u64 limit, const i32* reached, i32* is_reached, float* residual,
         float* blended, const float* norm, u8* stirred, const u64* count, i32* frontier, u32* place, float* passed,
         u64 rows_room, u64* parts, u64 parts_room) {
    const float epsilon = number(epsilon_bits);
    const u64 many = sweep->reached;
    if (is_first && !is_cheap(many, sweep->ahead, limit, rows_room)) return;
    // A lane looks at a row, and the warp takes it: of few rows each warp has one.
    const u64 share = (many + warp_count() - 1) / warp_count(), step = share < LANES ? share : LANES;
    for (u64 begin = warp_number() * step; begin < many; begin += warp_count() * step) {
        const u64 mine = begin + lane_number();
        const bool is_mine = lane_number() < step && mine < many;
        const u32 listed = is_mine ? (u32)reached[mine] : 0;
        const bool is_over = is_mine && norm[listed] > epsilon;
        if (is_mine) is_reached[listed] = 0;
        for (u32 lanes = __ballot_sync(EVERY_LANE, is_over); lanes; lanes &= lanes - 1) {
            const u64 row = __shfl_sync(EVERY_LANE, listed, __ffs(lanes) - 1);
            const u64 edges = count[row], row_parts = edges / PART + 1;
            u64 begins = 0;
            if (!lane_number()) {
                begins = atomicAdd(&sweep->taken, (u64)1 << 32 | row_parts);
                atomicAdd(&sweep->edges, edges);
                stirred[row] = 1;
            }
            begins = __shfl_sync(EVERY_LANE, begins, 0);
            const u64 number_taken = begins >> 32, first_part = (u32)begins;
            const bool has_room = number_taken < rows_room;
            if (has_room && !lane_number()) {
                frontier[number_taken] = (i32)row;
                place[row] = (u32)number_taken;
            }
            for (u64 part = lane_number(); part < row_parts; part += LANES) {
                if (first_part + part < parts_room) parts[first_part + part] = part << 32 | number_taken;
            }
            take_row(residual + row * WIDTH, blended + row * WIDTH, has_room ? passed + number_taken * WIDTH : 0);
        }
    }
}

// Who hears the rows that are taken is listed, they themselves first of all, and `pull` adds what it hears of them. Rows
// that hear more than LONG others are not gone along for that: here it is added to their R.
//   sweep: of what was taken; the next one in memory gets what is reached.
//   heard: of each row, how many it hears.
extern "C" __global__ void __launch_bounds__(THREADS)
    pass_on(Sweep* sweep, u64 limit, i32* reached, i32* is_reached, float* residual, const u64* start, const u64* count,
            const i32* other, const float* weight, const u64* heard, const float* scale, u64 alpha_bits,
            const i32* frontier, const float* passed, u64 rows_room, const u64* parts) {
    const u64 taken = sweep->taken, many = (u32)taken;
    if (!is_cheap(taken >> 32, sweep->edges, limit, rows_room)) return;
    if (!warp_number() && !lane_number()) sweep->ran = 1;
    const float kept = 1 - number(alpha_bits);
    for (u64 which = warp_number(); which < many; which += warp_count()) {
        const u64 number_taken = (u32)parts[which], begin = (parts[which] >> 32) * PART;
        const u64 row = (u32)frontier[number_taken], all = count[row] + 1;
        const u64 end = begin + PART < all ? begin + PART : all;
        for (u64 from = begin; from < end; from += LANES) {
            const u64 mine = from + lane_number();
            u32 whom = (u32)row;
            float share = 0;
            if (mine < end) {
                const u64 edge = start[row] + mine - 1;
                if (mine) whom = (u32)other[edge];
                share = kept * scale[whom] * (mine ? weight[edge] : 1.0f);
            }
            // The row itself in any case: its length is not what it was.
            const bool is_heard = mine < end && (!mine || share != 0);
            const bool is_new = is_heard && !is_reached[whom] && !atomicExch(is_reached + whom, 1);
            append(is_new, (i32)whom, reached, &sweep[1].reached);
            const bool is_long = is_heard && heard[whom] > LONG;
            for (u32 lanes = __ballot_sync(EVERY_LANE, is_long); lanes; lanes &= lanes - 1) {
                const int lane = __ffs(lanes) - 1;
                const u64 to = __shfl_sync(EVERY_LANE, whom, lane);
                const float by = __shfl_sync(EVERY_LANE, share, lane);
                EACH_PART(first) {
                    EACH_PIECE(first) {
                        const u64 column = first + piece * LANES * V;
                        add(residual + to * WIDTH + column, load_fixed(passed + number_taken * WIDTH + column), by);
                    }
                }
            }
        }
    }
}

// R_i += (1 - a) scale_i (sum of w_ij S_j) for the rows i that are listed, where S_j is what was taken of those that i
// hears, and its own; then their lengths. Each is added up by one warp, in the order of its edges.
//   start, count, other, weight: of those that rows hear.
extern "C" __global__ void __launch_bounds__(THREADS)
    pull(const Sweep* sweep, const i32* reached, float* residual, float* norm, const u64* start, const u64* count,
         const i32* other, const float* weight, const float* scale, u64 alpha_bits, const i32* frontier,
         const u32* place, const float* passed) {
    if (!sweep->ran) return;
    const u64 many = sweep[1].reached;
    const u32 taken = (u32)(sweep->taken >> 32);
    const float kept = 1 - number(alpha_bits);
    for (u64 which = warp_number(); which < many; which += warp_count()) {
        const u64 row = (u32)reached[which];
        const u64 all = count[row] > LONG ? 0 : count[row] + 1;
        const float mixed = kept * scale[row];
        float* left = residual + row * WIDTH;
        float square = 0;
        EACH_PART(first) {
            Piece sum[PIECES], now[PIECES];
            EACH_PIECE(first) {
                sum[piece] = Piece();
                now[piece] = load(left + first + piece * LANES * V);
            }
            for (u64 from = 0; from < all; from += LANES) {
                const u64 mine = from + lane_number();
                u32 from_place = 0;
                float share = 0;
                if (mine < all) {
                    const u64 edge = start[row] + mine - 1;
                    const u32 whom = mine ? (u32)other[edge] : (u32)row;
                    from_place = place[whom];
                    if (from_place < taken && (u32)frontier[from_place] == whom) share = mine ? weight[edge] : 1.0f;
                }
                for (u32 lanes = __ballot_sync(EVERY_LANE, share != 0); lanes;) {
                    Piece read[AT_ONCE][PIECES];
                    float by[AT_ONCE];
                    _Pragma("unroll") for (int one = 0; one < AT_ONCE; one++) {
                        const int lane = lanes ? __ffs(lanes) - 1 : 0;
                        const u64 at = (u64)__shfl_sync(EVERY_LANE, from_place, lane) * WIDTH + first;
                        by[one] = __shfl_sync(EVERY_LANE, share, lane);
                        EACH_PIECE(first) {
                            read[one][piece] = Piece();
                            if (lanes) read[one][piece] = load_fixed(passed + at + piece * LANES * V);
                        }
                        lanes &= lanes - 1;
                    }
                    _Pragma("unroll") for (int one = 0; one < AT_ONCE; one++) {
                        EACH_PIECE(first) {
                            for (int number = 0; number < V; number++)
                                sum[piece].at[number] += by[one] * read[one][piece].at[number];
                        }
                    }
                }
            }
            EACH_PIECE(first) {
                for (int number = 0; number < V; number++) now[piece].at[number] += mixed * sum[piece].at[number];
                store(left + first + piece * LANES * V, now[piece]);
            }
            square += squares(now, first);
        }
        square = total(square);
        if (!lane_number()) norm[row] = sqrtf(square);
    }
}

// The length of the longest row of R; not negative, so its bits have the order of numbers.
extern "C" __global__ void __launch_bounds__(THREADS) longest(const float* norm, u64 rows, Sweep* sweep) {
    float most = 0;
    const u64 threads = warp_count() * LANES;
    for (u64 row = warp_number() * LANES + lane_number(); row < rows; row += threads) most = fmaxf(most, norm[row]);
    for (int far = LANES / 2; far; far /= 2) most = fmaxf(most, __shfl_xor_sync(EVERY_LANE, most, far));
    if (!lane_number()) atomicMax(&sweep->longest, (u64)__float_as_uint(most));
}
